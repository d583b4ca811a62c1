//! The hybrid as a model that burn-train can train: next-token cross-entropy in f32.

use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::train::{InferenceStep, TrainOutput, TrainStep};
use burn_hybrid_ops::{HybridEngine, TrainingEngine};

use crate::data::TokenBatch;
use crate::hybrid::HybridLm;
use crate::hybrid::step_memory::StepMemory;

pub use super::loss::next_token_loss;
use super::output::LossOutput;
use super::parts;

/// [`next_token_loss`] without its graph, and the gradients of all parameters; in parts where the
/// model says so ([`HybridLm::with_step_memory`]).
pub fn loss_and_gradients<B: TrainingEngine>(
    model: &HybridLm<B>,
    batch: TokenBatch<B>,
) -> (Tensor<B::InnerBackend, 1>, GradientsParams) {
    if model.step_memory() != StepMemory::default() {
        return parts::loss_and_gradients(model, batch);
    }
    let loss = next_token_loss(model, batch);
    let gradients = GradientsParams::from_grads(loss.backward(), model);
    (loss.inner(), gradients)
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
