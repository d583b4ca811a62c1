//! From tokens by columns to what the matrix products take: channels by tokens, chunk by chunk.
//!
//! x and dy are transposed in shared memory, so that both sides are read and written along memory.
//! B and C stay tokens by states. Behind the last token everything is 0.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_nvfp4::kernels::count_launch;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::decay::Decay;
use super::plan::{Extent, Plan, TILE_CHANNELS, UNITS, WIDTH};
use super::{Call, word};
use crate::kernels::elementwise::{empty, grid};

/// What is staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Rows {
    /// `dt x`, and the same decayed to the end of the chunk.
    Inputs,
    /// dy, and the same decayed from the start of the chunk.
    Gradients,
}

impl Rows {
    /// Columns of a row in memory.
    const fn columns(self, plan: Plan) -> usize {
        match self {
            Self::Inputs => plan.columns(),
            Self::Gradients => plan.channels(),
        }
    }
}

#[cube(launch_unchecked)]
#[expect(clippy::too_many_arguments, reason = "what the kernel is bound to")]
fn stage_kernel<F: Float, N: Size>(
    rows: &Array<Vector<F, N>>,
    steps: &Array<Vector<f32, N>>,
    cum: &Array<Vector<f32, N>>,
    plain: &mut Array<Vector<F, N>>,
    decayed: &mut Array<Vector<F, N>>,
    extent: Extent,
    #[comptime] plan: Plan,
    #[comptime] kind: Rows,
    #[define(F)] _dtype: StorageType,
) {
    let tile_tokens = comptime!(plan.tile_tokens());
    let stride = comptime!(tile_tokens + 1);
    let tokens = comptime!(plan.tokens);
    let channels = comptime!(plan.channels());
    let unit = UNIT_POS as usize;
    let chunk = CUBE_POS_Y as usize;
    let tiles = comptime!(tokens / tile_tokens);
    let token0 = CUBE_POS_X as usize % tiles * tile_tokens;
    let channel0 = CUBE_POS_X as usize / tiles * TILE_CHANNELS;
    let first = chunk % extent.chunks * tokens + token0;
    let row0 = chunk / extent.chunks * extent.seq + first;
    let mut tile = SharedMemory::<f32>::new(comptime!(TILE_CHANNELS * stride));

    #[unroll]
    for pass in 0..comptime!(tile_tokens * TILE_CHANNELS / WIDTH / UNITS) {
        let item = pass * UNITS + unit;
        let token = item / comptime!(TILE_CHANNELS / WIDTH);
        let channel = item % comptime!(TILE_CHANNELS / WIDTH) * WIDTH;
        let mut values = Vector::<F, N>::cast_from(0.0f32);
        if first + token < extent.seq && channel0 + channel < channels {
            let at = (row0 + token) * comptime!(kind.columns(plan)) + channel0 + channel;
            values = rows[at / WIDTH];
        }
        #[unroll]
        for w in 0..WIDTH {
            tile[(channel + w) * stride + token] = f32::cast_from(values[w]);
        }
    }
    sync_cube();

    #[unroll]
    for pass in 0..comptime!(tile_tokens * TILE_CHANNELS / WIDTH / UNITS) {
        let item = pass * UNITS + unit;
        let local = item / comptime!(tile_tokens / WIDTH);
        let token = item % comptime!(tile_tokens / WIDTH) * WIDTH;
        let channel = channel0 + local;
        if channel < channels {
            let head = channel / comptime!(plan.head_dim);
            let line = (chunk * comptime!(plan.heads) + head) * tokens;
            let at = (line + token0 + token) / WIDTH;
            let logs = cum[at];
            let mut factors = Vector::<f32, N>::cast_from(1.0f32);
            let mut decays = Vector::<f32, N>::empty();
            match comptime!(kind) {
                Rows::Inputs => {
                    factors = steps[at];
                    let end = cum[(line + tokens) / WIDTH - 1];
                    #[unroll]
                    for w in 0..WIDTH {
                        decays[w] = f32::exp(end[comptime!(WIDTH - 1)] - logs[w]);
                    }
                }
                Rows::Gradients =>
                {
                    #[unroll]
                    for w in 0..WIDTH {
                        decays[w] = f32::exp(logs[w]);
                    }
                }
            }
            let mut as_is = Vector::<F, N>::empty();
            let mut after = Vector::<F, N>::empty();
            #[unroll]
            for w in 0..WIDTH {
                let value = tile[local * stride + token + w] * factors[w];
                as_is[w] = F::cast_from(value);
                after[w] = F::cast_from(value * decays[w]);
            }
            let out = ((chunk * channels + channel) * tokens + token0 + token) / WIDTH;
            plain[out] = as_is;
            decayed[out] = after;
        }
    }
}

