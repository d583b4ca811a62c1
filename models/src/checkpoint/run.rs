//! Run checkpoints: everything from which a run continues to the same bits.
//!
//! ```text
//! runs/<name>/
//!     run.lock                     held by the process that trains
//!     config.toml                  the resolved configuration
//!     log.jsonl                    what happened
//!     checkpoints/step-00000120/
//!         parameters.safetensors   every parameter by name, exact
//!         moments.safetensors      both AdamW moments of every parameter, exact
//!         carried.safetensors      what the arithmetic carries from step to step, exact; only
//!                                  where it carries something
//!         state.json               position, versions, what must agree on resume, configuration
//!         SUMS                     fingerprint, size and name of each file above, and of itself
//! ```
//!
//! There is no generator state, no state of the schedule and no shuffled order to save: random
//! bits, learning rate and batches are functions of the seed and the [`Position`]. A checkpoint is
//! written beside its place, synced and renamed ([`crate::durable`]), by a thread of its own
//! ([`writer`]); older ones go only after the new one stands. Loading checks sizes and
//! fingerprints before it believes anything.

pub(crate) mod stored;
mod differences;
mod directory;
pub mod writer;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::PathBuf;

use burn::tensor::{DType, TensorData};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::HybridConfig;

pub use differences::differences;
pub use directory::{Found, RunDirectory, RunLock};

/// Beginning of the names under which a checkpoint carries what the backend does.
pub(crate) const OF_BACKEND: &str = "numerics.";

/// Tensors by name.
pub type NamedTensors = BTreeMap<String, TensorData>;

/// What is wrong with a run directory or a checkpoint in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A new run would write into an old one.
    #[error(
        "{}: a run is already there; continue it with --resume or choose another --out",
        path.display()
    )]
    Exists {
        /// The run directory.
        path: PathBuf,
    },
    /// Another process trains there.
    #[error("{}: another process trains this run; wait for it or stop it", path.display())]
    Busy {
        /// The run directory.
        path: PathBuf,
    },
    /// Nothing to resume.
    #[error("{}: no checkpoint to resume from; start the run without --resume", path.display())]
    NoCheckpoint {
        /// The run directory.
        path: PathBuf,
    },
    /// The step that was asked for has none.
    #[error("{}: no checkpoint of step {step}; there are {}", path.display(), list(available))]
    NoSuchStep {
        /// The run directory.
        path: PathBuf,
        /// The step.
        step: u64,
        /// Steps with a checkpoint.
        available: Vec<u64>,
    },
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A checkpoint is not as it was written.
    #[error(
        "{}: damaged checkpoint: {}; resume from another one with --resume=STEP",
        path.display(), problems.join("; ")
    )]
    Damaged {
        /// The checkpoint.
        path: PathBuf,
        /// Everything that does not hold.
        problems: Vec<String>,
    },
    /// No checkpoint is as it was written.
    #[error(
        "{}: every checkpoint is damaged: {}; nothing was changed, nothing can be resumed",
        path.display(), problems.join("; ")
    )]
    AllDamaged {
        /// The run directory.
        path: PathBuf,
        /// Checkpoint and problems, one each.
        problems: Vec<String>,
    },
    /// A checkpoint of another model.
    #[error("{}: the checkpoint does not fit the model: {}", path.display(), problems.join("; "))]
    Misfit {
        /// The checkpoint.
        path: PathBuf,
        /// Every missing, misshapen or unexpected tensor.
        problems: Vec<String>,
    },
    /// A run that is not the one that the checkpoint belongs to.
    #[error(
        "{}: this run differs from the one to be resumed: {}; nothing was changed",
        path.display(), differences.join("; ")
    )]
    Differs {
        /// The checkpoint.
        path: PathBuf,
        /// Every difference: what, the value there, the value here.
        differences: Vec<String>,
    },
    /// A tensor in a dtype that is not kept.
    #[error("{name}: dtype {dtype} cannot be saved, f32 is what the run keeps its state in")]
    Dtype {
        /// The tensor.
        name: String,
        /// Its dtype.
        dtype: String,
    },
}

