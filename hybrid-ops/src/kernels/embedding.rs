//! Rows of a table, and the gradient of the table.
//!
//! The gradient of a row is the sum over the tokens that took it. burn's own kernel has a unit for
//! each column go through all tokens, one after another; here a row is a cube's work, without
//! atomics, so that two runs give the same bits:
//!
//! 1. `order`: where each token stands when tokens are sorted by row, those of one row in their own
//!    order: behind all of smaller rows, and those of its row before it. A unit counts them for its
//!    token, a tile of all tokens at a time in shared memory.
//! 2. `sums`: a cube for each token of the sorted ones. If a row begins there, it looks for the end
//!    of the row's tokens and sums over them, for some columns after others.
//!
//! A token that is no row of the table becomes NaN and has no gradient.

use burn_backend::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_nvfp4::kernels::count_launch;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::elementwise::{cubes, empty, grid, vector_width, zeros};
use super::sums::{DEPTH, LANES, depth_sum, word};

/// Units of a cube that sorts, and tokens of a tile.
const TILE: u32 = 256;

#[cube(launch_unchecked, address_type = "dynamic")]
fn rows_kernel<F: Float, O: Float, T: Numeric, N: Size>(
    table: &Array<Vector<F, N>>,
    tokens: &Array<T>,
    out: &mut Array<Vector<O, N>>,
    vectors: usize,
    rows: u32,
    nan: f32,
    #[define(F)] _table_dtype: StorageType,
    #[define(O)] _dtype: StorageType,
    #[define(T)] _token_dtype: StorageType,
) {
    if ABSOLUTE_POS >= out.len() {
        terminate!();
    }
    let row = u32::cast_from(tokens[ABSOLUTE_POS / vectors]);
    let mut values = Vector::<f32, N>::new(nan);
    if row < rows {
        let at = row as usize * vectors + ABSOLUTE_POS % vectors;
        values = Vector::<f32, N>::cast_from(table[at]);
    }
    out[ABSOLUTE_POS] = Vector::<O, N>::cast_from(values);
}

