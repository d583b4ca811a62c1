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
