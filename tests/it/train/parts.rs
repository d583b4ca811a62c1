//! Backward in parts: blocks that are recomputed give the same bits, and a loss in chunks the same
//! numbers up to the order of sums.

use burn::backend::{Autodiff, Flex, NdArray};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor};
use burn_nvfp4::Nvfp4;
use burn_nvfp4::recipe::{Policy, Progress, Recipe, presets};
use burn_nvfp4::stats::{set_sampling, take_samples};
use burn_nvfp4_models::hybrid::step_memory::{Recompute, StepMemory};
use burn_nvfp4_models::train::config::TrainConfig;
use burn_nvfp4_models::train::step::loss_and_gradients;

use super::*;
use crate::device::exclusive;

/// Bits of every gradient, in the order of the parameters.
struct Bits<'a> {
    grads: &'a GradientsParams,
    found: Vec<Vec<u8>>,
}

impl<B: TrainingEngine> ModuleVisitor<B> for Bits<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let grad = self.grads.get::<B::InnerBackend, D>(param.id);
        let data = grad.expect("every parameter has a gradient").into_data();
        self.found.push(data.as_bytes().to_vec());
    }
}

const BLOCKS: StepMemory = StepMemory {
    recompute: Recompute::Blocks,
    loss_chunk: None,
};

/// Loss and gradients of a batch in the middle of a run.
fn step<B: TrainingEngine>(
    recipe: Recipe,
    activations: DType,
    memory: StepMemory,
    tokens: &Arc<TokenFile>,
) -> Vec<Vec<u8>> {
    let device = B::Device::default();
    let policy = Policy::uniform(recipe);
    let policy = policy.with_override("lm_head", presets::HIGH_PRECISION);
    burn_nvfp4::set_policy::<B>(&device, policy.unwrap()).unwrap();
    burn_nvfp4::set_seed::<B>(&device, 1);
    let progress = Progress {
        step: 3,
        total: 100,
    };
    burn_nvfp4::set_progress::<B>(&device, progress);
    let (file, shape) = (tokens.clone(), shape(2, 32, 1));
    let batches = TrainBatches::<B>::new(file, shape, 0, 0, device.clone()).unwrap();
    let model: HybridLm<B> = tiny().init(&device, 3);
    let model = model.with_activations(activations).with_step_memory(memory);
    let (loss, grads) = loss_and_gradients(&model, batches.at(3, 0));
    let mut bits = Bits {
        grads: &grads,
        found: vec![loss.into_data().as_bytes().to_vec()],
    };
    model.visit(&mut bits);
    bits.found
}

/// Kills: a second run under another name, step or recipe, a gradient that is lost or added twice.
#[test]
fn gradients_have_the_bits_that_they_have_without() {
    let _device = exclusive();
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens(dir.path());
    fn check<B: TrainingEngine>(recipe: Recipe, activations: DType, tokens: &Arc<TokenFile>) {
        let [kept, again] = [StepMemory::default(), BLOCKS]
            .map(|memory| step::<B>(recipe, activations, memory, tokens));
        assert!(kept.len() > 20);
        assert!(
            kept == again,
            "{} {activations:?}",
            std::any::type_name::<B>()
        );
    }
    for recipe in [presets::NVIDIA, presets::QUARTET2, presets::HIGH_PRECISION] {
        check::<Nvfp4<Autodiff<NdArray>>>(recipe, DType::F32, &tokens);
        check::<Autodiff<Nvfp4<NdArray>>>(recipe, DType::F32, &tokens);
        check::<Nvfp4<Autodiff<Flex>>>(recipe, DType::BF16, &tokens);
    }
    check::<Autodiff<Nvfp4<Flex>>>(presets::NVIDIA, DType::F32, &tokens);
}

#[test]
fn a_sampled_step_has_the_same_samples() {
    let _device = exclusive();
    type B = Nvfp4<Autodiff<NdArray>>;
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens(dir.path());
    let device = Default::default();
    let [kept, again] = [StepMemory::default(), BLOCKS].map(|memory| {
        set_sampling::<B>(&device, std::num::NonZeroU64::new(1));
        take_samples::<B>(&device);
        step::<B>(presets::NVIDIA, DType::F32, memory, &tokens);
        set_sampling::<B>(&device, None);
        let mut samples = take_samples::<B>(&device).operands;
        // The second run of a block comes behind `lm_head`, the first operand of backward.
        samples.sort_by_key(|sample| (sample.layer.clone(), sample.operand.clone()));
        samples
    });
    assert!(!kept.is_empty());
    assert_eq!(kept, again);
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let floats = bytes.chunks_exact(4);
    floats
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

/// 64 tokens in parts of 24, 24 and 16. Kills: a part that is weighted like another, one that is
/// left out, gradients of `lm_head` from the last part alone.
#[test]
fn a_loss_in_chunks_is_the_loss_up_to_the_order_of_sums() {
    let _device = exclusive();
    type B = Nvfp4<Autodiff<NdArray>>;
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens(dir.path());
    let run = |memory| step::<B>(presets::HIGH_PRECISION, DType::F32, memory, &tokens);
    let whole = run(StepMemory::default());
    for recompute in [Recompute::None, Recompute::Blocks] {
        let chunks = |count: usize| {
            let loss_chunk = Some(count.try_into().unwrap());
            run(StepMemory {
                recompute,
                loss_chunk,
            })
        };
        assert!(chunks(64) == whole, "one chunk is the whole");
        assert!(chunks(1000) == whole);
        for (whole, parts) in whole.iter().zip(&chunks(24)) {
            let (whole, parts) = (floats(whole), floats(parts));
            let largest = whole.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            for (a, b) in whole.iter().zip(&parts) {
                // Sums of 64 tokens in f32, through four blocks.
                assert!((a - b).abs() <= 2e-5 * largest, "{a} {b} of {largest}");
            }
        }
    }
}

/// Under a quantized body too: the gradient that reaches it is quantized, so it may differ by
/// codes.
#[test]
fn chunks_reach_a_quantized_body() {
    let _device = exclusive();
    type B = Nvfp4<Autodiff<Flex>>;
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens(dir.path());
    let run = |memory| step::<B>(presets::NVIDIA, DType::BF16, memory, &tokens);
    let (whole, parts) = (
        run(StepMemory::default()),
        run(StepMemory {
            recompute: Recompute::Blocks,
            loss_chunk: Some(24.try_into().unwrap()),
        }),
    );
    assert_eq!(whole.len(), parts.len());
    let (loss, of_parts) = (floats(&whole[0])[0], floats(&parts[0])[0]);
    assert!((loss - of_parts).abs() < 1e-3 * loss, "{loss} {of_parts}");
}

#[test]
fn a_run_may_be_resumed_with_recomputation_and_not_with_other_chunks() {
    let identity = |memory: &str| {
        let text = include_str!("../../../configs/default.toml");
        let text = format!("{text}\n[memory]\n{memory}\n");
        let config = TrainConfig::from_toml(&text, Path::new("run.toml")).unwrap();
        let identity = config.identity(&tiny(), 7, "bytes");
        (config.memory, identity)
    };
    let (nothing, plain) = identity("");
    let (blocks, recomputed) = identity("recompute = \"blocks\"");
    let (_, chunked) = identity("loss_chunk = 512");
    assert_eq!((nothing, blocks), (StepMemory::default(), BLOCKS));
    assert_eq!(plain, recomputed);
    assert_ne!(plain, chunked);
}
