//! Text in, batches of token windows out.
//!
//! For a run on one text: [`source`] gathers files, [`tokenizer`] turns text into ids and back
//! ([`text_stream`]: as they come), [`tokens`] keeps them in a memory-mapped file. For corpora of
//! any size: [`documents`] reads files, `encoder` encodes them on all cores, [`shards`] keep the
//! ids, [`tokenize`] does it all. Then [`mixture`] blends sources ([`blend`]: which source,
//! [`order`]: which window), and [`batches`] cuts windows by position.
//!
//! No model types and no state: which tokens a micro-batch holds is a function of the seed, the
//! step and the index of the micro-batch alone, so a resumed run reads what the first would have.

pub mod fingerprint;
pub mod guard;
pub mod tokenizer;
pub mod text_stream;
pub mod source;
pub mod floors;
pub mod tokens;
pub mod documents;
mod encoder;
pub mod shards;
pub mod tokenize;
pub mod stream;
pub mod order;
pub mod blend;
pub mod mixture;
pub mod batches;
pub mod dataset;

use std::io;
use std::path::PathBuf;

pub use batches::{BatchShape, TokenBatch, TrainBatches, UnevenBatch, ValidationBatches};
pub use blend::{Blend, BlendError, Curriculum, Weight};
pub use dataset::Dataset;
pub use floors::{ByteCounts, Floors};
pub use mixture::Mixture;
pub use shards::Shards;
pub use source::Corpus;
pub use stream::TokenStream;
pub use text_stream::TextStream;
pub use tokenizer::Tokenizer;
pub use tokens::{Split, TokenFile};

/// What is wrong with the data of a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// Nothing at the path.
    #[error("{}: no such file or folder", path.display())]
    Missing {
        /// What was asked for.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What was tried, e.g. `read`.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A file without a byte.
    #[error("{}: the file is empty; text to train on is needed", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Not text.
    #[error(
        "{}: not text: {what} at byte {offset}; plain UTF-8 text is needed", path.display()
    )]
    Binary {
        /// The file.
        path: PathBuf,
        /// What was found, e.g. `a NUL byte`.
        what: &'static str,
        /// Where.
        offset: usize,
    },
    /// A folder in which nothing can be used.
    #[error(
        "{}: no text file in this folder ({skipped}); plain UTF-8 text is needed",
        path.display()
    )]
    NoText {
        /// The folder.
        path: PathBuf,
        /// What was passed over.
        skipped: source::Skipped,
    },
    /// Fewer tokens than one window.
    #[error(
        "{}: the {split} part has {tokens} tokens, one sequence needs {needed}; give more text or \
         a shorter sequence", path.display()
    )]
    TooShort {
        /// The data.
        path: PathBuf,
        /// `training` or `validation`.
        split: Split,
        /// How many tokens there are.
        tokens: u64,
        /// How many one window takes.
        needed: u64,
    },
    /// A tokenizer file that cannot be used.
    #[error("{}: not a usable tokenizer.json: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Text that the tokenizer refuses.
    #[error("{}: the tokenizer cannot encode it: {reason}", path.display())]
    Encode {
        /// The text.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Ids that the model has no embedding for.
    #[error(
        "the tokenizer has {tokenizer} ids and the model a vocabulary of {model}; \
         the model needs at least {tokenizer}"
    )]
    Vocabulary {
        /// Ids of the tokenizer.
        tokenizer: usize,
        /// Rows of the embedding.
        model: usize,
    },
    /// A line or a row that holds no text.
    #[error("{}: {unit} {number}: {reason}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// `line` or `row`.
        unit: &'static str,
        /// Which one, counted from 1.
        number: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A parquet file that cannot be used.
    #[error("{}: no parquet file to take texts from: {reason}", path.display())]
    Columns {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A shard, or the manifest of a folder of shards, that is not as it was written.
    #[error(
        "{}: damaged tokens: {reason}; `nvfp4 tokenize` makes them anew", path.display()
    )]
    Shard {
        /// The file.
        path: PathBuf,
        /// What does not hold.
        reason: String,
    },
    /// A folder of shards without a manifest.
    #[error(
        "{}: no finished tokens: there is no {}; `nvfp4 tokenize` writes it last",
        path.display(),
        shards::MANIFEST
    )]
    Incomplete {
        /// The folder.
        path: PathBuf,
    },
    /// A folder that another process writes to.
    #[error(
        "{}: another process writes tokens there; wait for it, or name another folder",
        path.display()
    )]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// A folder that holds something else than what is to be written there.
    #[error("{}: {reason}", path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
        /// What it holds, and what can be done.
        reason: String,
    },
    /// Tokens of another tokenizer than the run's.
    #[error(
        "{}: made by another tokenizer ({made_by}) than the run's ({run}); data.tokenizer has to \
         name the same one", path.display()
    )]
    OtherTokenizer {
        /// The folder of tokens.
        path: PathBuf,
        /// What the manifest says.
        made_by: String,
        /// The run's.
        run: String,
    },
    /// Shards without anything to validate on.
    #[error(
        "{}: nothing to validate on; data.validation = {{ hold_out = 0.01 }} holds out the last \
         hundredth of every source, {{ path = \"..\" }} names a folder of tokens", path.display()
    )]
    NothingHeldOut {
        /// The folder of tokens.
        path: PathBuf,
    },
    /// A token file that is not as it was written.
    #[error("{}: damaged token file: {reason}; delete it and it is made anew", path.display())]
    Damaged {
        /// The token file.
        path: PathBuf,
        /// What does not hold.
        reason: String,
    },
}

impl DataError {
    /// Wraps an I/O error with what was tried on which path.
    pub(crate) fn io(
        path: impl Into<PathBuf>,
        action: &'static str,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| {
            if action == "read" && source.kind() == io::ErrorKind::NotFound {
                Self::Missing { path }
            } else {
                Self::Io {
                    path,
                    action,
                    source,
                }
            }
        }
    }
}
