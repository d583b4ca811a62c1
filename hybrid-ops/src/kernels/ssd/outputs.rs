//! The result: what a chunk adds, what the state before it adds, and the skip; tokens first again.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_nvfp4::kernels::count_launch;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::plan::{Extent, Plan, TILE_CHANNELS, UNITS, WIDTH};
use super::{Call, word};
use crate::kernels::elementwise::empty;

#[cube(launch_unchecked)]
#[expect(clippy::too_many_arguments, reason = "what the kernel is bound to")]
fn combine_kernel<F: Float, N: Size>(
    inside: &Array<Vector<f32, N>>,
    before: &Array<Vector<f32, N>>,
    cum: &Array<Vector<f32, N>>,
    xbc: &Array<Vector<F, N>>,
    d_skip: &Array<f32>,
    y: &mut Array<Vector<F, N>>,
    extent: Extent,
    #[comptime] plan: Plan,
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
        let local = item / comptime!(tile_tokens / WIDTH);
        let token = token0 + item % comptime!(tile_tokens / WIDTH) * WIDTH;
        let channel = channel0 + local;
        if channel < channels {
            let head = channel / comptime!(plan.head_dim);
            let logs = cum[((chunk * comptime!(plan.heads) + head) * tokens + token) / WIDTH];
            let at = ((chunk * channels + channel) * tokens + token) / WIDTH;
            let (own, carried) = (inside[at], before[at]);
            #[unroll]
            for w in 0..WIDTH {
                let value = own[w] + f32::exp(logs[w]) * carried[w];
                tile[local * stride + token - token0 + w] = value;
            }
        }
    }
    sync_cube();

    #[unroll]
    for pass in 0..comptime!(tile_tokens * TILE_CHANNELS / WIDTH / UNITS) {
        let item = pass * UNITS + unit;
        let token = item / comptime!(TILE_CHANNELS / WIDTH);
        let local = item % comptime!(TILE_CHANNELS / WIDTH) * WIDTH;
        let channel = channel0 + local;
        if first + token < extent.seq && channel < channels {
            let x = xbc[((row0 + token) * comptime!(plan.columns()) + channel) / WIDTH];
            // A vector lies in one head.
            let skip = d_skip[channel / comptime!(plan.head_dim)];
            let mut values = Vector::<F, N>::empty();
            #[unroll]
            for w in 0..WIDTH {
                let value = tile[(local + w) * stride + token] + skip * f32::cast_from(x[w]);
                values[w] = F::cast_from(value);
            }
            y[((row0 + token) * channels + channel) / WIDTH] = values;
        }
    }
}

/// `y` `[batch, seq, h p]` from the two parts of it, f32 `[m, h p, q]`.
pub(super) fn combine<R: CubeRuntime>(
    call: &Call,
    inside: &CubeTensor<R>,
    before: &CubeTensor<R>,
    cum: &CubeTensor<R>,
    [xbc, d_skip]: [&CubeTensor<R>; 2],
) -> CubeTensor<R> {
    let Call { plan, shape, .. } = call;
    let y = empty(xbc, [shape.batch, shape.seq, plan.channels()], xbc.dtype);
    count_launch();
    // SAFETY: `Call::new` compared the lengths of all tensors with the plan. Cubes cover all
    // tokens and channels of all chunks; beyond the channels and the sequence nothing is touched.
    unsafe {
        combine_kernel::launch_unchecked::<R>(
            &xbc.client,
            call.tiles(),
            CubeDim::new_1d(word(UNITS)),
            WIDTH,
            inside.clone().into_array_arg(),
            before.clone().into_array_arg(),
            cum.clone().into_array_arg(),
            xbc.clone().into_array_arg(),
            d_skip.clone().into_array_arg(),
            y.clone().into_array_arg(),
            call.extent(),
            *plan,
            xbc.dtype.into(),
        );
    }
    y
}
