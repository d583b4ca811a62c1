//! The operations, as functions on Burn tensors: the result by a kernel, or `None` where the
//! backend has none for the tensors at hand.

use burn::tensor::{DType, Int, Tensor, TensorPrimitive};
use burn_backend::tensor::{FloatTensor, IntTensor};
use burn_backend::{Backend, TensorMetadata};

use crate::engine::HybridEngine;
use crate::op::{AdamW, AttentionShape, Like, MixerShape, Op};

/// `max(x, 0)^2` in the dtype of `x`, the activation of the hybrid's MLP.
pub fn squared_relu<B: HybridEngine, const D: usize>(x: &Tensor<B, D>) -> Option<Tensor<B, D>> {
    run(Op::SquaredRelu, vec![float(x)], vec![])
}

/// `x / sqrt(mean(x^2) + eps) * weight` over the last axis, computed in f32 and rounded once to
/// `output`; `weight` has as many elements as that axis.
pub fn rms_norm<B: HybridEngine, const D: usize>(
    x: &Tensor<B, D>,
    weight: &Tensor<B, 1>,
    eps: f64,
    output: DType,
) -> Option<Tensor<B, D>> {
    let op = Op::RmsNorm { eps, output };
    run(op, vec![float(x), float(weight)], vec![])
}

/// The rows of `weight` (`[vocab, d_model]`) that `tokens` name, rounded to `output`; NaN where there
/// is no such row.
///
/// # Shapes
/// `tokens`: `[batch, seq]`; result: `[batch, seq, d_model]`.
pub fn embedding<B: HybridEngine>(
    weight: &Tensor<B, 2>,
    tokens: &Tensor<B, 2, Int>,
    output: DType,
) -> Option<Tensor<B, 3>> {
    let [batch, seq] = tokens.dims();
    let [_, d_model] = weight.dims();
    let op = Op::Embedding {
        tokens: batch * seq,
        token_dtype: tokens.dtype(),
        output,
    };
    let tokens = tokens.clone().reshape([batch * seq]);
    let rows: Tensor<B, 2> = run(op, vec![float(weight)], vec![tokens.into_primitive()])?;
    Some(rows.reshape([batch, seq, d_model]))
}

/// The mean cross-entropy of `targets` (`[n]`) under `logits` (`[n, vocab]`), f32 `[1]`.
///
/// The gradient is made at once, over the logits themselves if nobody else holds them, so none of
/// their values may be needed afterwards.
///
/// # Errors
/// The logits, where there is no kernel for them.
pub fn cross_entropy<B: HybridEngine>(
    logits: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
) -> Result<Tensor<B, 1>, Tensor<B, 2>> {
    let like = (logits.shape(), logits.dtype());
    if !B::has_kernel(&Op::CrossEntropy, &[like], &logits.device()) {
        return Err(logits);
    }
    let logits = logits.into_primitive().tensor();
    let loss = B::apply(
        Op::CrossEntropy,
        vec![logits],
        vec![targets.into_primitive()],
    );
    Ok(Tensor::from_primitive(TensorPrimitive::Float(loss)))
}

/// Causal grouped-query attention of tokens to themselves and those before them, without positions:
/// `softmax(q k^T / sqrt(head_dim)) v`.
///
/// # Shapes
/// `q`, result: `[batch, seq, n_heads * head_dim]`; `k`, `v`: `[batch, seq, n_kv_heads * head_dim]`.
pub fn causal_attention<B: HybridEngine>(
    q: &Tensor<B, 3>,
    k: &Tensor<B, 3>,
    v: &Tensor<B, 3>,
    shape: AttentionShape,
) -> Option<Tensor<B, 3>> {
    let op = Op::CausalAttention(shape);
    run(op, vec![float(q), float(k), float(v)], vec![])
}

/// The parameters of a Mamba-2 mixer between its projections, all f32.
#[derive(Debug)]
pub struct MixerParams<B: Backend> {
    /// `[conv_dim, 1, taps]`.
    pub conv_weight: Tensor<B, 3>,
    /// `[conv_dim]`.
    pub conv_bias: Option<Tensor<B, 1>>,
    /// `[n_heads]`.
    pub dt_bias: Tensor<B, 1>,
    /// `[n_heads]`: `A = -exp(a_log)`.
    pub a_log: Tensor<B, 1>,
    /// `[n_heads]`.
    pub d_skip: Tensor<B, 1>,
    /// `[d_inner]`.
    pub norm_weight: Tensor<B, 1>,
}

/// What stands between the projections of a Mamba-2 mixer, for sequences that begin here:
/// convolution and silu of x, B and C, step size, scan from states of zero, gate and group norm.
///
/// # Shapes
/// `projected`: `[batch, seq, d_inner + conv_dim + n_heads]`, the channels of z, x, B, C and dt;
/// result: `[batch, seq, d_inner]` in its dtype.
pub fn mamba2_mixer<B: HybridEngine>(
    projected: &Tensor<B, 3>,
    params: &MixerParams<B>,
    shape: MixerShape,
) -> Option<Tensor<B, 3>> {
    let inputs = [
        float(projected),
        float(&params.conv_weight),
        float(&params.dt_bias),
        float(&params.a_log),
        float(&params.d_skip),
        float(&params.norm_weight),
    ];
    let bias = params.conv_bias.as_ref().map(float);
    run(
        Op::Mamba2Mixer(shape),
        inputs.into_iter().chain(bias).collect(),
        vec![],
    )
}

/// The sum of the squares of all elements of some tensors, f32 `[1]`, by kernels: always in the
/// same order. `None` without kernels, or without an element.
pub fn sum_of_squares<B: HybridEngine>(tensors: Vec<FloatTensor<B>>) -> Option<Tensor<B, 1>> {
    let has_elements = tensors.iter().any(|t| t.shape().num_elements() > 0);
    let device = B::float_device(tensors.first()?);
    (has_elements && B::has_optimizer(&device))
        .then(|| Tensor::from_primitive(TensorPrimitive::Float(B::sum_of_squares(tensors))))
}

/// True if [`adamw`] can update a parameter like this one.
pub fn has_adamw<B: HybridEngine, const D: usize>(param: &Tensor<B, D>) -> bool {
    param.dtype() == DType::F32
        && param.shape().num_elements() > 0
        && B::has_optimizer(&param.device())
}

/// One AdamW update of many `[parameter, first moment, second moment, gradient]` by kernels that
/// share launches, where [`has_adamw`] says that there are some; moments in place where nobody else
/// holds them. Gradients are multiplied by `factor` first.
pub fn adamw<B: HybridEngine>(
    states: Vec<[FloatTensor<B>; 4]>,
    factor: Option<Tensor<B, 1>>,
    numbers: AdamW,
) -> Vec<[FloatTensor<B>; 3]> {
    if states.is_empty() {
        return Vec::new();
    }
    let factor = factor.map(|factor| factor.into_primitive().tensor());
    B::adamw(states, factor, numbers)
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
