//! MS-EDEN's block scales: corrected per rotated vector, rounded stochastically (numerics §11).
//!
//! Rounding to nearest shortens or lengthens a vector in the direction it has. Behind a random
//! rotation the rest of the error averages out, so a vector whose quantized form `q` is multiplied
//! with `|y|^2 / <y, q>` is right in the mean (EDEN). The factor costs no bit: it goes into the
//! block scales, and their rounding is stochastic so that it stays right in the mean there too.
//!
//! 1. Block scales that clip a little, nowhere 0, and codes rounded to nearest.
//! 2. Both sums over a vector of 128: sixteen terms in index order, times the square of the group's
//!    scale, the eight groups as a tree (4, 2, 1 apart).
//! 3. Every block scale times the correction, rounded to E4M3 by twenty bits of its own.
//!
//! Codes belong to the scales of step 1, decoding to those of step 3.
//!
//! Source: arXiv:2601.22813 (MS-EDEN), arXiv:2108.08842 (EDEN).

use multiversion::multiversion;

use super::hadamard::RANDOM_POINTS;
use super::strip::{GROUP, Strip};
use crate::format::scale::{EdenScaling, eden_correction};
use crate::format::{e2m1, e4m3};
use crate::rng::RandomKey;

/// Groups of a rotated vector.
const MEMBERS: usize = RANDOM_POINTS / GROUP;

/// What the scales depend on besides the strip.
#[derive(Clone, Debug)]
pub(super) struct Eden {
    pub(super) scaling: EdenScaling,
    pub(super) key: RandomKey,
    /// Of the rotated tensor, for the random key.
    pub(super) amax: f32,
    /// Groups in a row of the packed operand.
    pub(super) groups: usize,
}

/// Fills in the scales of a rotated strip whose block amaxes are known.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2"))]
pub(super) fn correct_scales(strip: &mut Strip, rule: &Eden) {
    let groups = strip.window.groups();
    let (values, _) = strip.values.as_chunks::<GROUP>();
    let vectors = values.as_chunks::<MEMBERS>().0;
    for (vector, values) in vectors.iter().enumerate() {
        let mut norms = [0.0_f32; MEMBERS];
        let mut overlaps = [0.0_f32; MEMBERS];
        let first = vector * MEMBERS;
        for (member, x) in values.iter().enumerate() {
            let scale = rule.scaling.block_scale(strip.amax[first + member]);
            let encode = rule.scaling.block_encode_scale(scale);
            strip.bytes[first + member] = scale;
            strip.encode[first + member] = encode;
            // Sums in units of the group's own scale, brought to those of the tensor.
            let (norm, overlap) = group_sums(x, encode);
            let weight = e4m3::decode(scale) * e4m3::decode(scale);
            norms[member] = norm * weight;
            overlaps[member] = overlap * weight;
        }
        let correction = eden_correction(tree_sum(norms), tree_sum(overlaps));
        for block in first..first + MEMBERS {
            let (row, group) = (block / groups, block % groups);
            let row = (strip.window.row + row) as u64;
            let index = row * rule.groups as u64 + (strip.window.k / GROUP + group) as u64;
            let corrected = e4m3::decode(strip.bytes[block]) * correction;
            let byte = e4m3::encode_stochastic(corrected, random(rule, index));
            strip.bytes[block] = byte;
            strip.decode[block] = e4m3::decode(byte);
        }
    }
}

/// The random bits of a block: the upper ones of the first of its four words.
#[inline(always)]
fn random(rule: &Eden, block: u64) -> u32 {
    let [b0, b1, b2, b3, ..] = rule.key.block_bytes(rule.amax, block);
    u32::from_le_bytes([b0, b1, b2, b3]) >> (u32::BITS - e4m3::RANDOM_BITS)
}

/// `sum of y * y` and `sum of y * q` of a group, in index order.
#[inline(always)]
fn group_sums(x: &[f32; GROUP], encode: f32) -> (f32, f32) {
    let mut squares = [0.0_f32; GROUP];
    let mut products = [0.0_f32; GROUP];
    for i in 0..GROUP {
        let y = x[i] * encode;
        squares[i] = y * y;
        products[i] = y * e2m1::decode(e2m1::encode_rne(y));
    }
    let sum = |terms: [f32; GROUP]| terms.into_iter().fold(0.0, |sum, term| sum + term);
    (sum(squares), sum(products))
}

/// The sum of eight groups.
#[inline(always)]
fn tree_sum(mut sums: [f32; MEMBERS]) -> f32 {
    for half in [4, 2, 1] {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
    }
    sums[0]
}
