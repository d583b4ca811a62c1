//! The scale formulas: from an amax to the scales (numerics §2, §6, §7).
//!
//! The only place where they stand. Every operation is one IEEE f32 operation, rounded to nearest,
//! in the order written; algebraically equal forms pick other scales on some tensors.
//!
//! Two levels: the tensor scale brings the largest element to `q_max` = 6 x (448 or 256), and the
//! E4M3 block scale brings the largest element of each block to 6.

use super::{e2m1, e4m3};

/// Largest element times largest block scale: what the tensor scale aims at.
pub const NVFP4_Q_MAX: f32 = e2m1::MAX * e4m3::MAX;

/// The same under four-over-six with its 256 bound, which leaves room for the factor 1.5.
pub const NVFP4_Q_MAX_256: f32 = e2m1::MAX * 256.0;

/// Largest FP8 element.
pub const FP8_Q_MAX: f32 = e4m3::MAX;

/// 1/6 in f32, `0x3E2AAAAB`: rounded up.
const INV_6: f32 = 1.0 / e2m1::MAX;

/// The encode scale of a tensor or row: `q_max / amax`, 1 where that says nothing.
///
/// At most `f32::MAX`, which holds for `amax` below about 8e-36; 1 for a zero or infinite `amax`.
#[inline(always)]
pub const fn tensor_encode_scale(amax: f32, q_max: f32) -> f32 {
    let scale = (q_max / amax).min(f32::MAX);
    if amax == 0.0 || scale == 0.0 {
        1.0
    } else {
        scale
    }
}

/// The decode scale of a tensor as files hold it, `amax / q_max`; 1 for a tensor of zeros.
#[inline(always)]
pub const fn tensor_decode_scale(amax: f32, q_max: f32) -> f32 {
    if amax == 0.0 { 1.0 } else { amax / q_max }
}

/// The f32 factor of a block on decoding, `(scale * amax) * f32(1 / q_max)` in this order.
///
/// # Source
/// TE `dequantize_nvfp4.cuh`; the order differs from TE's Python tests in the last bit.
#[inline(always)]
pub const fn decode_factor(block_scale: f32, amax: f32, q_max: f32) -> f32 {
    (block_scale * amax) * (1.0 / q_max)
}

/// The tensor level of an NVFP4 quantization, from which block scales follow.
#[derive(Clone, Copy, Debug)]
pub struct Nvfp4Scaling {
    encode: f32,
    encode_sixth: f32,
    decode: f32,
}

impl Nvfp4Scaling {
    /// The tensor level for an amax over a tensor or row.
    pub const fn new(amax: f32, q_max: f32) -> Self {
        let encode = tensor_encode_scale(amax, q_max);
        // One rounding here, a second in `block_scale`: `b * (S_enc * (1/6))`.
        Self {
            encode,
            encode_sixth: encode * INV_6,
            decode: 1.0 / encode,
        }
    }

    /// `S_enc`: what elements are multiplied with before the block level.
    pub const fn encode(&self) -> f32 {
        self.encode
    }

    /// The E4M3 decode scale of a block: its amax goes to 6.
    ///
    /// No floor: a block whose amax is below 2.2e-6 of the tensor's gets scale 0.
    #[inline(always)]
    pub const fn block_scale(&self, block_amax: f32) -> u8 {
        e4m3::encode((block_amax * self.encode_sixth).min(f32::MAX))
    }

    /// The two candidates of four-over-six: the scale that maps the block amax to 6, and to 4.
    ///
    /// A true division, unlike [`block_scale`](Self::block_scale): TransformerEngine has both.
    #[inline(always)]
    pub const fn block_scales_six_and_four(&self, block_amax: f32) -> (u8, u8) {
        let base = (block_amax / e2m1::MAX) * self.encode;
        (
            e4m3::encode(base.min(e4m3::MAX)),
            e4m3::encode((base * 1.5).min(e4m3::MAX)),
        )
    }

    /// What the elements of a block with this E4M3 scale are multiplied with before rounding.
    ///
    /// Two roundings, `1 / (scale * S_dec)`; `f32::MAX` where the block scale is zero, so that the
    /// non-zero elements of such a block get codes 7 and 15 (their value is zero all the same).
    #[inline(always)]
    pub const fn block_encode_scale(&self, block_scale: u8) -> f32 {
        (1.0 / (e4m3::decode(block_scale) * self.decode)).min(f32::MAX)
    }
}

/// What an EDEN block amax is multiplied with besides `S_enc`: `0.93 * (17 / 16) / 6` in f32.
///
/// E4M3 rounds a scale down by as much as 1/17 of it. 17/16 alone would keep every element within
/// 6; 0.93 gives some of that back, which clips a little and resolves the rest better.
const EDEN_PART: f32 = 0.164_687_5;

