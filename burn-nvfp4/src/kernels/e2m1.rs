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

/// 4.0 as bits: what [`nearest_steps`] has above 2^23, and what a sign adds or takes away.
const FOUR: u32 = 0x4080_0000;

/// The nearest code of a magnitude, ties to the even code, as the lowest bits of 2^23 + 4 plus it;
/// code 7 for NaN.
///
/// The grid has step 1/2 up to 2, step 1 up to 4 and step 2 beyond. Rounding to a step everywhere,
/// and counting from the code at which it begins, gives candidates of which the smallest is the
/// code: below its range a coarser step counts from too high, above its range a finer one counts
/// too fast. Step 2 has two codes, so that it needs no rounding: 6 up to 5, then 7.
///
/// One comparison, the rest are sums and products: what compares, shifts or masks has half their
/// rate on an NVIDIA GPU. A product with 2 or 2^21 is exact, so whether the device rounds it before
/// the sum does not matter.
#[cube]
#[expect(clippy::manual_clamp, reason = "`clamp` keeps NaN")]
pub(super) fn nearest_steps(magnitude: f32) -> u32 {
    let halves = fma(magnitude, 2.0f32, comptime!(INTEGERS + 4.0));
    let ones = magnitude + comptime!(INTEGERS + 6.0);
    // 1 up to 5, 0 from the next number on. In this order NaN gives 0, and the two are one
    // instruction with the product.
    let distance = fma(
        magnitude,
        comptime!(-2_097_152.0f32),
        comptime!(10_485_761.0f32),
    );
    let up_to_five = f32::min(f32::max(distance, 0.0f32), 1.0f32);
    let twos = comptime!(INTEGERS + 11.0) - up_to_five;
    // As integers: NaN is the largest of them.
    u32::min(
        u32::min(u32::reinterpret(halves), u32::reinterpret(ones)),
        u32::reinterpret(twos),
    )
}

/// 2^23 plus the code with its sign, as bits.
///
/// `steps` are [`nearest_steps`], `sign` has the sign bit of the number, `zero` is a zero that no
/// compiler may know, so that mask and constant are one operation.
#[cube]
pub(super) fn signed_steps(steps: u32, sign: u32, zero: u32) -> u32 {
    let four = (sign & 0x8000_0000u32) | (FOUR + zero);
    u32::reinterpret(f32::reinterpret(steps) - f32::reinterpret(four))
}

/// What eight [`signed_steps`], each a nibble above the one before, contain besides codes.
pub(super) const STEPS_OF_A_WORD: u32 = 0xFB00_0000;

/// The value of the code in [`nearest_steps`], with a sign bit; for devices that keep subnormals.
///
/// Exponent and significand of the code, moved to where an f32 has them, are its value times
/// 2^-126, the subnormal code included.
#[cube]
pub(super) fn decode_steps(steps: u32, sign: u32, zero: u32) -> f32 {
    let to_exponent = comptime!(1u32 << 22) + zero;
    let magnitude = steps * to_exponent - comptime!(4u32 << 22);
    f32::reinterpret(magnitude | (sign & 0x8000_0000u32)) * TWO_TO_126
}

/// 2^126.
const TWO_TO_126: f32 = 8.507_059e37;

/// The nearest code of a number that is not NaN.
#[cube]
fn encode_rne(y: f32) -> u32 {
    let code = nearest_steps(f32::abs(y)) - 4u32;
    (code & 7u32) | ((u32::reinterpret(y) >> 28u32) & 8u32)
}

/// `decode(encode_rne(y))` of a saturated number.
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
