//! The hybrid model on a device: the CPU's numbers, and training in 4 bits under fusion.

use burn::backend::{Autodiff, NdArray};
use burn::optim::{GradientsParams, Optimizer};
use burn::prelude::*;
use burn_hybrid_ops::{HybridEngine, TrainingEngine};
use burn_nvfp4::recipe::{Policy, Progress, presets};
use burn_nvfp4::{Nvfp4, set_policy, set_progress, set_seed, set_watch, take_non_finite};
use burn_nvfp4_models::config::HybridConfig;
use burn_nvfp4_models::hybrid::HybridLm;
use burn_nvfp4_models::nn::loss::cross_entropy;
use burn_nvfp4_models::train::gradients::average_and_clip;
use burn_nvfp4_models::train::optim::{GroupedAdamW, OptimizerConfig};

use crate::turns::{Fused, exclusive};

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

/// Loss before each step, and the squared norm of all gradients at the first.
fn train<B: TrainingEngine>(steps: u64) -> (Vec<f64>, f64) {
    let device = B::Device::default();
    let mut model: HybridLm<B> = tiny().init(&device, 3);
    let mut optimizer = GroupedAdamW::new(&OptimizerConfig {
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.0,
        clip_norm: Some(1.0),
    });
    let mut losses = vec![];
    let mut norm = f64::NAN;
    for step in 0..steps {
        set_progress::<B>(&device, Progress { step, total: steps });
        let loss = loss(&model);
        losses.push(scalar(loss.clone()));
        let mut grads = GradientsParams::from_grads(loss.backward(), &model);
        let clipped = average_and_clip::<B, _>(&model, &mut grads, 1.0, Some(1.0));
        if step == 0 {
            norm = clipped;
        }
        model = optimizer.step(1e-2, model, grads);
    }
    (losses, norm)
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
    let (expected, expected_norm) = train::<Nvfp4<Autodiff<NdArray>>>(1);
    let (got, norm) = train::<Nvfp4<Autodiff<Fused>>>(1);
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
    let (expected, _) = train::<Nvfp4<Autodiff<NdArray>>>(steps);
    let (got, _) = train::<Nvfp4<Autodiff<Fused>>>(steps);
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
