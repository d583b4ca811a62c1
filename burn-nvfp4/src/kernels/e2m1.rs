//! E2M1 on the device; the twin of [`format::e2m1`](crate::format::e2m1) (numerics §1).

use cubecl::prelude::*;

use super::arithmetic::{Arithmetic, INFINITY, MAGNITUDE};

/// 6.0.
const MAX: u32 = 0x40C0_0000;

/// `y` held to ±6; +6 for NaN of either sign.
#[cube]
#[expect(clippy::manual_clamp, reason = "`clamp` keeps NaN")]
pub(super) fn saturate(y: f32, #[comptime] arithmetic: Arithmetic) -> f32 {
    if comptime!(arithmetic == Arithmetic::Ieee) {
        f32::max(f32::min(y, 6.0f32), -6.0f32)
    } else {
        let bits = u32::reinterpret(y);
        let magnitude = bits & MAGNITUDE;
        let sign = select(magnitude > INFINITY, 0u32, bits & 0x8000_0000u32);
        f32::reinterpret(u32::min(magnitude, MAX) | sign)
    }
}

/// What to add to `|y|` so that the addition rounds it to the grid, as bits: `2^(e + 22)`.
///
/// Its own significand is zero, so the lowest bits of the sum are the grid steps themselves.
#[cube]
fn magic(y: f32) -> u32 {
    let binade = f32::max(f32::abs(y), 1.0f32);
    (u32::reinterpret(binade) & INFINITY) + comptime!(22u32 << 23)
}

/// The nearest code of a saturated number, ties to the even code.
#[cube]
pub(super) fn encode_rne(y: f32) -> u32 {
    let magic = magic(y);
    let steps = u32::reinterpret(f32::abs(y) + f32::reinterpret(magic));
    // Two codes to a binade. Only the low three bits count: -2 (127 + 22) is 6 there.
    let code = (steps + (magic >> 22u32) + 6u32) & 7u32;
    code | ((u32::reinterpret(y) >> 28u32) & 8u32)
}

/// `decode(encode_rne(y))`.
#[cube]
pub(super) fn round_rne(y: f32, #[comptime] arithmetic: Arithmetic) -> f32 {
    if comptime!(arithmetic == Arithmetic::Ieee) {
        let magic = f32::reinterpret(magic(y));
        let value = (f32::abs(y) + magic) - magic;
        f32::reinterpret(u32::reinterpret(value) | (u32::reinterpret(y) & 0x8000_0000u32))
    } else {
        // A shader compiler in fast-math mode may cancel the two additions.
        decode(encode_rne(y))
    }
}

/// One of the two neighbouring codes of a saturated number, by a random byte: up iff
/// `floor(256 frac) + random` reaches 256.
#[cube]
pub(super) fn encode_stochastic(y: f32, random: u32) -> u32 {
    let a = f32::abs(y);
    // `code + frac` as fixed point with eight fraction bits: from 1 up these are bits of the
    // float, below 1 the step is 1/2 and truncation gives floor(512 a).
    let normal = (u32::reinterpret(a) >> 14u32) - comptime!(252u32 << 8);
    let subnormal = u32::cast_from(a * 512.0f32);
    let fixed = select(a < 1.0f32, subnormal, normal);
    ((fixed + random) >> 8u32) | ((u32::reinterpret(y) >> 28u32) & 8u32)
}

/// The value of a code; only the low four bits are read.
#[cube]
pub(super) fn decode(code: u32) -> f32 {
    let magnitude = code & 7u32;
    let subnormal = magnitude * 0x3F00_0000u32;
    let normal = (magnitude + 252u32) << 22u32;
    let bits = select(magnitude < 2u32, subnormal, normal);
    f32::reinterpret(bits | ((code & 8u32) << 28u32))
}
