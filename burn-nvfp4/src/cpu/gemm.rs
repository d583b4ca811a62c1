//! The GEMM on quantized operands: `C = alpha * A B^T` (numerics §8).
//!
//! Both operands are `[rows, k]`, contraction axis last, as tensor cores take them. The sum runs
//! over code x block scale; the tensor scales are multiplied in after it. Multiplying them in
//! before would round every element once more, and would no longer be what an FP4 tensor core
//! computes.

use gemm::{Parallelism, gemm as borrowed_gemm};
use rayon::prelude::*;

use super::dequantize::decode_operand;
use crate::format::{PackedMatrix, TensorScale};

/// What a GEMM's sums are multiplied with: the tensor scales of both operands.
#[derive(Clone, Debug, PartialEq)]
pub enum Alpha {
    /// One factor for all: `(amax_a * amax_b) * f32(1 / (q_max_a * q_max_b))`.
    Tensor(f32),
    /// Row scales on at least one side: `out[i][j] = (sum * factor) * (lhs[i] * rhs[j])`.
    Rows {
        /// `f32(1 / (q_max_a * q_max_b))`.
        factor: f32,
        /// Amax of each row of the left operand, or its one amax.
        lhs: Vec<f32>,
        /// Amax of each row of the right operand, or its one amax.
        rhs: Vec<f32>,
    },
}

impl Alpha {
    /// Multiplies the sums of an `[m, n]` result in place.
    ///
    /// # Panics
    /// If row amaxes do not number `m` and `n`, or `sums` does not hold whole rows.
    pub fn apply(&self, sums: &mut [f32], n: usize) {
        match self {
            Self::Tensor(alpha) => {
                for sum in sums {
                    *sum *= alpha;
                }
            }
            Self::Rows { factor, lhs, rhs } => {
                for (i, row) in sums.chunks_exact_mut(n.max(1)).enumerate() {
                    let lhs = pick(lhs, i);
                    for (j, sum) in row.iter_mut().enumerate() {
                        *sum = (*sum * factor) * (lhs * pick(rhs, j));
                    }
                }
            }
        }
    }
}

/// The amax of row `i`, which may be that of all rows.
#[inline(always)]
fn pick(amax: &[f32], i: usize) -> f32 {
    match amax {
        [tensor] => *tensor,
        rows => rows[i],
    }
}

/// The factor that belongs after a GEMM of two quantized operands.
///
/// # Source
/// TE `recipe/nvfp4.cu` for tensor scales (which is symmetric in the operands),
/// `cpp_extensions/gemm.py` for row scales. The product of the amaxes is formed in f32 and may
/// overflow where the GEMM does not.
pub fn gemm_alpha(lhs: &TensorScale, rhs: &TensorScale) -> Alpha {
    let factor = 1.0 / (lhs.q_max * rhs.q_max);
    match (lhs.amax.as_slice(), rhs.amax.as_slice()) {
        ([a], [b]) => Alpha::Tensor((a * b) * factor),
        (a, b) => Alpha::Rows {
            factor,
            lhs: a.to_vec(),
            rhs: b.to_vec(),
        },
    }
}

/// The sums of a GEMM before the tensor scales, `[a.rows, b.rows]`, in f64.
///
/// Exact for NVFP4 in any order of summation: every product is a multiple of 2^-20 below 2^23, so
/// an f64 holds the sum of 2^10 of them in the worst case, and of any `k` met in practice on data
/// whose blocks do not all stand at the largest scale. The oracle for every other GEMM; slow.
///
/// # Panics
/// If the contraction lengths differ.
pub fn gemm_f64(a: &PackedMatrix, b: &PackedMatrix) -> Vec<f64> {
    assert_eq!(
        a.k(),
        b.k(),
        "the operands of a GEMM have different contraction lengths"
    );
    let (lhs, rhs) = (decode_operand(a), decode_operand(b));
    // Two formats may pad differently; beyond the shorter one, one factor is zero.
    let k = a.padded_k().min(b.padded_k());
    let mut sums = vec![0.0; a.rows() * b.rows()];
    if sums.is_empty() || k == 0 {
        return sums;
    }
    sums.par_chunks_mut(b.rows())
        .zip(lhs.par_chunks(a.padded_k()))
        .for_each(|(sums, lhs)| {
            for (sum, rhs) in sums.iter_mut().zip(rhs.chunks_exact(b.padded_k())) {
                let products = lhs[..k]
                    .iter()
                    .zip(rhs)
                    .map(|(&l, &r)| f64::from(l) * f64::from(r));
                *sum = products.sum();
            }
        });
    sums
}

