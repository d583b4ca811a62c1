//! AdamW with decay groups, on burn's own AdamW arithmetic.
//!
//! Weight decay goes to matrices, embeddings and convolution weights, not to 1-D parameters (norms,
//! `A_log`, `D`, `dt_bias`) or biases: Megatron's rule (nemotron-h §1.5). The state is two moments
//! per parameter, in the parameter's dtype (f32), and one step count.
//!
//! burn's `OptimizerAdaptor` has one decay for all and keeps its state by random parameter ids;
//! here the state can be taken out and put back by name, exactly.

mod moments;
mod update;

use burn::module::AutodiffModule;
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::{
    AdamW, AdamWConfig, AdamWState, AdaptiveMomentumState, GradientsParams, MultiGradientsParams,
    Optimizer,
};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn_hybrid_ops::TrainingEngine;
use burn_hybrid_ops::op::AdamW as Numbers;
use serde::{Deserialize, Serialize};

pub(crate) use moments::{read_moments, write_moments};
pub use update::scale_at_update;

/// Numbers of AdamW and of gradient clipping.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay, times the learning rate.
    pub weight_decay: f64,
    /// Largest global norm of the gradient; absent: no clipping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
}

/// True if weight decay applies to a parameter.
pub fn decays(name: &str, rank: usize) -> bool {
    rank > 1 && name != "bias" && !name.ends_with(".bias")
}

/// burn's optimizers take their constants in f32.
#[expect(
    clippy::cast_possible_truncation,
    reason = "rounding to f32 is what is wanted"
)]
fn single(value: f64) -> f32 {
    value as f32
}

/// The state of a parameter after `time` updates.
fn state_after<B: Backend, const D: usize>(
    time: usize,
    [moment_1, moment_2]: [Tensor<B, D>; 2],
) -> AdamWState<B, D> {
    AdamWState::new(AdaptiveMomentumState {
        time,
        moment_1,
        moment_2,
        max_moment_2: None,
    })
}

/// State of every parameter, in burn's record type.
pub(crate) type Records<B, M> = <OptimizerAdaptor<AdamW, M, B> as Optimizer<M, B>>::Record;

/// AdamW in two groups; see the module.
#[derive(Clone)]
pub struct GroupedAdamW<B: TrainingEngine, M: AutodiffModule<B>> {
    decayed: AdamW,
    undecayed: AdamW,
    config: OptimizerConfig,
    records: Records<B, M>,
}

impl<B: TrainingEngine, M: AutodiffModule<B>> std::fmt::Debug for GroupedAdamW<B, M> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("GroupedAdamW")
            .field("parameters", &self.records.len())
            .finish()
    }
}

impl<B: TrainingEngine, M: AutodiffModule<B>> GroupedAdamW<B, M> {
    /// An optimizer without history.
    pub fn new(config: &OptimizerConfig) -> Self {
        let adamw = |weight_decay| {
            AdamWConfig::new()
                .with_beta_1(single(config.beta1))
                .with_beta_2(single(config.beta2))
                .with_epsilon(single(config.epsilon))
                .with_weight_decay(single(weight_decay))
                .build()
        };
        Self {
            decayed: adamw(config.weight_decay),
            undecayed: adamw(0.0),
            config: *config,
            records: Records::<B, M>::default(),
        }
    }

    /// What kernels compute the update of number `time` with.
    fn numbers(&self, lr: f64, decays: bool, time: usize) -> Numbers {
        Numbers {
            lr,
            beta1: single(self.config.beta1),
            beta2: single(self.config.beta2),
            epsilon: single(self.config.epsilon),
            weight_decay: if decays {
                single(self.config.weight_decay)
            } else {
                0.0
            },
            // After 2^31 updates the bias correction has long been 1.
            time: i32::try_from(time).unwrap_or(i32::MAX),
        }
    }
}

impl<B: TrainingEngine, M: AutodiffModule<B>> Optimizer<M, B> for GroupedAdamW<B, M> {
    type Record = Records<B, M>;

    fn step(&mut self, lr: f64, module: M, grads: GradientsParams) -> M {
        update::update(self, lr, module, grads)
    }

    fn step_multi(&mut self, lr: f64, module: M, grads: MultiGradientsParams) -> M {
        let mut summed = burn::optim::GradientsAccumulator::new();
        for (grads, _device) in grads.grads {
            summed.accumulate(&module, grads);
        }
        self.step(lr, module, summed.grads())
    }

    fn to_record(&self) -> Self::Record {
        self.records.clone()
    }

    fn load_record(mut self, record: Self::Record) -> Self {
        self.records = record;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::decays;

    #[test]
    fn decay_goes_to_matrices_and_not_to_vectors_or_biases() {
        for (name, rank, expected) in [
            ("embeddings.weight", 2, true),
            ("lm_head.weight", 2, true),
            ("layers.0.mixer.in_proj.weight", 2, true),
            ("layers.0.mixer.conv1d.weight", 3, true),
            ("layers.0.mixer.conv1d.bias", 1, false),
            ("layers.0.mixer.a_log", 1, false),
            ("layers.0.mixer.d_skip", 1, false),
            ("layers.0.mixer.dt_bias", 1, false),
            ("layers.0.norm.weight", 1, false),
            ("layers.0.mixer.some.bias", 2, false),
            ("bias", 2, false),
        ] {
            assert_eq!(decays(name, rank), expected, "{name}");
        }
    }
}
