//! The gradients of dt, a and D.
//!
//! `dt[k] a` is the logarithm of the decay that token k applies. Whatever passes through that decay
//! counts; four things do:
//!
//! 1. pairs of a reader at k or later and a writer before k in the same chunk ([`super::scores`]),
//! 2. writers before k, on their way to the end of the chunk: a sum over `j < k`,
//! 3. readers at k or later, of the state before the chunk: a sum over `i >= k`,
//! 4. the state before the chunk, on its way to the end of it: the same for every k.
//!
//! Each is a sum of its own terms, from its own end of the chunk: nothing is a difference of sums.

use burn_backend::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_nvfp4::kernels::count_launch;
use cubecl::prelude::*;

use super::plan::{Extent, Plan, SEGMENTS, UNITS, WALK_HEADS};
use super::states::cube_sum;
use super::{Call, SsdInputs, word};
use crate::kernels::elementwise::empty;

/// Distance of tokens, or segments, in shared memory.
const STRIDE: usize = WALK_HEADS + 1;
/// Units of a cube that adds up what chunks give to a head.
const HEAD_UNITS: usize = 128;

#[cube(launch_unchecked)]
#[expect(clippy::too_many_arguments, reason = "what the kernel is bound to")]
fn step_grads_kernel(
    steps: &Array<f32>,
    a_log: &Array<f32>,
    pairs: &Array<f32>,
    carried: &Array<f32>,
    sums: &Array<f32>,
    ddt: &mut Array<f32>,
    rates: &mut Array<f32>,
    skips: &mut Array<f32>,
    extent: Extent,
    plane: usize,
    #[comptime] plan: Plan,
) {
    let tokens = comptime!(plan.tokens);
    let heads = comptime!(plan.heads);
    let len = comptime!(tokens / SEGMENTS);
    let unit = UNIT_POS as usize;
    let chunk = CUBE_POS_Y as usize;
    let head0 = CUBE_POS_X as usize * WALK_HEADS;
    let segment = unit % SEGMENTS;
    let local = unit / SEGMENTS;
    let exists = head0 + local < heads;
    // A unit without a head walks along the last one and writes nothing.
    let head = usize::min(head0 + local, comptime!(heads - 1));
    let line = chunk * heads + head;
    let start = line * tokens + segment * len;

    let mut written = SharedMemory::<f32>::new(comptime!(SEGMENTS * STRIDE));
    let mut read = SharedMemory::<f32>::new(comptime!(SEGMENTS * STRIDE));
    let mut tile = SharedMemory::<f32>::new(comptime!(tokens * STRIDE));
    let mut grads = Array::<f32>::new(len);

    let mut writes = 0.0f32;
    let mut reads = 0.0f32;
    #[unroll]
    for i in 0..len {
        writes += sums[plane + start + i];
        reads += sums[2 * plane + start + i];
    }
    written[segment * STRIDE + local] = writes;
    read[segment * STRIDE + local] = reads;
    sync_cube();
    // 4, and the segments of 2 and 3 that are not the unit's own.
    let mut earlier = carried[line];
    let mut later = 0.0f32;
    for other in 0..SEGMENTS {
        let of_writes = written[other * STRIDE + local];
        let of_reads = read[other * STRIDE + local];
        earlier += select(other < segment, of_writes, 0.0f32);
        later += select(other > segment, of_reads, 0.0f32);
    }
    // 2.
    #[unroll]
    for i in 0..len {
        grads[i] = earlier;
        earlier += sums[plane + start + i];
    }
    // 3 and 1.
    #[unroll]
    for i in 0..len {
        let i = comptime!(len - 1 - i);
        later += sums[2 * plane + start + i];
        let mut grad = grads[i] + later;
        for part in 0..comptime!(plan.row_tiles()) {
            let at = (line * comptime!(plan.row_tiles()) + part) * tokens;
            grad += pairs[at + segment * len + i];
        }
        grads[i] = grad;
    }

    let a = -f32::exp(a_log[head]);
    let mut rate = 0.0f32;
    let mut skip = 0.0f32;
    #[unroll]
    for i in 0..len {
        rate += grads[i] * steps[start + i];
        skip += sums[3 * plane + start + i];
        tile[(segment * len + i) * STRIDE + local] = grads[i] * a + sums[start + i];
    }
    // Everybody has read the other segments: `tile` is another memory, these are not.
    sync_cube();
    written[segment * STRIDE + local] = rate;
    read[segment * STRIDE + local] = skip;
    sync_cube();
    if segment == 0 && exists {
        rate = 0.0f32;
        skip = 0.0f32;
        #[unroll]
        for i in 0..SEGMENTS {
            rate += written[i * STRIDE + local];
            skip += read[i * STRIDE + local];
        }
        rates[line] = rate;
        skips[line] = skip;
    }
    let first = chunk % extent.chunks * tokens;
    let row0 = chunk / extent.chunks * extent.seq + first;
    #[unroll]
    for pass in 0..comptime!(tokens * WALK_HEADS / UNITS) {
        let token = pass * SEGMENTS + unit / WALK_HEADS;
        let out = unit % WALK_HEADS;
        if first + token < extent.seq && head0 + out < heads {
            ddt[(row0 + token) * heads + head0 + out] = tile[token * STRIDE + out];
        }
    }
}

