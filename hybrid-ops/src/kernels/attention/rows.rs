//! Softmax over rows of scores under the causal mask, and its backward; one cube a row.

use burn_backend::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_nvfp4::kernels::count_launch;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::kernels::elementwise::{cubes, empty};

/// Units of a cube: a row of 512 to some thousand scores is a few for each.
const UNITS: u32 = 128;

/// Rows of scores of one block of queries, `[heads of all groups * queries, keys]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowsOf {
    /// Tokens that ask; rows repeat them for every head.
    pub(super) queries: usize,
    /// The first of them.
    pub(super) first: usize,
    /// Keys, from token 0.
    pub(super) keys: usize,
    /// What scores are multiplied with.
    pub(super) scale: f32,
    /// Rows of the blocks before.
    pub(super) before: usize,
}

/// [`RowsOf`] in a kernel.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Block {
    rows: usize,
    queries: usize,
    first: usize,
    keys: usize,
    before: usize,
    scale: f32,
}

impl RowsOf {
    fn launch<R: CubeRuntime>(&self, rows: usize) -> BlockLaunch<R> {
        BlockLaunch::new(
            rows,
            self.queries,
            self.first,
            self.keys,
            self.before,
            self.scale,
        )
    }
}

/// The largest or the sum of one number per unit, in every unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Reduce {
    Max,
    Sum,
}

#[cube]
fn reduce(value: f32, shared: &mut SharedMemory<f32>, #[comptime] how: Reduce) -> f32 {
    shared[UNIT_POS as usize] = value;
    sync_cube();
    #[unroll]
    for step in 1..comptime!(UNITS.trailing_zeros() + 1) {
        let half = comptime!(UNITS >> step);
        if UNIT_POS < half {
            let other = shared[(UNIT_POS + half) as usize];
            let own = shared[UNIT_POS as usize];
            shared[UNIT_POS as usize] = match comptime!(how) {
                Reduce::Max => f32::max(own, other),
                Reduce::Sum => own + other,
            };
        }
        sync_cube();
    }
    let all = shared[0];
    // The next writer waits until everybody has read.
    sync_cube();
    all
}

/// Keys that the row's query sees: those up to its own token.
#[cube]
fn seen(row: usize, block: &Block) -> usize {
    block.first + row % block.queries + 1
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn softmax_kernel<F: Float>(
    scores: &Array<f32>,
    weights: &mut Array<F>,
    sums: &mut Array<f32>,
    block: Block,
    #[define(F)] _dtype: StorageType,
) {
    let row = CUBE_POS;
    if row >= block.rows {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    let seen = seen(row, &block);
    let start = row * block.keys;
    let step = comptime!(UNITS as usize);
    let lane = UNIT_POS as usize;

    // Every row sees itself, so no maximum is that of nothing.
    let mut most = scores[start] * block.scale;
    let mut i = lane;
    while i < seen {
        most = f32::max(most, scores[start + i] * block.scale);
        i += step;
    }
    let most = reduce(most, &mut shared, Reduce::Max);
    let mut sum = 0.0f32;
    i = lane;
    while i < seen {
        sum += f32::exp(scores[start + i] * block.scale - most);
        i += step;
    }
    let sum = most + f32::ln(reduce(sum, &mut shared, Reduce::Sum));
    i = lane;
    while i < block.keys {
        let mut weight = 0.0f32;
        if i < seen {
            weight = f32::exp(scores[start + i] * block.scale - sum);
        }
        weights[start + i] = F::cast_from(weight);
        i += step;
    }
    if UNIT_POS == 0 {
        sums[block.before + row] = sum;
    }
}

/// Weights in `dtype` of `scores`, f32 `[groups, rows, keys]`; writes the logarithm of the sum of
/// each row to its place in `sums`.
pub(super) fn softmax<R: CubeRuntime>(
    scores: CubeTensor<R>,
    sums: &CubeTensor<R>,
    of: RowsOf,
    dtype: DType,
) -> CubeTensor<R> {
    let weights = empty(&scores, scores.meta.shape().clone(), dtype);
    let rows = scores.meta.num_elements() / of.keys;
    count_launch();
    // SAFETY: one cube a row, cubes beyond them return; `sums` holds the rows of all blocks.
    unsafe {
        softmax_kernel::launch_unchecked::<R>(
            &scores.client.clone(),
            cubes(rows),
            CubeDim::new_1d(UNITS),
            scores.required_address_type(),
            scores.into_array_arg(),
            weights.clone().into_array_arg(),
            sums.clone().into_array_arg(),
            of.launch(rows),
            dtype.into(),
        );
    }
    weights
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn backward_kernel<F: Float>(
    scores: &Array<f32>,
    d_weights: &Array<f32>,
    sums: &Array<f32>,
    weights: &mut Array<F>,
    d_scores: &mut Array<F>,
    block: Block,
    #[define(F)] _dtype: StorageType,
) {
    let row = CUBE_POS;
    if row >= block.rows {
        terminate!();
    }
    let mut shared = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    let seen = seen(row, &block);
    let start = row * block.keys;
    let step = comptime!(UNITS as usize);
    let lane = UNIT_POS as usize;
    let sum = sums[block.before + row];

    let mut mean = 0.0f32;
    let mut i = lane;
    while i < seen {
        mean += f32::exp(scores[start + i] * block.scale - sum) * d_weights[start + i];
        i += step;
    }
    let mean = reduce(mean, &mut shared, Reduce::Sum);
    i = lane;
    while i < block.keys {
        let mut weight = 0.0f32;
        let mut slope = 0.0f32;
        if i < seen {
            weight = f32::exp(scores[start + i] * block.scale - sum);
            slope = weight * (d_weights[start + i] - mean) * block.scale;
        }
        weights[start + i] = F::cast_from(weight);
        d_scores[start + i] = F::cast_from(slope);
        i += step;
    }
}

/// The weights again, and the gradient of the scores, in `dtype`.
pub(super) fn softmax_backward<R: CubeRuntime>(
    [scores, d_weights]: [CubeTensor<R>; 2],
    sums: &CubeTensor<R>,
    of: RowsOf,
    dtype: DType,
) -> [CubeTensor<R>; 2] {
    let made = [(); 2].map(|()| empty(&scores, scores.meta.shape().clone(), dtype));
    let [weights, d_scores] = &made;
    let rows = scores.meta.num_elements() / of.keys;
    count_launch();
    // SAFETY: one cube a row, cubes beyond them return; `sums` holds the rows of all blocks, and
    // the other four buffers are of one shape.
    unsafe {
        backward_kernel::launch_unchecked::<R>(
            &scores.client.clone(),
            cubes(rows),
            CubeDim::new_1d(UNITS),
            scores.required_address_type(),
            scores.into_array_arg(),
            d_weights.into_array_arg(),
            sums.clone().into_array_arg(),
            weights.clone().into_array_arg(),
            d_scores.clone().into_array_arg(),
            of.launch(rows),
            dtype.into(),
        );
    }
    made
}
