//! Weights that flip between two codes, and how to calm them: OsciReset.
//!
//! Late in training a weight near the edge of a quantization bin crosses it back and forth: its
//! quantized value moves by whole bins while the weight itself hardly moves. Over a window of steps
//! both paths are measured,
//!
//! ```text
//! path      = sum of |w(t) - w(t - 1)|
//! quantized = sum of |q(w(t)) - q(w(t - 1))|
//! ```
//!
//! and a weight whose `quantized / path` reaches a threshold is set to `q(w)`, the middle of its
//! bin, from where it has as far as possible to the next edge. The optimizer's moments stay.
//!
//! A schedule says what to do after which step and has no state. A [`WeightTrace`] is the state of
//! one weight inside a window, four numbers an element, and can be taken out and put back.
//!
//! Source: arXiv:2510.27527 (TetraJet-v2), which tracks 50 of every 200 steps.

use burn_backend::tensor::FloatTensor;
use burn_backend::{Backend, Scalar, TensorMetadata};
use serde::{Deserialize, Serialize};

use crate::cpu::Contraction;
use crate::engine::{Lifetime, Nvfp4Engine, OperandRequest, linear};
use crate::recipe::{OperandSpec, RecipeError, Transform};
use crate::rng::{RandomKey, Stream};

/// When weights are watched, and from where on they are reset.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OsciReset {
    /// The first step of the first window: weights should have stopped travelling.
    pub start: u64,
    /// Steps from one window to the next.
    pub period: u64,
    /// Steps that a window watches; at its end weights are reset.
    pub window: u64,
    /// Path of the quantized weight over path of the weight, from which it is reset.
    pub threshold: f32,
}

/// What is done with every watched weight after an optimizer step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OsciAction {
    /// Nothing.
    Rest,
    /// A window begins: [`WeightTrace::new`].
    Begin,
    /// [`WeightTrace::observe`].
    Observe,
    /// [`WeightTrace::observe`], then [`WeightTrace::reset`], and the trace is dropped.
    Reset,
}

impl OsciReset {
    /// The published numbers, from a step on.
    pub const fn from_step(start: u64) -> Self {
        Self {
            start,
            period: 200,
            window: 50,
            threshold: 8.0,
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// [`RecipeError::Oscillation`] if a window is empty or longer than the period, or if the
    /// threshold is not a number of at least 1, which every weight reaches that crosses an edge.
    pub fn validate(&self) -> Result<(), RecipeError> {
        let reason = if self.window == 0 {
            "a window watches at least one step"
        } else if self.period <= self.window {
            "the period must be longer than the window"
        } else if !(self.threshold >= 1.0 && self.threshold.is_finite()) {
            "the threshold is a finite number of at least 1"
        } else {
            return Ok(());
        };
        Err(RecipeError::Oscillation { reason })
    }

    /// What follows optimizer step `step`, counted from 0.
    pub const fn action(&self, step: u64) -> OsciAction {
        if step < self.start {
            return OsciAction::Rest;
        }
        match (step - self.start) % self.period {
            0 => OsciAction::Begin,
            since if since < self.window => OsciAction::Observe,
            since if since == self.window => OsciAction::Reset,
            _ => OsciAction::Rest,
        }
    }
}

/// The weight as a GEMM multiplies it, in f32 and its own shape: `spec`, along its rows as fprop
/// reads it. A weight that is not quantized, or only behind a transform, is returned in f32.
///
/// `CubeBackend` stays on its device; `Fusion` of it has no such operation and takes a host copy.
pub fn quantized_weight<B: Nvfp4Engine>(
    weight: FloatTensor<B>,
    spec: OperandSpec,
) -> FloatTensor<B> {
    let behind_a_transform = spec.transform() != Transform::None;
    if !spec.is_quantized() || behind_a_transform {
        return linear::cast::<B>(weight, burn_backend::DType::F32);
    }
    let (shape, device) = (weight.shape(), B::float_device(&weight));
    let request = OperandRequest {
        spec,
        along: Contraction::Rows,
        // Weights are rounded to nearest.
        key: RandomKey {
            seed: 0,
            step: 0,
            micro_batch: 0,
            stream: Stream::Other(0),
        },
        lifetime: Lifetime::OneGemm,
        layer: "a traced weight",
        operand: "fprop.rhs",
    };
    let operand = B::quantize_operand(weight, &request);
    B::dequantize_operand(&operand, Contraction::Rows, shape, &device)
}

/// The paths of one weight `[d_input, d_output]` since a window began.
#[derive(Clone, Debug)]
pub struct WeightTrace<B: Backend> {
    /// The weight after the last step, f32.
    pub last: FloatTensor<B>,
    /// The same, quantized.
    pub last_quantized: FloatTensor<B>,
    /// Path of each element.
    pub path: FloatTensor<B>,
    /// Path of each quantized element.
    pub quantized_path: FloatTensor<B>,
}

impl<B: Nvfp4Engine> WeightTrace<B> {
    /// Begins at a weight; `spec` is that of fprop's right operand.
    pub fn new(weight: FloatTensor<B>, spec: OperandSpec) -> Self {
        let (shape, device) = (weight.shape(), B::float_device(&weight));
        let zeros = B::float_zeros(shape, &device, burn_backend::FloatDType::F32);
        Self {
            last: linear::cast::<B>(weight.clone(), burn_backend::DType::F32),
            last_quantized: quantized_weight::<B>(weight, spec),
            path: zeros.clone(),
            quantized_path: zeros,
        }
    }

    /// Adds a step to both paths.
    pub fn observe(&mut self, weight: FloatTensor<B>, spec: OperandSpec) {
        let quantized = quantized_weight::<B>(weight.clone(), spec);
        let weight = linear::cast::<B>(weight, burn_backend::DType::F32);
        let add = |path: &mut FloatTensor<B>, from: &mut FloatTensor<B>, to: FloatTensor<B>| {
            let moved = B::float_abs(B::float_sub(to.clone(), from.clone()));
            *path = B::float_add(path.clone(), moved);
            *from = to;
        };
        add(&mut self.path, &mut self.last, weight);
        add(
            &mut self.quantized_path,
            &mut self.last_quantized,
            quantized,
        );
    }

    /// `quantized_path / path` of each element, 0 for one that has not moved.
    pub fn ratio(&self) -> FloatTensor<B> {
        let still = B::float_equal_elem(
            self.path.clone(),
            Scalar::from(0.0_f32),
            burn_backend::BoolDType::Native,
        );
        let ratio = B::float_div(self.quantized_path.clone(), self.path.clone());
        B::float_mask_fill(ratio, still, Scalar::from(0.0_f32))
    }

    /// The weight, with every element on its quantized value whose ratio reaches `threshold`; in
    /// the dtype of `weight`, which is the one observed last.
    #[must_use]
    pub fn reset(&self, weight: FloatTensor<B>, threshold: f32) -> FloatTensor<B> {
        let oscillates = B::float_greater_equal_elem(
            self.ratio(),
            Scalar::from(threshold),
            burn_backend::BoolDType::Native,
        );
        let quantized = linear::cast::<B>(self.last_quantized.clone(), weight.dtype());
        B::float_mask_where(weight, oscillates, quantized)
    }

    /// Share of the elements whose ratio reaches `threshold`. Reads a number back from the device.
    pub fn share(&self, threshold: f32) -> f64 {
        B::read_matrix(self.ratio(), |ratio| ratio.share_from(threshold))
    }
}
