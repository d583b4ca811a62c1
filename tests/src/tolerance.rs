//! How far apart two results may be, with the reason for each number.
//!
//! Before a GEMM there is no tolerance: codes, scales and amaxes are compared by their bits. After
//! it, the order of summation is free.

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
/// The table rests on one matrix of 4096 x 4096, and we average as many elements. Between matrices
/// of 2048 x 2048 the figures spread by 0.07 % to 0.6 % (the test prints it; most for the formats
/// whose scale hangs on one amax), so two means differ by up to about 0.3 %. 1 % leaves room for
/// that and for the rounding of the printed figures; bits are the golden files' business.
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
            let bound = of_largest * largest + of_value * expected.abs();
            distance > bound || distance.is_nan()
        })
}
