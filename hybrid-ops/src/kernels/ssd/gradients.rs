//! Gradients by columns: of x, token by token and channel by channel, and of B and C.
//!
//! With `g = d(dt x)`, what the chunk itself and the chunks behind it ask for: `dx = dt g + D dy`.
//! On the way each token gets four sums over the channels of a head, which [`super::steps`] reads:
//!
//! | plane | sum | meaning |
//! |---|---|---|
//! | 0 | `x . g` | gradient of dt, the decays apart |
//! | 1 | `x_left . dx_left` | what is lost where the token decays to the end of its chunk |
//! | 2 | `dy . y_before` | what is lost where the state decays from the start of the chunk |
//! | 3 | `dy . x` | gradient of D |

use burn_backend::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_nvfp4::kernels::count_launch;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::decay::Decay;
use super::plan::{Extent, Plan, WIDTH};
use super::{Call, SsdInputs, word};
use crate::kernels::elementwise::{empty, grid};

/// Sums over channels that [`input_grads_kernel`] leaves for each token of each head.
pub(super) const PLANES: usize = 4;
/// Channels of a tile.
const CHANNELS: usize = 32;

#[cube(launch_unchecked)]
#[expect(clippy::too_many_arguments, reason = "what the kernel is bound to")]
fn input_grads_kernel<F: Float, N: Size>(
    xbc: &Array<Vector<F, N>>,
    dy: &Array<Vector<F, N>>,
    steps: &Array<Vector<f32, N>>,
    cum: &Array<Vector<f32, N>>,
    d_skip: &Array<f32>,
    inside: &Array<Vector<f32, N>>,
    left: &Array<Vector<f32, N>>,
    before: &Array<Vector<f32, N>>,
    dxbc: &mut Array<Vector<F, N>>,
    sums: &mut Array<f32>,
    extent: Extent,
    plane: usize,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    let tokens = comptime!(plan.tokens);
    let span = comptime!(plan.tile_rows());
    let stride = comptime!(span + 1);
    let part = comptime!(CHANNELS * stride);
    let head_dim = comptime!(plan.head_dim);
    let unit = UNIT_POS as usize;
    let chunk = CUBE_POS_Y as usize;
    let token0 = CUBE_POS_X as usize % comptime!(plan.row_tiles()) * span;
    let head = CUBE_POS_X as usize / comptime!(plan.row_tiles());
    let line = chunk * comptime!(plan.heads) + head;
    // Where the unit works with channels along memory, and where with tokens.
    let row = unit / comptime!(CHANNELS / WIDTH);
    let row_channel = unit % comptime!(CHANNELS / WIDTH) * WIDTH;
    let time = chunk % extent.chunks * tokens + token0 + row;
    let source = chunk / extent.chunks * extent.seq + time;
    let channel = unit / comptime!(span / WIDTH);
    let token = unit % comptime!(span / WIDTH) * WIDTH;
    let place = channel * stride + token;

    // Two tiles first, then all sums.
    let mut shared = SharedMemory::<f32>::new(comptime!(PLANES * part));
    let mut totals = Array::<f32>::new(comptime!(PLANES * WIDTH));
    #[unroll]
    for i in 0..comptime!(PLANES * WIDTH) {
        totals[i] = 0.0f32;
    }
    let step = steps[(line * tokens + token0 + token) / WIDTH];
    let logs = cum[(line * tokens + token0 + token) / WIDTH];
    let end = cum[(line * tokens + tokens) / WIDTH - 1];
    let mut to_end = Vector::<f32, N>::empty();
    #[unroll]
    for w in 0..WIDTH {
        to_end[w] = f32::exp(end[comptime!(WIDTH - 1)] - logs[w]);
    }
    let skip = d_skip[head];

    for tile in 0..comptime!(head_dim.div_ceil(CHANNELS)) {
        let channel0 = tile * CHANNELS;
        // 1. Rows of x and dy.
        let exists = time < extent.seq && channel0 + row_channel < head_dim;
        let column = head * head_dim + channel0 + row_channel;
        let at = (source * comptime!(plan.columns()) + column) / WIDTH;
        let mut x_row = Vector::<F, N>::cast_from(0.0f32);
        let mut dy_row = Vector::<F, N>::cast_from(0.0f32);
        if exists {
            x_row = xbc[at];
            dy_row = dy[(source * comptime!(plan.channels()) + column) / WIDTH];
        }
        #[unroll]
        for w in 0..WIDTH {
            let to = (row_channel + w) * stride + row;
            shared[to] = f32::cast_from(x_row[w]);
            shared[part + to] = f32::cast_from(dy_row[w]);
        }
        sync_cube();
        // 2. Tokens last, as the products are. dx takes the place of x.
        if channel0 + channel < head_dim {
            let from = ((line * head_dim + channel0 + channel) * tokens + token0 + token) / WIDTH;
            let (own, later, carried) = (inside[from], left[from], before[from]);
            #[unroll]
            for w in 0..WIDTH {
                let x = shared[place + w];
                let grad = shared[part + place + w];
                let of_x_dt = own[w] + to_end[w] * later[w];
                totals[w] += x * of_x_dt;
                totals[comptime!(WIDTH + w)] += x * later[w];
                totals[comptime!(2 * WIDTH + w)] += grad * carried[w];
                totals[comptime!(3 * WIDTH + w)] += grad * x;
                shared[place + w] = step[w] * of_x_dt + skip * grad;
            }
        }
        sync_cube();
        // 3. Rows of dx.
        if exists {
            let mut dx_row = Vector::<F, N>::empty();
            #[unroll]
            for w in 0..WIDTH {
                dx_row[w] = F::cast_from(shared[(row_channel + w) * stride + row]);
            }
            dxbc[at] = dx_row;
        }
        sync_cube();
    }

    // 4. Sums over the channels of all units.
    #[unroll]
    for w in 0..WIDTH {
        shared[place + w] = totals[w];
        let lost_to_end = totals[comptime!(WIDTH + w)] * step[w] * to_end[w];
        shared[part + place + w] = lost_to_end;
        let lost_from_start = totals[comptime!(2 * WIDTH + w)] * f32::exp(logs[w]);
        shared[comptime!(2 * part) + place + w] = lost_from_start;
        shared[comptime!(3 * part) + place + w] = totals[comptime!(3 * WIDTH + w)];
    }
    sync_cube();
    if unit < comptime!(PLANES * span) {
        let sum_plane = unit / span;
        let sum_token = unit % span;
        let mut sum = 0.0f32;
        #[unroll]
        for i in 0..CHANNELS {
            sum += shared[sum_plane * part + i * stride + sum_token];
        }
        sums[sum_plane * plane + line * tokens + token0 + sum_token] = sum;
    }
}

