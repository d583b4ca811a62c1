//! The hybrid model on a device: the CPU's numbers, and training in 4 bits under fusion.

use std::collections::BTreeMap;

use burn::backend::{Autodiff, Flex, NdArray};
use burn::module::{ModuleVisitor, Param};
use burn::optim::{GradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::DType;
use burn_hybrid_ops::{HybridEngine, TrainingEngine};
use burn_nvfp4::recipe::{Policy, Progress, presets};
use burn_nvfp4::{Nvfp4, set_policy, set_progress, set_seed, set_watch, take_non_finite};
use burn_nvfp4_models::config::HybridConfig;
use burn_nvfp4_models::hybrid::HybridLm;
use burn_nvfp4_models::nn::loss::cross_entropy;
use burn_nvfp4_models::train::gradients::{clip_factor, global_norm};
use burn_nvfp4_models::train::optim::{GroupedAdamW, OptimizerConfig, scale_at_update};
use burn_nvfp4_models::train::params::read_parameters;

use crate::device::supports;
use crate::turns::{Fused, Plain, exclusive};

const VOCAB: usize = 64;
const BATCH: usize = 2;
const LENGTH: usize = 24;

/// One block of each kind, 20 thousand parameters.
fn tiny() -> HybridConfig {
    let mut config = HybridConfig::preset("tiny-1m", VOCAB).unwrap();
    config.pattern = "M-*-".parse().unwrap();
    (config.d_model, config.d_ffn) = (32, 64);
    (
        config.n_attention_heads,
        config.n_kv_heads,
        config.attention_head_dim,
    ) = (2, 1, 16);
    (
        config.n_mamba_heads,
        config.mamba_head_dim,
        config.n_groups,
        config.d_state,
    ) = (4, 8, 2, 8);
    config.chunk_len = 16;
    config.validate().unwrap();
    config
}

/// A text with a period: the next token follows from the last.
fn loss<B: HybridEngine>(model: &HybridLm<B>) -> Tensor<B, 1> {
    let len = LENGTH + 1;
    let ids = (0..BATCH * len).map(|i| ((i % len) * 7 + i / len) as i64 % 23);
    let data = TensorData::new(ids.collect::<Vec<_>>(), [BATCH, len]);
    let ids = Tensor::<B, 2, Int>::from_data(data, &B::Device::default());
    let logits = model.forward(ids.clone().narrow(1, 0, LENGTH));
    let targets = ids.narrow(1, 1, LENGTH).reshape([BATCH * LENGTH]);
    cross_entropy(logits.reshape([BATCH * LENGTH, VOCAB]), targets)
}

fn scalar<B: HybridEngine>(x: Tensor<B, 1>) -> f64 {
    x.into_data().iter::<f64>().next().unwrap()
}

const OPTIMIZER: OptimizerConfig = OptimizerConfig {
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 1e-8,
    weight_decay: 0.1,
    clip_norm: Some(1.0),
};

/// Loss before each step, and the norm of all gradients at the first.
fn train<B: TrainingEngine>(steps: u64, activations: DType) -> (Vec<f64>, f64) {
    let device = B::Device::default();
    let model: HybridLm<B> = tiny().init(&device, 3);
    let mut model = model.with_activations(activations);
    let mut optimizer = GroupedAdamW::new(&OPTIMIZER);
    let mut losses = vec![];
    let mut first_norm = f64::NAN;
    for step in 0..steps {
        set_progress::<B>(&device, Progress { step, total: steps });
        let loss = loss(&model);
        losses.push(scalar(loss.clone()));
        let mut grads = GradientsParams::from_grads(loss.backward(), &model);
        let norm = global_norm::<B, _>(&model, &grads, 1.0);
        let factor = clip_factor(norm, 1.0, OPTIMIZER.clip_norm);
        scale_at_update::<B>(&mut grads, factor, &device);
        if step == 0 {
            first_norm = norm;
        }
        model = optimizer.step(1e-2, model, grads);
    }
    (losses, first_norm)
}

fn settings<B: HybridEngine>(recipe: burn_nvfp4::recipe::Recipe) {
    let device = B::Device::default();
    set_policy::<B>(&device, Policy::uniform(recipe)).unwrap();
    set_seed::<B>(&device, 1);
    set_watch::<B>(&device, true);
}

/// One step in high precision: every op of the model and its backward, against NdArray.
#[test]
fn loss_and_gradient_norm_are_the_cpus() {
    let Some(_turn) = exclusive() else { return };
    settings::<NdArray>(presets::HIGH_PRECISION);
    settings::<Fused>(presets::HIGH_PRECISION);
    let (expected, expected_norm) = train::<Nvfp4<Autodiff<NdArray>>>(1, DType::F32);
    let (got, norm) = train::<Nvfp4<Autodiff<Fused>>>(1, DType::F32);
    // CUDA multiplies f32 matrices of the scan in TF32: 2^-11 for each of a few factors.
    let limit = 3e-3;
    assert!(
        (got[0] / expected[0] - 1.0).abs() < limit,
        "{got:?} {expected:?}"
    );
    assert!(
        (norm / expected_norm - 1.0).abs() < limit,
        "{norm} {expected_norm}"
    );
}

/// A device learns as the CPU does, and both learn: same data, same seed, other order of sums.
#[test]
fn training_in_four_bits_follows_the_cpu() {
    let Some(_turn) = exclusive() else { return };
    let steps = 12;
    settings::<NdArray>(presets::NVIDIA);
    settings::<Fused>(presets::NVIDIA);
    let (expected, _) = train::<Nvfp4<Autodiff<NdArray>>>(steps, DType::F32);
    let (got, _) = train::<Nvfp4<Autodiff<Fused>>>(steps, DType::F32);
    let (first, last) = (got[0], got[got.len() - 1]);
    assert!(
        (first / expected[0] - 1.0).abs() < 5e-3,
        "{first} {}",
        expected[0]
    );
    let there = expected[expected.len() - 1];
    assert!(last < first - 1.0, "from {first} to {last}");
    assert!(
        (last - there).abs() < 0.3,
        "ends at {last}, on the CPU at {there}"
    );
    assert_eq!(take_non_finite::<Fused>(&Default::default()), None);
}

/// The gradient of every parameter, in the order of the model.
struct Gradients<'a>(&'a GradientsParams, Vec<(DType, Vec<f64>)>);

