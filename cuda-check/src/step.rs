//! The training steps that are recorded.
//!
//! A step is what the training command does: forward, loss, backward, clipping, AdamW, on a hybrid
//! with one block of each kind and a bias on every linear. Which kernels a step launches depends on
//! the recipe, on the order of the decorators and on the dtype of the activations.

use anyhow::{Context, Result};
use burn::backend::Autodiff;
use burn::optim::{GradientsParams, Optimizer};
use burn::tensor::{DType, Int, Tensor};
use burn_hybrid_ops::TrainingEngine;
use burn_nvfp4::recipe::{Policy, Preset, presets};
use burn_nvfp4::{Nvfp4, Progress};
use burn_nvfp4_models::config::{Bias, HybridConfig};
use burn_nvfp4_models::data::TokenBatch;
use burn_nvfp4_models::hybrid::HybridLm;
use burn_nvfp4_models::train::gradients::global_norm;
use burn_nvfp4_models::train::optim::{GroupedAdamW, OptimizerConfig, scale_at_update};
use burn_nvfp4_models::train::step::next_token_loss;
use cuda_check::properties::Architecture;
use cuda_check::runtime::{Recorder, RecordingDevice, recorded};

/// Recipes whose kernels differ: block shapes, scale rules, formats. The other presets leave out
/// steps of these.
const RECIPES: [&str; 7] = [
    "nvidia",
    "four_over_six",
    "quartet2",
    "averis",
    "mxfp4",
    "fp8",
    "row_scaled",
];

/// Sequences and tokens of each in the batch: whole blocks along tokens.
const BATCH: [usize; 2] = [2, 64];

/// Records one training step of each recipe, in both orders of the decorators.
///
/// # Errors
/// If a recipe is not there, or a step panics.
pub(crate) fn record(architecture: Architecture) -> Result<()> {
    for name in RECIPES {
        let preset = presets::by_name(name)?;
        // bf16 activations under f32 weights are for the order in which backward sees the weight.
        for activations in [DType::F32, DType::BF16] {
            step::<Nvfp4<Autodiff<Recorder>>>(architecture, preset, activations)?;
        }
        step::<Autodiff<Nvfp4<Recorder>>>(architecture, preset, DType::F32)?;
    }
    Ok(())
}

/// Runs one training step and waits until its launches are recorded.
fn step<B: TrainingEngine<Device = RecordingDevice>>(
    architecture: Architecture,
    preset: &Preset,
    activations: DType,
) -> Result<()> {
    let device = RecordingDevice(architecture);
    burn_nvfp4::set_policy::<B>(&device, Policy::uniform(preset.recipe))?;
    burn_nvfp4::set_progress::<B>(&device, Progress { step: 1, total: 2 });
    let model: HybridLm<B> = config()?.init(&device, 0).with_activations(activations);
    let name = B::name(&device);
    recorded(&device, || {
        train(model, &device);
        Ok(())
    })
    .with_context(|| format!("{} on {name}, {activations:?} activations", preset.name))
}

fn train<B: TrainingEngine<Device = RecordingDevice>>(model: HybridLm<B>, device: &B::Device) {
    let tokens = || Tensor::<B, 2, Int>::zeros(BATCH, device);
    let batch = TokenBatch {
        inputs: tokens(),
        targets: tokens(),
    };
    let mut optimizer = GroupedAdamW::new(&OptimizerConfig {
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        clip_norm: Some(1.0),
    });
    let loss = next_token_loss(&model, batch);
    let mut grads = GradientsParams::from_grads(loss.backward(), &model);
    global_norm::<B, _>(&model, &grads, 1.0);
    // An average of two micro-batches, so that the gradients are scaled.
    scale_at_update::<B>(&mut grads, 0.5, device);
    optimizer.step(1e-3, model, grads);
}

/// One block of each kind, with every bias.
fn config() -> Result<HybridConfig> {
    Ok(HybridConfig {
        pattern: "M*-".parse()?,
        mamba_bias: Bias::Learned,
        attention_bias: Bias::Learned,
        mlp_bias: Bias::Learned,
        ..HybridConfig::preset("tiny-1m", 256)?
    })
}
