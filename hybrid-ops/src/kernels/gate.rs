//! `sigmoid`, `silu` and its slope on vectors of f32, for kernels that contain them.

use cubecl::prelude::*;

/// `1 / (1 + exp(-x))`.
#[cube]
pub(super) fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    // exp overflows to infinity for very negative x, and the quotient is then the right 0.
    let one = Vector::<f32, N>::new(1.0f32);
    one / (one + Vector::exp(x * Vector::<f32, N>::new(-1.0f32)))
}

/// `x sigmoid(x)`.
#[cube]
pub(super) fn silu<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    x * sigmoid::<N>(x)
}

/// The derivative of `silu`, given `sigmoid(x)`.
#[cube]
pub(super) fn silu_slope<N: Size>(x: Vector<f32, N>, sigmoid: Vector<f32, N>) -> Vector<f32, N> {
    let value = x * sigmoid;
    sigmoid + value - value * sigmoid
}
