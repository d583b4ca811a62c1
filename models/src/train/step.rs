//! The hybrid as a model that burn-train can train: next-token cross-entropy in f32.

use burn::optim::GradientsParams;
use burn::tensor::{Int, Tensor};
use burn::train::{InferenceStep, TrainOutput, TrainStep};
use burn_hybrid_ops::{HybridEngine, TrainingEngine, ops};

use crate::data::TokenBatch;
use crate::hybrid::HybridLm;
use crate::hybrid::recompute::Recompute;
use crate::nn::loss::cross_entropy;
use crate::nn::wide;

use super::output::LossOutput;

/// Mean next-token loss of a batch, `[1]`, in f32.
pub fn next_token_loss<B: HybridEngine>(model: &HybridLm<B>, batch: TokenBatch<B>) -> Tensor<B, 1> {
    let hidden = model.forward_hidden(batch.inputs);
    loss_of_hidden(model, hidden, batch.targets)
}

/// Mean next-token loss of what `lm_head` sees.
fn loss_of_hidden<B: HybridEngine>(
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

/// [`next_token_loss`] without its graph, and the gradients of all parameters; backward computes
/// again what the model says ([`HybridLm::with_recompute`]).
pub fn loss_and_gradients<B: TrainingEngine>(
    model: &HybridLm<B>,
    batch: TokenBatch<B>,
) -> (Tensor<B::InnerBackend, 1>, GradientsParams) {
    match model.recompute() {
        Recompute::None => {
            let loss = next_token_loss(model, batch);
            let gradients = GradientsParams::from_grads(loss.backward(), model);
            (loss.inner(), gradients)
        }
        Recompute::Blocks => {
            let TokenBatch { inputs, targets } = batch;
            model.backward_by_blocks(inputs, |hidden| loss_of_hidden(model, hidden, targets))
        }
    }
}

impl<B: TrainingEngine> TrainStep for HybridLm<B> {
    type Input = TokenBatch<B>;
    type Output = LossOutput<B::InnerBackend>;

    fn step(&self, batch: TokenBatch<B>) -> TrainOutput<Self::Output> {
        let tokens = batch.targets.shape().num_elements();
        let (loss, grads) = loss_and_gradients(self, batch);
        let item = LossOutput {
            loss,
            tokens,
            figures: None,
        };
        TrainOutput { grads, item }
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
