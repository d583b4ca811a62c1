//! The hybrid as a model that burn-train can train: next-token cross-entropy in f32.

use burn::tensor::Tensor;
use burn::train::{InferenceStep, TrainOutput, TrainStep};
use burn_hybrid_ops::{HybridEngine, TrainingEngine};

use crate::data::TokenBatch;
use crate::hybrid::HybridLm;
use crate::nn::loss::cross_entropy;

use super::output::LossOutput;

/// Mean next-token loss of a batch, `[1]`, in f32.
pub fn next_token_loss<B: HybridEngine>(model: &HybridLm<B>, batch: TokenBatch<B>) -> Tensor<B, 1> {
    let logits = model.forward(batch.inputs);
    let [batch_size, seq, vocab] = logits.dims();
    let tokens = batch_size * seq;
    cross_entropy(
        logits.reshape([tokens, vocab]),
        batch.targets.reshape([tokens]),
    )
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
