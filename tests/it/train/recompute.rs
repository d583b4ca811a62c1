//! Recomputing blocks in backward: the same bits, from less memory.

use burn::backend::{Autodiff, Flex, NdArray};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Tensor};
use burn_nvfp4::Nvfp4;
use burn_nvfp4::recipe::{Policy, Progress, Recipe, presets};
use burn_nvfp4::stats::{set_sampling, take_samples};
use burn_nvfp4_models::hybrid::recompute::Recompute;
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

/// Loss and gradients of a batch in the middle of a run.
fn step<B: TrainingEngine>(
    recipe: Recipe,
    activations: DType,
    recompute: Recompute,
    tokens: &Arc<TokenFile>,
) -> Vec<Vec<u8>> {
    let device = B::Device::default();
    let policy = Policy::uniform(recipe);
    burn_nvfp4::set_policy::<B>(&device, policy).unwrap();
    burn_nvfp4::set_seed::<B>(&device, 1);
    let progress = Progress {
        step: 3,
        total: 100,
    };
    burn_nvfp4::set_progress::<B>(&device, progress);
    let (file, shape) = (tokens.clone(), shape(2, 32, 1));
    let batches = TrainBatches::<B>::new(file, shape, 0, 0, device.clone()).unwrap();
    let model: HybridLm<B> = tiny().init(&device, 3);
    let model = model
        .with_activations(activations)
        .with_recompute(recompute);
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
        let [kept, again] = [Recompute::None, Recompute::Blocks]
            .map(|recompute| step::<B>(recipe, activations, recompute, tokens));
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
    let [kept, again] = [Recompute::None, Recompute::Blocks].map(|recompute| {
        set_sampling::<B>(&device, std::num::NonZeroU64::new(1));
        take_samples::<B>(&device);
        step::<B>(presets::NVIDIA, DType::F32, recompute, &tokens);
        set_sampling::<B>(&device, None);
        let mut samples = take_samples::<B>(&device).operands;
        // The second run of a block comes behind `lm_head`, the first operand of backward.
        samples.sort_by_key(|sample| (sample.layer.clone(), sample.operand.clone()));
        samples
    });
    assert!(!kept.is_empty());
    assert_eq!(kept, again);
}

#[test]
fn a_run_may_be_resumed_with_it_that_began_without() {
    let config = include_str!("../../../configs/default.toml");
    let identity = |text: &str| {
        let config = TrainConfig::from_toml(text, Path::new("run.toml")).unwrap();
        let identity = config.identity(&tiny(), 7, "bytes");
        (config.memory.recompute, identity)
    };
    let (without, plain) = identity(config);
    let (with, blocks) = identity(&format!("{config}\n[memory]\nrecompute = \"blocks\"\n"));
    assert_eq!((without, with), (Recompute::None, Recompute::Blocks));
    assert_eq!(plain, blocks);
}
