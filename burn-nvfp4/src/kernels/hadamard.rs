//! The 16-point Hadamard transform on the device; the twin of [`cpu::hadamard`](crate::cpu)
//! (numerics §4). Same stages, same order of every sum.

use cubecl::prelude::*;
use half::bf16;

use super::arithmetic::{Arithmetic, INFINITY, MAGNITUDE};
use super::group::Elements;

/// Transforms `values[start..start + 16]`, which stay in registers: every index is comptime.
///
/// Bit `i` of `signs` flips element `i`; `elements` says whether they need rounding first.
#[cube]
pub(super) fn transform(
    values: &mut Array<f32>,
    #[comptime] start: usize,
    #[comptime] signs: u16,
    #[comptime] elements: Elements,
    #[comptime] arithmetic: Arithmetic,
) {
    #[unroll]
    for i in 0..16usize {
        let value = values[start + i];
        let rounded = if comptime!(elements != Elements::Wider) {
            value
        } else {
            round_to_bf16(value, arithmetic)
        };
        if comptime!((signs >> i) & 1 == 1) {
            values[start + i] = -rounded;
        } else {
            values[start + i] = rounded;
        }
    }
    #[unroll]
    for log_stride in 0..4usize {
        let stride = comptime!(1usize << log_stride);
        #[unroll]
        for i in 0..16usize {
            if comptime!(i & stride == 0) {
                let low = values[start + i];
                let high = values[start + i + stride];
                values[start + i] = low + high;
                values[start + i + stride] = low - high;
            }
        }
    }
    #[unroll]
    for i in 0..16usize {
        values[start + i] = round_to_bf16(values[start + i] * 0.25f32, arithmetic);
    }
}

/// The nearest bf16, ties to even, as f32; NaN stays NaN.
#[cube]
pub(super) fn round_to_bf16(x: f32, #[comptime] arithmetic: Arithmetic) -> f32 {
    if comptime!(arithmetic == Arithmetic::Ieee) {
        f32::cast_from(bf16::cast_from(x))
    } else {
        let bits = u32::reinterpret(x);
        let rounded = (bits + 0x7FFFu32 + ((bits >> 16u32) & 1u32)) & 0xFFFF_0000u32;
        f32::reinterpret(select((bits & MAGNITUDE) > INFINITY, bits, rounded))
    }
}