impl RunError {
    fn io(path: impl Into<PathBuf>, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            path,
            action,
            source,
        }
    }
}

fn list(steps: &[u64]) -> String {
    steps
        .iter()
        .map(u64::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// How far a run is and what it has met: all that the next step depends on besides tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Steps that are over, those without an update among them: what the schedule and random
    /// rounding go by.
    pub step: u64,
    /// Updates of the optimizer: what AdamW's bias correction goes by.
    pub updates: u64,
    /// Steps of data that were drawn. More than `step` after a rewind, which draws on.
    pub data_step: u64,
    /// Steps whose update was left out.
    pub skipped: u64,
    /// Non-finite steps in a row up to here.
    pub non_finite_in_a_row: u64,
    /// Outlying losses in a row up to here.
    pub outliers_in_a_row: u64,
    /// How often the run went back.
    pub rewinds: u64,
    /// Latest losses that the spike guard compares with, as bits: decimal digits may lose one.
    pub recent_losses: VecDeque<u64>,
    /// The checkpoint with the lowest validation loss.
    pub best: Option<Best>,
    /// Length of the log at this position.
    pub log_bytes: u64,
}

/// The checkpoint with the lowest validation loss so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Its step.
    pub step: u64,
    /// Validation loss with the recipe's forward, nats per token.
    pub loss: f64,
}

/// What wrote a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Versions {
    /// This package.
    pub nvfp4: String,
    /// Burn, whose arithmetic everything but the quantized linears is.
    pub burn: String,
}

impl Versions {
    /// Those of this program.
    pub fn current() -> Self {
        Self {
            nvfp4: env!("CARGO_PKG_VERSION").to_owned(),
            burn: "0.21.0".to_owned(),
        }
    }
}

/// The part of a checkpoint that is not tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    /// Layout of the checkpoint.
    pub version: u32,
    /// How far the run is.
    pub position: Position,
    /// What wrote it.
    pub versions: Versions,
    /// What a resumed run must share: model, recipe, data, seed, batch, optimizer, schedule.
    pub identity: Value,
    /// The whole resolved configuration, as TOML: reading JSON may lose the last bit of a number.
    pub config: String,
}

impl RunState {
    /// The layout that is written and read.
    pub const VERSION: u32 = 2;
}

/// A checkpoint in memory.
#[derive(Clone, Debug)]
pub struct RunCheckpoint {
    /// Position, identity, configuration.
    pub state: RunState,
    /// The model.
    pub parameters: NamedTensors,
    /// The optimizer.
    pub moments: NamedTensors,
    /// What the arithmetic carries from step to step.
    pub carried: NamedTensors,
}

impl RunCheckpoint {
    /// Steps that are over.
    pub fn step(&self) -> u64 {
        self.state.position.step
    }

    /// Every way in which the parameters are not those of a model.
    pub fn parameter_problems(&self, config: &HybridConfig) -> Vec<String> {
        let mut problems = Vec::new();
        let specs = config.params();
        for spec in &specs {
            match self.parameters.get(&spec.name) {
                None => problems.push(format!("{} is missing", spec.name)),
                Some(data) if data.shape.to_vec() != spec.shape || data.dtype != DType::F32 => {
                    problems.push(format!(
                        "{} is {:?} {:?}, the model has F32 {:?}",
                        spec.name,
                        data.dtype,
                        data.shape.to_vec(),
                        spec.shape
                    ));
                }
                Some(_) => {}
            }
        }
        let known: BTreeSet<_> = specs.iter().map(|spec| &spec.name).collect();
        let unknown = self.parameters.keys().filter(|name| !known.contains(name));
        problems.extend(unknown.map(|name| format!("{name} is not part of the model")));
        problems
    }
}

#[cfg(test)]
mod tests;
