//! [`PackedMatrix`]: codes, block scales and tensor scale of one quantized GEMM operand.
//!
//! The layout is the same for every format: row-major `[rows, k]`, the contraction axis last and
//! padded to whole blocks. All stored scales are decode scales: value = code x block scale x tensor
//! scale. The matrix cannot be in a state that its accessors do not describe: every constructor
//! goes through [`PackedMatrix::from_parts`], which checks lengths with checked arithmetic.

use std::borrow::Cow;

use super::{BlockShape, Format, Fp8Scaling, packing};
use crate::error::QuantizeError;

/// Decode scales of the blocks, row-major, one row per row of blocks.
#[derive(Clone, Debug, PartialEq)]
pub enum BlockScales {
    /// The format has no blocks.
    None,
    /// NVFP4.
    E4m3(Vec<u8>),
    /// The MX formats.
    E8m0(Vec<u8>),
    /// FP8 with blocks.
    F32(Vec<f32>),
}

impl BlockScales {
    /// Number of scales.
    pub const fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::E4m3(bytes) | Self::E8m0(bytes) => bytes.len(),
            Self::F32(scales) => scales.len(),
        }
    }

    /// True if there are no scales.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    const fn type_name(&self) -> &'static str {
        match self {
            Self::None => "no",
            Self::E4m3(_) => "E4M3",
            Self::E8m0(_) => "E8M0",
            Self::F32(_) => "f32",
        }
    }

    const fn bytes(&self) -> usize {
        match self {
            Self::None | Self::E4m3(_) | Self::E8m0(_) => self.len(),
            Self::F32(scales) => scales.len() * size_of::<f32>(),
        }
    }
}

/// The second scale level: the decode scale of a tensor or row is `amax / q_max`.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorScale {
    /// One amax for the tensor, or one per row.
    pub amax: Vec<f32>,
    /// What the amax was mapped to: 6 x 448, 6 x 256, or 448 for FP8.
    pub q_max: f32,
}

impl TensorScale {
    /// The scale of an operand that has no second level: MX, block-scaled FP8, unquantized.
    pub fn unit() -> Self {
        Self {
            amax: vec![1.0],
            q_max: 1.0,
        }
    }

    /// True if every row has an amax of its own.
    pub fn is_per_row(&self) -> bool {
        self.amax.len() != 1
    }

    /// The amax that holds for a row.
    #[inline]
    pub fn row_amax(&self, row: usize) -> f32 {
        match self.amax.as_slice() {
            [tensor] => *tensor,
            rows => rows[row],
        }
    }

    /// The largest amax: that of the tensor.
    pub fn max_amax(&self) -> f32 {
        self.amax.iter().copied().fold(0.0, f32::max)
    }
}

/// Which axis of a packed matrix a GEMM sums over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The axis that it was packed along.
    AsPacked,
    /// The other one. Only where one packing serves both
    /// ([`OperandSpec::is_transposable`](crate::recipe::OperandSpec::is_transposable)).
    Transposed,
}

impl Reading {
    /// The other axis.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::AsPacked => Self::Transposed,
            Self::Transposed => Self::AsPacked,
        }
    }
}

/// A 2-D GEMM operand in a packed format: `[rows, k]`, contraction axis last.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedMatrix {
    rows: usize,
    k: usize,
    padded_k: usize,
    format: Format,
    codes: Vec<u8>,
    block_scales: BlockScales,
    tensor_scale: TensorScale,
}

impl PackedMatrix {
    /// Puts a matrix together from its shape and parts.
    ///
    /// # Shapes
    /// `codes`: `[rows, padded_k]`, two codes to a byte for the 4-bit formats. `block_scales`:
    /// `[ceil(rows / block rows), padded_k / block length]`. `tensor_scale.amax`: `[1]` or
    /// `[rows]`.
    ///
    /// # Errors
    /// [`QuantizeError::PartLength`] or [`QuantizeError::ScaleType`] if a part does not fit the
    /// shape and format, [`QuantizeError::TooLarge`] if the shape cannot be counted.
    pub fn from_parts(
        (rows, k): (usize, usize),
        format: Format,
        codes: Vec<u8>,
        block_scales: BlockScales,
        tensor_scale: TensorScale,
    ) -> Result<Self, QuantizeError> {
        let layout = format
            .layout(rows, k)
            .ok_or(QuantizeError::TooLarge { rows, k })?;
        if block_scales.type_name() != format.scale_type() {
            let (expected, got) = (format.scale_type(), block_scales.type_name());
            return Err(QuantizeError::ScaleType { expected, got });
        }
        let amaxes = if tensor_scale.is_per_row() { rows } else { 1 };
        for (part, expected, got) in [
            ("codes", layout.codes, codes.len()),
            ("block scales", layout.scales, block_scales.len()),
            ("tensor amaxes", amaxes, tensor_scale.amax.len()),
        ] {
            if expected != got {
                return Err(QuantizeError::PartLength {
                    part,
                    expected,
                    got,
                });
            }
        }
        let padded_k = layout.padded_k;
        Ok(Self {
            rows,
            k,
            padded_k,
            format,
            codes,
            block_scales,
            tensor_scale,
        })
    }

