//! The global norm: what is reported, and what clipping makes of it.

use burn::backend::{Autodiff, NdArray};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn_nvfp4_models::train::gradients::{average_and_clip, gradient_of_non_finite};
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
    let dir = tempfile::tempdir().unwrap();
    let model: HybridLm<B> = tiny().init(&Default::default(), 3);
    let batches = TrainBatches::new(
        tokens(dir.path()),
        shape(2, 32, 1),
        0,
        0,
        Default::default(),
    )
    .unwrap();
    let batch = batches.at(0, 0);
    let loss = next_token_loss(&model, batch);
    let grads = GradientsParams::from_grads(loss.backward(), &model);
    (model, grads)
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