impl<B: TrainingEngine> ModuleVisitor<B> for Gradients<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let grad = self.0.get::<B::InnerBackend, D>(param.id);
        let data = grad.expect("every parameter is tracked").into_data();
        self.1.push((data.dtype, data.iter::<f64>().collect()));
    }
}

fn first_gradients<B: TrainingEngine>(activations: DType) -> Vec<(DType, Vec<f64>)> {
    let device = B::Device::default();
    set_progress::<B>(&device, Progress { step: 0, total: 9 });
    let model: HybridLm<B> = tiny().init(&device, 3);
    let model = model.with_activations(activations);
    let grads = GradientsParams::from_grads(loss(&model).backward(), &model);
    let mut gradients = Gradients(&grads, Vec::new());
    model.visit(&mut gradients);
    gradients.1
}

/// How far each gradient is from that of the same parameter in `from`, against its length.
fn distances(got: &[(DType, Vec<f64>)], from: &[(DType, Vec<f64>)]) -> Vec<f64> {
    assert_eq!(got.len(), from.len());
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let pairs = got.iter().zip(from);
    let distance = |((_, got), (_, from)): (&(_, Vec<f64>), &(_, Vec<f64>))| {
        length(&mut got.iter().zip(from).map(|(a, b)| a - b)) / length(&mut from.iter().copied())
    };
    pairs.map(distance).collect()
}

/// Kills: an operation that meets two dtypes, which Flex refuses and a device reads as other
/// numbers; a gradient of a weight that is not f32.
#[test]
fn the_whole_step_runs_on_a_device_with_the_dtypes_of_flex() {
    let Some(_turn) = exclusive() else { return };
    for recipe in [presets::HIGH_PRECISION, presets::NVIDIA_NO_SR] {
        settings::<Flex>(recipe);
        settings::<Fused>(recipe);
        let exact = first_gradients::<Nvfp4<Autodiff<Flex>>>(DType::F32);
        let dtypes = [DType::F32, DType::BF16].into_iter();
        for activations in dtypes.filter(|dtype| supports(*dtype)) {
            let expected = first_gradients::<Nvfp4<Autodiff<Flex>>>(activations);
            let got = first_gradients::<Nvfp4<Autodiff<Fused>>>(activations);
            // The sums of a device have another order: f32 differs in its last bits (TF32 in the
            // scan: 2^-11), bf16 by 2^-9 a value. So values fall on the other side of a step of
            // E2M1: few in f32, in bf16 as many as separate Flex's own bf16 from its f32. Draws
            // depend on the last bit of an amax: stochastic rounding would be another sample.
            let limit = match (activations, recipe == presets::HIGH_PRECISION) {
                (DType::F32, true) => 3e-3,
                (DType::F32, false) => 0.01,
                (_, true) => 0.03,
                (_, false) => {
                    let own = distances(&expected, &exact);
                    2.0 * (own.iter().map(|d| d * d).sum::<f64>() / own.len() as f64).sqrt()
                }
            };
            for (at, distance) in distances(&got, &expected).into_iter().enumerate() {
                assert_eq!(got[at].0, DType::F32, "gradient {at}");
                assert!(
                    distance < limit,
                    "gradient {at} of {activations:?} activations, {recipe:?}: {distance:e}, at \
                     most {limit:e} expected"
                );
            }
        }
    }
}

