//! Hugging Face directories with weights in 4 bits, of any architecture.
//!
//! [`quantize_directory`] makes one from a directory in 16 or 32 bits, [`dequantize_directory`]
//! goes back, [`inspect_directory`] says what 4 bits do to each weight. All three go through the
//! tensors one group at a time: memory is bounded by the largest tensor, not by the model.
//! [`export_run`] makes one from the parameters of a training run.

use std::path::PathBuf;

use crate::checkpoint::CheckpointError;
use crate::checkpoint::files::{CONFIG_FILE, INDEX_FILE, SINGLE_FILE};

mod config_text;
mod directory;
mod selection;
mod stream;
mod served_file;
mod weights;
mod quantize;
mod dequantize;
mod inspect;
mod export;
mod statistics;

pub use dequantize::dequantize_directory;
pub use directory::Force;
pub use export::{ExportOptions, Exported, TrainedRun, export_run};
pub use inspect::{Inspected, InspectedTensor, inspect_directory, is_quantized};
pub use quantize::{Progress, QuantizeOptions, Quantized, quantize_directory};
pub use selection::{DEFAULT_EXCLUDES, Kept, Selection};
pub use statistics::WeightStatistics;
pub use weights::WeightRule;

/// Why a directory cannot be quantized, dequantized or inspected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServingError {
    /// The directory cannot be read, or what is in it.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The weights are in 4 bits already.
    #[error("{}: the weights are quantized already ({method})", path.display())]
    Quantized {
        /// The configuration that says so.
        path: PathBuf,
        /// How.
        method: String,
    },
    /// There is nothing in 4 bits to read.
    #[error(
        "{}: it names no quantization_config, so its weights are not in 4 bits", path.display()
    )]
    NotQuantized {
        /// The configuration.
        path: PathBuf,
    },
    /// A directory in 4 bits without a weight, in 4 bits or not.
    #[error(
        "{}: it holds no weights: {SINGLE_FILE}, or the files that {INDEX_FILE} names, must hold a \
         tensor that is no scale of activations or of a cache", path.display()
    )]
    Empty {
        /// The directory.
        path: PathBuf,
    },
    /// No tensor can be quantized.
    #[error("{}: no tensor to quantize: {reasons}", path.display())]
    Nothing {
        /// The directory.
        path: PathBuf,
        /// Why each kind was left out.
        reasons: String,
    },
    /// A tensor has the name of a part of a weight in 4 bits.
    #[error("{key} is there already, and is what a part of a quantized weight would be called")]
    Taken {
        /// The tensor.
        key: String,
    },
    /// A weight that has no 4-bit form.
    #[error("{key} holds NaN or infinity, which 4 bits cannot stand for; exclude it or mend it")]
    NotFinite {
        /// The tensor.
        key: String,
    },
    /// A linear whose forward is in 4 bits that servers do not read.
    #[error("{key}: its 4-bit weight cannot be served: {reason}")]
    NotServed {
        /// The tensor.
        key: String,
        /// Why not.
        reason: String,
    },
    /// A run without weights in 4 bits.
    #[error(
        "no linear of this checkpoint multiplies a 4-bit weight in forward; export it with \
         `--format high-precision` and quantize that with `nvfp4 quantize`"
    )]
    NoQuantizedForward,
    /// A glob that does not parse.
    #[error("{pattern}: not a pattern: {source}")]
    Pattern {
        /// The glob.
        pattern: String,
        /// What is wrong with it.
        source: globset::Error,
    },
    /// A glob that matches nothing, probably misspelt.
    #[error("{pattern}: no tensor of the directory has such a name")]
    Unmatched {
        /// The glob.
        pattern: String,
    },
    /// The output is there already.
    #[error("{}: it exists; --force replaces it", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// The output is there and is nothing that may be replaced.
    #[error("{}: it holds no {CONFIG_FILE}, so --force does not replace it", path.display())]
    NotACheckpoint {
        /// The output.
        path: PathBuf,
    },
    /// The output is the input, or holds it.
    #[error("{}: the output may not be the input, nor hold it", path.display())]
    InPlace {
        /// The output.
        path: PathBuf,
    },
    /// The place beside the output, where it is written first, is taken.
    #[error(
        "{}: it is in the way of writing {}: an interrupted run has left it, or it is a folder of \
         yours; move or remove it", aside.display(), output.display()
    )]
    InTheWay {
        /// What is there.
        aside: PathBuf,
        /// The output.
        output: PathBuf,
    },
    /// The configuration is not a JSON object.
    #[error("{}: not a JSON object", path.display())]
    Config {
        /// The file.
        path: PathBuf,
    },
    /// The two directories to be compared do not hold the same model.
    #[error("{key}: {} has it as {found}, {} has it not like that", quantized.display(),
        original.display())]
    Differs {
        /// The tensor.
        key: String,
        /// Its shape there.
        found: String,
        /// The quantized directory.
        quantized: PathBuf,
        /// The directory to compare with.
        original: PathBuf,
    },
    /// The file system, or the format of a file.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
}

impl ServingError {
    fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            path,
            action,
            source,
        }
    }
}
