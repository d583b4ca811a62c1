//! One operand of a GEMM, in the forms that a linear passes around.

use std::sync::Arc;

use burn_backend::Backend;
use burn_backend::tensor::FloatTensor;

use crate::cpu::{Contraction, DecodedMatrix};
use crate::format::PackedMatrix;
use crate::recipe::OperandSpec;
use crate::rng::RandomKey;

/// An operand `[rows, k]` of a GEMM that sums over `k`.
#[derive(Clone, Debug)]
pub enum Operand<B: Backend> {
    /// The tensor itself, in its own dtype.
    HighPrecision {
        /// `[.., cols]`; leading dims count as one.
        tensor: FloatTensor<B>,
        /// Which of the two axes is `k`.
        along: Contraction,
    },
    /// Codes and scales in host memory: 4.5 bits an element for NVFP4. What a node keeps.
    Packed {
        /// The packed operand.
        matrix: Arc<PackedMatrix>,
        /// Which way the GEMM reads it.
        reading: Reading,
    },
    /// Code times block scale in host memory, for one GEMM.
    Decoded(Arc<DecodedMatrix>),
}

/// Which axis of a packed matrix the GEMM sums over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The axis that it was packed along.
    AsPacked,
    /// The other one. Only where one packing serves both ([`OperandSpec::is_transposable`]).
    Transposed,
}

/// How long an operand is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Until the GEMM at hand has run: no need to pack it.
    OneGemm,
    /// Until backward: packed.
    Kept,
}

/// What is asked of [`Nvfp4Engine::quantize_operand`](super::Nvfp4Engine::quantize_operand).
#[derive(Clone, Copy, Debug)]
pub struct OperandRequest<'a> {
    /// How to quantize.
    pub spec: OperandSpec,
    /// Which axis of the tensor, seen as a matrix, the GEMM sums over.
    pub along: Contraction,
    /// Names the random bits, if the spec rounds stochastically.
    pub key: RandomKey,
    /// How long the result is needed.
    pub lifetime: Lifetime,
    /// Layer, for messages.
    pub layer: &'a str,
    /// GEMM and side, for messages, e.g. `wgrad.rhs`.
    pub operand: &'static str,
}

impl<B: Backend> Operand<B> {
    /// The same operand, read along its other axis.
    ///
    /// # Panics
    /// On a decoded operand: those are made for one GEMM.
    #[must_use]
    pub fn transposed(&self) -> Self {
        match self {
            Self::HighPrecision { tensor, along } => Self::HighPrecision {
                tensor: tensor.clone(),
                along: along.other(),
            },
            Self::Packed { matrix, reading } => Self::Packed {
                matrix: matrix.clone(),
                reading: match reading {
                    Reading::AsPacked => Reading::Transposed,
                    Reading::Transposed => Reading::AsPacked,
                },
            },
            Self::Decoded(_) => unreachable!("a decoded operand is read once, as it was made"),
        }
    }

    /// Bytes that the operand occupies beyond tensors that live anyway.
    pub fn bytes(&self) -> usize {
        match self {
            Self::HighPrecision { .. } => 0,
            Self::Packed { matrix, .. } => matrix.bytes(),
            Self::Decoded(matrix) => size_of_val(matrix.values.as_slice()),
        }
    }
}
