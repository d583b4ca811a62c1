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

/// 2^23: from here on the numbers are the integers, and addition rounds to them.
const INTEGERS: f32 = 8_388_608.0;

/// The nearest code of any number without its sign, ties to the even code, as the lowest bits of
/// 2^23 plus it; 7 for NaN.
///
/// The grid has step 1/2 up to 2, step 1 up to 4 and step 2 beyond. Rounding to each of the three
/// steps everywhere, and counting from the code at which it begins, gives three candidates of which
/// the smallest is the code: below its range a coarser step counts from too high, above its range a
/// finer one counts too fast. Additions do the rounding, so most of this is no integer work.
#[cube]
pub(super) fn nearest_steps(y: f32) -> u32 {
    let halves = u32::reinterpret(f32::abs(y + y) + INTEGERS);
    let ones = u32::reinterpret(f32::abs(y) + comptime!(INTEGERS + 2.0));
    let twos = u32::reinterpret(f32::abs(y * 0.5f32) + comptime!(INTEGERS + 4.0));
    // As integers: NaN is the largest of them. The last is code 7.
    u32::min(u32::min(halves, ones), u32::min(twos, 0x4B00_0007u32))
}

/// What eight [`nearest_steps`], each shifted to its place in a word, contain besides codes.
pub(super) const STEPS_OF_A_WORD: u32 = 0xFB00_0000;

/// The nearest code.
#[cube]
fn encode_rne(y: f32, #[comptime] arithmetic: Arithmetic) -> u32 {
    (nearest_steps(y) & 7u32) | sign_at(y, 0u32, arithmetic)
}

/// The sign bit of the code at bit `shift` of a word: set for negatives and -0, not for NaN.
#[cube]
pub(super) fn sign_at(y: f32, #[comptime] shift: u32, #[comptime] arithmetic: Arithmetic) -> u32 {
    let bits = u32::reinterpret(y);
    let sign = (bits >> comptime!(28u32 - shift)) & comptime!(8u32 << shift);
    if comptime!(arithmetic == Arithmetic::Ieee) {
        // The device makes a NaN that it computes positive.
        sign
    } else {
        select((bits & MAGNITUDE) > INFINITY, 0u32, sign)
    }
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
        decode(encode_rne(y, arithmetic))
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
