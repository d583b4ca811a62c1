//! What 4 bits do to a weight.

use burn_nvfp4::cpu::Element;
use burn_nvfp4::format::{BlockScales, PackedMatrix, e2m1};
use rayon::prelude::*;

use crate::checkpoint::files::{Floats, on_floats};

/// Elements per task, whole blocks.
const CHUNK: usize = 1 << 16;

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

#[derive(Clone, Copy, Default)]
struct Sums {
    error: f64,
    norm: f64,
    nonzero: u64,
    underflow: u64,
    saturation: u64,
}

impl WeightStatistics {
    /// Compares a weight with its quantized values, both `[d_output, d_input]`.
    pub(super) fn new(original: &Floats<'_>, matrix: &PackedMatrix, values: &[f32]) -> Self {
        let sums = on_floats!(original, data => {
            let chunks = data.par_chunks(CHUNK).zip(values.par_chunks(CHUNK));
            let codes = matrix.codes().par_chunks(CHUNK / 2);
            let sums = chunks.zip(codes).map(|((x, q), codes)| chunk_sums(x, q, codes));
            sums.reduce(Sums::default, Sums::plus)
        });
        let share = |part: u64, whole: u64| {
            if whole == 0 {
                0.0
            } else {
                part as f64 / whole as f64
            }
        };
        Self {
            relative_error: if sums.norm == 0.0 {
                0.0
            } else {
                (sums.error / sums.norm).sqrt()
            },
            underflow: share(sums.underflow, sums.nonzero),
            saturation: share(sums.saturation, values.len() as u64),
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

fn chunk_sums<E: Element>(x: &[E], q: &[f32], codes: &[u8]) -> Sums {
    let mut sums = Sums::default();
    for (i, (x, &q)) in x.iter().zip(q).enumerate() {
        let x = x.to_f32();
        let error = f64::from(x) - f64::from(q);
        sums.error += error * error;
        sums.norm += f64::from(x) * f64::from(x);
        sums.nonzero += u64::from(x != 0.0);
        sums.underflow += u64::from(x != 0.0 && q == 0.0);
        let code = codes[i / 2] >> (4 * (i % 2)) & 0xF;
        let is_largest = e2m1::decode(code).abs() == e2m1::MAX;
        // Not what lies on 6 but for the rounding of the scale.
        sums.saturation += u64::from(is_largest && x.abs() > q.abs() * 1.000_001);
    }
    sums
}

impl Sums {
    fn plus(self, other: Self) -> Self {
        Self {
            error: self.error + other.error,
            norm: self.norm + other.norm,
            nonzero: self.nonzero + other.nonzero,
            underflow: self.underflow + other.underflow,
            saturation: self.saturation + other.saturation,
        }
    }
}
