//! `silu` of the causal depthwise convolution of a Mamba-2 mixer, one pass over memory each way.
//!
//! `y[t] = silu(bias + sum_k weight[k] * x[t - (K-1) + k])`, zeros before the first token.
//!
//! A unit walks over consecutive tokens of a few channels, four at a time, with the taps before them
//! in registers. Backward computes the convolution again; a token's gradient needs those of the
//! `K - 1` pre-activations after it, so a unit also computes that many beyond its own tokens. Cubes
//! leave partial sums for the gradients of weight and bias.

use burn_backend::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::tensor::CubeTensor;
use burn_nvfp4::kernels::count_launch;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::elementwise::{empty, grid};
use super::gate::{sigmoid, silu, silu_slope};
use super::sums::{DEPTH, LANES, column_sums, depth_sum, word};
use super::view::{Rows, View, address_type, common_width, token_start};

/// Tokens that a unit loads at once.
const STEP: usize = 4;

/// Tokens of a unit; the taps before them are read twice.
const FORWARD_TOKENS: usize = 16;
const BACKWARD_TOKENS: usize = 32;

/// Channels of a unit, at most: taps and their gradients are all in registers.
const MOST_CHANNELS: usize = 4;

/// Weights of the channels of a unit, tap by tap, and their bias.
#[cube]
fn load_taps<N: Size>(
    weight: &Array<f32>,
    bias: &ComptimeOption<Array<f32>>,
    channel: usize,
    #[comptime] taps: usize,
) -> (Array<Vector<f32, N>>, Vector<f32, N>) {
    let mut tap_weights = Array::<Vector<f32, N>>::new(taps);
    let mut offset = Vector::<f32, N>::empty();
    let width = offset.vector_size();
    #[unroll]
    for k in 0..taps {
        let mut tap = Vector::<f32, N>::empty();
        #[unroll]
        for i in 0..width {
            tap[i] = weight[(channel + i) * taps + k];
        }
        tap_weights[k] = tap;
    }
    let has_bias = bias.is_some();
    if comptime!(has_bias) {
        let bias = bias.as_ref().unwrap();
        #[unroll]
        for i in 0..width {
            offset[i] = bias[channel + i];
        }
    } else {
        #[unroll]
        for i in 0..width {
            offset[i] = 0.0f32.runtime();
        }
    }
    (tap_weights, offset)
}

/// A token's channels as f32; zeros beyond the sequence.
#[cube]
fn load_token<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    rows: &Rows,
    batch: usize,
    token: usize,
    column: usize,
) -> Vector<f32, N> {
    let mut value = Vector::<f32, N>::zeroed();
    if token < rows.seq {
        value = Vector::<f32, N>::cast_from(x[token_start(rows, batch, token) + column]);
    }
    value
}

/// The `taps - 1` tokens before `token`, in front of `STEP` places; zeros before the sequence.
#[cube]
fn history<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    rows: &Rows,
    batch: usize,
    token: usize,
    column: usize,
    #[comptime] taps: usize,
) -> Array<Vector<f32, N>> {
    let mut held = Array::<Vector<f32, N>>::new(comptime!(taps - 1 + STEP));
    #[unroll]
    for k in 0..comptime!(taps - 1) {
        let back = comptime!(taps - 1 - k);
        let mut value = Vector::<f32, N>::zeroed();
        if token >= back {
            value = load_token::<F, N>(x, rows, batch, token - back, column);
        }
        held[k] = value;
    }
    held
}

/// Moves what was held `STEP` places on.
#[cube]
fn advance<N: Size>(held: &mut Array<Vector<f32, N>>, #[comptime] taps: usize) {
    #[unroll]
    for k in 0..comptime!(taps - 1) {
        held[k] = held[comptime!(k + STEP)];
    }
}

