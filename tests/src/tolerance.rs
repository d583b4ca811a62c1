//! How far apart two results may be, with the reason for each number.
//!
//! Before a GEMM there is no tolerance: codes, scales and amaxes are compared by their bits. After it,
//! the order of summation is free.

/// An f32 GEMM of quantized operands against the exact result, relative to the largest output.
///
/// Each operand element is exact, each product has at most 12 significant bits and is exact too, so
/// only additions round: a sum of `k` terms is off by about `sqrt(k) * 2^-25` of the partial sums,
/// 5e-7 for `k` = 256, the longest sum in the golden files. Alpha adds 2^-24 three times.
pub const GEMM_F32_OF_LARGEST: f64 = 1e-6;

/// Rounding to bf16 moves a number by at most half of its last place, 2^-8 of its size.
pub const BF16_OF_VALUE: f64 = 1.0 / 256.0;

/// A relative MSE against the published table, whose figures have a safe third digit.
///
/// The table rests on one matrix of 4096 x 4096; between seeds the figures move by about 0.05 %, and
/// printing four digits costs as much again. 1 % leaves room for both and for nothing else: the
/// nearest wrong formula, torchao's scale floor, already misses other inputs by 60 %.
pub const RELATIVE_MSE: f64 = 0.01;

/// The first pair that is further apart than `of_largest * max|expected| + of_value * |expected|`.
pub fn first_beyond(
    got: &[f64],
    expected: &[f64],
    of_largest: f64,
    of_value: f64,
) -> Option<(usize, f64, f64)> {
    let largest = expected
        .iter()
        .fold(0.0, |largest: f64, y| largest.max(y.abs()));
    let pairs = got.iter().zip(expected).enumerate();
    pairs
        .map(|(i, (&got, &expected))| (i, got, expected))
        .find(|(_, got, expected)| {
            let distance = (got - expected).abs();
            // Not `>`: a NaN is beyond every tolerance.
            !(distance <= of_largest * largest + of_value * expected.abs())
        })
}
