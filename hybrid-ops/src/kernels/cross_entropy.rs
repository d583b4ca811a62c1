//! Mean cross-entropy of targets under logits, and its gradient over the logits themselves.
//!
//! A cube takes a row and reads it twice: once for the maximum and the sum of exponentials, rescaled
//! whenever the maximum grows, and once to write `(softmax - one_hot) / n`. The gradient is made in
//! forward, in the memory of the logits if nobody else holds it, so no tensor of their size is ever
//! added; backward multiplies it by one number, and leaves memory alone where that number is 1.

use burn_backend::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::tensor::CubeTensor;
use burn_nvfp4::kernels::count_launch;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::elementwise::{empty, grid, in_place, vector_width};
use super::sums::{Team, cube_sum, total, word};

/// Units of a cube, at most.
const MOST_UNITS: u32 = 512;

/// Cubes, at most: what every device can launch along one axis.
const MOST_CUBES: usize = 65_535;

/// The largest of one number per unit, in every unit; NaN may be lost.
#[cube]
fn cube_max(value: f32, shared: &mut SharedMemory<f32>, #[comptime] units: u32) -> f32 {
    shared[UNIT_POS as usize] = value;
    sync_cube();
    #[unroll]
    for step in 1..comptime!(units.trailing_zeros() + 1) {
        let half = comptime!(units >> step);
        if UNIT_POS < half {
            let other = shared[(UNIT_POS + half) as usize];
            let own = shared[UNIT_POS as usize];
            shared[UNIT_POS as usize] = f32::max(own, other);
        }
        sync_cube();
    }
    let max = shared[0];
    sync_cube();
    max
}

/// `slopes` may be the memory of `logits`.
#[cube(launch_unchecked, address_type = "dynamic")]
#[expect(
    clippy::too_many_arguments,
    reason = "a kernel's arguments are its buffers and scalars"
)]
fn forward_kernel<F: Float, T: Numeric, N: Size>(
    logits: &Array<Vector<F, N>>,
    targets: &Array<T>,
    slopes: &mut Array<Vector<F, N>>,
    losses: &mut Array<f32>,
    vectors: usize,
    cubes: usize,
    inverse_n: f32,
    nan: f32,
    #[comptime] team: Team,
    #[define(F)] _dtype: StorageType,
    #[define(T)] _target_dtype: StorageType,
) {
    let units = comptime!(team.units as usize);
    let mut shared = SharedMemory::<f32>::new(units);
    let mut row = CUBE_POS;
    while row < losses.len() {
        let start = row * vectors;
        // 1. The maximum and the sum of exponentials below it, of what this unit reads. Finite, so
        // that nothing is infinity minus infinity before there is an infinite logit.
        let mut max = f32::min_value();
        let mut sum = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < vectors {
            let x = Vector::<f32, N>::cast_from(logits[start + i]);
            let mut largest = max;
            #[unroll]
            for j in 0..N::value() {
                largest = f32::max(largest, x[j]);
            }
            sum *= f32::exp(max - largest);
            #[unroll]
            for j in 0..N::value() {
                sum += f32::exp(x[j] - largest);
            }
            max = largest;
            i += units;
        }
        // A target that is no index, as a negative one, makes the loss NaN; WGSL has no literal for
        // it.
        let target = u32::cast_from(targets[row]) as usize;
        let target_vector = target / N::value();
        let mut target_logit = nan;
        if target_vector < vectors {
            let x = logits[start + target_vector];
            #[unroll]
            for j in 0..N::value() {
                if target % N::value() == j {
                    target_logit = f32::cast_from(x[j]);
                }
            }
        }
        // 2. Those of the row. Nobody writes before everybody has read.
        let row_max = cube_max(max, &mut shared, comptime!(team.units));
        let row_sum = cube_sum(sum * f32::exp(max - row_max), &mut shared, team);
        if UNIT_POS == 0 {
            losses[row] = f32::ln(row_sum) - (target_logit - row_max);
        }
        // 3. The gradient.
        let factor = inverse_n / row_sum;
        let mut i = UNIT_POS as usize;
        while i < vectors {
            let x = Vector::<f32, N>::cast_from(logits[start + i]);
            let mut slope = Vector::<F, N>::empty();
            #[unroll]
            for j in 0..N::value() {
                let mut value = f32::exp(x[j] - row_max) * factor;
                if i * N::value() + j == target {
                    value -= inverse_n;
                }
                slope[j] = F::cast_from(value);
            }
            slopes[start + i] = slope;
            i += units;
        }
        row += cubes;
    }
}

