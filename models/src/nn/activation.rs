//! Functions in forms that neither overflow, nor waste passes over memory, nor go through a
//! reciprocal.
//!
//! The last point is about gradients: `float_recip` of the NdArray backend is the processor's
//! estimate, good to 12 or 14 bits even in f64 (`rcpps`, `vrcp14pd`), and Burn's backward of
//! division, logarithm, `softmax` and `log_sigmoid` contains it, as does a power of -1. Forward
//! division is exact, and so is a power of -1/2 with its backward.

use burn::tensor::Tensor;
use burn::tensor::activation::relu;
use burn::tensor::backend::Backend;

/// `x * sigmoid(x)`, as `h + h tanh(h)` with `h = x / 2`.
///
/// Burn's `silu` takes three transcendental functions forward and the same three again in
/// backward; this takes one, and backward none. The absolute error stays within a rounding of
/// `x`; where `x` is very negative that is more than a rounding of the (tiny) result.
pub fn silu<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let half = x * 0.5;
    half.clone().tanh() * half.clone() + half
}

/// `ln(1 + exp(x))`, as `max(x, 0) + ln(1 + exp(-|x|))`: never overflows.
pub fn softplus<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let at = x.clone().detach();
    let value = relu(at.clone()) + at.clone().abs().neg().exp().log1p();
    let slope = (at * 0.5).tanh() * 0.5 + 0.5;
    with_slope(x, value, slope)
}

/// `max(x, 0)^2`.
pub fn squared_relu<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let x = relu(x);
    x.clone() * x
}

/// Exponentials over the last axis that sum to 1.
pub fn softmax<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    // The shift cancels, so no gradient has to flow through the maximum.
    let shift = x.clone().detach().max_dim(D - 1);
    let exponentials = (x - shift).exp();
    let sum = exponentials.clone().sum_dim(D - 1);
    // 1 / sum, as a square.
    let root = sum.powf_scalar(-0.5);
    exponentials * (root.clone() * root)
}

/// A tensor that equals `value` and whose derivative with respect to `x` is `slope`.
pub(super) fn with_slope<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    value: Tensor<B, D>,
    slope: Tensor<B, D>,
) -> Tensor<B, D> {
    let linear = x * slope.detach();
    value.detach() + (linear.clone() - linear.detach())
}
