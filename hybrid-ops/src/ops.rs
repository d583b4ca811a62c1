//! The operations, as functions on Burn tensors: the result by a kernel, or `None` where the
//! backend has none for the tensors at hand.

use burn::tensor::{Tensor, TensorPrimitive};
use burn_backend::tensor::{FloatTensor, IntTensor};
use burn_backend::{Backend, TensorMetadata};

use crate::engine::HybridEngine;
use crate::op::{Like, Op};

/// `max(x, 0)^2` in the dtype of `x`, the activation of the hybrid's MLP.
pub fn squared_relu<B: HybridEngine, const D: usize>(x: &Tensor<B, D>) -> Option<Tensor<B, D>> {
    run(Op::SquaredRelu, vec![float(x)], vec![])
}

/// The result of `op` by a kernel, if there is one.
fn run<B: HybridEngine, const D: usize>(
    op: Op,
    inputs: Vec<FloatTensor<B>>,
    ints: Vec<IntTensor<B>>,
) -> Option<Tensor<B, D>> {
    let likes: Vec<Like> = inputs.iter().map(|t| (t.shape(), t.dtype())).collect();
    let device = B::float_device(inputs.first()?);
    B::has_kernel(&op, &likes, &device)
        .then(|| Tensor::from_primitive(TensorPrimitive::Float(B::apply(op, inputs, ints))))
}

/// A float tensor without its rank.
fn float<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> FloatTensor<B> {
    tensor.clone().into_primitive().tensor()
}
