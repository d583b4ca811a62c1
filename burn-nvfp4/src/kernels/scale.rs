//! The scale formulas on the device; the twin of [`format::scale`](crate::format::scale)
//! (numerics §2, §6, §7).

use cubecl::prelude::*;

use super::arithmetic::{Arithmetic, at_most_largest, divide};
use super::e4m3::{Rounded, round as round_e4m3};

/// `f32(1 / 6)`, rounded up. A literal: a constant cannot be reinterpreted in CUDA C++.
const INV_6: f32 = 1.0 / 6.0;

/// The tensor level of a quantization: what follows from the amax of a tensor or row.
#[derive(CubeType, Clone, Copy)]
pub(super) struct TensorLevel {
    pub(super) amax: f32,
    /// `S_enc`.
    pub(super) encode: f32,
    /// `S_enc * f32(1/6)`.
    pub(super) encode_sixth: f32,
    /// `1 / S_enc`.
    pub(super) decode: f32,
}

/// The tensor level that an amax gives.
#[cube]
pub(super) fn tensor_level(
    amax: f32,
    q_max: f32,
    #[comptime] arithmetic: Arithmetic,
) -> TensorLevel {
    let encode = tensor_encode_scale(amax, q_max, arithmetic);
    TensorLevel {
        amax,
        encode,
        encode_sixth: encode * INV_6,
        decode: divide(1.0f32, encode, arithmetic),
    }
}

/// `q_max / amax`, 1 where that says nothing.
#[cube]
pub(super) fn tensor_encode_scale(
    amax: f32,
    q_max: f32,
    #[comptime] arithmetic: Arithmetic,
) -> f32 {
    let scale = at_most_largest(divide(q_max, amax, arithmetic));
    let nothing = (u32::reinterpret(amax) == 0u32) || (u32::reinterpret(scale) == 0u32);
    select(nothing, 1.0f32, scale)
}

/// The E4M3 decode scale of a block: its amax goes to 6.
#[cube]
pub(super) fn block_scale(
    block_amax: f32,
    level: &TensorLevel,
    #[comptime] arithmetic: Arithmetic,
) -> Rounded {
    round_e4m3(block_amax * level.encode_sixth, arithmetic)
}

/// What the elements of a block with this E4M3 scale are multiplied with before rounding.
#[cube]
pub(super) fn block_encode_scale(
    block_scale: f32,
    level: &TensorLevel,
    #[comptime] arithmetic: Arithmetic,
) -> f32 {
    at_most_largest(divide(1.0f32, block_scale * level.decode, arithmetic))
}