/// The scales of MS-EDEN before their correction (numerics §11).
#[derive(Clone, Copy, Debug)]
pub struct EdenScaling {
    tensor: Nvfp4Scaling,
    encode_part: f32,
}

impl EdenScaling {
    /// The tensor level for an amax over a tensor.
    pub const fn new(amax: f32) -> Self {
        let tensor = Nvfp4Scaling::new(amax, NVFP4_Q_MAX_256);
        Self {
            tensor,
            encode_part: tensor.encode() * EDEN_PART,
        }
    }

    /// The E4M3 scale by which a block is encoded; at least the smallest there is.
    #[inline(always)]
    pub const fn block_scale(&self, block_amax: f32) -> u8 {
        let scale = e4m3::encode((block_amax * self.encode_part).min(f32::MAX));
        if scale == 0 { 1 } else { scale }
    }

    /// As [`Nvfp4Scaling::block_encode_scale`].
    #[inline(always)]
    pub const fn block_encode_scale(&self, block_scale: u8) -> f32 {
        self.tensor.block_encode_scale(block_scale)
    }
}

/// EDEN's correction of a rotated vector: `|y|^2 / <y, q>`; 1 where that says nothing.
#[inline(always)]
pub const fn eden_correction(norm: f32, overlap: f32) -> f32 {
    let ratio = norm / overlap;
    if ratio > 0.0 && ratio <= f32::MAX {
        ratio
    } else {
        1.0
    }
}

/// The scales that NVIDIA's Model Optimizer gives a weight: the same two levels in another order of
/// operations, with a floor under the block scale.
///
/// # Source
/// `NVFP4QTensor` of nvidia-modelopt 0.47.
#[derive(Clone, Copy, Debug)]
pub struct ModeloptScaling {
    decode: f32,
    six_decode: f32,
}

impl ModeloptScaling {
    /// The smallest block scale, the smallest positive E4M3.
    const FLOOR: f32 = 1.0 / 512.0;

    /// The tensor level for an amax over a tensor.
    pub const fn new(amax: f32) -> Self {
        let decode = tensor_decode_scale(amax, NVFP4_Q_MAX);
        Self {
            decode,
            six_decode: e2m1::MAX * decode,
        }
    }

    /// The E4M3 decode scale of a block: its amax goes to 6; 1 for a block of zeros.
    #[inline(always)]
    pub const fn block_scale(&self, block_amax: f32) -> u8 {
        let scale = block_amax / self.six_decode;
        let scale = if scale == 0.0 { 1.0 } else { scale };
        e4m3::encode(scale.max(Self::FLOOR).min(e4m3::MAX))
    }

    /// What the elements of a block with this E4M3 scale are divided by before rounding.
    #[inline(always)]
    pub const fn block_divisor(&self, block_scale: u8) -> f32 {
        e4m3::decode(block_scale) * self.decode
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sixth_is_rounded_up() {
        assert_eq!(INV_6.to_bits(), 0x3E2A_AAAB);
    }

    #[test]
    fn degenerate_amaxes_have_scales() {
        assert_eq!(tensor_encode_scale(0.0, NVFP4_Q_MAX), 1.0);
        assert_eq!(tensor_encode_scale(f32::INFINITY, NVFP4_Q_MAX), 1.0);
        assert_eq!(tensor_encode_scale(1e-37, NVFP4_Q_MAX), f32::MAX);
        assert_eq!(tensor_encode_scale(1e-45, NVFP4_Q_MAX), f32::MAX);
    }

    #[test]
    fn the_tensor_amax_maps_to_the_largest_scale_and_code() {
        let scaling = Nvfp4Scaling::new(6.0, NVFP4_Q_MAX);
        let scale = scaling.block_scale(6.0);
        assert_eq!(scale, 0x7E);
        assert_eq!(e2m1::encode_rne(6.0 * scaling.block_encode_scale(scale)), 7);
    }

    #[test]
    fn a_vanishing_block_gets_scale_zero_and_the_largest_encode_scale() {
        let scaling = Nvfp4Scaling::new(1.0, NVFP4_Q_MAX);
        assert_eq!(scaling.block_scale(2e-6), 0);
        assert_eq!(scaling.block_encode_scale(0), f32::MAX);
    }

    #[test]
    fn the_order_of_operations_is_observable() {
        // Amax 8.75 is a tensor on which `(b / 6) * S_enc` picks other scales (numerics §2).
        let scaling = Nvfp4Scaling::new(8.75, NVFP4_Q_MAX);
        let differing = (0x3C00..0x410Cu32)
            .map(|bits| f32::from_bits(bits << 16))
            .filter(|&b| scaling.block_scale(b) != e4m3::encode((b / 6.0) * scaling.encode()))
            .count();
        assert!(differing > 0);
    }
}
