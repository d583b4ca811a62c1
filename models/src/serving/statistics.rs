//! What 4 bits do to a weight.

use burn_nvfp4::format::{BlockScales, PackedMatrix};
use burn_nvfp4::stats::ErrorSums;
use rayon::prelude::*;

use crate::checkpoint::files::{Floats, on_floats};

/// The error of a quantized weight, and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightStatistics {
    /// `|w - q| / |w|`, Frobenius norms; 0 for a weight of zeros.
    pub relative_error: f64,
    /// Share of the non-zero elements that became zero.
    pub underflow: f64,
    /// Share of the elements that were cut off at ±6.
    pub saturation: f64,
}

impl WeightStatistics {
    /// Compares a weight with its quantized values, both `[d_output, d_input]`.
    pub(super) fn new(original: &Floats<'_>, matrix: &PackedMatrix, values: &[f32]) -> Self {
        let sums = on_floats!(original, data => ErrorSums::new(data, matrix, values));
        Self {
            relative_error: sums.relative_error(),
            underflow: sums.underflow_share(),
            saturation: sums.saturation_share(),
        }
    }
}

/// Share of the blocks that hold nothing but zeros.
pub(super) fn zero_blocks(matrix: &PackedMatrix) -> f64 {
    let BlockScales::E4m3(scales) = matrix.block_scales() else {
        return 0.0;
    };
    if scales.is_empty() {
        return 0.0;
    }
    // The sign bit of a code is not part of its magnitude.
    let is_zero = |block: &[u8]| block.iter().all(|byte| byte & 0x77 == 0);
    let blocks = matrix.codes().par_chunks(8).filter(|block| is_zero(block));
    blocks.count() as f64 / scales.len() as f64
}
