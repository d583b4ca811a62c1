//! Models on disk: [`hf`] in the published layout, [`run`] with all that a run continues from.
//! [`files`] maps the tensors of a directory.

use std::path::{Path, PathBuf};

use crate::config::ConfigError;

pub mod files;
pub(crate) mod quantized;
pub mod hf;
pub mod run;

/// Why a checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file or folder could not be opened, read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The configuration is not one of a model.
    #[error("{} is not a usable configuration", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ConfigError,
    },
    /// The tensors are not those of the configuration. All problems, not only the first.
    #[error("{} does not hold the model of its configuration:{}", dir.display(), list(problems))]
    Rejected {
        /// The folder.
        dir: PathBuf,
        /// Every problem that was found.
        problems: Vec<Problem>,
    },
    /// The weights are quantized in a way that is not read here.
    #[error(
        "{}: quantization_config names {method}; read are modelopt NVFP4 and compressed-tensors \
         nvfp4-pack-quantized", path.display()
    )]
    UnknownQuantization {
        /// The file.
        path: PathBuf,
        /// What it names.
        method: String,
    },
    /// Writing would mix with files of another checkpoint.
    #[error("{} already holds a checkpoint", path.display())]
    Occupied {
        /// A file that is in the way.
        path: PathBuf,
    },
    /// A tensor file could not be written.
    #[error("cannot write tensors to {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the format says.
        #[source]
        source: safetensors::SafeTensorError,
    },
}

impl CheckpointError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io {
            action,
            path: path.into(),
            source,
        }
    }
}

/// One thing that is wrong with a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// A file is not there, truncated, or damaged.
    #[error("{file} is unreadable: {reason}")]
    UnreadableFile {
        /// File name.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// A tensor of the model is in no file.
    #[error("{key} is missing")]
    Missing {
        /// Checkpoint key.
        key: String,
    },
    /// A tensor is not one of the model.
    #[error("{key} in {file} is not part of the model")]
    Unexpected {
        /// Checkpoint key.
        key: String,
        /// File name.
        file: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("{key} has shape {found:?}, the configuration says {expected:?}")]
    Misshapen {
        /// Checkpoint key.
        key: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape in the model.
        expected: Vec<usize>,
    },
    /// A tensor holds no floating-point numbers that can be read.
    #[error("{key} has dtype {dtype}, expected F32, BF16 or F16")]
    UnsupportedDtype {
        /// Checkpoint key.
        key: String,
        /// Dtype in the file.
        dtype: String,
    },
    /// A part of a weight in 4 bits is in no file.
    #[error("{key} is missing, and {linear} cannot be decoded without it")]
    MissingPart {
        /// Checkpoint key.
        key: String,
        /// The linear.
        linear: String,
    },
    /// A part of a weight in 4 bits is stored as something else.
    #[error("{key} has dtype {found}, expected {expected}")]
    PartDtype {
        /// Checkpoint key.
        key: String,
        /// Dtype in the file.
        found: String,
        /// Dtype of the format.
        expected: String,
    },
    /// A weight in 4 bits holds what no quantizer writes.
    #[error("{linear}: {reason}")]
    BadQuantization {
        /// The linear.
        linear: String,
        /// What is wrong.
        reason: String,
    },
    /// A tensor is in two files, or under two prefixes.
    #[error("{key} is in {first} and again in {second}")]
    Duplicate {
        /// Checkpoint key.
        key: String,
        /// File of one copy.
        first: String,
        /// File of the other copy.
        second: String,
    },
}

/// One problem per line.
fn list(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(|problem| format!("\n  {problem}"))
        .collect()
}
