//! f32 parameters under bf16 activations: the whole step on Flex, which has bf16 and panics where
//! an operation would have to promote.

use burn::backend::{Autodiff, Flex};
use burn::optim::{GradientsParams, Optimizer};
use burn::tensor::DType;
use burn_nvfp4::Nvfp4;
use burn_nvfp4::recipe::{Policy, Progress, Recipe, presets};
use burn_nvfp4_models::train::gradients::average_and_clip;
use burn_nvfp4_models::train::optim::GroupedAdamW;
use burn_nvfp4_models::train::params::read_parameters;
use burn_nvfp4_models::train::step::next_token_loss;

use super::*;
use crate::device::exclusive;

type B = Nvfp4<Autodiff<Flex>>;

const STEPS: u64 = 200;

/// Losses of a run with these activations; every parameter stays f32.
fn losses(recipe: Recipe, activations: DType, tokens: &Arc<TokenFile>) -> Vec<f64> {
    let device = Default::default();
    burn_nvfp4::set_policy::<B>(&device, Policy::uniform(recipe)).unwrap();
    burn_nvfp4::set_seed::<B>(&device, 1);
    let batches = TrainBatches::<B>::new(tokens.clone(), shape(2, 32, 1), 0, 0, device).unwrap();
    let model: HybridLm<B> = tiny().init(&device, 3);
    let mut model = model.with_activations(activations);
    let mut optimizer = GroupedAdamW::new(&OPTIMIZER);
    let mut losses = Vec::new();
    for step in 0..STEPS {
        burn_nvfp4::set_progress::<B>(&device, Progress { step, total: STEPS });
        let loss = next_token_loss(&model, batches.at(step, 0));
        losses.push(loss.clone().into_data().iter::<f64>().next().unwrap());
        let mut grads = GradientsParams::from_grads(loss.backward(), &model);
        average_and_clip::<B, _>(&model, &mut grads, 1.0, OPTIMIZER.clip_norm);
        model = optimizer.step(3e-3, model, grads);
    }
    for (name, data) in read_parameters(&model) {
        assert_eq!(data.dtype, DType::F32, "{name}");
    }
    losses
}

/// Mean over the last 50 steps: batches differ by more than 0.1 nats from each other.
fn end(losses: &[f64]) -> f64 {
    losses[losses.len() - 50..].iter().sum::<f64>() / 50.0
}

/// bf16 has 8 significant bits, so a first loss differs by at most a few times 2^-8 of the size of
/// the logits, which is below 0.2 in a fresh model; measured: 5e-5. Later the two runs are two
/// samples of the same training, 0.002 nats apart at the end; five times that is the bound.
#[test]
fn bf16_activations_train_as_f32_ones_do() {
    let _device = exclusive();
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens(dir.path());
    for recipe in [presets::HIGH_PRECISION, presets::NVIDIA] {
        let wide = losses(recipe, DType::F32, &tokens);
        let narrow = losses(recipe, DType::BF16, &tokens);
        let (first, last) = (wide[0] - narrow[0], end(&wide) - end(&narrow));
        assert!(end(&wide) < 1.0, "f32 learns: {}", end(&wide));
        assert!(first.abs() < 0.001, "{} and {}", wide[0], narrow[0]);
        assert!(last.abs() < 0.01, "{} and {}", end(&wide), end(&narrow));
    }
}
