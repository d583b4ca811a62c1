//! `clamp(softplus(dt + bias))`, the discretisation step of a Mamba-2 mixer, in f32.

use burn_backend::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::tensor::CubeTensor;
use burn_nvfp4::kernels::count_launch;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::elementwise::{empty, grid};
use super::gate::sigmoid;
use super::sums::{DEPTH, LANES, column_sums, depth_sum, word};
use super::view::{Rows, View, address_type, common_width, row_start};

/// Bounds of the step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// The least step; 0 bounds nothing, for `softplus` is positive.
    pub min: f32,
    /// The largest step, if there is one.
    pub max: Option<f32>,
}

impl Limits {
    /// The largest step, as a number that no step exceeds if there is none.
    fn most(self) -> f32 {
        self.max.unwrap_or(f32::MAX)
    }
}

/// Rows of one unit of backward.
const ROWS: usize = 16;

/// `ln(1 + exp(x))` as `max(x, 0) + ln(1 + exp(-|x|))`: never overflows.
#[cube]
fn softplus<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let mut y = Vector::<f32, N>::empty();
    #[unroll]
    for i in 0..x.vector_size() {
        let rest = f32::log1p(f32::exp(-f32::abs(x[i])));
        y[i] = f32::max(x[i], 0.0f32) + rest;
    }
    y
}

#[cube]
fn biased<F: Float, N: Size>(dt: Vector<F, N>, bias: &Array<f32>, column: usize) -> Vector<f32, N> {
    let mut x = Vector::<f32, N>::cast_from(dt);
    #[unroll]
    for i in 0..x.vector_size() {
        x[i] += bias[column * N::value() + i];
    }
    x
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn forward_kernel<F: Float, N: Size>(
    dt: &Array<Vector<F, N>>,
    bias: &Array<f32>,
    out: &mut Array<Vector<f32, N>>,
    rows: Rows,
    columns: usize,
    min: f32,
    max: f32,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= out.len() {
        terminate!();
    }
    let column = ABSOLUTE_POS % columns;
    let at = row_start(&rows, ABSOLUTE_POS / columns) + column;
    let mut step = softplus::<N>(biased::<F, N>(dt[at], bias, column));
    #[unroll]
    for i in 0..step.vector_size() {
        // NaN stays NaN, whatever the device's minimum makes of it.
        if step[i] < min {
            step[i] = min;
        }
        if step[i] > max {
            step[i] = max;
        }
    }
    out[ABSOLUTE_POS] = step;
}

/// A cube: `LANES` units side by side, `DEPTH` runs of rows.
#[cube(launch_unchecked, address_type = "dynamic")]
#[expect(
    clippy::too_many_arguments,
    reason = "a kernel's arguments are its buffers and scalars"
)]
fn backward_kernel<F: Float, D: Float, N: Size>(
    dt: &Array<Vector<F, N>>,
    bias: &Array<f32>,
    grad: &Array<Vector<f32, N>>,
    into: &mut Array<Vector<D, N>>,
    partials: &mut Array<f32>,
    dt_rows: Rows,
    into_rows: Rows,
    rows: usize,
    columns: usize,
    min: f32,
    max: f32,
    #[define(F)] _dtype: StorageType,
    #[define(D)] _into_dtype: StorageType,
) {
    let strips = columns.div_ceil(comptime!(LANES as usize));
    let column = CUBE_POS % strips * comptime!(LANES as usize) + (UNIT_POS % LANES) as usize;
    let partial = CUBE_POS / strips;
    let run = partial * comptime!(DEPTH as usize) + (UNIT_POS / LANES) as usize;
    let end = usize::min((run + 1) * comptime!(ROWS), rows);
    let mut sum = Vector::<f32, N>::zeroed();
    if column < columns {
        let mut row = run * comptime!(ROWS);
        while row < end {
            let x = biased::<F, N>(dt[row_start(&dt_rows, row) + column], bias, column);
            let step = softplus::<N>(x);
            let mut slope = sigmoid::<N>(x);
            #[unroll]
            for i in 0..x.vector_size() {
                if step[i] < min || step[i] > max {
                    slope[i] = 0.0f32;
                }
            }
            let dx = grad[row * columns + column] * slope;
            sum += dx;
            into[row_start(&into_rows, row) + column] = Vector::<D, N>::cast_from(dx);
            row += 1;
        }
    }
    let mut shared = SharedMemory::<Vector<f32, N>>::new(comptime!((LANES * DEPTH) as usize));
    let sum = depth_sum::<N>(sum, &mut shared);
    if UNIT_POS < LANES && column < columns {
        #[unroll]
        for i in 0..sum.vector_size() {
            partials[(partial * columns + column) * N::value() + i] = sum[i];
        }
    }
}

