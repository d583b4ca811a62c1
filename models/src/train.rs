//! Pretraining through burn-train's `Learner`, with an own loop in steps.
//!
//! [`fit::fit`] puts a run together, [`strategy`] is the loop, [`config`] says what runs. Nothing
//! here prints, reads the environment, or names a backend: sinks and backends come from `cli`.

pub mod schedule;
pub mod params;
pub mod exchange;
pub mod gradients;
pub mod optim;
pub mod output;
pub mod layers;
pub mod oscillation;
pub mod guard;
pub mod data;
pub mod config;
pub mod numerics;
pub mod log;
pub mod metrics;
pub mod renderer;
mod tap;
pub mod diagnosis;
mod loss;
mod parts;
pub mod step;
pub mod plan;
pub mod strategy;
mod no_metric_log;
pub mod fit;
pub mod overview;
pub mod memory;

use crate::checkpoint::run::RunError;
use crate::config::ConfigError;
use crate::data::{DataError, UnevenBatch};
use exchange::RankLost;

/// Why a run stopped before its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A checkpoint could not be written, or did not fit.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A model that cannot be built.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Tokens that cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The data of a step cannot be dealt out evenly.
    #[error(transparent)]
    Uneven(#[from] UnevenBatch),
    /// Another rank has stopped.
    #[error(transparent)]
    RankLost(#[from] RankLost),
    /// Numbers that are none, too many steps in a row.
    #[error(
        "step {step}: training stopped after {in_a_row} steps in a row without an update, loss \
         {loss}, gradient norm {norm}: NaN or infinity in {place}; the last good state is that of \
         step {good}, a lower learning rate may help"
    )]
    NonFinite {
        /// The last of the steps, counted from 1.
        step: u64,
        /// How many in a row.
        in_a_row: u64,
        /// Its loss.
        loss: f64,
        /// Its gradient norm.
        norm: f64,
        /// Layer and operand, or parameter.
        place: String,
        /// The last step that updated the model; a checkpoint has its state.
        good: u64,
    },
    /// The spike guard has gone back as often as it may.
    #[error(
        "step {step}: training stopped, loss {loss}, more than {limit}, after {rewinds} returns to \
         a checkpoint; earlier checkpoints are intact, a lower learning rate may help"
    )]
    Spikes {
        /// The step, counted from 1.
        step: u64,
        /// Its loss.
        loss: f64,
        /// The largest loss that would have been none.
        limit: f64,
        /// How often the run went back.
        rewinds: u64,
    },
}
