//! E8M0 on the device; the twin of [`format::e8m0`](crate::format::e8m0) (numerics §6).
//!
//! `element_max` is comptime, as the bits of its f32.

use cubecl::prelude::*;

use super::arithmetic::INFINITY;
use crate::recipe::E8m0Rule;

/// The scale of a block by a rule.
#[cube]
pub(super) fn encode(amax: f32, #[comptime] rule: E8m0Rule, #[comptime] element_max: u32) -> u32 {
    let bits = u32::reinterpret(amax);
    let exponent = bits >> 23u32;
    let above = if comptime!(rule == E8m0Rule::RoundUp) {
        select(
            (bits & 0x007F_FFFFu32) > comptime!(element_max & 0x007F_FFFF),
            1u32,
            0u32,
        )
    } else {
        0u32.runtime()
    };
    let up = exponent + above;
    let down = comptime!((element_max >> 23) - 127);
    let held = select(up < down, 0u32, up - down);
    select(bits == INFINITY, 254u32, held)
}

/// The value of a byte; NaN for 255, which no amax gives.
#[cube]
pub(super) fn decode(byte: u32) -> f32 {
    // 2^-127 is subnormal in f32.
    let number = select(byte == 0u32, 0x0040_0000u32, byte << 23u32);
    f32::reinterpret(select(byte == 0xFFu32, 0x7FC0_0000u32, number))
}

/// The encode scale of a byte, `2^(127 - b)`; exact.
#[cube]
pub(super) fn reciprocal(byte: u32) -> f32 {
    decode(254u32 - byte)
}