/// The convolution at the `j`th of the tokens that are held.
#[cube]
fn convolve<N: Size>(
    held: &Array<Vector<f32, N>>,
    weights: &Array<Vector<f32, N>>,
    bias: Vector<f32, N>,
    #[comptime] j: usize,
    #[comptime] taps: usize,
) -> Vector<f32, N> {
    let mut sum = bias;
    #[unroll]
    for k in 0..taps {
        sum += weights[k] * held[comptime!(j + k)];
    }
    sum
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn forward_kernel<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    weight: &Array<f32>,
    bias: &ComptimeOption<Array<f32>>,
    y: &mut Array<Vector<F, N>>,
    rows: Rows,
    columns: usize,
    batches: usize,
    #[comptime] taps: usize,
    #[define(F)] _dtype: StorageType,
) {
    let tokens = comptime!(FORWARD_TOKENS);
    let blocks = rows.seq.div_ceil(tokens);
    let column = ABSOLUTE_POS % columns;
    let block = ABSOLUTE_POS / columns;
    let batch = block / blocks;
    if batch >= batches {
        terminate!();
    }
    let start = block % blocks * tokens;
    let (weights, offset) = load_taps::<N>(weight, bias, column * N::value(), taps);
    let mut held = history::<F, N>(x, &rows, batch, start, column, taps);
    for step in 0..comptime!(FORWARD_TOKENS / STEP) {
        let token = start + step * comptime!(STEP);
        #[unroll]
        for j in 0..STEP {
            held[comptime!(taps - 1 + j)] = load_token::<F, N>(x, &rows, batch, token + j, column);
        }
        #[unroll]
        for j in 0..STEP {
            let value = silu::<N>(convolve::<N>(&held, &weights, offset, j, taps));
            if token + j < rows.seq {
                y[(batch * rows.seq + token + j) * columns + column] =
                    Vector::<F, N>::cast_from(value);
            }
        }
        advance::<N>(&mut held, taps);
    }
}

