//! Cross-entropy of next tokens, with its gradient written down instead of derived.
//!
//! The gradient of the mean of `-ln softmax(logits)[target]` is
//! `(softmax(logits) - one_hot(target)) / n`. Writing it down keeps one matrix of the size of the
//! logits for backward instead of four, and avoids the inexact reciprocal of
//! [`super::activation`].

use burn::tensor::backend::Backend;
use burn::tensor::{IndexingUpdateOp, Int, Tensor};

/// Mean cross-entropy of `targets` under `logits`.
///
/// # Shapes
/// `logits`: `[n, vocab]` in f32; `targets`: `[n]`; result: `[1]`.
pub fn cross_entropy<B: Backend>(logits: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    let [n, _] = logits.dims();
    let targets = targets.reshape([n, 1]);
    let at = logits.clone().detach();
    let shifted = at.clone() - at.max_dim(1);
    let exponentials = shifted.clone().exp();
    let sum = exponentials.clone().sum_dim(1); // [n, 1]
    let loss = (sum.clone().log() - shifted.gather(1, targets.clone())).mean();

    let minus_one = Tensor::full([n, 1], -1.0, (&loss.device(), loss.dtype()));
    let probabilities = exponentials / sum;
    let slope = probabilities.scatter(1, targets, minus_one, IndexingUpdateOp::Add);
    // Linear in the logits with the right slope; its value cancels.
    let linear = (logits * (slope * (n as f64).recip())).sum();
    loss + (linear.clone() - linear.detach())
}