#[cube(launch_unchecked)]
fn stage_groups_kernel<F: Float, N: Size>(
    xbc: &Array<Vector<F, N>>,
    b: &mut Array<Vector<F, N>>,
    c: &mut Array<Vector<F, N>>,
    extent: Extent,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= b.len() {
        terminate!();
    }
    let vectors = comptime!(plan.d_state / WIDTH);
    let state = ABSOLUTE_POS % vectors;
    let row = ABSOLUTE_POS / vectors;
    let token = row % comptime!(plan.tokens);
    let lane = row / comptime!(plan.tokens);
    let group = lane % comptime!(plan.groups);
    let chunk = lane / comptime!(plan.groups);
    let time = chunk % extent.chunks * comptime!(plan.tokens) + token;
    let mut b_values = Vector::<F, N>::cast_from(0.0f32);
    let mut c_values = Vector::<F, N>::cast_from(0.0f32);
    if time < extent.seq {
        let row = (chunk / extent.chunks * extent.seq + time) * comptime!(plan.columns() / WIDTH);
        let at = row + comptime!(plan.channels() / WIDTH) + group * vectors + state;
        b_values = xbc[at];
        c_values = xbc[at + comptime!(plan.group_states() / WIDTH)];
    }
    b[ABSOLUTE_POS] = b_values;
    c[ABSOLUTE_POS] = c_values;
}

/// Channels by tokens, `[m, h p, q]` in the activation dtype.
#[derive(Clone, Debug)]
pub(super) struct Staged<R: CubeRuntime> {
    /// `dt x`, or dy.
    pub(super) plain: CubeTensor<R>,
    /// Decayed to the end of the chunk, or from its start.
    pub(super) decayed: CubeTensor<R>,
}

/// `dt x` of all chunks.
pub(super) fn inputs<R: CubeRuntime>(
    call: &Call,
    xbc: &CubeTensor<R>,
    decay: &Decay<R>,
) -> Staged<R> {
    stage(call, xbc, decay, Rows::Inputs)
}

/// dy of all chunks.
pub(super) fn gradients<R: CubeRuntime>(
    call: &Call,
    dy: &CubeTensor<R>,
    decay: &Decay<R>,
) -> Staged<R> {
    stage(call, dy, decay, Rows::Gradients)
}

fn stage<R: CubeRuntime>(
    call: &Call,
    rows: &CubeTensor<R>,
    decay: &Decay<R>,
    kind: Rows,
) -> Staged<R> {
    let Call { plan, .. } = *call;
    let shape = [call.chunks(), plan.channels(), plan.tokens];
    let plain = empty(rows, shape, rows.dtype);
    let decayed = empty(rows, shape, rows.dtype);
    count_launch();
    // SAFETY: `Call::new` compared the lengths of all tensors with the plan. Cubes cover all
    // tokens and channels of all chunks; beyond the channels and the sequence nothing is read.
    unsafe {
        stage_kernel::launch_unchecked::<R>(
            &rows.client,
            call.tiles(),
            CubeDim::new_1d(word(UNITS)),
            WIDTH,
            rows.clone().into_array_arg(),
            decay.steps.clone().into_array_arg(),
            decay.cum.clone().into_array_arg(),
            plain.clone().into_array_arg(),
            decayed.clone().into_array_arg(),
            call.extent(),
            plan,
            kind,
            rows.dtype.into(),
        );
    }
    Staged { plain, decayed }
}

/// B and C of all chunks, `[m g, q, n]` in the activation dtype.
pub(super) fn groups<R: CubeRuntime>(call: &Call, xbc: &CubeTensor<R>) -> [CubeTensor<R>; 2] {
    let Call { plan, .. } = *call;
    let shape = [call.chunks() * plan.groups, plan.tokens, plan.d_state];
    let (b, c) = (empty(xbc, shape, xbc.dtype), empty(xbc, shape, xbc.dtype));
    let (count, dim) = grid(xbc, b.meta.num_elements() / WIDTH);
    count_launch();
    // SAFETY: units beyond the result return; the rest as above.
    unsafe {
        stage_groups_kernel::launch_unchecked::<R>(
            &xbc.client,
            count,
            dim,
            WIDTH,
            xbc.clone().into_array_arg(),
            b.clone().into_array_arg(),
            c.clone().into_array_arg(),
            call.extent(),
            plan,
            xbc.dtype.into(),
        );
    }
    [b, c]
}
