//! Where NaN or infinity arose in a step: layer and operand.
//!
//! Only steps that went wrong are looked into, so looking may cost what it wants:
//! 1. the operand that the quantizer met first, if it met one;
//! 2. a parameter that holds it;
//! 3. the first intermediate value of the forward that does, found by running the step's
//!    micro-batches once more: the same bits, because random bits are a function of the step;
//! 4. where the forward is sound, the gradient that backward met first.
//!
//! On several ranks each looks into its own share of the data for 1 to 3. Gradients are summed by
//! then, so 4 says the same on all.

use burn::module::AutodiffModule;
use burn::optim::GradientsParams;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use burn_hybrid_ops::{HybridEngine, TrainingEngine};

use super::gradients::{gradient_of_non_finite, value_of_non_finite};
use crate::data::TokenBatch;
use crate::hybrid::HybridLm;

/// A model whose forward pass can be watched.
pub trait Diagnose<B: Backend> {
    /// The first intermediate value with NaN or infinity in it.
    fn first_non_finite(&self, inputs: Tensor<B, 2, Int>) -> Option<String>;
}

impl<B: HybridEngine> Diagnose<B> for HybridLm<B> {
    fn first_non_finite(&self, inputs: Tensor<B, 2, Int>) -> Option<String> {
        let mut first = None;
        let mut look = |name: &str, value: Tensor<B, 3>| {
            if first.is_none() && !is_finite(value) {
                first = Some(name.to_owned());
            }
        };
        let logits = self.forward_observed(inputs, &mut look);
        look("lm_head", logits);
        first
    }
}

/// On the host: devices differ in what their arithmetic makes of NaN.
fn is_finite<B: Backend, const D: usize>(value: Tensor<B, D>) -> bool {
    value.into_data().iter::<f32>().all(f32::is_finite)
}

/// Where NaN or infinity arose in what a step made of some micro-batches, up to their gradients.
pub(super) fn place_in_forward<B, M>(
    model: &M,
    micro_batches: &[TokenBatch<B>],
    operand: Option<String>,
) -> Option<String>
where
    B: TrainingEngine,
    M: AutodiffModule<B> + Diagnose<B>,
{
    let forward = || {
        let mut outputs = micro_batches.iter().map(|batch| batch.inputs.clone());
        let output = outputs.find_map(|inputs| model.first_non_finite(inputs))?;
        Some(format!("the output of {output}"))
    };
    let source = value_of_non_finite::<B, M>(model).or_else(forward);
    match (operand, source) {
        (Some(operand), Some(source)) => Some(format!("{operand}, from {source}")),
        (operand, source) => operand.or(source),
    }
}

/// Where NaN or infinity arose in the gradients of a step whose forward is sound.
pub(super) fn place_in_backward<B, M>(model: &M, grads: &GradientsParams) -> String
where
    B: TrainingEngine,
    M: AutodiffModule<B>,
{
    gradient_of_non_finite::<B, M>(model, grads)
        .unwrap_or_else(|| "no single tensor (a sum overflowed)".to_owned())
}
