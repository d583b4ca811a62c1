//! What the loop is told, and how it says that it ended.

use serde_json::Value;

use super::guard::GuardConfig;
use super::oscillation::WatchedWeights;
use super::schedule::Schedule;
use crate::checkpoint::run::Position;
pub use crate::checkpoint::run::writer::Snapshot;

/// The numbers of the loop.
#[derive(Clone, Debug)]
pub struct StepPlan {
    /// Where the run stood before.
    pub position: Position,
    /// Steps of the whole run.
    pub total: u64,
    /// Training tokens in a step.
    pub tokens_per_step: usize,
    /// Learning rate over the run.
    pub schedule: Schedule,
    /// Largest global gradient norm.
    pub clip_norm: Option<f64>,
    /// Steps between validations.
    pub validate_every: u64,
    /// Steps between checkpoints.
    pub save_every: u64,
    /// Checkpoints that stay, besides the best one.
    pub keep: usize,
    /// What training waits for when a checkpoint is due.
    pub snapshot: Snapshot,
    /// Which steps update the model.
    pub guard: GuardConfig,
    /// Weights that are watched for oscillation, if any are.
    pub oscillation: Option<WatchedWeights>,
    /// Layers whose quantization is shown; none where it is not sampled.
    pub layers: Vec<String>,
    /// Parameters of the model, for its FLOPs.
    pub parameters: u64,
    /// What the device could do, FLOP/s; absent: unknown.
    pub peak_flops: Option<f64>,
    /// Bytes of text per training token.
    pub train_bytes_per_token: f64,
    /// Bytes of text per validation token.
    pub valid_bytes_per_token: f64,
    /// See [`RunState::identity`](crate::checkpoint::run::RunState::identity).
    pub identity: Value,
    /// See [`RunState::config`](crate::checkpoint::run::RunState::config).
    pub config: String,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ending {
    /// After the last step.
    Finished(FinalFigures),
    /// On request; a checkpoint was saved.
    Interrupted,
}

/// The figures of a finished run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FinalFigures {
    /// Validation loss in the recipe's forward, nats per token.
    pub recipe: f64,
    /// Validation loss in high precision, nats per token.
    pub high_precision: f64,
}

/// What the loop leaves behind.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Steps taken in all.
    pub step: u64,
    /// How it ended.
    pub ending: Ending,
    /// Seconds in the loop, validation and checkpoints included.
    pub seconds: f64,
    /// Training tokens per second of training steps alone, over this process.
    pub tokens_per_second: f64,
    /// Steps that did not update the model.
    pub skipped: u64,
    /// Seconds in which training waited for checkpoints.
    pub waited_seconds: f64,
    /// Why the last state could not be saved, if it could not.
    pub unsaved: Option<String>,
}
