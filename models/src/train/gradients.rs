//! The gradient of a step as a whole: averaged, measured, clipped, checked.
//!
//! burn clips every tensor by itself and sums accumulated gradients; a pretraining run clips by the
//! norm over all parameters and averages.

use burn::module::{AutodiffModule, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor};
use burn_hybrid_ops::{TrainingEngine, ops};

use crate::hybrid::field_path::FieldPath;

/// Multiplies the gradients by `average`, then clips their global norm at `clip_norm`; returns the
/// norm before clipping.
///
/// The squares are summed in f32 on the device, in the order of the parameters; one number is read.
/// With a norm that is not finite the gradients are only averaged: the caller stops.
pub fn average_and_clip<B: TrainingEngine, M: AutodiffModule<B>>(
    model: &M,
    grads: &mut GradientsParams,
    average: f64,
    clip_norm: Option<f64>,
) -> f64 {
    let mut all = Collect::<B> {
        grads,
        found: Vec::new(),
    };
    model.visit(&mut all);
    let sum = ops::sum_of_squares::<B::InnerBackend>(all.found).or_else(|| {
        let mut sum = SumOfSquares::<B> { grads, sum: None };
        model.visit(&mut sum);
        sum.sum
    });
    let squares = sum.map_or(0.0, |sum| f64::from(sum.into_scalar_f32()));
    let norm = squares.sqrt() * average;
    let clip = match clip_norm {
        Some(limit) if norm.is_finite() && norm > limit => limit / norm,
        Some(_) | None => 1.0,
    };
    let factor = average * clip;
    if factor != 1.0 {
        model.visit(&mut Scale { grads, factor });
    }
    norm
}

/// Reads the one element of a tensor as f32.
pub(crate) trait ScalarF32 {
    /// The element.
    fn into_scalar_f32(self) -> f32;
}

impl<B: burn::tensor::backend::Backend> ScalarF32 for Tensor<B, 1> {
    fn into_scalar_f32(self) -> f32 {
        self.into_data().iter::<f32>().next().unwrap_or(f32::NAN)
    }
}

/// The gradients without their ranks, in the order of the parameters.
struct Collect<'a, B: TrainingEngine> {
    grads: &'a GradientsParams,
    found: Vec<FloatTensor<B::InnerBackend>>,
}

impl<B: TrainingEngine> ModuleVisitor<B> for Collect<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(grad) = self.grads.get::<B::InnerBackend, D>(param.id) {
            self.found.push(grad.into_primitive().tensor());
        }
    }
}

struct SumOfSquares<'a, B: TrainingEngine> {
    grads: &'a GradientsParams,
    sum: Option<Tensor<B::InnerBackend, 1>>,
}

impl<B: TrainingEngine> ModuleVisitor<B> for SumOfSquares<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(grad) = self.grads.get::<B::InnerBackend, D>(param.id) {
            let squares = grad.cast(DType::F32).square().sum();
            self.sum = Some(match self.sum.take() {
                Some(sum) => sum + squares,
                None => squares,
            });
        }
    }
}

struct Scale<'a> {
    grads: &'a mut GradientsParams,
    factor: f64,
}

impl<B: TrainingEngine> ModuleVisitor<B> for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(grad) = self.grads.remove::<B::InnerBackend, D>(param.id) {
            self.grads.register(param.id, grad.mul_scalar(self.factor));
        }
    }
}

/// Where NaN or infinity is: the first parameter whose value holds it, in the order of the model;
/// else the last one whose gradient does, which backward met first.
pub fn find_non_finite<B: TrainingEngine, M: AutodiffModule<B>>(
    model: &M,
    grads: &GradientsParams,
) -> Option<String> {
    struct Search<'a> {
        grads: &'a GradientsParams,
        path: FieldPath,
        value: Option<String>,
        gradient: Option<String>,
    }
    impl<B: TrainingEngine> ModuleVisitor<B> for Search<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let finite = |tensor: Tensor<B::InnerBackend, D>| {
                tensor.into_data().iter::<f32>().all(f32::is_finite)
            };
            if self.value.is_none() && !finite(param.val().inner()) {
                self.value = Some(format!("the value of {}", self.path.name()));
            }
            if self
                .grads
                .get::<B::InnerBackend, D>(param.id)
                .is_some_and(|grad| !finite(grad))
            {
                self.gradient = Some(format!("the gradient of {}", self.path.name()));
            }
        }
    }
    let path = FieldPath::default();
    let mut search = Search {
        grads,
        path,
        value: None,
        gradient: None,
    };
    model.visit(&mut search);
    search.value.or(search.gradient)
}
