//! Four-over-six on the device; the twin of `cpu/four_over_six.rs` (numerics §7).
//!
//! The same two candidates, the same order of every sum: sixteen terms in index order, the rows of
//! a 16x16 tile as a tree (8, 4, 2, 1 apart).

use cubecl::prelude::*;

use super::arithmetic::{Arithmetic, divide, rounded_product};
use super::e2m1::{round_rne, saturate};
use super::e4m3::{decode as decode_e4m3, encode as encode_e4m3};
use super::scale::{TensorLevel, block_encode_scale};
use crate::recipe::{BlockError, ErrorArithmetic};

/// What is compared between the two candidates, comptime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ErrorRule {
    pub(super) error: BlockError,
    pub(super) arithmetic: ErrorArithmetic,
}

/// The E4M3 scales that map a block amax to 6 and to 4.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Candidates {
    pub(super) six: u32,
    pub(super) four: u32,
}

/// A true division first, unlike the plain rule.
#[cube]
pub(super) fn candidates(
    block_amax: f32,
    level: &TensorLevel,
    #[comptime] arithmetic: Arithmetic,
) -> Candidates {
    let base = divide(block_amax, 6.0f32, arithmetic) * level.encode;
    Candidates {
        six: encode_e4m3(base),
        four: encode_e4m3(base * 1.5f32),
    }
}

/// Error of sixteen elements under a candidate scale, summed in index order.
#[cube]
pub(super) fn row_error(
    values: &Array<f32>,
    #[comptime] start: usize,
    scale: u32,
    level: &TensorLevel,
    q_max: f32,
    zero: u32,
    #[comptime] rule: ErrorRule,
    #[comptime] arithmetic: Arithmetic,
) -> f32 {
    let scale = decode_e4m3(scale);
    let encode = block_encode_scale(scale, level, arithmetic);
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..16usize {
        let x = values[start + i];
        let rounded = round_rne(saturate(x * encode, arithmetic), arithmetic);
        let scaled = rounded * scale;
        let difference = if comptime!(rule.arithmetic == ErrorArithmetic::Exact) {
            divide(scaled * level.amax, q_max, arithmetic) - x
        } else {
            rounded_product(rounded, scale, zero) - rounded_product(x, level.encode, zero)
        };
        if comptime!(rule.error == BlockError::Mae) {
            sum += f32::abs(difference);
        } else {
            sum += rounded_product(difference, difference, zero);
        }
    }
    sum
}

/// The sum of sixteen row errors that lie `stride` apart in shared memory, as bits.
#[cube]
pub(super) fn tree_sum(rows: &SharedMemory<u32>, base: usize, #[comptime] stride: usize) -> f32 {
    let mut sums = Array::<f32>::new(16usize);
    #[unroll]
    for i in 0..16usize {
        sums[i] = f32::reinterpret(rows[base + comptime!(i * stride)]);
    }
    #[unroll]
    for step in 0..4usize {
        let half = comptime!(8usize >> step);
        #[unroll]
        for i in 0..comptime!(8usize >> step) {
            sums[i] += sums[i + half];
        }
    }
    sums[0]
}
