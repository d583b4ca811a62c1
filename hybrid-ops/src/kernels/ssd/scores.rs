//! Inside a chunk, token by token: the weights `W = (C B^T) o L`, and their gradients.
//!
//! `L[i, j] = exp(cum[i] - cum[j])` for `j <= i`, else 0. Above the diagonal the exponent is
//! positive and nothing is computed of it. Rows are the tokens that read, columns those that wrote.
//!
//! With `dG[i, j] = dy[i] . (dt x)[j]` and `E = dG o W`, the logarithm of the decay of token k has
//! the gradient `sum of E[i, j] over i >= k > j`. It is added up as such, prefix by prefix: the
//! difference of row and column sums, which is the same, cancels.

use burn_backend::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_nvfp4::kernels::count_launch;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::plan::{Plan, UNITS, WIDTH};
use super::{Call, word};
use crate::kernels::elementwise::{empty, grid};

#[cube(launch_unchecked)]
fn weights_kernel<F: Float, N: Size>(
    scores: &Array<Vector<f32, N>>,
    cum: &Array<f32>,
    cum_lines: &Array<Vector<f32, N>>,
    weights: &mut Array<Vector<F, N>>,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= scores.len() {
        terminate!();
    }
    let tokens = comptime!(plan.tokens);
    let vectors = comptime!(plan.tokens / WIDTH);
    let lane = ABSOLUTE_POS % vectors;
    let column = lane * WIDTH;
    let row = ABSOLUTE_POS / vectors % tokens;
    // Groups of all chunks, then heads of all chunks: heads of a group are adjacent.
    let group = ABSOLUTE_POS / (vectors * tokens);
    let mut score = Vector::<f32, N>::cast_from(0.0f32);
    if column <= row {
        score = scores[ABSOLUTE_POS];
    }
    for r in 0..comptime!(plan.group_heads()) {
        let line = group * comptime!(plan.group_heads()) + r;
        let mut weight = Vector::<F, N>::cast_from(0.0f32);
        if column <= row {
            let reads = cum[line * tokens + row];
            let writes = cum_lines[line * vectors + lane];
            #[unroll]
            for w in 0..WIDTH {
                let decay = decay_between(reads, writes[w], column + w <= row);
                weight[w] = F::cast_from(score[w] * decay);
            }
        }
        weights[(line * tokens + row) * vectors + lane] = weight;
    }
}

/// `L` of one pair of tokens.
#[cube]
fn decay_between(reads: f32, writes: f32, is_past: bool) -> f32 {
    select(is_past, f32::exp(f32::min(reads - writes, 0.0f32)), 0.0f32)
}

/// One tile of rows of one group, head after head.
#[cube(launch_unchecked)]
#[expect(
    clippy::too_many_arguments,
    clippy::too_many_lines,
    reason = "a kernel is bound to its buffers, and its steps share registers"
)]
fn pairs_kernel<F: Float, N: Size>(
    scores: &Array<Vector<f32, N>>,
    grads: &Array<Vector<f32, N>>,
    cum: &Array<f32>,
    cum_lines: &Array<Vector<f32, N>>,
    weights: &mut Array<Vector<F, N>>,
    score_grads: &mut Array<Vector<F, N>>,
    decay_grads: &mut Array<f32>,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    let tokens = comptime!(plan.tokens);
    let rows = comptime!(plan.tile_rows());
    let tiles = comptime!(plan.row_tiles());
    let lanes = comptime!(plan.tokens / WIDTH);
    let units = comptime!(pairs_units(plan));
    let pass_rows = comptime!(units / lanes);
    let passes = comptime!(rows / pass_rows);
    let scan_units = comptime!(units / rows);
    let scan_lanes = comptime!(lanes / scan_units);
    let stride = comptime!(lanes + 1);
    let unit = UNIT_POS as usize;
    let lane = unit % lanes;
    let column = lane * WIDTH;
    let unit_row = unit / lanes;
    let tile = CUBE_POS_X as usize % tiles;
    let group = CUBE_POS_Y as usize * comptime!(plan.groups) + CUBE_POS_X as usize / tiles;
    let row0 = tile * rows;

    let mut sums = SharedMemory::<f32>::new(comptime!(rows * stride));
    let mut before = SharedMemory::<f32>::new(comptime!(rows * stride));
    let mut columns = SharedMemory::<f32>::new(comptime!(pass_rows * tokens));
    let mut of_scores = Array::<f32>::new(comptime!(passes * WIDTH));
    let mut products = Array::<f32>::new(comptime!(passes * WIDTH));
    let mut below = Array::<f32>::new(WIDTH);
    #[unroll]
    for i in 0..comptime!(passes * WIDTH) {
        of_scores[i] = 0.0f32;
    }

    for r in 0..comptime!(plan.group_heads()) {
        let line = group * comptime!(plan.group_heads()) + r;
        let writes = cum_lines[line * lanes + lane];
        // 1. W, dG o L summed over heads, E and its sum over the columns of the unit.
        #[unroll]
        for pass in 0..passes {
            let local = pass * pass_rows + unit_row;
            let row = row0 + local;
            let at = (line * tokens + row) * lanes + lane;
            let mut weight = Vector::<F, N>::cast_from(0.0f32);
            let mut sum = 0.0f32;
            #[unroll]
            for w in 0..WIDTH {
                products[pass * WIDTH + w] = 0.0f32;
            }
            if column <= row {
                let reads = cum[line * tokens + row];
                let score = scores[(group * tokens + row) * lanes + lane];
                let grad = grads[at];
                #[unroll]
                for w in 0..WIDTH {
                    let decay = decay_between(reads, writes[w], column + w <= row);
                    let value = score[w] * decay;
                    let product = grad[w] * value;
                    weight[w] = F::cast_from(value);
                    of_scores[pass * WIDTH + w] += grad[w] * decay;
                    products[pass * WIDTH + w] = product;
                    sum += product;
                }
            }
            weights[at] = weight;
            sums[local * stride + lane] = sum;
        }
        sync_cube();
        // 2. Sums of E over the columns before those of each unit.
        let scan_row = unit / scan_units * stride;
        let own = unit % scan_units * scan_lanes;
        let mut running = 0.0f32;
        for i in 0..own {
            running += sums[scan_row + i];
        }
        #[unroll]
        for i in 0..scan_lanes {
            before[scan_row + own + i] = running;
            running += sums[scan_row + own + i];
        }
        sync_cube();
        // 3. Sums over the rows from each column on.
        #[unroll]
        for w in 0..WIDTH {
            below[w] = 0.0f32;
        }
        #[unroll]
        for pass in 0..passes {
            let local = pass * pass_rows + unit_row;
            let mut prefix = before[local * stride + lane];
            #[unroll]
            for w in 0..WIDTH {
                below[w] += select(column + w <= row0 + local, prefix, 0.0f32);
                prefix += products[pass * WIDTH + w];
            }
        }
        #[unroll]
        for w in 0..WIDTH {
            columns[unit_row * tokens + column + w] = below[w];
        }
        sync_cube();
        let mut token = unit;
        while token < tokens {
            let mut total = 0.0f32;
            #[unroll]
            for i in 0..pass_rows {
                total += columns[i * tokens + token];
            }
            decay_grads[(line * tiles + tile) * tokens + token] = total;
            token += units;
        }
    }
    #[unroll]
    for pass in 0..passes {
        let row = row0 + pass * pass_rows + unit_row;
        let mut grad = Vector::<F, N>::empty();
        #[unroll]
        for w in 0..WIDTH {
            grad[w] = F::cast_from(of_scores[pass * WIDTH + w]);
        }
        score_grads[(group * tokens + row) * lanes + lane] = grad;
    }
}

