//! One operand of a GEMM, in the forms that a linear passes around.

use std::sync::Arc;

use burn_backend::tensor::{FloatTensor, IntTensor};
use burn_backend::{Backend, TensorMetadata};

use crate::cpu::{Contraction, DecodedMatrix};
use crate::format::{Format, PackedMatrix, Reading};
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
    /// In device memory.
    Device(DeviceOperand<B>),
}

/// A quantized operand in device memory: packed, decoded, or both.
#[derive(Clone, Debug)]
pub struct DeviceOperand<B: Backend> {
    /// Codes and scales: what a node keeps, and what FP4 tensor cores read.
    pub packed: Option<DevicePacked<B>>,
    /// Code times block scale: what an emulated GEMM reads.
    pub decoded: Option<DeviceDecoded<B>>,
    /// The factor after the GEMM with the operand that this one was quantized for, f32 `[1]`.
    pub alpha: Option<FloatTensor<B>>,
}

/// Codes and scales in device memory.
#[derive(Clone, Debug)]
pub struct DevicePacked<B: Backend> {
    /// Shape and format.
    pub layout: PackedLayout,
    /// Which way the GEMM reads it.
    pub reading: Reading,
    /// u32 words, `[rows, padded_k / codes per word]`.
    pub codes: IntTensor<B>,
    /// Decode scales of the blocks.
    pub scales: DeviceScales<B>,
    /// f32 amax, `[1]` or `[rows]`.
    pub amax: FloatTensor<B>,
}

/// Block scales in device memory.
#[derive(Clone, Debug)]
pub enum DeviceScales<B: Backend> {
    /// The format has no blocks.
    None,
    /// One E4M3 or E8M0 byte to an element.
    Bytes(IntTensor<B>),
    /// f32.
    F32(FloatTensor<B>),
}

/// What is known of a packed operand before its first code.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PackedLayout {
    /// Rows: the axis that it is not packed along.
    pub rows: usize,
    /// Length of the axis that it is packed along.
    pub k: usize,
    /// `k` rounded up to whole blocks.
    pub padded_k: usize,
    /// The format of codes and scales.
    pub format: Format,
    /// What the amax is mapped to.
    pub q_max: f32,
}

/// Code times block scale in device memory.
#[derive(Clone, Debug)]
pub struct DeviceDecoded<B: Backend> {
    /// `[rows, k]` if `along` is [`Contraction::Columns`], else `[k, rows]`.
    pub values: FloatTensor<B>,
    /// Which axis of `values` the GEMM sums over.
    pub along: Contraction,
    /// f32 amax, `[1]` or `[rows]`; `None` if the operand has no tensor scale.
    pub amax: Option<FloatTensor<B>>,
    /// What the amax was mapped to.
    pub q_max: f32,
}

/// How long an operand is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Until the GEMM at hand has run: no need to pack it.
    OneGemm,
    /// Until backward: packed.
    Kept,
    /// Read by a GEMM now, along one axis, and by another later, along the other.
    NowAndKept,
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
    /// On a host operand that is decoded: those are made for one GEMM.
    #[must_use]
    pub fn transposed(&self) -> Self {
        match self {
            Self::HighPrecision { tensor, along } => Self::HighPrecision {
                tensor: tensor.clone(),
                along: along.other(),
            },
            Self::Packed { matrix, reading } => Self::Packed {
                matrix: matrix.clone(),
                reading: reading.other(),
            },
            Self::Decoded(_) => unreachable!("a decoded operand is read once, as it was made"),
            Self::Device(DeviceOperand {
                packed, decoded, ..
            }) => Self::Device(DeviceOperand {
                packed: packed.clone().map(|packed| DevicePacked {
                    reading: packed.reading.other(),
                    ..packed
                }),
                decoded: decoded.clone().map(|decoded| DeviceDecoded {
                    along: decoded.along.other(),
                    ..decoded
                }),
                // The other axis is summed over in another GEMM.
                alpha: None,
            }),
        }
    }

    /// The form that a node keeps: packed, without a decoded copy.
    #[must_use]
    pub fn into_kept(self) -> Self {
        match self {
            Self::Device(DeviceOperand {
                packed: Some(packed),
                ..
            }) => Self::Device(DeviceOperand {
                packed: Some(packed),
                decoded: None,
                alpha: None,
            }),
            Self::HighPrecision { .. }
            | Self::Packed { .. }
            | Self::Decoded(_)
            | Self::Device(_) => self,
        }
    }

    /// The same operand, for a GEMM with another one than it was quantized for.
    #[must_use]
    pub fn without_alpha(self) -> Self {
        match self {
            Self::Device(operand) => Self::Device(DeviceOperand {
                alpha: None,
                ..operand
            }),
            Self::HighPrecision { .. } | Self::Packed { .. } | Self::Decoded(_) => self,
        }
    }

    /// Bytes that the operand occupies if its tensor, should it be one, lives for it alone.
    pub(super) fn bytes_of_activation(&self) -> usize {
        match self {
            Self::HighPrecision { tensor, .. } => tensor_bytes(tensor),
            Self::Packed { .. } | Self::Decoded(_) | Self::Device(_) => self.bytes(),
        }
    }

    /// Bytes that the operand occupies beyond tensors that live anyway.
    pub fn bytes(&self) -> usize {
        match self {
            Self::HighPrecision { .. } => 0,
            Self::Packed { matrix, .. } => matrix.bytes(),
            Self::Decoded(matrix) => size_of_val(matrix.values.as_slice()),
            Self::Device(DeviceOperand {
                packed, decoded, ..
            }) => {
                let packed = packed.as_ref().map_or(0, DevicePacked::bytes);
                packed + decoded.as_ref().map_or(0, |d| tensor_bytes(&d.values))
            }
        }
    }
}

impl<B: Backend> DevicePacked<B> {
    fn bytes(&self) -> usize {
        let scales = match &self.scales {
            DeviceScales::None => 0,
            DeviceScales::Bytes(scales) => tensor_bytes(scales),
            DeviceScales::F32(scales) => tensor_bytes(scales),
        };
        tensor_bytes(&self.codes) + scales + tensor_bytes(&self.amax)
    }
}

pub(super) fn tensor_bytes(tensor: &impl TensorMetadata) -> usize {
    tensor.shape().num_elements() * tensor.dtype().size()
}
