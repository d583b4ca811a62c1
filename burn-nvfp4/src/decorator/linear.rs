//! The four hooks of a linear layer: the only place that decides to quantize.
//!
//! The decision is the device's policy, read here once per call; carrying it out is
//! [`engine::linear`](crate::engine::linear)'s work. Under `Nvfp4<Autodiff<B>>` only [`fprop`] is
//! reached: the node that it records does the rest. Under `Autodiff<Nvfp4<B>>` Burn's own node
//! calls the other three in backward, when the scope of the forward has closed, so they get the
//! recipe of unnamed layers; and since they do not see the weight's dtype, gradients of
//! half-precision activations come out as f32, the dtype of a master weight.

use burn_backend::tensor::FloatTensor;
use burn_backend::{DType, Shape, TensorMetadata};

use crate::engine::{Nvfp4Engine, linear};
use crate::runtime;

/// `Y = X W + b`.
pub(crate) fn fprop<B: Nvfp4Engine>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
) -> FloatTensor<B> {
    let plan = runtime::plan::<B>(&B::float_device(&x));
    B::linear_with_plan(x, weight, bias, plan)
}

/// `dX = dY Wᵀ`.
pub(crate) fn dgrad<B: Nvfp4Engine>(
    weight: FloatTensor<B>,
    output_grad: FloatTensor<B>,
) -> FloatTensor<B> {
    let device = B::float_device(&output_grad);
    let plan = runtime::plan::<B>(&device);
    if !plan.recipe.dgrad.is_quantized() && !B::has_own_gemm(&device) {
        return B::linear_x_backward(weight, output_grad);
    }
    let mut shape = output_grad.shape();
    let rank = shape.num_dims();
    shape[rank - 1] = weight.shape()[0];
    let dtype = output_grad.dtype();
    B::x_backward(weight, output_grad, &plan, (shape, dtype))
}

/// `dW = Xᵀ dY`.
pub(crate) fn wgrad<B: Nvfp4Engine>(
    x: FloatTensor<B>,
    output_grad: FloatTensor<B>,
) -> FloatTensor<B> {
    let device = B::float_device(&output_grad);
    let plan = runtime::plan::<B>(&device);
    if !plan.recipe.wgrad.is_quantized() && !B::has_own_gemm(&device) {
        return B::linear_weight_backward(x, output_grad);
    }
    let last = |tensor: &FloatTensor<B>| tensor.shape()[tensor.shape().num_dims() - 1];
    let shape = Shape::new([last(&x), last(&output_grad)]);
    let dtype = master_dtype(x.dtype());
    B::weight_backward(x, output_grad, &plan, (shape, dtype))
}

/// `db`, the sum of `dY` over tokens.
pub(crate) fn bias_grad<B: Nvfp4Engine>(output_grad: FloatTensor<B>) -> FloatTensor<B> {
    let plan = runtime::plan::<B>(&B::float_device(&output_grad));
    let dtype = output_grad.dtype();
    let dtype = if plan.recipe.is_quantized() {
        master_dtype(dtype)
    } else {
        dtype
    };
    linear::bias_grad::<B>(output_grad, dtype)
}

/// The dtype of the parameters of a layer whose activations have `dtype`.
fn master_dtype(dtype: DType) -> DType {
    if matches!(dtype, DType::F16 | DType::BF16) {
        DType::F32
    } else {
        dtype
    }
}
