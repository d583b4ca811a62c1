//! Next-token cross-entropy in f32, of a batch or of what `lm_head` sees.

use burn::tensor::{Int, Tensor};
use burn_hybrid_ops::{HybridEngine, ops};

use crate::data::TokenBatch;
use crate::hybrid::HybridLm;
use crate::nn::loss::cross_entropy;
use crate::nn::wide;

/// Mean next-token loss of a batch, `[1]`, in f32.
pub fn next_token_loss<B: HybridEngine>(model: &HybridLm<B>, batch: TokenBatch<B>) -> Tensor<B, 1> {
    let hidden = model.forward_hidden(batch.inputs);
    loss_of_hidden(model, hidden, batch.targets)
}

/// Mean next-token loss of what `lm_head` sees.
pub(super) fn loss_of_hidden<B: HybridEngine>(
    model: &HybridLm<B>,
    hidden: Tensor<B, 3>,
    targets: Tensor<B, 2, Int>,
) -> Tensor<B, 1> {
    let [batch_size, seq, _] = hidden.dims();
    let tokens = batch_size * seq;
    let targets = targets.reshape([tokens]);
    // In the dtype of the activations: the kernel computes in f32 and puts the gradient in their
    // place, so `[tokens, vocab]` never stands in memory in f32.
    let logits = model.lm_head.forward(hidden);
    let [_, _, vocab] = logits.dims();
    let logits = logits.reshape([tokens, vocab]);
    ops::cross_entropy(logits, targets.clone()).unwrap_or_else(|logits| {
        let dtype = wide(logits.dtype());
        cross_entropy(logits.cast(dtype), targets)
    })
}
