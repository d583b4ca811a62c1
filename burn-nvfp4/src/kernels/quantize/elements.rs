//! Codes of a group whose scale is known, and where they go; the twin of `cpu/elements.rs`.

use cubecl::prelude::*;

use super::block_scale::{BlockScale, scale_index};
use super::{Arguments, Codes, Outputs, Plan, Scales};
use crate::kernels::arithmetic::Arithmetic;
use crate::kernels::e2m1::{
    STEPS_OF_A_WORD, decode as decode_e2m1, decode_steps, encode_stochastic, nearest_steps,
    saturate, signed_steps,
};
use crate::kernels::e4m3::{decode as decode_e4m3, encode as encode_e4m3};
use crate::kernels::group::{GROUP, Geometry, Place, small};
use crate::kernels::philox::{RandomBytes, block_bytes, byte};
use crate::kernels::scale::TensorLevel;

/// Codes of column `w` of a unit, out; its values become decoded if that is wanted.
#[cube]
pub(super) fn finish<S: Numeric, NC: Size, D: Float, ND: Size>(
    values: &mut Array<f32>,
    scale: BlockScale,
    here: Place,
    exists: bool,
    outputs: &mut Outputs<S, NC, D, ND>,
    level: &TensorLevel,
    arguments: &Arguments,
    #[comptime] w: usize,
    #[comptime] plan: Plan,
) {
    let row = here.row + comptime!(small(w));
    let index = row as usize * arguments.groups as usize + here.group as usize;
    let random = if comptime!(plan.codes == Codes::E2m1Stochastic) {
        block_bytes(&arguments.key, level.amax, u32::cast_from(index))
    } else {
        RandomBytes::none()
    };
    let mut words = Array::<u32>::new(comptime!(plan.words()));
    encode_group(
        values,
        &mut words,
        &random,
        scale,
        arguments.zero,
        comptime!(w * GROUP as usize),
        plan,
    );
    if comptime!(plan.results.has_packed()) {
        if exists {
            let mut codes = Vector::<u32, NC>::empty();
            #[unroll]
            for i in 0..comptime!(plan.words()) {
                codes[i] = words[i];
            }
            outputs.codes.as_mut().unwrap()[index] = codes;
            if comptime!(plan.scales != Scales::Fp8Tensor) {
                let first_row = row % comptime!(plan.block_rows) == 0;
                if first_row && here.group % comptime!(plan.block_groups) == 0 {
                    let index = scale_index(row, here.group, arguments, plan);
                    let scales = outputs.scales.as_mut().unwrap();
                    if comptime!(plan.scales == Scales::Fp8Block) {
                        scales[index] = S::cast_from(scale.decode);
                    } else {
                        scales[index] = S::cast_from(scale.byte);
                    }
                }
            }
        }
    }
}

