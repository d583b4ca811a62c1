//! Operations with kernels, as data: what is computed, and what comes out.
//!
//! An operation takes float tensors, and perhaps integer ones, and makes one differentiable result
//! and perhaps further tensors that its backward needs. A backend that records operations (fusion)
//! and an autodiff node can both work from this alone; only [`crate::kernels`] knows how to
//! compute. Each variant is described where its function is, in [`crate::ops`].

use burn_backend::{DType, Shape};

/// Shape and dtype of a tensor.
pub type Like = (Shape, DType);

/// An operation with a kernel and a backward kernel.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// [`crate::ops::squared_relu`].
    SquaredRelu,
}

/// Which way an operation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Inputs: those of the operation. Outputs: the result, then what only backward reads.
    Forward,
    /// Inputs: what was kept ([`Op::keeps`]) in the order of the inputs, what forward made beside
    /// its result, and the gradient of the result. Outputs: the gradients of the float inputs.
    Backward,
}

impl Op {
    /// A name for logs and recorded operations.
    pub const fn name(&self, pass: Pass) -> &'static str {
        match (self, pass) {
            (Self::SquaredRelu, Pass::Forward) => "hybrid::squared_relu",
            (Self::SquaredRelu, Pass::Backward) => "hybrid::squared_relu_backward",
        }
    }

    /// True if backward reads the float input of this index.
    pub const fn keeps(&self, input: usize) -> bool {
        match self {
            Self::SquaredRelu => input == 0,
        }
    }

    /// What comes out of a pass over float inputs like these, which are taken to be valid: kernels
    /// check them.
    pub fn outputs(&self, pass: Pass, inputs: &[Like]) -> Vec<Like> {
        match (self, pass) {
            (Self::SquaredRelu, Pass::Forward | Pass::Backward) => vec![inputs[0].clone()],
        }
    }
}
