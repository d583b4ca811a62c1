//! E4M3 (the `fn` variant): NVFP4's block scales, FP8 elements (numerics §1).
//!
//! Sign, four exponent bits with bias 7, three mantissa bits; no infinity, NaN is `0x7F`/`0xFF`,
//! the largest value is 448 and subnormals are multiples of 2^-9.

use super::minifloat::grid_index;

/// The largest value.
pub const MAX: f32 = 448.0;

/// The smallest normal value, 2^-6.
const SMALLEST_NORMAL: f32 = 1.0 / 64.0;

/// Rounds to nearest, ties to even, saturating at ±448; NaN becomes `0x7F`.
///
/// Block scales are never negative; the sign is for FP8 elements.
#[inline(always)]
pub const fn encode(x: f32) -> u8 {
    let a = x.abs();
    let a = if a < MAX { a } else { MAX };
    let code = grid_index(a, 3, SMALLEST_NORMAL);
    let signed = code | ((x.to_bits() >> 24) & 0x80);
    let bits = if x.is_nan() { 0x7F } else { signed };
    (bits & 0xFF) as u8
}

/// Random bits of [`encode_stochastic`].
pub const RANDOM_BITS: u32 = 20;

/// One of the two neighbours of a number that is not negative, by the low [`RANDOM_BITS`] bits of
/// `random`; saturates at 448.
///
/// Up with the probability that makes the mean right: an f32 has twenty significant bits more than
/// an E4M3 number, so in the range of normal numbers exactly, below 2^-6 to 2^-20 of a step.
#[inline(always)]
pub const fn encode_stochastic(x: f32, random: u32) -> u8 {
    let a = if x < MAX { x } else { MAX };
    // `code + fraction` as fixed point: from 2^-6 up these are bits of the float.
    let normal = a.to_bits().wrapping_sub(120 << 23);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "below 2^23 where it is used; truncation is the rounding that is meant"
    )]
    let subnormal = (a * 536_870_912.0) as u32;
    let fixed = if a < SMALLEST_NORMAL {
        subnormal
    } else {
        normal
    };
    let up = random & ((1 << RANDOM_BITS) - 1);
    ((fixed.wrapping_add(up) >> RANDOM_BITS) & 0x7F) as u8
}

/// The value of a byte.
#[inline(always)]
pub const fn decode(byte: u8) -> f32 {
    let magnitude = (byte & 0x7F) as u32;
    // Both branches are exact: integers times 2^-9, or the f32 with the bias moved by 120.
    let subnormal = magnitude as f32 * (SMALLEST_NORMAL / 8.0);
    let normal = f32::from_bits((magnitude << 20).wrapping_add(120 << 23));
    let value = if magnitude < 8 { subnormal } else { normal };
    let finite = f32::from_bits(value.to_bits() | ((byte & 0x80) as u32) << 24);
    if magnitude == 0x7F { f32::NAN } else { finite }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value_by_definition(byte: u8) -> f64 {
        let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
        let exponent = i32::from((byte >> 3) & 0xF);
        let mantissa = f64::from(byte & 7);
        let magnitude = match exponent {
            0 => mantissa / 8.0 * 2f64.powi(-6),
            _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
        };
        sign * magnitude
    }

    #[test]
    fn every_byte_decodes_by_definition_and_encodes_back() {
        for byte in 0..=u8::MAX {
            let value = decode(byte);
            if byte & 0x7F == 0x7F {
                assert!(value.is_nan());
                assert_eq!(encode(value), 0x7F);
            } else {
                assert_eq!(f64::from(value), value_by_definition(byte), "{byte:#04x}");
                assert_eq!(encode(value), byte);
            }
        }
    }

    #[test]
    fn every_bf16_rounds_to_the_nearest_value() {
        for bits in 0..=u16::MAX {
            let x = f32::from_bits(u32::from(bits) << 16);
            if x.is_nan() {
                assert_eq!(encode(x), 0x7F);
                continue;
            }
            let a = f64::from(x.abs()).min(448.0);
            let nearest = (0..0x7Fu8)
                .min_by(|&l, &r| {
                    let distance = |byte| (value_by_definition(byte) - a).abs();
                    distance(l)
                        .total_cmp(&distance(r))
                        .then((l & 1).cmp(&(r & 1)))
                })
                .unwrap();
            let expected = nearest | if x.is_sign_negative() { 0x80 } else { 0 };
            assert_eq!(encode(x), expected, "bf16 bits {bits:#06x} ({x})");
        }
    }

    #[test]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the random numbers below which the sum stays, rounded down"
    )]
    fn stochastic_rounding_goes_up_in_proportion() {
        let all = 1u32 << RANDOM_BITS;
        for byte in 0..0x7Eu8 {
            let (low, high) = (decode(byte), decode(byte + 1));
            for part in [0.0_f32, 0.125, 0.3, 0.5, 0.999] {
                let x = low + (high - low) * part;
                let share = (f64::from(x) - f64::from(low)) / f64::from(high - low);
                let least = all - (share * f64::from(all)) as u32;
                assert_eq!(encode_stochastic(x, least - 1), byte, "{x}");
                if least < all {
                    assert_eq!(encode_stochastic(x, least), byte + 1, "{x}");
                }
            }
        }
        assert_eq!(encode_stochastic(1e9, all - 1), 0x7E);
        assert_eq!(encode_stochastic(448.0, all - 1), 0x7E);
    }

    #[test]
    fn ties_round_to_even_and_their_neighbours_to_nearest() {
        for byte in 0..0x7Eu8 {
            let tie = (decode(byte) + decode(byte + 1)) / 2.0; // exact
            let even = byte + (byte & 1);
            assert_eq!(encode(tie), even, "tie above {byte:#04x}");
            assert_eq!(encode(tie.next_down()), byte);
            assert_eq!(encode(tie.next_up()), byte + 1);
        }
    }
}
