//! The GEMMs of a linear layer, in the inner backend's precision.

use burn_backend::tensor::FloatTensor;

use crate::engine::Nvfp4Engine;

/// `Y = X W + bias`.
pub(crate) fn fprop<B: Nvfp4Engine>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
) -> FloatTensor<B> {
    B::linear(x, weight, bias)
}

/// `dX = dY Wᵀ`.
pub(crate) fn dgrad<B: Nvfp4Engine>(
    weight: FloatTensor<B>,
    output_grad: FloatTensor<B>,
) -> FloatTensor<B> {
    B::linear_x_backward(weight, output_grad)
}

/// `dW = Xᵀ dY`.
pub(crate) fn wgrad<B: Nvfp4Engine>(
    x: FloatTensor<B>,
    output_grad: FloatTensor<B>,
) -> FloatTensor<B> {
    B::linear_weight_backward(x, output_grad)
}

/// The sum of `dY` over all tokens.
pub(crate) fn bias_grad<B: Nvfp4Engine>(output_grad: FloatTensor<B>) -> FloatTensor<B> {
    B::linear_bias_backward(output_grad)
}
