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
    /// [`crate::ops::rms_norm`]: `[x, weight]`.
    RmsNorm {
        /// Added to the mean square.
        eps: f64,
        /// The dtype of the result.
        output: DType,
    },
    /// [`crate::ops::cross_entropy`]: `[logits]`, and the targets as integers.
    CrossEntropy,
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
            (Self::RmsNorm { .. }, Pass::Forward) => "hybrid::rms_norm",
            (Self::RmsNorm { .. }, Pass::Backward) => "hybrid::rms_norm_backward",
            (Self::CrossEntropy, Pass::Forward) => "hybrid::cross_entropy",
            (Self::CrossEntropy, Pass::Backward) => "hybrid::cross_entropy_backward",
        }
    }

    /// True if backward reads the float input of this index.
    pub const fn keeps(&self, input: usize) -> bool {
        match self {
            Self::SquaredRelu => input == 0,
            Self::RmsNorm { .. } => input < 2,
            // The gradient of the logits is made in forward, perhaps in their own memory.
            Self::CrossEntropy => false,
        }
    }

    /// What comes out of a pass over float inputs like these, which are taken to be valid: kernels
    /// check them.
    pub fn outputs(&self, pass: Pass, inputs: &[Like]) -> Vec<Like> {
        match (self, pass) {
            (Self::SquaredRelu, Pass::Forward | Pass::Backward) => vec![inputs[0].clone()],
            (Self::RmsNorm { output, .. }, Pass::Forward) => {
                let (shape, _) = &inputs[0];
                let rows = shape.num_elements() / shape[shape.num_dims() - 1];
                vec![
                    (shape.clone(), *output),
                    (Shape::new([rows, 1]), DType::F32),
                ]
            }
            (Self::RmsNorm { .. }, Pass::Backward) => inputs[..2].to_vec(),
            (Self::CrossEntropy, Pass::Forward) => {
                vec![(Shape::new([1]), DType::F32), inputs[0].clone()]
            }
            (Self::CrossEntropy, Pass::Backward) => vec![inputs[0].clone()],
        }
    }
}
