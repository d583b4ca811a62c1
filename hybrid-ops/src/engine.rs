//! What a backend brings: kernels for operations, or nothing.
//!
//! `impl HybridEngine for MyBackend {}` is all that a backend without kernels needs; operations are
//! then compositions. Autodiff puts a node with a written backward around an operation whose inner
//! backend has a kernel.

mod autodiff;
mod nvfp4;
#[cfg(feature = "ndarray")]
mod ndarray;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cubecl")]
mod fusion;

use burn::tensor::backend::AutodiffBackend;
#[cfg(feature = "cubecl")]
use burn_backend::TensorMetadata;
use burn_backend::tensor::{Device, FloatTensor, IntTensor};
use burn_backend::{Backend, FloatDType};
use burn_nvfp4::recipe::OperandSpec;

use crate::op::{AdamW, Like, Op, Pass};

/// A backend on which a hybrid model runs.
pub trait HybridEngine: Backend {
    /// True if there are kernels of `op` for float inputs like these on `device`.
    fn has_kernel(_op: &Op, _inputs: &[Like], _device: &Device<Self>) -> bool {
        false
    }

    /// Runs one pass of an operation: see [`Pass`] for what goes in and out.
    ///
    /// Only called where [`has_kernel`](Self::has_kernel) says so, and never with autodiff.
    fn launch(
        op: &Op,
        pass: Pass,
        _inputs: Vec<FloatTensor<Self>>,
        _ints: Vec<IntTensor<Self>>,
    ) -> Vec<FloatTensor<Self>> {
        unreachable!(
            "{}: this backend has said that it has no kernels",
            op.name(pass)
        )
    }

    /// True if there are kernels for the optimizer: [`sum_of_squares`](Self::sum_of_squares) and
    /// [`adamw`](Self::adamw).
    fn has_optimizer(_device: &Device<Self>) -> bool {
        false
    }

    /// The sum of the squares of all elements of some tensors, f32 `[1]`.
    ///
    /// Only called where [`has_optimizer`](Self::has_optimizer) says so, with at least one element.
    fn sum_of_squares(_tensors: Vec<FloatTensor<Self>>) -> FloatTensor<Self> {
        unreachable!("this backend has said that it has no kernels for the optimizer")
    }

    /// One AdamW update of many `[parameter, first moment, second moment, gradient]`, the first
    /// three f32; returns those three of each, in place where nobody else holds them. Gradients are
    /// multiplied by `factor` first, f32 `[1]`, if there is one.
    ///
    /// Only called where [`has_optimizer`](Self::has_optimizer) says so, with at least one.
    fn adamw(
        _states: Vec<[FloatTensor<Self>; 4]>,
        _factor: Option<FloatTensor<Self>>,
        _numbers: AdamW,
    ) -> Vec<[FloatTensor<Self>; 3]> {
        unreachable!("this backend has said that it has no kernels for the optimizer")
    }

    /// A weight `[d_input, d_output]` as a linear of this backend multiplies it where its recipe
    /// says `spec`: f32, in its own shape. Never called with autodiff.
    fn weight_values(weight: FloatTensor<Self>, _spec: OperandSpec) -> FloatTensor<Self> {
        Self::float_cast(weight, FloatDType::F32)
    }

    /// Runs a whole operation; differentiable if the backend is.
    fn apply(
        op: Op,
        inputs: Vec<FloatTensor<Self>>,
        ints: Vec<IntTensor<Self>>,
    ) -> FloatTensor<Self> {
        first(Self::launch(&op, Pass::Forward, inputs, ints))
    }
}

/// The result of an operation, whatever else it made.
fn first<T>(made: Vec<T>) -> T {
    made.into_iter().next().expect("an operation has a result")
}

/// Shapes and dtypes of tensors.
#[cfg(feature = "cubecl")]
fn likes<T: TensorMetadata>(tensors: &[T]) -> Vec<Like> {
    tensors.iter().map(|t| (t.shape(), t.dtype())).collect()
}

/// A backend on which a hybrid model trains: with autodiff, and an engine on both sides of it.
pub trait TrainingEngine: HybridEngine + AutodiffBackend<InnerBackend: HybridEngine> {}

impl<B: HybridEngine + AutodiffBackend<InnerBackend: HybridEngine>> TrainingEngine for B {}
