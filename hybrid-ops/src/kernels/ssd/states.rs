//! Between chunks: the recurrence over chunk states, forwards and, for gradients, backwards.
//!
//! A unit owns a few states of one sequence and walks along the chunks, in f32.

use burn_backend::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_nvfp4::kernels::count_launch;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::plan::{Plan, UNITS, WIDTH};
use super::{Call, word};
use crate::kernels::elementwise::{empty, grid};

/// Which way the recurrence runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Direction {
    /// From what each chunk leaves behind to the state before each chunk.
    Forward,
    /// From the gradient of the state before each chunk, as far as it comes from that chunk, to the
    /// gradient of the state after each chunk.
    Backward,
}

#[cube(launch_unchecked)]
fn pass_kernel<F: Float, N: Size>(
    added: &Array<Vector<f32, N>>,
    cum: &Array<f32>,
    passed: &mut Array<Vector<F, N>>,
    sequences: usize,
    chunks: usize,
    #[comptime] plan: Plan,
    #[comptime] direction: Direction,
    #[define(F)] _dtype: StorageType,
) {
    let vectors = comptime!(plan.states() / WIDTH);
    let sequence = ABSOLUTE_POS / vectors;
    if sequence >= sequences {
        terminate!();
    }
    let inside = ABSOLUTE_POS % vectors;
    let head = inside / comptime!(plan.head_dim * plan.d_state / WIDTH);
    let mut state = Vector::<f32, N>::cast_from(0.0f32);
    for step in 0..chunks {
        let chunk = match comptime!(direction) {
            Direction::Forward => sequence * chunks + step,
            Direction::Backward => sequence * chunks + chunks - 1 - step,
        };
        let at = chunk * vectors + inside;
        let end = (chunk * comptime!(plan.heads) + head) * comptime!(plan.tokens)
            + comptime!(plan.tokens - 1);
        let decay = f32::exp(cum[end]);
        let more = added[at];
        passed[at] = Vector::<F, N>::cast_from(state);
        #[unroll]
        for w in 0..WIDTH {
            state[w] = state[w] * decay + more[w];
        }
    }
}

/// The sum of `before . after` over the states of a head, times the decay of the chunk.
#[cube(launch_unchecked)]
fn carried_kernel<F: Float, N: Size>(
    before: &Array<Vector<F, N>>,
    after: &Array<Vector<F, N>>,
    cum: &Array<f32>,
    carried: &mut Array<f32>,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: StorageType,
) {
    let vectors = comptime!(plan.head_dim * plan.d_state / WIDTH);
    let unit = UNIT_POS as usize;
    let line = CUBE_POS_Y as usize * comptime!(plan.heads) + CUBE_POS_X as usize;
    let mut sum = 0.0f32;
    let mut i = unit;
    while i < vectors {
        let (from, to) = (before[line * vectors + i], after[line * vectors + i]);
        #[unroll]
        for w in 0..WIDTH {
            sum += f32::cast_from(from[w]) * f32::cast_from(to[w]);
        }
        i += UNITS;
    }
    let mut shared = SharedMemory::<f32>::new(UNITS);
    let total = cube_sum(sum, &mut shared, UNITS);
    if unit == 0 {
        let end = cum[line * comptime!(plan.tokens) + comptime!(plan.tokens - 1)];
        carried[line] = total * f32::exp(end);
    }
}

/// The sum of one number per unit, in every unit.
#[cube]
pub(super) fn cube_sum(
    value: f32,
    shared: &mut SharedMemory<f32>,
    #[comptime] units: usize,
) -> f32 {
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for step in 1..comptime!(units.trailing_zeros() + 1) {
        let half = comptime!(units >> step);
        if unit < half {
            shared[unit] = shared[unit] + shared[unit + half];
        }
        sync_cube();
    }
    let result = shared[0];
    // The next writer waits until everybody has read.
    sync_cube();
    result
}

/// The state before each chunk `[m, h p, n]` in `dtype`, from what each chunk leaves behind.
pub(super) fn pass<R: CubeRuntime>(
    call: &Call,
    left: &CubeTensor<R>,
    cum: &CubeTensor<R>,
    dtype: DType,
) -> CubeTensor<R> {
    walk(call, left, cum, dtype, Direction::Forward)
}

/// The gradient of the state after each chunk, which is also that of what the chunk leaves behind.
pub(super) fn pass_back<R: CubeRuntime>(
    call: &Call,
    local: &CubeTensor<R>,
    cum: &CubeTensor<R>,
    dtype: DType,
) -> CubeTensor<R> {
    walk(call, local, cum, dtype, Direction::Backward)
}

fn walk<R: CubeRuntime>(
    call: &Call,
    added: &CubeTensor<R>,
    cum: &CubeTensor<R>,
    dtype: DType,
    direction: Direction,
) -> CubeTensor<R> {
    let Call { plan, shape, .. } = call;
    let passed = empty(added, [call.chunks(), plan.channels(), plan.d_state], dtype);
    let (count, dim) = grid(added, shape.batch * plan.states() / WIDTH);
    count_launch();
    // SAFETY: units beyond the last sequence return; both tensors hold the states of all chunks.
    unsafe {
        pass_kernel::launch_unchecked::<R>(
            &added.client,
            count,
            dim,
            WIDTH,
            added.clone().into_array_arg(),
            cum.clone().into_array_arg(),
            passed.clone().into_array_arg(),
            shape.batch,
            call.sequence_chunks,
            *plan,
            direction,
            dtype.into(),
        );
    }
    passed
}

/// What the decay of a whole chunk is worth: f32 `[m, h]`.
pub(super) fn carried<R: CubeRuntime>(
    call: &Call,
    before: &CubeTensor<R>,
    after: &CubeTensor<R>,
    cum: &CubeTensor<R>,
) -> CubeTensor<R> {
    let Call { plan, .. } = *call;
    let carried = empty(before, [call.chunks(), plan.heads], DType::F32);
    count_launch();
    // SAFETY: a cube for each head of each chunk, which reads that head's states.
    unsafe {
        carried_kernel::launch_unchecked::<R>(
            &before.client,
            CubeCount::new_2d(word(plan.heads), word(call.chunks())),
            CubeDim::new_1d(word(UNITS)),
            WIDTH,
            before.clone().into_array_arg(),
            after.clone().into_array_arg(),
            cum.clone().into_array_arg(),
            carried.clone().into_array_arg(),
            plan,
            before.dtype.into(),
        );
    }
    carried
}
