//! E8M0, the power-of-two block scale of the MX formats, and its two rules (numerics §6).
//!
//! Byte `b` is `2^(b - 127)`; `0xFF` is NaN. There is no zero: a block of zeros gets byte 0.
//!
//! Both rules read exponent and mantissa of the block amax and never round: comparing mantissas is
//! the exact form of `ceil(log2(amax / max))`.

/// The value of a byte.
#[inline(always)]
pub const fn decode(byte: u8) -> f32 {
    match byte {
        // 2^-127 is subnormal in f32.
        0 => f32::from_bits(1 << 22),
        0xFF => f32::NAN,
        _ => f32::from_bits((byte as u32) << 23),
    }
}

/// The encode scale of a byte, `2^(127 - b)`; exact.
#[inline(always)]
pub const fn reciprocal(byte: u8) -> f32 {
    match byte {
        0xFF => f32::NAN,
        _ => decode(254 - byte),
    }
}

/// `2^(floor(log2 amax) - emax)`, with `emax` the exponent of `element_max` (OCP MX v1.0 §6.3).
///
/// Elements between `element_max` and the next power of two saturate.
#[inline(always)]
pub const fn floor(amax: f32, element_max: f32) -> u8 {
    from_exponent(amax, exponent(amax) - (exponent(element_max) - 127))
}

/// The smallest power of two that leaves `amax / scale <= element_max`.
#[inline(always)]
pub const fn round_up(amax: f32, element_max: f32) -> u8 {
    const MANTISSA: u32 = 0x007F_FFFF;
    let above = amax.to_bits() & MANTISSA > element_max.to_bits() & MANTISSA;
    from_exponent(
        amax,
        exponent(amax) - (exponent(element_max) - 127) + above as i32,
    )
}

/// The biased exponent of a number that is not negative.
#[inline(always)]
const fn exponent(x: f32) -> i32 {
    (x.to_bits() >> 23) as i32
}

/// A biased exponent held to the bytes that name a power of two; an infinite amax takes the
/// largest.
#[inline(always)]
const fn from_exponent(amax: f32, biased: i32) -> u8 {
    let held = if biased < 0 { 0 } else { biased & 0xFF };
    let byte = if amax.is_infinite() { 254 } else { held };
    (byte & 0xFF) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_decodes_to_its_power_of_two() {
        for byte in 0..0xFFu8 {
            let power = 2f64.powi(i32::from(byte) - 127);
            assert_eq!(f64::from(decode(byte)), power);
            assert_eq!(f64::from(reciprocal(byte)), 1.0 / power);
        }
        assert!(decode(0xFF).is_nan() && reciprocal(0xFF).is_nan());
    }

    #[test]
    fn both_rules_follow_their_logarithms() {
        for max in [6.0_f32, 448.0] {
            let emax = f64::from(max).log2().floor();
            for bits in 0x0200..0x7F80u16 {
                let bf16 = f32::from_bits(u32::from(bits) << 16);
                for amax in [bf16.next_down(), bf16, bf16.next_up()] {
                    let log2 = f64::from(amax).log2();
                    let floor_byte = (log2.floor() - emax + 127.0).max(0.0);
                    assert_eq!(f64::from(floor(amax, max)), floor_byte, "floor {amax}");
                    // The definition itself: the smallest power of two with amax <= max * power.
                    let byte = round_up(amax, max);
                    assert!(f64::from(amax) <= f64::from(max) * f64::from(decode(byte)));
                    if let Some(below) = byte.checked_sub(1) {
                        assert!(f64::from(amax) > f64::from(max) * f64::from(decode(below)));
                    }
                }
            }
        }
    }

    #[test]
    fn zero_takes_the_smallest_scale_and_infinity_the_largest() {
        for rule in [floor, round_up] {
            assert_eq!(rule(0.0, 6.0), 0);
            assert_eq!(rule(f32::MIN_POSITIVE, 6.0), 0);
            assert_eq!(rule(f32::INFINITY, 6.0), 254);
        }
    }
}