/// A cube: `LANES` units side by side, `DEPTH` runs of tokens of one sequence.
#[cube(launch_unchecked, address_type = "dynamic")]
#[expect(
    clippy::too_many_arguments,
    reason = "a kernel's arguments are its buffers and scalars"
)]
fn backward_kernel<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    weight: &Array<f32>,
    bias: &ComptimeOption<Array<f32>>,
    dy: &Array<Vector<F, N>>,
    dx: &mut Array<Vector<F, N>>,
    partials: &mut Array<f32>,
    x_rows: Rows,
    dx_rows: Rows,
    columns: usize,
    #[comptime] taps: usize,
    #[define(F)] _dtype: StorageType,
) {
    let width = N::value();
    let seq = x_rows.seq;
    let strips = columns.div_ceil(comptime!(LANES as usize));
    let blocks = seq.div_ceil(comptime!(DEPTH as usize * BACKWARD_TOKENS));
    let column = CUBE_POS % strips * comptime!(LANES as usize) + (UNIT_POS % LANES) as usize;
    let partial = CUBE_POS / strips;
    let batch = partial / blocks;
    let run = partial % blocks * comptime!(DEPTH as usize) + (UNIT_POS / LANES) as usize;
    let start = run * comptime!(BACKWARD_TOKENS);
    let end = usize::min(start + comptime!(BACKWARD_TOKENS), seq);

    let mut dweight = Array::<Vector<f32, N>>::new(taps);
    #[unroll]
    for k in 0..taps {
        dweight[k] = Vector::<f32, N>::zeroed();
    }
    let mut dbias = Vector::<f32, N>::zeroed();
    if column < columns && start < seq {
        let (weights, offset) = load_taps::<N>(weight, bias, column * width, taps);
        let mut held = history::<F, N>(x, &x_rows, batch, start, column, taps);
        // Gradients of the pre-activations; those before the run touch no token of it.
        let mut slopes = Array::<Vector<f32, N>>::new(comptime!(taps - 1 + STEP));
        #[unroll]
        for k in 0..comptime!(taps - 1) {
            slopes[k] = Vector::<f32, N>::zeroed();
        }
        for step in 0..comptime!((BACKWARD_TOKENS + taps - 1).div_ceil(STEP)) {
            let token = start + step * comptime!(STEP);
            #[unroll]
            for j in 0..STEP {
                held[comptime!(taps - 1 + j)] =
                    load_token::<F, N>(x, &x_rows, batch, token + j, column);
                let mut dy_token = Vector::<f32, N>::zeroed();
                if token + j < seq {
                    let at = (batch * seq + token + j) * columns + column;
                    dy_token = Vector::<f32, N>::cast_from(dy[at]);
                }
                slopes[comptime!(taps - 1 + j)] = dy_token;
            }
            #[unroll]
            for j in 0..STEP {
                let value = convolve::<N>(&held, &weights, offset, j, taps);
                let slope = silu_slope::<N>(value, sigmoid::<N>(value));
                let grad = slopes[comptime!(taps - 1 + j)] * slope;
                slopes[comptime!(taps - 1 + j)] = grad;
                if token + j < end {
                    dbias += grad;
                    #[unroll]
                    for k in 0..taps {
                        dweight[k] += grad * held[comptime!(j + k)];
                    }
                }
                // The token whose last tap this one is.
                let done = token + j + 1;
                if done >= start + taps && done < end + taps {
                    let mut sum = Vector::<f32, N>::zeroed();
                    #[unroll]
                    for k in 0..taps {
                        sum += weights[k] * slopes[comptime!(taps - 1 + j - k)];
                    }
                    let at = token_start(&dx_rows, batch, done - taps) + column;
                    dx[at] = Vector::<F, N>::cast_from(sum);
                }
            }
            advance::<N>(&mut held, taps);
            advance::<N>(&mut slopes, taps);
        }
    }

    let mut shared = SharedMemory::<Vector<f32, N>>::new(comptime!((LANES * DEPTH) as usize));
    let channels = columns * width;
    let row = partial * channels * (taps + 1);
    let writes = UNIT_POS < LANES && column < columns;
    #[unroll]
    for k in 0..taps {
        let sum = depth_sum::<N>(dweight[k], &mut shared);
        if writes {
            #[unroll]
            for i in 0..width {
                partials[row + (column * width + i) * taps + k] = sum[i];
            }
        }
    }
    let sum = depth_sum::<N>(dbias, &mut shared);
    if writes {
        #[unroll]
        for i in 0..width {
            partials[row + channels * taps + column * width + i] = sum[i];
        }
    }
}

/// Weight and bias of the convolution, f32 and dense.
struct Parameters<R: CubeRuntime> {
    weight: CubeTensor<R>,
    bias: Option<CubeTensor<R>>,
    taps: usize,
}

impl<R: CubeRuntime> Parameters<R> {
    fn new(weight: &CubeTensor<R>, bias: Option<&CubeTensor<R>>, channels: usize) -> Self {
        let single = |tensor: &CubeTensor<R>| into_contiguous(cast(tensor.clone(), DType::F32));
        let [rows, one, taps] = weight.meta.shape().dims();
        assert_eq!([rows, one], [channels, 1], "conv_silu: [channels, 1, taps]");
        assert!(taps > 0, "conv_silu: a convolution has at least one tap");
        if let Some(bias) = bias {
            assert_eq!(bias.meta.num_elements(), channels, "conv_silu: bias");
        }
        Self {
            weight: single(weight),
            bias: bias.map(single),
            taps,
        }
    }

    fn bias_argument(&self) -> ComptimeOptionArgs<Array<f32>, R> {
        match &self.bias {
            Some(bias) => ComptimeOptionArgs::Some(bias.clone().into_array_arg()),
            None => ComptimeOptionArgs::None,
        }
    }
}