/// A cube adds up a head over all chunks, always in the same order.
#[cube(launch_unchecked)]
fn head_grads_kernel(
    a_log: &Array<f32>,
    rates: &Array<f32>,
    skips: &Array<f32>,
    da_log: &mut Array<f32>,
    dd_skip: &mut Array<f32>,
    chunks: usize,
    #[comptime] heads: usize,
) {
    let head = CUBE_POS_X as usize;
    let mut rate = 0.0f32;
    let mut skip = 0.0f32;
    let mut chunk = UNIT_POS as usize;
    while chunk < chunks {
        rate += rates[chunk * heads + head];
        skip += skips[chunk * heads + head];
        chunk += HEAD_UNITS;
    }
    let mut shared = SharedMemory::<f32>::new(HEAD_UNITS);
    let rate = cube_sum(rate, &mut shared, HEAD_UNITS);
    let skip = cube_sum(skip, &mut shared, HEAD_UNITS);
    if UNIT_POS == 0 {
        // The derivative of `-exp` is itself.
        da_log[head] = -f32::exp(a_log[head]) * rate;
        dd_skip[head] = skip;
    }
}

/// What has been found of the decays and of the sums over channels, f32.
#[derive(Debug)]
pub(super) struct Found<R: CubeRuntime> {
    /// `[m h, tiles, q]`.
    pub(super) pairs: CubeTensor<R>,
    /// `[m, h]`.
    pub(super) carried: CubeTensor<R>,
    /// `[PLANES, m, h, q]`.
    pub(super) sums: CubeTensor<R>,
}

/// `[ddt, da_log, dd_skip]`.
pub(super) fn step_grads<R: CubeRuntime>(
    call: &Call,
    inputs: &SsdInputs<R>,
    steps: &CubeTensor<R>,
    found: &Found<R>,
) -> [CubeTensor<R>; 3] {
    let Call { plan, shape, .. } = call;
    let heads = plan.heads;
    let like = &inputs.dt;
    let ddt = empty(like, [shape.batch, shape.seq, heads], DType::F32);
    let lines = || empty(like, [call.chunks(), heads], DType::F32);
    let (rates, skips) = (lines(), lines());
    count_launch();
    // SAFETY: cubes cover all heads of all chunks; units beyond the heads and the sequence write
    // nothing, and read what the last head reads.
    unsafe {
        step_grads_kernel::launch_unchecked::<R>(
            &like.client,
            CubeCount::new_2d(word(heads.div_ceil(WALK_HEADS)), word(call.chunks())),
            CubeDim::new_1d(word(UNITS)),
            steps.clone().into_array_arg(),
            inputs.a_log.clone().into_array_arg(),
            found.pairs.clone().into_array_arg(),
            found.carried.clone().into_array_arg(),
            found.sums.clone().into_array_arg(),
            ddt.clone().into_array_arg(),
            rates.clone().into_array_arg(),
            skips.clone().into_array_arg(),
            call.extent(),
            call.chunks() * heads * plan.tokens,
            *plan,
        );
    }
    let of_heads = || empty(like, [heads], DType::F32);
    let (da_log, dd_skip) = (of_heads(), of_heads());
    count_launch();
    // SAFETY: a cube for each head.
    unsafe {
        head_grads_kernel::launch_unchecked::<R>(
            &like.client,
            CubeCount::new_1d(word(heads)),
            CubeDim::new_1d(word(HEAD_UNITS)),
            inputs.a_log.clone().into_array_arg(),
            rates.into_array_arg(),
            skips.into_array_arg(),
            da_log.clone().into_array_arg(),
            dd_skip.clone().into_array_arg(),
            call.chunks(),
            heads,
        );
    }
    [ddt, da_log, dd_skip]
}