/// `slopes` are in the memory of the result, or `product` is.
#[cube(launch_unchecked, address_type = "dynamic")]
#[expect(
    clippy::collapsible_if,
    reason = "a comptime condition is not a runtime one"
)]
fn backward_kernel<F: Float, N: Size>(
    slopes: &Array<Vector<F, N>>,
    grad: &Array<f32>,
    product: &mut Array<Vector<F, N>>,
    len: usize,
    #[comptime] is_in_place: bool,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= len {
        terminate!();
    }
    let factor = grad[0];
    if comptime!(is_in_place) {
        if factor == 1.0f32 {
            terminate!();
        }
    }
    let x = Vector::<f32, N>::cast_from(slopes[ABSOLUTE_POS]);
    product[ABSOLUTE_POS] = Vector::<F, N>::cast_from(x * Vector::<f32, N>::new(factor));
}

/// `[logits]` and the targets to `[loss, dlogits]`: f32 `[1]`, and in the dtype of the logits.
pub(super) fn forward<R: CubeRuntime>(
    [logits]: [CubeTensor<R>; 1],
    [targets]: [CubeTensor<R>; 1],
) -> Vec<CubeTensor<R>> {
    let [n, vocab] = logits.meta.shape().dims();
    assert_eq!(
        targets.meta.num_elements(),
        n,
        "cross_entropy: one target for each row of logits"
    );
    let (logits, targets) = (into_contiguous(logits), into_contiguous(targets));
    let width = vector_width(vocab, &[&logits]);
    let vectors = vocab / width;
    let team = Team::new(&logits.client, vectors, MOST_UNITS);
    let cubes = n.min(MOST_CUBES);
    let losses = empty(&logits, [n], DType::F32);
    let client = logits.client.clone();
    let address_type = logits.required_address_type();
    let dtype = logits.dtype;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rounding to f32 is what is wanted"
    )]
    let inverse_n = (n as f64).recip() as f32;
    let (slopes, input, output) = in_place(logits, 0);
    count_launch();
    // SAFETY: rows are those of `losses`, which has as many as logits and targets, and vectors those
    // of a row; a target beyond the row is not read.
    unsafe {
        forward_kernel::launch_unchecked::<R>(
            &client,
            CubeCount::new_1d(word(cubes)),
            CubeDim::new_1d(team.units),
            address_type,
            width,
            input,
            targets.clone().into_array_arg(),
            output,
            losses.clone().into_array_arg(),
            vectors,
            cubes,
            inverse_n,
            f32::NAN,
            team,
            dtype.into(),
            targets.dtype.into(),
        );
    }
    vec![total(&losses, inverse_n), slopes]
}

/// `[dlogits, dloss]` to `[dlogits dloss]`.
pub(super) fn backward<R: CubeRuntime>([slopes, grad]: [CubeTensor<R>; 2]) -> Vec<CubeTensor<R>> {
    assert_eq!(grad.meta.num_elements(), 1, "cross_entropy: one loss");
    let grad = into_contiguous(cast(grad, DType::F32));
    let slopes = into_contiguous(slopes);
    let len = slopes.meta.num_elements();
    let width = vector_width(len, &[&slopes]);
    let (count, dim) = grid(&slopes, len / width);
    let client = slopes.client.clone();
    let (address_type, dtype) = (slopes.required_address_type(), slopes.dtype);
    let is_in_place = slopes.can_mut();
    let (product, input, output) = in_place(slopes, 0);
    count_launch();
    // SAFETY: units beyond `len` return, and both buffers hold as many elements.
    unsafe {
        backward_kernel::launch_unchecked::<R>(
            &client,
            count,
            dim,
            address_type,
            width,
            input,
            grad.into_array_arg(),
            output,
            len / width,
            is_in_place,
            dtype.into(),
        );
    }
    vec![product]
}
