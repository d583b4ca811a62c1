//! Rounding to a small floating-point grid, shared by E2M1 and E4M3.
//!
//! Adding `2^(e + 23 - m)` to a number in `[2^e, 2^(e+1))` leaves `m` mantissa bits and rounds the
//! rest to nearest, ties to even: the addition's own IEEE rounding does it. No branch, no table,
//! and the loop around it vectorises.

/// Index of `a` on the grid with `mantissa_bits` bits and normals from `smallest_normal` up,
/// rounded to nearest, ties to the even index; index 0 is zero.
///
/// `a` must be finite and not negative; `smallest_normal` a power of two.
#[inline(always)]
pub(super) const fn grid_index(a: f32, mantissa_bits: u32, smallest_normal: f32) -> u32 {
    // Below the smallest normal the step stays that of the smallest normal: subnormals.
    let binade = if a < smallest_normal {
        smallest_normal
    } else {
        a
    };
    let exponent = binade.to_bits() >> 23;
    let magic = exponent.wrapping_add(23 - mantissa_bits) << 23;
    let steps = (a + f32::from_bits(magic)).to_bits().wrapping_sub(magic);
    let binades_up = exponent.wrapping_sub(smallest_normal.to_bits() >> 23);
    steps.wrapping_add(binades_up << mantissa_bits)
}
