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
use burn_backend::{Backend, BoolDType, Scalar, TensorMetadata, get_device_settings};
use serde::{Deserialize, Serialize};

use crate::engine::{Nvfp4Engine, linear};
use crate::recipe::{OperandSpec, RecipeError, Transform};

/// When weights are watched, and what becomes of those that oscillate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OsciReset {
    /// The first step of the first window: weights should have stopped travelling.
    pub start: u64,
    /// Steps from one window to the next.
    pub period: u64,
    /// Steps that a window watches; at its end weights are reset.
    pub window: u64,
    /// Path of the quantized weight over path of the weight, from which it oscillates.
    pub threshold: f32,
    /// What becomes of weights that oscillate.
    #[serde(default, skip_serializing_if = "WindowEnd::is_default")]
    pub at_end: WindowEnd,
}

/// What becomes of weights that oscillate, at the end of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WindowEnd {
    /// They are set to the middle of their bin.
    #[default]
    Reset,
    /// They are counted and left alone: what a run with resets is compared with.
    Count,
}

impl WindowEnd {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "the signature that serde calls"
    )]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
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
    /// [`WeightTrace::observe`], then what [`OsciReset::at_end`] says, and the trace is dropped.
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
            at_end: WindowEnd::Reset,
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

    /// The step at which the window of `step` began, or would have; `None` before the first one.
    pub const fn window_of(&self, step: u64) -> Option<u64> {
        match step.checked_sub(self.start) {
            Some(since) => Some(step - since % self.period),
            None => None,
        }
    }
}

/// The weight as a GEMM multiplies it, in f32 and its own shape: `spec`, along its rows as fprop
/// reads it, under its own amax: not what recipes multiply that renew their scales now and then. A
/// weight that is not quantized, or only behind a transform, is returned in f32.
///
/// CubeCL backends stay on their device.
pub fn quantized_weight<B: Nvfp4Engine>(
    weight: FloatTensor<B>,
    spec: OperandSpec,
) -> FloatTensor<B> {
    if is_traced(&spec) {
        B::weight_values(weight, spec)
    } else {
        linear::cast::<B>(weight, burn_backend::DType::F32)
    }
}

/// True if a weight that is multiplied in this way has bins of its own: it is quantized, and not
/// behind a transform.
pub const fn is_traced(spec: &OperandSpec) -> bool {
    spec.is_quantized() && matches!(spec.transform(), Transform::None)
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
        let quantized = quantized_weight::<B>(weight.clone(), spec);
        Self::begin(weight, quantized)
    }

    /// Adds a step to both paths.
    pub fn observe(&mut self, weight: FloatTensor<B>, spec: OperandSpec) {
        let quantized = quantized_weight::<B>(weight.clone(), spec);
        self.add(weight, quantized);
    }

    /// Share of the elements whose ratio reaches `threshold`. Reads a number back from the device.
    pub fn share(&self, threshold: f32) -> f64 {
        B::read_matrix(self.ratio(), |ratio| ratio.share_from(threshold))
    }
}

impl<B: Backend> WeightTrace<B> {
    /// [`Self::new`] at a weight whose [`quantized_weight`] is there.
    pub fn begin(weight: FloatTensor<B>, quantized: FloatTensor<B>) -> Self {
        let (shape, device) = (weight.shape(), B::float_device(&weight));
        let zeros = B::float_zeros(shape, &device, burn_backend::FloatDType::F32);
        Self {
            last: linear::cast::<B>(weight, burn_backend::DType::F32),
            last_quantized: quantized,
            path: zeros.clone(),
            quantized_path: zeros,
        }
    }

    /// [`Self::observe`] of a weight whose [`quantized_weight`] is there.
    pub fn add(&mut self, weight: FloatTensor<B>, quantized: FloatTensor<B>) {
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
            bool_dtype::<B>(&self.path),
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
            bool_dtype::<B>(&self.path),
        );
        let quantized = linear::cast::<B>(self.last_quantized.clone(), weight.dtype());
        B::float_mask_where(weight, oscillates, quantized)
    }
}

/// What the device of a tensor has its booleans in.
fn bool_dtype<B: Backend>(tensor: &FloatTensor<B>) -> BoolDType {
    get_device_settings::<B>(&B::float_device(tensor)).bool_dtype
}