#[cube(launch_unchecked)]
fn group_grads_kernel<F: Float, N: Size>(
    db: &Array<Vector<f32, N>>,
    dc: &Array<Vector<f32, N>>,
    dxbc: &mut Array<Vector<F, N>>,
    extent: Extent,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= db.len() {
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
    if time < extent.seq {
        let row = (chunk / extent.chunks * extent.seq + time) * comptime!(plan.columns() / WIDTH);
        let at = row + comptime!(plan.channels() / WIDTH) + group * vectors + state;
        dxbc[at] = Vector::<F, N>::cast_from(db[ABSOLUTE_POS]);
        let at = at + comptime!(plan.group_states() / WIDTH);
        dxbc[at] = Vector::<F, N>::cast_from(dc[ABSOLUTE_POS]);
    }
}

/// Gradients that arrive at x, f32 `[m, h p, q]`.
#[derive(Debug)]
pub(super) struct Arriving<R: CubeRuntime> {
    /// Of `dt x`, from tokens of the same chunk.
    pub(super) inside: CubeTensor<R>,
    /// Of `dt x` decayed to the end of its chunk.
    pub(super) left: CubeTensor<R>,
    /// Not a gradient: what the states before the chunk give to y, decays apart.
    pub(super) before: CubeTensor<R>,
}

/// Writes the columns of x, and returns the sums over channels, f32 `[PLANES, m, h, q]`.
pub(super) fn write_inputs<R: CubeRuntime>(
    call: &Call,
    inputs: &SsdInputs<R>,
    dy: &CubeTensor<R>,
    decay: &Decay<R>,
    arriving: &Arriving<R>,
    dxbc: &CubeTensor<R>,
) -> CubeTensor<R> {
    let Call { plan, .. } = *call;
    let xbc = &inputs.xbc;
    let shape = [PLANES, call.chunks(), plan.heads, plan.tokens];
    let sums = empty(xbc, shape, DType::F32);
    count_launch();
    // SAFETY: a cube for each tile of tokens of each head of each chunk; beyond the channels of the
    // head and the sequence nothing is touched.
    unsafe {
        input_grads_kernel::launch_unchecked::<R>(
            &xbc.client,
            CubeCount::new_2d(word(plan.heads * plan.row_tiles()), word(call.chunks())),
            CubeDim::new_1d(word(plan.tile_rows() * CHANNELS / WIDTH)),
            WIDTH,
            xbc.clone().into_array_arg(),
            dy.clone().into_array_arg(),
            decay.steps.clone().into_array_arg(),
            decay.cum.clone().into_array_arg(),
            inputs.d_skip.clone().into_array_arg(),
            arriving.inside.clone().into_array_arg(),
            arriving.left.clone().into_array_arg(),
            arriving.before.clone().into_array_arg(),
            dxbc.clone().into_array_arg(),
            sums.clone().into_array_arg(),
            call.extent(),
            call.chunks() * plan.heads * plan.tokens,
            plan,
            xbc.dtype.into(),
        );
    }
    sums
}

/// Writes the columns of B and C, from f32 `[m g, q, n]`.
pub(super) fn write_groups<R: CubeRuntime>(
    call: &Call,
    db: &CubeTensor<R>,
    dc: &CubeTensor<R>,
    dxbc: &CubeTensor<R>,
) {
    let (count, dim) = grid(dxbc, db.meta.num_elements() / WIDTH);
    count_launch();
    // SAFETY: units beyond the gradients return, and nothing behind the sequence is written.
    unsafe {
        group_grads_kernel::launch_unchecked::<R>(
            &dxbc.client.clone(),
            count,
            dim,
            WIDTH,
            db.clone().into_array_arg(),
            dc.clone().into_array_arg(),
            dxbc.clone().into_array_arg(),
            call.extent(),
            call.plan,
            dxbc.dtype.into(),
        );
    }
}
