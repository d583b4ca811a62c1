//! The global norm: what is reported, and what clipping makes of it.

use burn::backend::{Autodiff, NdArray};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{GradientsParams, Optimizer};
use burn::tensor::Tensor;
use burn_nvfp4_models::train::gradients::{
    average_and_clip, clip_factor, global_norm, gradient_of_non_finite,
};
use burn_nvfp4_models::train::optim::{GroupedAdamW, scale_at_update};
use burn_nvfp4_models::train::params::read_parameters;
use burn_nvfp4_models::train::step::next_token_loss;

use super::*;
use crate::device::exclusive;

type B = Autodiff<NdArray>;

/// Every gradient element, in f64.
struct Collect<'a>(&'a GradientsParams, Vec<f64>);

impl ModuleVisitor<B> for Collect<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(grad) = self.0.get::<NdArray, D>(param.id) {
            self.1.extend(grad.into_data().iter::<f64>());
        }
    }
}

fn norm(model: &HybridLm<B>, grads: &GradientsParams) -> f64 {
    let mut collect = Collect(grads, Vec::new());
    model.visit(&mut collect);
    collect
        .1
        .iter()
        .map(|value| value * value)
        .sum::<f64>()
        .sqrt()
}

fn model_and_gradients() -> (HybridLm<B>, GradientsParams) {
    let model: HybridLm<B> = tiny().init(&Default::default(), 3);
    let grads = gradients(&model);
    (model, grads)
}

fn gradients(model: &HybridLm<B>) -> GradientsParams {
    let dir = tempfile::tempdir().unwrap();
    let batches = TrainBatches::new(
        tokens(dir.path()),
        shape(2, 32, 1),
        0,
        0,
        Default::default(),
    )
    .unwrap();
    let loss = next_token_loss(model, batches.at(0, 0));
    GradientsParams::from_grads(loss.backward(), model)
}

#[test]
fn the_norm_is_that_of_all_gradients_together_and_clipping_reaches_the_limit() {
    let _device = exclusive();
    let (model, mut grads) = model_and_gradients();
    let before = norm(&model, &grads);
    assert!(before > 0.5, "{before}");
    // Sums of at most 20 thousand squares in f32: sqrt(20000) * 2^-24 is 8e-6 relative.
    let close = |a: f64, b: f64| (a - b).abs() < 2e-5 * b;
    let reported = average_and_clip::<B, _>(&model, &mut grads, 0.5, None);
    assert!(close(reported, before / 2.0), "{reported} {before}");
    assert!(close(norm(&model, &grads), before / 2.0), "averaged");
    let reported = average_and_clip::<B, _>(&model, &mut grads, 1.0, Some(before));
    assert!(
        close(reported, before / 2.0),
        "below the limit nothing changes"
    );
    assert!(close(norm(&model, &grads), before / 2.0));
    let reported = average_and_clip::<B, _>(&model, &mut grads, 1.0, Some(0.01));
    assert!(
        close(reported, before / 2.0),
        "the norm is reported before clipping"
    );
    assert!(close(norm(&model, &grads), 0.01));
}

#[test]
fn gradients_scaled_at_the_update_give_the_bits_of_gradients_scaled_before() {
    let _device = exclusive();
    let after_two_updates = |at_update: bool| {
        let mut model: HybridLm<B> = tiny().init(&Default::default(), 3);
        let mut optimizer = GroupedAdamW::new(&OPTIMIZER);
        for average in [0.5, 1.0] {
            let mut grads = gradients(&model);
            if at_update {
                let norm = global_norm::<B, _>(&model, &grads, average);
                let factor = clip_factor(norm, average, Some(0.1));
                scale_at_update::<B>(&mut grads, factor, &Default::default());
            } else {
                average_and_clip::<B, _>(&model, &mut grads, average, Some(0.1));
            }
            model = optimizer.step(1e-2, model, grads);
        }
        read_parameters(&model)
    };
    assert!(after_two_updates(true) == after_two_updates(false));
}

#[test]
fn a_gradient_that_is_not_finite_is_named() {
    let _device = exclusive();
    let (model, mut grads) = model_and_gradients();
    assert_eq!(gradient_of_non_finite::<B, _>(&model, &grads), None);
    let id = model
        .parameters()
        .into_iter()
        .find(|p| p.name == "lm_head.weight")
        .unwrap()
        .id;
    let grad = grads.remove::<NdArray, 2>(id).unwrap();
    grads.register::<NdArray, 2>(id, grad.mul_scalar(f32::INFINITY));
    assert!(!average_and_clip::<B, _>(&model, &mut grads, 1.0, Some(1.0)).is_finite());
    let found = gradient_of_non_finite::<B, _>(&model, &grads);
    assert_eq!(found.as_deref(), Some("the gradient of lm_head.weight"));
}