#[cube(launch_unchecked)]
fn order_kernel<T: Numeric>(
    tokens: &Array<T>,
    sorted: &mut Array<u32>,
    order: &mut Array<u32>,
    len: u32,
    #[define(T)] _dtype: StorageType,
) {
    let mut tile = SharedMemory::<u32>::new(comptime!(TILE as usize));
    let token = u32::cast_from(ABSOLUTE_POS);
    let mut row = 0u32;
    if token < len {
        row = u32::cast_from(tokens[token as usize]);
    }
    let mut place = 0u32;
    let mut start = 0u32;
    while start < len {
        let at = start + UNIT_POS;
        if at < len {
            tile[UNIT_POS as usize] = u32::cast_from(tokens[at as usize]);
        }
        sync_cube();
        let count = u32::min(comptime!(TILE).runtime(), len - start);
        let before = u32::min(u32::max(token, start) - start, count);
        for i in 0..before {
            place += select(tile[i as usize] <= row, 1u32, 0u32);
        }
        for i in before..count {
            place += select(tile[i as usize] < row, 1u32, 0u32);
        }
        sync_cube();
        start += comptime!(TILE);
    }
    if token < len {
        sorted[place as usize] = row;
        order[place as usize] = token;
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn sums_kernel<F: Float, O: Float, N: Size>(
    sorted: &Array<u32>,
    order: &Array<u32>,
    dy: &Array<Vector<F, N>>,
    out: &mut Array<Vector<O, N>>,
    len: u32,
    rows: u32,
    vectors: usize,
    #[define(F)] _dtype: StorageType,
    #[define(O)] _table_dtype: StorageType,
) {
    let mut shared = SharedMemory::<Vector<f32, N>>::new(comptime!((LANES * DEPTH) as usize));
    let first = u32::cast_from(CUBE_POS);
    if first >= len {
        terminate!();
    }
    let row = sorted[first as usize];
    // That of the token before, or one that is in no table.
    let mut other = rows;
    if first > 0u32 {
        other = sorted[(first - 1u32) as usize];
    }
    if row >= rows || other == row {
        terminate!();
    }
    let mut end = first + 1u32;
    let mut beyond = len;
    while end < beyond {
        let middle = end + (beyond - end) / 2u32;
        if sorted[middle as usize] == row {
            end = middle + 1u32;
        } else {
            beyond = middle;
        }
    }
    let (lane, depth) = (UNIT_POS % LANES, UNIT_POS / LANES);
    let mut start = 0usize;
    while start < vectors {
        let column = start + lane as usize;
        let mut sum = Vector::<f32, N>::zeroed();
        if column < vectors {
            let mut at = first + depth;
            while at < end {
                let token = order[at as usize] as usize;
                sum += Vector::<f32, N>::cast_from(dy[token * vectors + column]);
                at += comptime!(DEPTH);
            }
        }
        let sum = depth_sum::<N>(sum, &mut shared);
        if UNIT_POS < LANES && column < vectors {
            out[row as usize * vectors + column] = Vector::<O, N>::cast_from(sum);
        }
        start += comptime!(LANES as usize);
    }
}

/// `[table]` and `[tokens]` to `[rows, tokens]`.
pub(super) fn forward<R: CubeRuntime>(
    [table]: [CubeTensor<R>; 1],
    [tokens]: [CubeTensor<R>; 1],
    output: DType,
) -> Vec<CubeTensor<R>> {
    let (table, tokens) = (into_contiguous(table), into_contiguous(tokens));
    let [rows, columns] = table.meta.shape().dims();
    let count = tokens.meta.num_elements();
    let out = empty(&table, [count, columns], output);
    let width = vector_width(columns, &[&table, &out]);
    let (cube_count, dim) = grid(&out, count * columns / width);
    count_launch();
    // SAFETY: units beyond the result return; a token's row is read if the table has it.
    unsafe {
        rows_kernel::launch_unchecked::<R>(
            &table.client,
            cube_count,
            dim,
            table
                .required_address_type()
                .max(out.required_address_type()),
            width,
            table.clone().into_array_arg(),
            tokens.clone().into_array_arg(),
            out.clone().into_array_arg(),
            columns / width,
            word(rows),
            f32::NAN,
            table.dtype.into(),
            output.into(),
            tokens.dtype.into(),
        );
    }
    vec![out, tokens]
}

/// `[table, tokens, dy]` to `[dtable]`.
pub(super) fn backward<R: CubeRuntime>(
    [table, tokens, dy]: [CubeTensor<R>; 3],
) -> Vec<CubeTensor<R>> {
    let [rows, columns] = table.meta.shape().dims();
    let count = tokens.meta.num_elements();
    assert_eq!(dy.meta.shape(), &Shape::new([count, columns]), "embedding");
    let (tokens, dy) = (into_contiguous(tokens), into_contiguous(dy));
    let client = table.client.clone();
    let sorted = empty(&table, [count], DType::U32);
    let order = empty(&table, [count], DType::U32);
    count_launch();
    // SAFETY: units beyond the tokens write nothing, and the places of the others are a permutation
    // of the tokens.
    unsafe {
        order_kernel::launch_unchecked::<R>(
            &client,
            CubeCount::new_1d(word(count).div_ceil(TILE)),
            CubeDim::new_1d(TILE),
            tokens.clone().into_array_arg(),
            sorted.clone().into_array_arg(),
            order.clone().into_array_arg(),
            word(count),
            tokens.dtype.into(),
        );
    }
    let out = zeros(&table, table.meta.shape().clone(), table.dtype);
    let width = vector_width(columns, &[&dy, &out]);
    count_launch();
    // SAFETY: cubes beyond the tokens return; what is read is at a token, and what is written at a
    // row of the table, by one cube.
    unsafe {
        sums_kernel::launch_unchecked::<R>(
            &client,
            cubes(count),
            CubeDim::new_1d(LANES * DEPTH),
            dy.required_address_type().max(out.required_address_type()),
            width,
            sorted.into_array_arg(),
            order.into_array_arg(),
            dy.clone().into_array_arg(),
            out.clone().into_array_arg(),
            word(count),
            word(rows),
            columns / width,
            dy.dtype.into(),
            out.dtype.into(),
        );
    }
    vec![out]
}
