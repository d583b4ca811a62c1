//! Four-over-six: the block amax goes to 6 or to 4, whichever errs less (numerics §7).
//!
//! Between 4 and 6 the E2M1 grid has no point, so a block whose large elements sit there is better
//! off with its maximum on 4. Per block:
//!
//! 1. Two candidate scales, `(b / 6) * S_enc` and 1.5 times that, each rounded to E4M3.
//! 2. Both quantizations, and their errors against the block, summed in index order in f32. A 16x16
//!    tile adds its sixteen row errors as a tree (8, 4, 2, 1 apart) and decides once.
//! 3. The scale for 4 wins only if its error is strictly smaller.
//!
//! Source: arXiv:2512.02010; order of operations from TE `quantize_4over6_nvfp4.cuh`.

use multiversion::multiversion;

use super::strip::{GROUP, Grid, Strip};
use crate::format::scale::Nvfp4Scaling;
use crate::format::{e2m1, e4m3};
use crate::recipe::{BlockError, ErrorArithmetic};

/// What the choice depends on besides the block.
#[derive(Clone, Copy, Debug)]
pub(super) struct FourOverSix {
    pub(super) scaling: Nvfp4Scaling,
    pub(super) amax: f32,
    pub(super) q_max: f32,
    pub(super) error: BlockError,
    pub(super) arithmetic: ErrorArithmetic,
}

/// Fills in the scales of a strip whose block amaxes are known.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2"))]
pub(super) fn choose_scales(strip: &mut Strip, grid: &Grid, rule: &FourOverSix) {
    let groups = strip.window.groups();
    let (values, _) = strip.values.as_chunks::<GROUP>();
    // Rows of the strip, of which a tile has sixteen and a 1x16 block one.
    for (block_row, rows) in values.chunks(grid.block.rows * groups).enumerate() {
        for group in 0..groups {
            let block = block_row * groups + group;
            let (six, four) = rule.scaling.block_scales_six_and_four(strip.amax[block]);
            let mut errors = [[0.0_f32; GROUP]; 2];
            for (row, x) in rows.iter().skip(group).step_by(groups).enumerate() {
                errors[0][row] = row_error(x, six, rule);
                errors[1][row] = row_error(x, four, rule);
            }
            let [error_six, error_four] = errors.map(tree_sum);
            let scale = if error_four < error_six { four } else { six };
            strip.bytes[block] = scale;
            strip.decode[block] = e4m3::decode(scale);
            strip.encode[block] = rule.scaling.block_encode_scale(scale);
        }
    }
}

/// Error of sixteen elements under a candidate scale, summed in index order.
#[inline(always)]
fn row_error(x: &[f32; GROUP], scale: u8, rule: &FourOverSix) -> f32 {
    let encode = rule.scaling.block_encode_scale(scale);
    let scale = e4m3::decode(scale);
    let mut terms = [0.0_f32; GROUP];
    for i in 0..GROUP {
        let value = e2m1::decode(e2m1::encode_rne(x[i] * encode));
        let difference = match rule.arithmetic {
            ErrorArithmetic::Exact => ((value * scale) * rule.amax) / rule.q_max - x[i],
            // TE rounds `value * scale` to f16 here. It has at most six significant bits and lies
            // between 2^-10 and 2688, so that rounding never changes it.
            ErrorArithmetic::Fast => value * scale - x[i] * rule.scaling.encode(),
        };
        terms[i] = match rule.error {
            BlockError::Mae => difference.abs(),
            BlockError::Mse => difference * difference,
        };
    }
    terms.into_iter().fold(0.0, |sum, term| sum + term)
}

/// Sum of sixteen row errors; of a single row, that row's.
#[inline(always)]
fn tree_sum(mut rows: [f32; GROUP]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            rows[i] += rows[i + half];
        }
    }
    rows[0]
}
