//! E4M3 on the device; the twin of [`format::e4m3`](crate::format::e4m3) (numerics §1).

use cubecl::prelude::*;

use super::arithmetic::{Arithmetic, INFINITY, MAGNITUDE};

/// 448.0.
const MAX: u32 = 0x43E0_0000;

/// Rounds to nearest, ties to even, saturating at ±448; NaN becomes `0x7F`.
#[cube]
pub(super) fn encode(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    let magnitude = bits & MAGNITUDE;
    let a = f32::reinterpret(u32::min(magnitude, MAX));
    // 2^-6, the smallest normal value, has the exponent field 121.
    let exponent = u32::reinterpret(f32::max(a, 0.015_625f32)) >> 23u32;
    let magic = (exponent + 20u32) << 23u32;
    let steps = u32::reinterpret(a + f32::reinterpret(magic)) - magic;
    let code = steps + ((exponent - 121u32) << 3u32);
    select(
        magnitude > INFINITY,
        0x7Fu32,
        code | ((bits >> 24u32) & 0x80u32),
    )
}

/// A number that E4M3 has, and its byte.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Rounded {
    pub(super) byte: u32,
    pub(super) value: f32,
}

/// The nearest to a number that is neither negative nor NaN: what [`encode`] and [`decode`] give,
/// in half the operations.
#[cube]
pub(super) fn round(x: f32, #[comptime] arithmetic: Arithmetic) -> Rounded {
    let a = f32::reinterpret(u32::min(u32::reinterpret(x), MAX));
    // 2^-6, the smallest normal value, has the exponent field 121.
    let exponent = u32::reinterpret(f32::max(a, 0.015_625f32)) & INFINITY;
    let magic = exponent + comptime!(20u32 << 23);
    let sum = a + f32::reinterpret(magic);
    let steps = u32::reinterpret(sum) - magic;
    let byte = steps + (exponent >> 20u32) - comptime!(121u32 << 3);
    let value = if comptime!(arithmetic == Arithmetic::Ieee) {
        sum - f32::reinterpret(magic)
    } else {
        // A shader compiler in fast-math mode may cancel the two additions.
        decode(byte)
    };
    Rounded { byte, value }
}

/// One of the two neighbours of a number that is neither negative nor NaN, by the upper twenty
/// bits of `random`.
#[cube]
pub(super) fn encode_stochastic(x: f32, random: u32) -> u32 {
    let bits = u32::min(u32::reinterpret(x), MAX);
    let a = f32::reinterpret(bits);
    // `code + fraction` as fixed point: from 2^-6 up these are bits of the float.
    let normal = bits - comptime!(120u32 << 23);
    let subnormal = u32::cast_from(a * 536_870_912.0f32);
    let fixed = select(a < 0.015_625f32, subnormal, normal);
    (fixed + (random >> 12u32)) >> 20u32
}

/// The number of a byte.
#[cube]
pub(super) fn of_byte(byte: u32) -> Rounded {
    Rounded {
        byte,
        value: decode(byte),
    }
}

/// The value of a byte.
#[cube]
pub(super) fn decode(byte: u32) -> f32 {
    let magnitude = byte & 0x7Fu32;
    let subnormal = u32::reinterpret(f32::cast_from(magnitude) * 0.001_953_125f32);
    let normal = (magnitude << 20u32) + comptime!(120u32 << 23);
    let value = select(magnitude < 8u32, subnormal, normal);
    let number = select(magnitude == 0x7Fu32, 0x7FC0_0000u32, value);
    f32::reinterpret(number | ((byte & 0x80u32) << 24u32))
}
