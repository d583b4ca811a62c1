//! [`Format`]: which codes and scales an operand has, and how long each part of it is.

use super::{BlockShape, Fp8Scaling};

/// Which codes and which scales a [`PackedMatrix`](super::PackedMatrix) holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// E2M1 codes, E4M3 block scales, f32 tensor or row scales.
    Nvfp4 {
        /// Which elements share a block scale.
        block: BlockShape,
    },
    /// E2M1 codes, E8M0 scales of 1x32 blocks.
    Mxfp4,
    /// E4M3 codes, E8M0 scales of 1x32 blocks.
    Mxfp8,
    /// E4M3 codes, f32 scales.
    Fp8 {
        /// Which elements share a scale.
        scaling: Fp8Scaling,
    },
}

/// Height and length of a block: how many rows, how many neighbours along the contraction axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockDims {
    pub(crate) rows: usize,
    pub(crate) k: usize,
}

impl Format {
    /// Bits of one code.
    pub const fn code_bits(self) -> usize {
        match self {
            Self::Nvfp4 { .. } | Self::Mxfp4 => 4,
            Self::Mxfp8 | Self::Fp8 { .. } => 8,
        }
    }

    /// Elements of a block along the contraction axis, to which `k` is padded; 1 without blocks.
    pub const fn block_len(self) -> usize {
        self.block_dims().k
    }

    pub(crate) const fn block_dims(self) -> BlockDims {
        match self {
            Self::Nvfp4 {
                block: BlockShape::Row16,
            } => BlockDims { rows: 1, k: 16 },
            Self::Nvfp4 {
                block: BlockShape::Tile16x16,
            } => BlockDims { rows: 16, k: 16 },
            Self::Mxfp4 | Self::Mxfp8 => BlockDims { rows: 1, k: 32 },
            Self::Fp8 {
                scaling: Fp8Scaling::Tensor,
            } => BlockDims { rows: 1, k: 1 },
            Self::Fp8 {
                scaling: Fp8Scaling::Row128,
            } => BlockDims { rows: 1, k: 128 },
            Self::Fp8 {
                scaling: Fp8Scaling::Tile128x128,
            } => BlockDims { rows: 128, k: 128 },
        }
    }

    pub(super) const fn scale_type(self) -> &'static str {
        match self {
            Self::Nvfp4 { .. } => "E4M3",
            Self::Mxfp4 | Self::Mxfp8 => "E8M0",
            Self::Fp8 {
                scaling: Fp8Scaling::Tensor,
            } => "no",
            Self::Fp8 {
                scaling: Fp8Scaling::Row128 | Fp8Scaling::Tile128x128,
            } => "f32",
        }
    }

    /// Lengths of codes and block scales of a `[rows, k]` matrix, if they can be counted.
    pub(crate) fn layout(self, rows: usize, k: usize) -> Option<Layout> {
        let block = self.block_dims();
        let padded_k = k.checked_next_multiple_of(block.k)?;
        let elements = rows.checked_mul(padded_k)?;
        let scales_per_row = padded_k / block.k;
        let scales = match self {
            Self::Fp8 {
                scaling: Fp8Scaling::Tensor,
            } => 0,
            Self::Nvfp4 { .. } | Self::Mxfp4 | Self::Mxfp8 | Self::Fp8 { .. } => {
                rows.div_ceil(block.rows).checked_mul(scales_per_row)?
            }
        };
        Some(Layout {
            padded_k,
            codes: elements / (8 / self.code_bits()),
            scales,
        })
    }
}

/// Lengths of the parts of a packed matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) padded_k: usize,
    pub(crate) codes: usize,
    pub(crate) scales: usize,
}