/// Units of a cube of [`pairs_kernel`]: a tile of the shortest chunk has fewer vectors than others.
const fn pairs_units(plan: Plan) -> usize {
    let vectors = plan.tile_rows() * plan.tokens / WIDTH;
    if vectors < UNITS { vectors } else { UNITS }
}

/// `W` `[m h, q, q]` in `dtype`, from the scores f32 `[m g, q, q]`.
pub(super) fn weights<R: CubeRuntime>(
    call: &Call,
    scores: &CubeTensor<R>,
    cum: &CubeTensor<R>,
    dtype: DType,
) -> CubeTensor<R> {
    let Call { plan, .. } = *call;
    let shape = [call.chunks() * plan.heads, plan.tokens, plan.tokens];
    let weights = empty(scores, shape, dtype);
    let (count, dim) = grid(scores, scores.meta.num_elements() / WIDTH);
    count_launch();
    // SAFETY: units beyond the scores return; there are weights for each head of each group.
    unsafe {
        weights_kernel::launch_unchecked::<R>(
            &scores.client,
            count,
            dim,
            WIDTH,
            scores.clone().into_array_arg(),
            cum.clone().into_array_arg(),
            cum.clone().into_array_arg(),
            weights.clone().into_array_arg(),
            plan,
            dtype.into(),
        );
    }
    weights
}

/// What backward makes of a chunk's pairs of tokens.
#[derive(Debug)]
pub(super) struct Pairs<R: CubeRuntime> {
    /// `W` `[m h, q, q]`.
    pub(super) weights: CubeTensor<R>,
    /// Of the scores, summed over the heads of a group: `[m g, q, q]`.
    pub(super) scores: CubeTensor<R>,
    /// Of the logarithms of the decays, one part for each tile of rows: f32 `[m h, tiles, q]`.
    pub(super) decays: CubeTensor<R>,
}

/// Weights and gradients, from the scores and dG, f32 `[m h, q, q]`.
pub(super) fn pairs<R: CubeRuntime>(
    call: &Call,
    scores: &CubeTensor<R>,
    grads: &CubeTensor<R>,
    cum: &CubeTensor<R>,
    dtype: DType,
) -> Pairs<R> {
    let Call { plan, .. } = *call;
    let lines = call.chunks() * plan.heads;
    let weights = empty(scores, [lines, plan.tokens, plan.tokens], dtype);
    let of_scores = empty(scores, scores.meta.shape().clone(), dtype);
    let decays = empty(scores, [lines, plan.row_tiles(), plan.tokens], DType::F32);
    count_launch();
    // SAFETY: a cube for each tile of rows of each group of each chunk, whose units cover the tile.
    unsafe {
        pairs_kernel::launch_unchecked::<R>(
            &scores.client,
            CubeCount::new_2d(word(plan.groups * plan.row_tiles()), word(call.chunks())),
            CubeDim::new_1d(word(pairs_units(plan))),
            WIDTH,
            scores.clone().into_array_arg(),
            grads.clone().into_array_arg(),
            cum.clone().into_array_arg(),
            cum.clone().into_array_arg(),
            weights.clone().into_array_arg(),
            of_scores.clone().into_array_arg(),
            decays.clone().into_array_arg(),
            plan,
            dtype.into(),
        );
    }
    Pairs {
        weights,
        scores: of_scores,
        decays,
    }
}
