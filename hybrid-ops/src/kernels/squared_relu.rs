//! `max(x, 0)^2` and its slope `2 max(x, 0)`.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_nvfp4::kernels::count_launch;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::elementwise::{empty, grid, vector_width};

#[cube(launch_unchecked)]
fn forward_kernel<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    y: &mut Array<Vector<F, N>>,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= y.len() {
        terminate!();
    }
    let x = x[ABSOLUTE_POS];
    let mut squares = Vector::<F, N>::empty();
    #[unroll]
    for i in 0..x.vector_size() {
        let positive = f32::max(f32::cast_from(x[i]), 0.0f32);
        squares[i] = F::cast_from(positive * positive);
    }
    y[ABSOLUTE_POS] = squares;
}

#[cube(launch_unchecked)]
fn backward_kernel<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    dy: &Array<Vector<F, N>>,
    dx: &mut Array<Vector<F, N>>,
    #[define(F)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= dx.len() {
        terminate!();
    }
    let (x, dy) = (x[ABSOLUTE_POS], dy[ABSOLUTE_POS]);
    let mut grads = Vector::<F, N>::empty();
    #[unroll]
    for i in 0..x.vector_size() {
        let slope = 2.0f32 * f32::max(f32::cast_from(x[i]), 0.0f32);
        grads[i] = F::cast_from(slope * f32::cast_from(dy[i]));
    }
    dx[ABSOLUTE_POS] = grads;
}

/// `[x]` to `[y]`.
pub(super) fn forward<R: CubeRuntime>([x]: [CubeTensor<R>; 1]) -> Vec<CubeTensor<R>> {
    let x = into_contiguous(x);
    let y = empty(&x, x.meta.shape().clone(), x.dtype);
    let len = x.meta.num_elements();
    let width = vector_width(len, &[&x, &y]);
    let (count, dim) = grid(&x, len / width);
    count_launch();
    // SAFETY: units beyond the result return, and both buffers hold `len` elements.
    unsafe {
        forward_kernel::launch_unchecked::<R>(
            &x.client.clone(),
            count,
            dim,
            width,
            x.clone().into_array_arg(),
            y.clone().into_array_arg(),
            x.dtype.into(),
        );
    }
    vec![y]
}

/// `[x, dy]` to `[dx]`.
pub(super) fn backward<R: CubeRuntime>([x, dy]: [CubeTensor<R>; 2]) -> Vec<CubeTensor<R>> {
    assert_eq!(
        (x.meta.shape(), x.dtype),
        (dy.meta.shape(), dy.dtype),
        "squared_relu"
    );
    let (x, dy) = (into_contiguous(x), into_contiguous(dy));
    let dx = empty(&x, x.meta.shape().clone(), x.dtype);
    let len = x.meta.num_elements();
    let width = vector_width(len, &[&x, &dy, &dx]);
    let (count, dim) = grid(&x, len / width);
    count_launch();
    // SAFETY: units beyond the result return, and the three buffers hold `len` elements each.
    unsafe {
        backward_kernel::launch_unchecked::<R>(
            &x.client.clone(),
            count,
            dim,
            width,
            x.clone().into_array_arg(),
            dy.into_array_arg(),
            dx.clone().into_array_arg(),
            x.dtype.into(),
        );
    }
    vec![dx]
}