/// Multiplies `[m, k]` with the transpose of `[n, k]` in f32, then by `alpha`: `[m, n]`.
///
/// The operands are what [`decode_operand`] and [`quantize_operand`](super::quantize_operand)
/// return.
///
/// # Panics
/// If a slice does not fill its shape.
pub fn gemm(a: &[f32], b: &[f32], m: usize, n: usize, k: usize, alpha: &Alpha) -> Vec<f32> {
    let mut sums = products([m, n, k], (a, [k, 1]), (b, [k, 1]));
    alpha.apply(&mut sums, n);
    sums
}

/// Decoded values: `code · block scale`, exact in f32; the tensor scale is beside them.
#[derive(Clone, Debug)]
pub struct DecodedMatrix {
    /// Row-major or column-major, as the strides say.
    pub values: Vec<f32>,
    /// Rows of the operand.
    pub rows: usize,
    /// Length of the contraction axis, block padding included.
    pub k: usize,
    /// Distance between rows, in elements.
    pub row_stride: usize,
    /// Distance between neighbours along `k`, in elements.
    pub k_stride: usize,
    /// Second scale level, applied after the GEMM.
    pub scale: TensorScale,
}

/// Multiplies `lhs [m, k]` with the transpose of `rhs [n, k]`, applies both tensor scales, then
/// adds `bias [n]`: `[m, n]`.
///
/// Where one operand is padded further along `k` than the other, the rest of it is +0 and left out.
///
/// # Panics
/// If values do not fill their shapes.
pub fn gemm_decoded(lhs: &DecodedMatrix, rhs: &DecodedMatrix, bias: Option<&[f32]>) -> Vec<f32> {
    let (m, n, k) = (lhs.rows, rhs.rows, lhs.k.min(rhs.k));
    let mut out = products(
        [m, n, k],
        (&lhs.values, [lhs.row_stride, lhs.k_stride]),
        (&rhs.values, [rhs.row_stride, rhs.k_stride]),
    );
    gemm_alpha(&lhs.scale, &rhs.scale).apply(&mut out, n);
    if let Some(bias) = bias {
        for row in out.chunks_exact_mut(n.max(1)) {
            for (y, b) in row.iter_mut().zip(bias) {
                *y += b;
            }
        }
    }
    out
}

/// A matrix in memory: elements, and the distances between rows and between neighbours along `k`.
type Strided<'a> = (&'a [f32], [usize; 2]);

/// The f32 sums `a [m, k] b [n, k]^T`, row-major.
///
/// Sums run in the order of the `gemm` crate; every other bit of a quantized linear layer is fixed,
/// these last ones are not.
fn products([m, n, k]: [usize; 3], a: Strided<'_>, b: Strided<'_>) -> Vec<f32> {
    for (rows, (values, [row_stride, k_stride])) in [(m, a), (n, b)] {
        let reach = (rows.saturating_sub(1))
            .checked_mul(row_stride)
            .and_then(|rows| {
                (k.saturating_sub(1))
                    .checked_mul(k_stride)?
                    .checked_add(rows)
            });
        assert!(
            rows == 0 || k == 0 || reach.is_some_and(|last| last < values.len()),
            "an operand of {} values does not fill [{rows}, {k}]",
            values.len()
        );
    }
    let mut out = vec![0.0_f32; m * n];
    if out.is_empty() || k == 0 {
        return out;
    }
    let ((a, a_strides), (b, b_strides)) = (a, b);
    let [a_row, a_k] = a_strides.map(usize::cast_signed);
    let [b_row, b_k] = b_strides.map(usize::cast_signed);
    // SAFETY: the assertion above bounds the last element that each operand's shape and strides
    // reach, `b` being read as `[k, n]` by exchanged strides; `out` was made `[m, n]`. A slice has
    // at most `isize::MAX` bytes, so no stride is negative.
    unsafe {
        borrowed_gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n.cast_signed(),
            false,
            a.as_ptr(),
            a_k,
            a_row,
            b.as_ptr(),
            b_row,
            b_k,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::Rayon(0),
        );
    }
    out
}
