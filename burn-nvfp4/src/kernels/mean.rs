//! The mean over tokens on the device, and what is left without it; the twin of `cpu/mean.rs`
//! (numerics §12). The same runs, the same order of every sum.

use burn_backend::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::cast;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::source::{Source, address_type, array, cubes, empty, units, word};
use crate::cpu::Contraction;

/// Tokens that are summed before the sums are.
const RUN: u32 = 128;

/// A matrix `[tokens, columns]` as it lies in memory.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Lying {
    tokens: u32,
    columns: u32,
    /// Elements from one token to the next, and from one column to the next.
    token_stride: u32,
    column_stride: u32,
}

#[cube]
fn element(lying: &Lying, token: u32, column: u32) -> usize {
    token as usize * lying.token_stride as usize + column as usize * lying.column_stride as usize
}

/// The sum of each run of tokens, `[runs, columns]`: a unit has a column of a run.
#[cube(launch_unchecked, address_type = "dynamic")]
fn sum_runs<F: Float>(
    source: &Array<F>,
    sums: &mut Array<f32>,
    lying: Lying,
    runs: u32,
    step: u32,
    #[define(F)] _dtype: StorageType,
) {
    let count = runs as usize * lying.columns as usize;
    let mut index = ABSOLUTE_POS;
    while index < count {
        let column = u32::cast_from(index % lying.columns as usize);
        let first = u32::cast_from(index / lying.columns as usize) * RUN;
        let last = u32::min(first + RUN, lying.tokens);
        let mut sum = 0.0f32;
        let mut token = first;
        while token < last {
            sum += f32::cast_from(source[element(&lying, token, column)]);
            token += 1u32;
        }
        sums[index] = sum;
        index += step as usize;
    }
}

/// The mean from the sums of the runs.
#[cube(launch_unchecked)]
fn mean_of_runs(
    sums: &Array<f32>,
    mean: &mut Array<f32>,
    columns: u32,
    runs: u32,
    inverse: f32,
    step: u32,
) {
    let columns = columns as usize;
    let mut column = ABSOLUTE_POS;
    while column < columns {
        let mut sum = 0.0f32;
        let mut run = 0u32;
        while run < runs {
            sum += sums[run as usize * columns + column];
            run += 1u32;
        }
        mean[column] = sum * inverse;
        column += step as usize;
    }
}

/// Every element without the mean of its column, dense `[tokens, columns]`.
#[cube(launch_unchecked, address_type = "dynamic")]
fn subtract<F: Float>(
    source: &Array<F>,
    mean: &Array<f32>,
    out: &mut Array<F>,
    lying: Lying,
    step: u32,
    #[define(F)] _dtype: StorageType,
) {
    let count = lying.tokens as usize * lying.columns as usize;
    let mut index = ABSOLUTE_POS;
    while index < count {
        let column = u32::cast_from(index % lying.columns as usize);
        let token = u32::cast_from(index / lying.columns as usize);
        let x = f32::cast_from(source[element(&lying, token, column)]);
        out[index] = F::cast_from(x - mean[column as usize]);
        index += step as usize;
    }
}

/// The mean over tokens, f32 `[1, columns]`, and `x` without it in its own dtype.
///
/// # Shapes
/// `x`: any rank and strides; leading dims are the tokens. It has elements.
pub fn split_token_mean<R: CubeRuntime>(x: &CubeTensor<R>) -> (CubeTensor<R>, CubeTensor<R>) {
    let source = Source::new(x);
    let (tokens, columns, strides) = match source.along(Contraction::Rows) {
        Contraction::Rows => (source.rows, source.cols, [source.stride(), 1]),
        Contraction::Columns => (source.cols, source.rows, [1, source.stride()]),
    };
    let runs = tokens.div_ceil(RUN as usize);
    let tensor = &source.tensor;
    let sums = empty(tensor, Shape::new([runs, columns]), DType::F32);
    let mean = empty(tensor, Shape::new([1, columns]), DType::F32);
    let residual = empty(tensor, x.meta.shape().clone(), tensor.dtype);
    let client = &tensor.client;
    let units = units(client);
    let lying = || {
        let [token_stride, column_stride] = strides.map(word);
        LyingLaunch::new(word(tokens), word(columns), token_stride, column_stride)
    };
    let cubes = |elements: usize| cubes(client, word(elements.div_ceil(units as usize)), 16);
    let [sum_cubes, mean_cubes, subtract_cubes] =
        [runs * columns, columns, tokens * columns].map(cubes);
    // SAFETY: every unit stays below the length of what it writes, and reads the element of the
    // source that has this token and column.
    unsafe {
        for _ in 0..3 {
            crate::kernels::count_launch();
        }
        sum_runs::launch_unchecked::<R>(
            client,
            CubeCount::new_1d(sum_cubes),
            CubeDim::new_1d(units),
            address_type(&[tensor]),
            array(tensor),
            array(&sums),
            lying(),
            word(runs),
            sum_cubes * units,
            tensor.dtype.into(),
        );
        mean_of_runs::launch_unchecked::<R>(
            client,
            CubeCount::new_1d(mean_cubes),
            CubeDim::new_1d(units),
            array(&sums),
            array(&mean),
            word(columns),
            word(runs),
            1.0 / tokens as f32,
            mean_cubes * units,
        );
        subtract::launch_unchecked::<R>(
            client,
            CubeCount::new_1d(subtract_cubes),
            CubeDim::new_1d(units),
            address_type(&[tensor]),
            array(tensor),
            array(&mean),
            array(&residual),
            lying(),
            subtract_cubes * units,
            tensor.dtype.into(),
        );
    }
    let residual = if residual.dtype == x.dtype {
        residual
    } else {
        cast(residual, x.dtype)
    };
    (residual, mean)
}
