//! The hybrid as a model that burn-train can train: next-token cross-entropy in f32.

use burn::tensor::activation::log_softmax;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Int, Tensor};
use burn::train::{InferenceStep, TrainOutput, TrainStep};

use crate::data::TokenBatch;
use crate::hybrid::HybridLm;

use super::output::LossOutput;

/// Mean over all tokens of `-log softmax(logits)[target]`, in f32 whatever the logits are.
///
/// # Shapes
/// `logits`: `[batch, seq, vocab]`; `targets`: `[batch, seq]`; the result is `[1]`.
pub fn cross_entropy<B: Backend>(logits: Tensor<B, 3>, targets: Tensor<B, 2, Int>) -> Tensor<B, 1> {
    let [batch, seq, vocab] = logits.dims();
    let logits = logits.cast(DType::F32).reshape([batch * seq, vocab]);
    let targets = targets.reshape([batch * seq, 1]);
    log_softmax(logits, 1).gather(1, targets).mean().neg()
}

impl<B: AutodiffBackend> TrainStep for HybridLm<B> {
    type Input = TokenBatch<B>;
    type Output = LossOutput<B::InnerBackend>;

    fn step(&self, batch: TokenBatch<B>) -> TrainOutput<Self::Output> {
        let tokens = batch.targets.shape().num_elements();
        let loss = cross_entropy(self.forward(batch.inputs), batch.targets);
        let output = LossOutput {
            loss: loss.clone().inner(),
            tokens,
            figures: None,
        };
        TrainOutput::new(self, loss.backward(), output)
    }
}

impl<B: Backend> InferenceStep for HybridLm<B> {
    type Input = TokenBatch<B>;
    type Output = LossOutput<B>;

    fn step(&self, batch: TokenBatch<B>) -> LossOutput<B> {
        let tokens = batch.targets.shape().num_elements();
        let loss = cross_entropy(self.forward(batch.inputs), batch.targets);
        LossOutput {
            loss,
            tokens,
            figures: None,
        }
    }
}
