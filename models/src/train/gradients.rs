//! The gradient of a step as a whole: summed over ranks, measured, averaged, clipped, checked.
//!
//! burn clips every tensor by itself and sums accumulated gradients; a pretraining run clips by the
//! norm over all parameters and averages.

use std::collections::VecDeque;

use burn::module::{AutodiffModule, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorPrimitive};
use burn_hybrid_ops::{TrainingEngine, ops};

use super::exchange::{Exchange, RankLost};
use crate::hybrid::field_path::FieldPath;

/// Replaces the gradients by their sums over all ranks, once per step.
///
/// # Errors
/// [`RankLost`] if one of the others is gone.
pub(super) fn sum_over_ranks<B: TrainingEngine, M: AutodiffModule<B>>(
    model: &M,
    grads: &mut GradientsParams,
    exchange: &dyn Exchange<B>,
) -> Result<(), RankLost> {
    if exchange.ranks() == 1 {
        return Ok(());
    }
    // Taken out, so that nobody else holds them and a collective may work in place.
    let mut own = Take::<B> {
        grads,
        taken: Vec::new(),
    };
    model.visit(&mut own);
    let (ids, own): (Vec<_>, Vec<_>) = own.taken.into_iter().unzip();
    let sums = exchange.sum(own)?;
    let sums = ids.into_iter().zip(sums).collect();
    model.visit(&mut PutBack::<B> { grads, sums });
    Ok(())
}

/// Global norm of the gradients times `average`.
///
/// The squares are summed in f32 on the device, in the order of the parameters; one number is read.
pub fn global_norm<B: TrainingEngine, M: AutodiffModule<B>>(
    model: &M,
    grads: &GradientsParams,
    average: f64,
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
    squares.sqrt() * average
}

/// Multiplies the gradients by `average`, then clips their global norm at `clip_norm`; returns the
/// norm before clipping. For any optimizer; ours multiplies itself
/// ([`scale_at_update`](super::optim::scale_at_update)).
pub fn average_and_clip<B: TrainingEngine, M: AutodiffModule<B>>(
    model: &M,
    grads: &mut GradientsParams,
    average: f64,
    clip_norm: Option<f64>,
) -> f64 {
    let norm = global_norm::<B, M>(model, grads, average);
    let factor = clip_factor(norm, average, clip_norm);
    if factor != 1.0 {
        model.visit(&mut Scale { grads, factor });
    }
    norm
}

/// What a sum of gradients is multiplied by to be averaged, and clipped at `clip_norm` where
/// `norm`, that of [`global_norm`], is larger.
///
/// With a norm that is not finite gradients are only averaged: the caller stops.
pub fn clip_factor(norm: f64, average: f64, clip_norm: Option<f64>) -> f64 {
    match clip_norm {
        Some(limit) if norm.is_finite() && norm > limit => average * (limit / norm),
        Some(_) | None => average,
    }
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

/// Takes the gradients out, without their dimensions, in the order of the parameters.
struct Take<'a, B: TrainingEngine> {
    grads: &'a mut GradientsParams,
    taken: Vec<(ParamId, FloatTensor<B::InnerBackend>)>,
}

impl<B: TrainingEngine> ModuleVisitor<B> for Take<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(grad) = self.grads.remove::<B::InnerBackend, D>(param.id) {
            self.taken.push((param.id, grad.into_primitive().tensor()));
        }
    }
}

/// Puts gradients in, in the order in which [`Take`] has taken them.
struct PutBack<'a, B: TrainingEngine> {
    grads: &'a mut GradientsParams,
    sums: VecDeque<(ParamId, FloatTensor<B::InnerBackend>)>,
}

impl<B: TrainingEngine> ModuleVisitor<B> for PutBack<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if self.sums.front().is_some_and(|(id, _)| *id == param.id)
            && let Some((_, sum)) = self.sums.pop_front()
        {
            let sum = Tensor::<B::InnerBackend, D>::from_primitive(TensorPrimitive::Float(sum));
            self.grads.register(param.id, sum);
        }
    }
}

/// The gradients without their dimensions, in the order of the parameters.
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

/// The first parameter, in the order of the model, whose value holds NaN or infinity.
pub fn value_of_non_finite<B: TrainingEngine, M: AutodiffModule<B>>(model: &M) -> Option<String> {
    let found = search::<B, M>(model, None);
    let name = found.first()?;
    Some(format!("the value of {name}"))
}

/// The last parameter, in the order of the model, whose gradient holds NaN or infinity: backward
/// met it first.
pub fn gradient_of_non_finite<B: TrainingEngine, M: AutodiffModule<B>>(
    model: &M,
    grads: &GradientsParams,
) -> Option<String> {
    let found = search::<B, M>(model, Some(grads));
    let name = found.last()?;
    Some(format!("the gradient of {name}"))
}

/// Names of the parameters whose gradients, or else whose values, hold NaN or infinity.
fn search<B: TrainingEngine, M: AutodiffModule<B>>(
    model: &M,
    grads: Option<&GradientsParams>,
) -> Vec<String> {
    struct Search<'a> {
        grads: Option<&'a GradientsParams>,
        path: FieldPath,
        found: Vec<String>,
    }
    impl<B: TrainingEngine> ModuleVisitor<B> for Search<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let tensor = match self.grads {
                None => Some(param.val().inner()),
                Some(grads) => grads.get::<B::InnerBackend, D>(param.id),
            };
            let finite = |tensor: Tensor<B::InnerBackend, D>| {
                tensor.into_data().iter::<f32>().all(f32::is_finite)
            };
            if !tensor.is_none_or(finite) {
                self.found.push(self.path.name());
            }
        }
    }
    let mut search = Search {
        grads,
        path: FieldPath::default(),
        found: Vec::new(),
    };
    model.visit(&mut search);
    search.found
}
