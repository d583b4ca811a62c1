//! The hybrid as a model that burn-train can train: next-token cross-entropy in f32.

use burn::tensor::Tensor;
use burn::train::{InferenceStep, TrainOutput, TrainStep};
use burn_hybrid_ops::{HybridEngine, TrainingEngine, ops};

use crate::data::TokenBatch;
use crate::hybrid::HybridLm;
use crate::nn::loss::cross_entropy;
use crate::nn::wide;

use super::output::LossOutput;

/// Mean next-token loss of a batch, `[1]`, in f32.
pub fn next_token_loss<B: HybridEngine>(model: &HybridLm<B>, batch: TokenBatch<B>) -> Tensor<B, 1> {
    let hidden = model.forward_hidden(batch.inputs);
    let [batch_size, seq, _] = hidden.dims();
    let tokens = batch_size * seq;
    let targets = batch.targets.reshape([tokens]);
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

impl<B: TrainingEngine> TrainStep for HybridLm<B> {
    type Input = TokenBatch<B>;
    type Output = LossOutput<B::InnerBackend>;

    fn step(&self, batch: TokenBatch<B>) -> TrainOutput<Self::Output> {
        let tokens = batch.targets.shape().num_elements();
        let loss = next_token_loss(self, batch);
        let output = LossOutput {
            loss: loss.clone().inner(),
            tokens,
            figures: None,
        };
        TrainOutput::new(self, loss.backward(), output)
    }
}

impl<B: HybridEngine> InferenceStep for HybridLm<B> {
    type Input = TokenBatch<B>;
    type Output = LossOutput<B>;

    fn step(&self, batch: TokenBatch<B>) -> LossOutput<B> {
        let tokens = batch.targets.shape().num_elements();
        let loss = next_token_loss(self, batch);
        LossOutput {
            loss,
            tokens,
            figures: None,
        }
    }
}
