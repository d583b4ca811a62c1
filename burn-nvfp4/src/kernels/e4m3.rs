//! E4M3 on the device; the twin of [`format::e4m3`](crate::format::e4m3) (numerics §1).

use cubecl::prelude::*;

use super::arithmetic::{INFINITY, MAGNITUDE};

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
