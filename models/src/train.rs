//! Pretraining through burn-train's `Learner`, with an own loop in steps.
//!
//! [`fit::fit`] puts a run together, [`strategy`] is the loop, [`config`] says what runs. Nothing
//! here prints, reads the environment, or names a backend: sinks and backends come from `cli`.

pub mod schedule;
pub mod params;
pub mod gradients;
pub mod optim;
pub mod output;
pub mod data;
pub mod config;
pub mod numerics;
pub mod log;
pub mod metrics;
pub mod renderer;
mod tap;
pub mod step;
pub mod plan;
pub mod strategy;
pub mod fit;

use std::io;
use std::path::PathBuf;

use crate::checkpoint::run::RunError;

/// Why a run stopped before its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A checkpoint could not be written, or did not fit.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The log could not be written.
    #[error("{}: cannot write the log: {source}", path.display())]
    Log {
        /// The log.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A number that is none.
    #[error(
        "step {step}: training stopped, loss {loss}, gradient norm {norm}: NaN or infinity in \
         {place}; earlier checkpoints are intact, a lower learning rate may help"
    )]
    NonFinite {
        /// The step that was not completed, counted from 1.
        step: u64,
        /// Its loss.
        loss: f64,
        /// Its gradient norm.
        norm: f64,
        /// Layer and operand, or parameter.
        place: String,
    },
}
