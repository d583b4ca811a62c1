//! Studies: the same model, data, order and seeds under a list of recipes, and what came of it.
//!
//! 1. [`plan`]: a study file as a run for each arm and seed.
//! 2. [`record`]: what the log of a run says.
//! 3. [`statistics`]: means, deviations, and what the noise of paired runs can resolve.
//! 4. [`gap`]: gaps to another run over the steps.
//! 5. [`outcome`]: the table of a study.
//!
//! Training is [`crate::train`]'s. Nothing here starts a run, prints, or writes.

pub mod plan;
pub mod record;
pub mod statistics;
pub mod gap;
pub mod outcome;

use std::io;
use std::path::PathBuf;

use crate::train::config::TrainConfigError;
use crate::train::log::LogError;

/// What is wrong with a study or the folder of one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StudyError {
    /// A file cannot be read.
    #[error("{}: cannot read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Not TOML, or not a study.
    #[error("{}: {reason}", path.display())]
    Study {
        /// The file.
        path: PathBuf,
        /// What is wrong, on one line.
        reason: String,
    },
    /// An arm that makes no run.
    #[error("{}: arm {arm:?}: {reason}", path.display())]
    Arm {
        /// The study's file.
        path: PathBuf,
        /// The arm.
        arm: String,
        /// What is wrong, on one line.
        reason: String,
    },
    /// A configuration in a run folder that cannot be used.
    #[error(transparent)]
    Config(#[from] TrainConfigError),
    /// A log that cannot be used.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A run in the place of another one.
    #[error(
        "{}: this run is not the one that the study asks for: {}; move it away or choose another \
         --out",
        path.display(), differences.join("; ")
    )]
    Differs {
        /// The folder of the run.
        path: PathBuf,
        /// Every difference: what, the value there, the value here.
        differences: Vec<String>,
    },
    /// Runs that read other texts or make other models.
    #[error(
        "{}: {here}, but {} has {there}: the runs of a study read the same tokens into the same \
         model", path.display(), other.display()
    )]
    OtherData {
        /// The folder of the run.
        path: PathBuf,
        /// The folder of an earlier one.
        other: PathBuf,
        /// Its tokens and its model.
        here: String,
        /// Those of the earlier one.
        there: String,
    },
}
