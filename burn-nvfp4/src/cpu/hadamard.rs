//! The Hadamard transforms along the contraction axis: of 16 points with fixed signs (numerics §4),
//! and of 128 points with random ones (numerics §11).
//!
//! The first:
//!
//! 1. Round each element to bf16, whatever its type was.
//! 2. Flip signs by the sign vector.
//! 3. Sixteen sums of sixteen terms in f32, as a fast Walsh-Hadamard transform: four stages that
//!    add and subtract neighbours 1, 2, 4 and 8 apart. `H[i][j] = (-1)^popcount(i & j)`.
//! 4. Multiply by 1/4 and round once to bf16.
//!
//! TransformerEngine sums in a tensor core, in an order that is not documented. On bf16 data of
//! ordinary spread the f32 sums are exact before step 4, so that every order gives the same bits.

use multiversion::multiversion;

use super::elements::{nan_mask, one_group_at_a_time};
use crate::recipe::SignVector;

/// Points of the transform.
pub(super) const POINTS: usize = 16;

/// Transforms every 16 consecutive elements in place; a shorter rest is left alone.
///
/// The result holds bf16 values.
pub fn hadamard(x: &mut [f32], signs: SignVector) {
    transform(x, signs);
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2"))]
fn transform(x: &mut [f32], signs: SignVector) {
    let mut flips = [0u32; POINTS];
    for (i, flip) in flips.iter_mut().enumerate() {
        *flip = u32::from((signs.0 >> i) & 1) << 31;
    }
    let (groups, _) = x.as_chunks_mut::<POINTS>();
    for group in groups {
        one_group_at_a_time();
        let mut v = [0.0_f32; POINTS];
        for i in 0..POINTS {
            v[i] = f32::from_bits(round_to_bf16(group[i]).to_bits() ^ flips[i]);
        }
        v = stage::<1>(v);
        v = stage::<2>(v);
        v = stage::<4>(v);
        v = stage::<8>(v);
        for i in 0..POINTS {
            group[i] = round_to_bf16(v[i] * 0.25);
        }
    }
}

/// Points of the random transform.
pub(super) const RANDOM_POINTS: usize = 128;

/// 2^-3.5 in f32.
const RANDOM_NORM: f32 = 0.088_388_346;

/// Transforms every 128 consecutive elements in place after the sign flips `signs`, bit `i` for
/// element `i`; a shorter rest is left alone (numerics §11).
///
/// f32 throughout: no element is rounded to bf16. Seven stages, neighbours 1 to 64 apart, and one
/// multiplication at the end.
pub fn random_hadamard(x: &mut [f32], signs: [u32; 4]) {
    random_transform(x, signs);
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2"))]
fn random_transform(x: &mut [f32], signs: [u32; 4]) {
    let mut flips = [0u32; RANDOM_POINTS];
    for (i, flip) in flips.iter_mut().enumerate() {
        *flip = ((signs[i / 32] >> (i % 32)) & 1) << 31;
    }
    for vector in x.as_chunks_mut::<RANDOM_POINTS>().0 {
        for (value, flip) in vector.iter_mut().zip(&flips) {
            *value = f32::from_bits(value.to_bits() ^ flip);
        }
        for group in vector.as_chunks_mut::<POINTS>().0 {
            one_group_at_a_time();
            *group = stage::<8>(stage::<4>(stage::<2>(stage::<1>(*group))));
        }
        for stride in [16, 32, 64] {
            for pair in vector.chunks_exact_mut(2 * stride) {
                let (low, high) = pair.split_at_mut(stride);
                for (low, high) in low.iter_mut().zip(high) {
                    (*low, *high) = (*low + *high, *low - *high);
                }
            }
        }
        for value in vector {
            *value *= RANDOM_NORM;
        }
    }
}

/// One butterfly stage: `a + b` and `a - b` of elements `STRIDE` apart.
#[inline(always)]
fn stage<const STRIDE: usize>(v: [f32; POINTS]) -> [f32; POINTS] {
    let mut out = [0.0; POINTS];
    for i in 0..POINTS {
        // The upper partner is `a - b` written as `-b + a`: the same IEEE operation.
        let own = if i & STRIDE == 0 { v[i] } else { -v[i] };
        out[i] = own + v[i ^ STRIDE];
    }
    out
}

/// The nearest bf16, ties to even, as f32; NaN stays NaN.
#[inline(always)]
pub(super) const fn round_to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) & 0xFFFF_0000;
    let nan = nan_mask(bits & 0x7FFF_FFFF);
    f32::from_bits((rounded & !nan) | (bits & nan))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_vector_becomes_a_signed_row_of_the_matrix() {
        for signs in [SignVector::TRANSFORMER_ENGINE, SignVector::PLAIN] {
            for i in 0..POINTS {
                let mut x = [0.0; POINTS];
                x[i] = 4.0;
                hadamard(&mut x, signs);
                for (j, &value) in x.iter().enumerate() {
                    let parity = (i & j).count_ones() + u32::from((signs.0 >> i) & 1);
                    let expected = if parity % 2 == 0 { 1.0 } else { -1.0 };
                    assert_eq!(value, expected, "row {i}, column {j}");
                }
            }
        }
    }

    #[test]
    fn twice_the_plain_transform_is_the_identity() {
        let mut x: Vec<f32> = (0..48u8).map(|i| f32::from(i) - 20.0).collect();
        let before = x.clone();
        hadamard(&mut x, SignVector::PLAIN);
        hadamard(&mut x, SignVector::PLAIN);
        assert_eq!(x, before);
    }

    #[test]
    fn each_unit_vector_becomes_a_signed_row_of_the_large_matrix() {
        let signs = [0x8000_0001, 0x1234_5678, 0, u32::MAX];
        for i in 0..RANDOM_POINTS {
            let mut x = [0.0; RANDOM_POINTS];
            x[i] = 1.0;
            random_hadamard(&mut x, signs);
            for (j, &value) in x.iter().enumerate() {
                let parity = (i & j).count_ones() + ((signs[i / 32] >> (i % 32)) & 1);
                let expected = if parity % 2 == 0 { 1.0 } else { -1.0 };
                assert_eq!(value, expected * RANDOM_NORM, "row {i}, column {j}");
            }
        }
    }

    #[test]
    fn inputs_are_rounded_to_bf16_first() {
        let third = 1.0_f32 / 3.0;
        let mut exact = [third; POINTS];
        let mut rounded = [half::bf16::from_f32(third).to_f32(); POINTS];
        hadamard(&mut exact, SignVector::TRANSFORMER_ENGINE);
        hadamard(&mut rounded, SignVector::TRANSFORMER_ENGINE);
        assert_eq!(exact, rounded);
    }

    #[test]
    fn rounding_to_bf16_agrees_with_half() {
        for high in (0..=u16::MAX).step_by(7) {
            for low in [0u16, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
                let x = f32::from_bits(u32::from(high) << 16 | u32::from(low));
                let expected = half::bf16::from_f32(x).to_f32();
                let got = round_to_bf16(x);
                assert!(got.to_bits() == expected.to_bits() || (x.is_nan() && got.is_nan()));
            }
        }
    }
}
