//! E2M1, the element format of NVFP4 and MXFP4 (numerics §1).
//!
//! A code is four bits: the sign in bit 3, then the index into `0, 0.5, 1, 1.5, 2, 3, 4, 6`. There
//! is no infinity and no NaN: everything beyond ±6 saturates.
//!
//! The special values follow NVIDIA's conversion instruction: a negative that rounds to zero keeps
//! its sign (code 8), and NaN becomes +6 (code 7).

use super::minifloat::grid_index;

/// The value of each of the sixteen codes.
pub const VALUES: [f32; 16] = [
    0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
];

/// The largest value.
pub const MAX: f32 = 6.0;

/// Rounds to the nearest code, ties to the even code, saturating at ±6.
///
/// ```
/// use burn_nvfp4::format::e2m1;
/// assert_eq!(e2m1::encode_rne(2.5), 4); // a tie between 2 (code 4) and 3 (code 5)
/// assert_eq!(e2m1::encode_rne(-0.1), 8); // the sign of zero is kept
/// ```
#[inline(always)]
pub const fn encode_rne(y: f32) -> u8 {
    let code = grid_index(saturated_magnitude(y), 1, 1.0);
    ((code | sign_bit(y)) & 0xF) as u8
}

/// Rounds to one of the two neighbouring codes, by a random byte.
///
/// With `frac` the position of `|y|` between its neighbours, goes up iff `floor(256 frac) + random`
/// reaches 256, so with probability `floor(256 frac) / 256` over all bytes. Saturates at ±6.
#[inline(always)]
pub const fn encode_stochastic(y: f32, random: u8) -> u8 {
    let a = saturated_magnitude(y);
    // `code + frac` as fixed point with eight fraction bits. From 1 up these are bits of the float:
    // two exponent bits, one mantissa bit, then the fraction.
    let normal = (a.to_bits() >> 14).wrapping_sub(252 << 8);
    // Below 1 the step is 1/2: floor(512 a), by rounding to an integer and stepping back.
    let scaled = a * 512.0;
    let magic = 8_388_608.0_f32;
    let rounded = scaled + magic;
    let too_high = (rounded - magic > scaled) as u32;
    let subnormal = rounded
        .to_bits()
        .wrapping_sub(magic.to_bits())
        .wrapping_sub(too_high);
    let fixed = if a < 1.0 { subnormal } else { normal };
    let code = fixed.wrapping_add(random as u32) >> 8;
    ((code | sign_bit(y)) & 0xF) as u8
}

/// The value of a code; only the low four bits are read.
#[inline(always)]
pub const fn decode(code: u8) -> f32 {
    let magnitude = (code & 7) as u32;
    // Codes 0 and 1 are subnormal; from 2 up exponent and mantissa only need the f32 bias.
    let subnormal = magnitude.wrapping_mul(0.5_f32.to_bits());
    let normal = (magnitude + 252) << 22;
    let bits = if magnitude < 2 { subnormal } else { normal };
    f32::from_bits(bits | ((code & 8) as u32) << 28)
}

/// `min(|y|, 6)`, and 6 for NaN.
#[inline(always)]
const fn saturated_magnitude(y: f32) -> f32 {
    let a = y.abs();
    if a < MAX { a } else { MAX }
}

/// The sign as bit 3; NaN counts as positive.
#[inline(always)]
const fn sign_bit(y: f32) -> u32 {
    let sign = (y.to_bits() >> 28) & 8;
    if y.is_nan() { 0 } else { sign }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nearest code by search in f64, ties to the even code, CUDA's rule for NaN.
    fn nearest_by_search(y: f32) -> u8 {
        if y.is_nan() {
            return 7;
        }
        let a = f64::from(y.abs()).min(6.0);
        let distance = |code: u8| (f64::from(VALUES[usize::from(code)]) - a).abs();
        let best = (0..8u8)
            .min_by(|&l, &r| {
                distance(l)
                    .total_cmp(&distance(r))
                    .then((l & 1).cmp(&(r & 1)))
            })
            .unwrap();
        best | if y.is_sign_negative() { 8 } else { 0 }
    }

    #[test]
    fn every_bf16_rounds_to_the_nearest_code() {
        for bits in 0..=u16::MAX {
            let y = f32::from_bits(u32::from(bits) << 16);
            assert_eq!(
                encode_rne(y),
                nearest_by_search(y),
                "bf16 bits {bits:#06x} ({y})"
            );
        }
    }

    #[test]
    fn ties_and_their_neighbours_round_to_the_nearest_code() {
        for tie in [0.25_f32, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 7.0] {
            for y in [tie.next_down(), tie, tie.next_up()] {
                assert_eq!(encode_rne(y), nearest_by_search(y), "{y}");
                assert_eq!(encode_rne(-y), nearest_by_search(-y), "-{y}");
            }
        }
    }

    #[test]
    fn ties_round_to_the_even_code() {
        let ties = [
            (0.25, 0),
            (0.75, 2),
            (1.25, 2),
            (1.75, 4),
            (2.5, 4),
            (3.5, 6),
            (5.0, 6),
        ];
        for (y, code) in ties {
            assert_eq!(encode_rne(y), code, "{y}");
        }
    }

    #[test]
    fn decode_agrees_with_the_table_and_encodes_back() {
        for code in 0..16u8 {
            let value = decode(code);
            assert_eq!(
                value.to_bits(),
                VALUES[usize::from(code)].to_bits(),
                "code {code}"
            );
            assert_eq!(encode_rne(value), code);
            for random in 0..=u8::MAX {
                assert_eq!(
                    encode_stochastic(value, random),
                    code,
                    "grid points do not move"
                );
            }
        }
    }

    #[test]
    fn special_values_follow_the_instruction() {
        assert_eq!(encode_rne(f32::NAN), 7);
        assert_eq!(encode_rne(-f32::NAN), 7);
        assert_eq!(encode_rne(f32::INFINITY), 7);
        assert_eq!(encode_rne(f32::NEG_INFINITY), 15);
        assert_eq!(encode_rne(-0.0), 8);
        assert_eq!(encode_rne(-f32::MIN_POSITIVE), 8);
        for random in [0, 255] {
            assert_eq!(encode_stochastic(-f32::NAN, random), 7);
            assert_eq!(encode_stochastic(f32::NEG_INFINITY, random), 15);
            assert_eq!(encode_stochastic(-0.0, random), 8);
        }
    }

    #[test]
    fn stochastic_goes_up_for_floor_256_frac_of_the_bytes() {
        // Every bf16 up to 8: the count of bytes that round up is the fraction itself.
        for bits in 0..=0x4100u16 {
            let y = f32::from_bits(u32::from(bits) << 16);
            let a = f64::from(y).min(6.0);
            let lower = (0..8u8)
                .rev()
                .find(|&c| f64::from(VALUES[usize::from(c)]) <= a)
                .unwrap();
            let low = f64::from(VALUES[usize::from(lower)]);
            let step = if a < 2.0 {
                0.5
            } else if a < 4.0 {
                1.0
            } else {
                2.0
            };
            let expected = (256.0 * (a - low) / step).floor();
            let mut ups = 0.0;
            for random in 0..=u8::MAX {
                let code = encode_stochastic(y, random);
                assert!(code == lower || code == lower + 1, "{y}: {code}");
                ups += f64::from(code - lower);
            }
            assert_eq!(ups, expected, "{y}");
        }
    }
}