    /// Rows: the axis that is not summed over.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Length of the contraction axis, without padding.
    pub const fn k(&self) -> usize {
        self.k
    }

    /// `k` rounded up to whole blocks.
    ///
    /// The codes in between are +0, except behind a Hadamard transform: it mixes the zeros of the
    /// last 16 elements with the others, and a GEMM needs all of them.
    pub const fn padded_k(&self) -> usize {
        self.padded_k
    }

    /// The format of codes and scales.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// Codes, `[rows, padded_k / 2]` with the even index in the low nibble, or `[rows, padded_k]`
    /// for the 8-bit formats.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// Block scales as stored: a 16x16 or 128x128 tile has one.
    pub const fn block_scales(&self) -> &BlockScales {
        &self.block_scales
    }

    /// The second scale level.
    pub const fn tensor_scale(&self) -> &TensorScale {
        &self.tensor_scale
    }

    /// Bytes that codes, block scales and amaxes take.
    pub const fn bytes(&self) -> usize {
        let amaxes = self.tensor_scale.amax.len() * size_of::<f32>();
        self.codes.len() + self.block_scales.bytes() + amaxes
    }

    /// One-byte block scales with one row per matrix row, as TransformerEngine lays them out:
    /// `[rows, padded_k / block length]`; empty where scales are not bytes.
    pub fn row_block_scales(&self) -> Cow<'_, [u8]> {
        let (BlockScales::E4m3(bytes) | BlockScales::E8m0(bytes)) = &self.block_scales else {
            return Cow::Borrowed(&[]);
        };
        let block = self.format.block_dims();
        if block.rows == 1 || bytes.is_empty() {
            return Cow::Borrowed(bytes);
        }
        let per_row = self.padded_k / block.k;
        let rows = (0..self.rows).map(|row| row / block.rows * per_row);
        Cow::Owned(
            rows.flat_map(|start| &bytes[start..start + per_row])
                .copied()
                .collect(),
        )
    }

    /// The packed transpose, with the same values: one quantization serves both contraction axes.
    ///
    /// # Errors
    /// [`QuantizeError::NotTransposable`] if blocks or amaxes run along one axis only.
    pub fn transpose(&self) -> Result<Self, QuantizeError> {
        let square = match self.format {
            Format::Nvfp4 {
                block: BlockShape::Tile16x16,
            }
            | Format::Fp8 {
                scaling: Fp8Scaling::Tensor | Fp8Scaling::Tile128x128,
            } => true,
            Format::Nvfp4 {
                block: BlockShape::Row16,
            }
            | Format::Mxfp4
            | Format::Mxfp8
            | Format::Fp8 {
                scaling: Fp8Scaling::Row128,
            } => false,
        };
        if !square || self.tensor_scale.is_per_row() {
            return Err(QuantizeError::NotTransposable);
        }
        let (rows, k) = (self.k, self.rows);
        let layout = self
            .format
            .layout(rows, k)
            .ok_or(QuantizeError::TooLarge { rows, k })?;
        let source = (self.rows, self.k, self.padded_k);
        let codes = match self.format.code_bits() {
            4 => {
                let codes = packing::unpack(&self.codes);
                packing::pack(&transpose_padded(&codes, source, layout.padded_k))
            }
            _ => transpose_padded(&self.codes, source, layout.padded_k),
        };
        let block = self.format.block_dims();
        let tiles = (self.rows.div_ceil(block.rows), self.padded_k / block.k);
        let tiles = (tiles.0, tiles.1, tiles.1);
        let block_scales = match &self.block_scales {
            BlockScales::None => BlockScales::None,
            BlockScales::E4m3(bytes) => BlockScales::E4m3(transpose_padded(bytes, tiles, tiles.0)),
            BlockScales::E8m0(bytes) => BlockScales::E8m0(transpose_padded(bytes, tiles, tiles.0)),
            BlockScales::F32(scales) => BlockScales::F32(transpose_padded(scales, tiles, tiles.0)),
        };
        Self::from_parts(
            (rows, k),
            self.format,
            codes,
            block_scales,
            self.tensor_scale.clone(),
        )
    }
}

/// The transpose of a `[rows, cols]` matrix whose rows are `stride` apart, in rows of `out_stride`,
/// padded with zeros.
fn transpose_padded<T: Copy + Default>(
    source: &[T],
    (rows, cols, stride): (usize, usize, usize),
    out_stride: usize,
) -> Vec<T> {
    // In squares, so that both sides stay in cache.
    const SQUARE: usize = 64;
    let mut out = vec![T::default(); cols * out_stride];
    for row0 in (0..rows).step_by(SQUARE) {
        for col0 in (0..cols).step_by(SQUARE) {
            for col in col0..cols.min(col0 + SQUARE) {
                for row in row0..rows.min(row0 + SQUARE) {
                    out[col * out_stride + row] = source[row * stride + col];
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests;
