//! From block amaxes to block scales, for every format (numerics §2, §3, §6).
//!
//! The formulas are in [`format::scale`](crate::format::scale) and
//! [`format::e8m0`](crate::format::e8m0); here they meet the blocks of a strip. One scale per block
//! is off the hot path, and the loops vectorise all the same.

use multiversion::multiversion;

use super::amax::larger;
use super::eden::{Eden, correct_scales};
use super::elements::group_amax;
use super::four_over_six::{FourOverSix, choose_scales};
use super::strip::{GROUP, Grid, Strip};
use crate::format::scale::{FP8_Q_MAX, Nvfp4Scaling, tensor_encode_scale};
use crate::format::{e4m3, e8m0};
use crate::recipe::E8m0Rule;

/// How the scale of a block follows from its amax; tensor-level numbers are already in it.
#[derive(Clone, Debug)]
pub(super) enum BlockRule {
    /// E4M3, block amax to 6; one tensor level, or one per row.
    Nvfp4(Vec<Nvfp4Scaling>),
    /// E4M3, block amax to 6 or to 4.
    FourOverSix(FourOverSix),
    /// E4M3, corrected and rounded stochastically.
    Eden(Eden),
    /// E8M0 for elements up to `element_max`.
    Mx { rule: E8m0Rule, element_max: f32 },
    /// One f32 scale per block.
    Fp8Block,
    /// One encode scale for everything.
    Fp8Tensor { encode: f32 },
}

impl BlockRule {
    /// Fills in the scales of a loaded strip.
    pub(super) fn apply(&self, strip: &mut Strip, grid: &Grid) {
        let groups = strip.window.groups();
        let block_rows = strip.window.rows.div_ceil(grid.block.rows);
        let len = block_rows * groups;
        for scales in [&mut strip.amax, &mut strip.encode, &mut strip.decode] {
            scales.resize(len, 0.0);
        }
        strip.bytes.resize(len, 0);
        if let Self::Fp8Tensor { encode } = self {
            strip.encode.fill(*encode);
            strip.decode.fill(1.0);
            return;
        }
        block_amaxes(strip, grid);
        let Strip {
            window,
            amax,
            bytes,
            decode,
            encode,
            ..
        } = strip;
        match self {
            Self::Nvfp4(scalings) => match scalings.as_slice() {
                [tensor] => nvfp4_scales(amax, tensor, bytes, decode, encode),
                per_row => {
                    // Row scales come with 1x16 blocks only: a row of blocks is a row.
                    for (row, scaling) in per_row[window.row..][..window.rows].iter().enumerate() {
                        let span = row * groups..(row + 1) * groups;
                        nvfp4_scales(
                            &amax[span.clone()],
                            scaling,
                            &mut bytes[span.clone()],
                            &mut decode[span.clone()],
                            &mut encode[span],
                        );
                    }
                }
            },
            Self::FourOverSix(rule) => choose_scales(strip, grid, rule),
            Self::Eden(rule) => correct_scales(strip, rule),
            Self::Mx { rule, element_max } => {
                for (i, &amax) in amax.iter().enumerate() {
                    bytes[i] = match rule {
                        E8m0Rule::Floor => e8m0::floor(amax, *element_max),
                        E8m0Rule::RoundUp => e8m0::round_up(amax, *element_max),
                    };
                    decode[i] = e8m0::decode(bytes[i]);
                    encode[i] = e8m0::reciprocal(bytes[i]);
                }
            }
            Self::Fp8Block => {
                for (i, &amax) in amax.iter().enumerate() {
                    encode[i] = tensor_encode_scale(amax, FP8_Q_MAX);
                    decode[i] = 1.0 / encode[i];
                }
            }
            Self::Fp8Tensor { .. } => {}
        }
    }
}

/// Amax of every block, repeated for each of its groups.
fn block_amaxes(strip: &mut Strip, grid: &Grid) {
    let (groups, width) = (strip.window.groups(), strip.window.width);
    if grid.block.rows == 1 {
        group_amax(&strip.values, &mut strip.amax);
    } else {
        let block_values = strip.values.chunks(grid.block.rows * width);
        // `encode` is not filled in yet and lends its first row as working memory.
        for (values, amax) in block_values.zip(strip.amax.chunks_exact_mut(groups)) {
            amax.fill(0.0);
            let row_amax = &mut strip.encode[..groups];
            for row in values.chunks_exact(width) {
                group_amax(row, row_amax);
                for (amax, &row_amax) in amax.iter_mut().zip(row_amax.iter()) {
                    *amax = larger(row_amax, *amax);
                }
            }
        }
    }
    for block in strip.amax.chunks_exact_mut(grid.block.k / GROUP) {
        if let [_, _, ..] = block {
            let amax = block.iter().fold(0.0, |amax, &group| larger(group, amax));
            block.fill(amax);
        }
    }
}

/// E4M3 scales of NVFP4 blocks under one tensor level.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2"))]
fn nvfp4_scales(
    amax: &[f32],
    scaling: &Nvfp4Scaling,
    bytes: &mut [u8],
    decode: &mut [f32],
    encode: &mut [f32],
) {
    let scales = bytes.iter_mut().zip(decode).zip(encode);
    for (&amax, ((byte, decode), encode)) in amax.iter().zip(scales) {
        let scale = scaling.block_scale(amax);
        *byte = scale;
        *decode = e4m3::decode(scale);
        *encode = scaling.block_encode_scale(scale);
    }
}
