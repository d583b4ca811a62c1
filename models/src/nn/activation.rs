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

use super::wide;

/// `x * sigmoid(x)`, computed in [`wide`] and rounded once to the dtype of `x`.
///
/// Its slope is written down, which takes one exponential; Burn's `silu` takes three transcendental
/// functions forward and the same three again in backward, and computes in f32 even for f64.
pub fn silu<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let dtype = x.dtype();
    let x = x.cast(wide(dtype));
    let at = x.clone().detach();
    // exp overflows to infinity for very negative x, and the quotient is then the right 0.
    let denominator = at.clone().neg().exp() + 1.0;
    let sigmoid = denominator.ones_like() / denominator;
    let value = at * sigmoid.clone();
    let slope = sigmoid.clone() + value.clone() - value.clone() * sigmoid;
    with_slope(x, value, slope).cast(dtype)
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
