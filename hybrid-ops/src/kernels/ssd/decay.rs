//! The decay along each chunk: `cum[i]` = sum of `dt[k] a` over the tokens `k <= i` of a chunk.
//!
//! A unit walks a segment of a chunk of one head; totals of segments are added up in between, so
//! the rounding is that of a sum in two levels. Tokens are turned to the last axis on the way.
//! Behind the last token of a sequence dt is 0, which neither decays nor writes.

use burn_backend::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_nvfp4::kernels::count_launch;
use cubecl::prelude::*;

use super::plan::{Extent, Plan, SEGMENTS, UNITS, WALK_HEADS};
use super::{Call, word};
use crate::kernels::elementwise::empty;

/// Distance of tokens in shared memory: no two heads of a token, or tokens of a head, collide.
const STRIDE: usize = WALK_HEADS + 1;

#[cube(launch_unchecked)]
fn decay_kernel(
    dt: &Array<f32>,
    a_log: &Array<f32>,
    steps: &mut Array<f32>,
    cum: &mut Array<f32>,
    extent: Extent,
    #[comptime] plan: Plan,
) {
    let tokens = comptime!(plan.tokens);
    let heads = comptime!(plan.heads);
    let unit = UNIT_POS as usize;
    let chunk = CUBE_POS_Y as usize;
    let batch = chunk / extent.chunks;
    let first = chunk % extent.chunks * tokens;
    let head0 = CUBE_POS_X as usize * WALK_HEADS;
    let mut tile = SharedMemory::<f32>::new(comptime!(tokens * STRIDE));
    let mut totals = SharedMemory::<f32>::new(comptime!(SEGMENTS * STRIDE));

    #[unroll]
    for pass in 0..comptime!(tokens * WALK_HEADS / UNITS) {
        let token = pass * SEGMENTS + unit / WALK_HEADS;
        let head = unit % WALK_HEADS;
        let mut step = 0.0f32;
        if first + token < extent.seq && head0 + head < heads {
            step = dt[(batch * extent.seq + first + token) * heads + head0 + head];
        }
        tile[token * STRIDE + head] = step;
    }
    sync_cube();
    write_tile(&tile, steps, chunk, head0, plan);

    let len = comptime!(tokens / SEGMENTS);
    let head = unit % WALK_HEADS;
    let segment = unit / WALK_HEADS;
    let mut rate = 0.0f32;
    if head0 + head < heads {
        rate = -f32::exp(a_log[head0 + head]);
    }
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..len {
        sum += tile[(segment * len + i) * STRIDE + head] * rate;
    }
    totals[segment * STRIDE + head] = sum;
    // Also: `tile` has been read by `write_tile`.
    sync_cube();
    let mut running = 0.0f32;
    for before in 0..segment {
        running += totals[before * STRIDE + head];
    }
    #[unroll]
    for i in 0..len {
        let at = (segment * len + i) * STRIDE + head;
        running += tile[at] * rate;
        tile[at] = running;
    }
    sync_cube();
    write_tile(&tile, cum, chunk, head0, plan);
}

/// `[tokens, heads]` in shared memory to `[chunk, heads, tokens]`.
#[cube]
fn write_tile(
    tile: &SharedMemory<f32>,
    out: &mut Array<f32>,
    chunk: usize,
    head0: usize,
    #[comptime] plan: Plan,
) {
    let tokens = comptime!(plan.tokens);
    let heads = comptime!(plan.heads);
    let unit = UNIT_POS as usize;
    #[unroll]
    for pass in 0..comptime!(tokens * WALK_HEADS / UNITS) {
        let item = pass * UNITS + unit;
        let head = item / tokens;
        let token = item % tokens;
        if head0 + head < heads {
            out[(chunk * heads + head0 + head) * tokens + token] = tile[token * STRIDE + head];
        }
    }
}

/// Tokens last, padded with zeros, f32 `[m, h, q]`.
#[derive(Clone, Debug)]
pub(super) struct Decay<R: CubeRuntime> {
    /// dt.
    pub(super) steps: CubeTensor<R>,
    /// The decay from the start of the chunk, its logarithm.
    pub(super) cum: CubeTensor<R>,
}

pub(super) fn decay<R: CubeRuntime>(
    call: &Call,
    dt: &CubeTensor<R>,
    a_log: &CubeTensor<R>,
) -> Decay<R> {
    let Call { plan, .. } = *call;
    let shape = [call.chunks(), plan.heads, plan.tokens];
    let steps = empty(dt, shape, DType::F32);
    let cum = empty(dt, shape, DType::F32);
    count_launch();
    // SAFETY: cubes cover all chunks and heads, and units beyond them read and write nothing.
    unsafe {
        decay_kernel::launch_unchecked::<R>(
            &dt.client,
            CubeCount::new_2d(word(plan.heads.div_ceil(WALK_HEADS)), word(call.chunks())),
            CubeDim::new_1d(word(UNITS)),
            dt.clone().into_array_arg(),
            a_log.clone().into_array_arg(),
            steps.clone().into_array_arg(),
            cum.clone().into_array_arg(),
            call.extent(),
            plan,
        );
    }
    Decay { steps, cum }
}