/// Runs with activations in bf16 and f32 learn the same. Flex does it for 200 steps (`it`, mixed).
#[test]
fn bf16_activations_train_as_f32_ones_do_on_a_device() {
    let Some(_turn) = exclusive() else { return };
    if !supports(DType::BF16) {
        println!("skipped: the device has no bf16");
        return;
    }
    for recipe in [presets::HIGH_PRECISION, presets::NVIDIA] {
        settings::<Fused>(recipe);
        let (wide, wide_norm) = train::<Nvfp4<Autodiff<Fused>>>(40, DType::F32);
        let (narrow, narrow_norm) = train::<Nvfp4<Autodiff<Fused>>>(40, DType::BF16);
        assert!((narrow[0] - wide[0]).abs() < 0.01, "{narrow:?} {wide:?}");
        assert!((narrow_norm / wide_norm - 1.0).abs() < 0.05);
        let end = |losses: &[f64]| losses[30..].iter().sum::<f64>() / 10.0;
        assert!(end(&wide) < wide[0] / 2.0, "f32 learns: {wide:?}");
        assert!(
            (end(&narrow) - end(&wide)).abs() < 0.1,
            "{narrow:?} {wide:?}"
        );
    }
}

/// Kills: atomics, memory that nobody wrote, a draw that depends on when it is made. Processes may
/// still differ where each chooses its GEMMs by timing.
#[test]
fn a_process_trains_to_the_same_bits_twice() {
    let Some(_turn) = exclusive() else { return };
    settings::<Fused>(presets::NVIDIA);
    let dtypes = [DType::F32, DType::BF16].into_iter();
    for activations in dtypes.filter(|dtype| supports(*dtype)) {
        let [one, other] = [(); 2].map(|()| train::<Nvfp4<Autodiff<Fused>>>(8, activations));
        assert_eq!(one, other, "{activations:?}");
    }
}

/// Gives every parameter, but for each fifth in the first step, a gradient that depends on nothing
/// but its place.
struct Invent<'a> {
    grads: &'a mut GradientsParams,
    step: usize,
    place: usize,
}

impl<B: TrainingEngine> ModuleVisitor<B> for Invent<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let (step, place) = (self.step, self.place);
        self.place += 1;
        if step == 0 && place % 5 == 1 {
            return;
        }
        let value = param.val();
        let shape = value.shape();
        let one = |i: usize| ((i * 7919 + place * 131 + step * 17) % 257) as f32 / 257.0 - 0.5;
        let data = (0..shape.num_elements()).map(one).collect::<Vec<_>>();
        // Another test may have made f64 the dtype of the CPU's devices.
        let to = (&value.device(), DType::F32);
        let data = TensorData::new(data, shape);
        let grad = Tensor::<B::InnerBackend, D>::from_data(data, to);
        self.grads.register(param.id, grad);
    }
}

fn updated<B: TrainingEngine>() -> BTreeMap<String, TensorData> {
    let device = B::Device::default();
    let mut model: HybridLm<B> = tiny().init(&device, 3);
    let mut optimizer = GroupedAdamW::new(&OPTIMIZER);
    for step in 0..3 {
        let mut grads = GradientsParams::new();
        model.visit(&mut Invent {
            grads: &mut grads,
            step,
            place: 0,
        });
        let factor = [1.0, 0.37, 1.5][step];
        scale_at_update::<B>(&mut grads, factor, &device);
        let held = model.clone();
        let before = read_parameters(&held);
        model = optimizer.step(1e-2, model, grads);
        assert!(read_parameters(&held) == before, "somebody holds it");
    }
    read_parameters(&model)
}

/// Kills: a parameter that gets the update of another, the decay of the other group or the bias
/// correction of another age; a factor that reaches some of them only.
#[test]
fn an_update_of_a_model_is_that_of_the_cpu() {
    let Some(_turn) = exclusive() else { return };
    let expected = updated::<Nvfp4<Autodiff<NdArray>>>();
    for (mode, got) in [
        ("plain", updated::<Nvfp4<Autodiff<Plain>>>()),
        ("fused", updated::<Nvfp4<Autodiff<Fused>>>()),
    ] {
        for (name, expected) in &expected {
            let pairs = got[name].iter::<f32>().zip(expected.iter::<f32>());
            // An update is at most a few times the learning rate of 1e-2, and rounded at 2^-24.
            let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= 1e-6, "{mode}, {name}: {worst:e}");
        }
    }
}