fn f32_bias<R: CubeRuntime>(bias: &CubeTensor<R>, heads: usize) -> CubeTensor<R> {
    assert_eq!(bias.meta.num_elements(), heads, "step_size: bias");
    into_contiguous(cast(bias.clone(), DType::F32))
}

/// `clamp(softplus(dt + bias))`, f32.
///
/// # Shapes
/// `dt`, result: `[batch, seq, heads]`, `dt` may be a slice; `bias`: `[heads]`.
///
/// # Panics
/// If the shapes differ from these.
pub fn forward<R: CubeRuntime>(
    dt: &CubeTensor<R>,
    bias: &CubeTensor<R>,
    limits: Limits,
) -> CubeTensor<R> {
    let input = View::read(dt);
    let bias = f32_bias(bias, input.channels);
    let out = empty(dt, dt.meta.shape().clone(), DType::F32);
    let width = common_width(&[&input, &View::read(&out)]);
    let columns = input.channels / width;
    let (count, dim) = grid(dt, input.rows() * columns);
    count_launch();
    // SAFETY: units beyond the result return, and rows and columns are those of the view.
    unsafe {
        forward_kernel::launch_unchecked::<R>(
            &dt.client,
            count,
            dim,
            address_type(&[&input]),
            width,
            input.array(),
            bias.into_array_arg(),
            out.clone().into_array_arg(),
            input.launch(width),
            columns,
            limits.min,
            limits.most(),
            dt.dtype.into(),
        );
    }
    out
}

/// The gradients of [`forward`]: of `dt` into `into`, and of the bias as f32.
///
/// # Shapes
/// As in [`forward`]; `grad`: f32 `[batch, seq, heads]`; `into` may be a slice of a buffer of the
/// caller's.
///
/// # Panics
/// If the shapes differ from these.
pub fn backward<R: CubeRuntime>(
    dt: &CubeTensor<R>,
    bias: &CubeTensor<R>,
    limits: Limits,
    grad: &CubeTensor<R>,
    into: &CubeTensor<R>,
) -> CubeTensor<R> {
    assert_eq!(grad.dtype, DType::F32, "step_size: gradient");
    let (input, output) = (View::read(dt), View::written(into));
    let grad = into_contiguous(grad.clone());
    let incoming = View::read(&grad);
    input.assert_like(&output, "step_size");
    input.assert_like(&incoming, "step_size");
    let bias = f32_bias(bias, input.channels);
    let views = [&input, &output, &incoming];
    let width = common_width(&views);
    let columns = input.channels / width;
    let strips = columns.div_ceil(LANES as usize);
    let blocks = input.rows().div_ceil(DEPTH as usize * ROWS);
    let partials = empty(dt, [blocks, input.channels], DType::F32);
    count_launch();
    // SAFETY: rows and columns are compared with those of the views, and each cube writes its own
    // columns of its own row of the partial sums.
    unsafe {
        backward_kernel::launch_unchecked::<R>(
            &dt.client,
            CubeCount::new_1d(word(strips * blocks)),
            CubeDim::new_1d(LANES * DEPTH),
            address_type(&views),
            width,
            input.array(),
            bias.into_array_arg(),
            incoming.array(),
            output.array(),
            partials.clone().into_array_arg(),
            input.launch(width),
            output.launch(width),
            input.rows(),
            columns,
            limits.min,
            limits.most(),
            dt.dtype.into(),
            into.dtype.into(),
        );
    }
    let dbias = empty(dt, [input.channels], DType::F32);
    column_sums(&partials, 0, dbias)
}