/// `silu` of the causal convolution of `x`, in the dtype of `x`, from zeros before the first token.
///
/// # Shapes
/// `x`, result: `[batch, seq, channels]`, `x` may be a slice; `weight`: `[channels, 1, taps]`;
/// `bias`: `[channels]`.
///
/// # Panics
/// If the shapes differ from these.
pub fn forward<R: CubeRuntime>(
    x: &CubeTensor<R>,
    weight: &CubeTensor<R>,
    bias: Option<&CubeTensor<R>>,
) -> CubeTensor<R> {
    let input = View::read(x);
    let parameters = Parameters::new(weight, bias, input.channels);
    let y = empty(x, x.meta.shape().clone(), x.dtype);
    let width = input.width().min(MOST_CHANNELS);
    let columns = input.channels / width;
    let units = input.batch * input.seq.div_ceil(FORWARD_TOKENS) * columns;
    let (count, dim) = grid(x, units);
    count_launch();
    // SAFETY: units beyond the batch return, tokens beyond a sequence are neither read nor written,
    // and the parameters have the lengths that `Parameters::new` has checked.
    unsafe {
        forward_kernel::launch_unchecked::<R>(
            &x.client,
            count,
            dim,
            address_type(&[&input]),
            width,
            input.array(),
            parameters.weight.clone().into_array_arg(),
            parameters.bias_argument(),
            y.clone().into_array_arg(),
            input.launch(width),
            columns,
            input.batch,
            parameters.taps,
            x.dtype.into(),
        );
    }
    y
}

/// The gradients of [`forward`]: of `x` into `dx`, and of weight and bias as f32.
///
/// # Shapes
/// As in [`forward`]; `dy`: `[batch, seq, channels]` in the dtype of `x`; `dx` may be a slice of a
/// buffer of the caller's, of the same dtype.
///
/// # Panics
/// If shapes or dtypes differ from these.
pub fn backward<R: CubeRuntime>(
    x: &CubeTensor<R>,
    weight: &CubeTensor<R>,
    bias: Option<&CubeTensor<R>>,
    dy: &CubeTensor<R>,
    dx: &CubeTensor<R>,
) -> (CubeTensor<R>, Option<CubeTensor<R>>) {
    assert_eq!([dy.dtype, dx.dtype], [x.dtype; 2], "conv_silu: dtypes");
    let (input, into) = (View::read(x), View::written(dx));
    let dy = into_contiguous(dy.clone());
    let incoming = View::read(&dy);
    input.assert_like(&into, "conv_silu");
    input.assert_like(&incoming, "conv_silu");
    assert_eq!(input.seq, into.seq, "conv_silu: tokens of a sequence");
    let parameters = Parameters::new(weight, bias, input.channels);
    let views = [&input, &into, &incoming];
    let width = common_width(&views).min(MOST_CHANNELS);
    let (taps, channels) = (parameters.taps, input.channels);
    let columns = channels / width;
    let strips = columns.div_ceil(LANES as usize);
    let blocks = input.batch * input.seq.div_ceil(DEPTH as usize * BACKWARD_TOKENS);
    let partials = empty(x, [blocks, channels * (taps + 1)], DType::F32);
    count_launch();
    // SAFETY: columns and tokens are compared with those of the views, which lie in their buffers,
    // and each cube writes its own channels of its own row of the partial sums.
    unsafe {
        backward_kernel::launch_unchecked::<R>(
            &x.client,
            CubeCount::new_1d(word(strips * blocks)),
            CubeDim::new_1d(LANES * DEPTH),
            address_type(&views),
            width,
            input.array(),
            parameters.weight.clone().into_array_arg(),
            parameters.bias_argument(),
            incoming.array(),
            into.array(),
            partials.clone().into_array_arg(),
            input.launch(width),
            into.launch(width),
            columns,
            taps,
            x.dtype.into(),
        );
    }
    let dweight = empty(x, Shape::new([channels, 1, taps]), DType::F32);
    let dweight = column_sums(&partials, 0, dweight);
    let dbias = parameters.bias.map(|_| {
        let dbias = empty(x, [channels], DType::F32);
        column_sums(&partials, channels * taps, dbias)
    });
    (dweight, dbias)
}