/// Sixteen codes into words; the values become `code * decode` if that is wanted.
#[cube]
pub(super) fn encode_group(
    values: &mut Array<f32>,
    words: &mut Array<u32>,
    random: &RandomBytes,
    scale: BlockScale,
    zero: u32,
    #[comptime] start: usize,
    #[comptime] plan: Plan,
) {
    let arithmetic = comptime!(plan.access.arithmetic);
    let per_word = comptime!(16 / plan.words());
    #[unroll]
    for i in 0..comptime!(plan.words()) {
        words[i] = 0u32;
    }
    // As a product: shifts share the pipe of comparisons and masks.
    let nibble = 16u32 + zero;
    #[unroll]
    for step in 0..16usize {
        // The last first, for each pushes those before it up by a nibble.
        let i = comptime!(15 - step);
        let x = values[start + i];
        let shift = comptime!(small(i % per_word * (32 / per_word)));
        if comptime!(plan.codes == Codes::E2m1Nearest) {
            let scaled = scaled(x, scale.encode, plan);
            let steps = nearest_steps(scaled.magnitude);
            let signed = signed_steps(steps, scaled.sign, zero);
            if comptime!(plan.results.has_packed()) {
                words[i / per_word] = words[i / per_word] * nibble + signed;
            }
            if comptime!(plan.results.has_decoded()) {
                let value = if comptime!(arithmetic == Arithmetic::Ieee) {
                    decode_steps(steps, scaled.sign, zero)
                } else {
                    decode_e2m1(signed)
                };
                values[start + i] = value * scale.decode;
            }
        } else if comptime!(plan.codes == Codes::E2m1Stochastic) {
            let y = saturate(x * scale.encode, arithmetic);
            let drawn = byte(random, comptime!(small(i)));
            let code = encode_stochastic(y, drawn);
            if comptime!(plan.results.has_packed()) {
                words[i / per_word] |= code << shift;
            }
            if comptime!(plan.results.has_decoded()) {
                values[start + i] = decode_e2m1(code) * scale.decode;
            }
        } else {
            let code = encode_e4m3(x * scale.encode);
            if comptime!(plan.results.has_packed()) {
                words[i / per_word] |= code << shift;
            }
            if comptime!(plan.results.has_decoded()) {
                values[start + i] = decode_e4m3(code) * scale.decode;
            }
        }
    }
    if comptime!(plan.codes == Codes::E2m1Nearest && plan.results.has_packed()) {
        #[unroll]
        for i in 0..comptime!(plan.words()) {
            words[i] -= STEPS_OF_A_WORD;
        }
    }
}

/// An element times its encode scale: magnitude, and bits that have its sign.
#[derive(CubeType, Clone, Copy)]
struct Scaled {
    magnitude: f32,
    sign: u32,
}

/// `x * encode`; NaN has no sign.
#[cube]
fn scaled(x: f32, encode: f32, #[comptime] plan: Plan) -> Scaled {
    if comptime!(plan.access.arithmetic == Arithmetic::Portable) {
        // Through integers, where a compiler may rewrite sums of products: `x e + x e` is not
        // `x (2 e)` if `2 e` overflows.
        let y = saturate(x * encode, Arithmetic::Portable);
        Scaled {
            magnitude: f32::abs(y),
            sign: u32::reinterpret(y),
        }
    } else {
        // A NaN is positive, be it because `pairs` made it so or because the device computed it.
        let sign = if comptime!(plan.reads_pairs()) {
            u32::reinterpret(x)
        } else {
            u32::reinterpret(x * encode)
        };
        Scaled {
            magnitude: f32::abs(x) * encode,
            sign,
        }
    }
}

/// Writes decoded values where the source has them.
#[cube]
pub(super) fn store_decoded<S: Numeric, NC: Size, D: Float, ND: Size>(
    values: &Array<f32>,
    here: Place,
    exists: bool,
    outputs: &mut Outputs<S, NC, D, ND>,
    arguments: &Arguments,
    geometry: &Geometry,
    #[comptime] plan: Plan,
) {
    if comptime!(plan.results.has_decoded()) {
        let n = ND::value();
        let first = here.group * GROUP;
        let decoded = outputs.decoded.as_mut().unwrap();
        if comptime!(plan.is_along_columns()) {
            let start = (here.row as usize * arguments.decoded_k as usize + first as usize) / n;
            #[unroll]
            for v in 0..comptime!(GROUP as usize / n) {
                if exists && first + comptime!(small(v * n)) < arguments.decoded_k {
                    let mut vector = Vector::<D, ND>::empty();
                    #[unroll]
                    for i in 0..n {
                        vector[i] = D::cast_from(values[v * n + i]);
                    }
                    decoded[start + v] = vector;
                }
            }
        } else {
            let stride = geometry.cols as usize / n;
            let start = first as usize * stride + here.row as usize / n;
            #[unroll]
            for i in 0..16usize {
                if exists && first + comptime!(small(i)) < arguments.decoded_k {
                    let mut vector = Vector::<D, ND>::empty();
                    #[unroll]
                    for w in 0..n {
                        vector[w] = D::cast_from(values[w * 16 + i]);
                    }
                    decoded[start + i * stride] = vector;
                }
            }
        }
    }
}
