//! How well a model answers: the tasks, prompts and scores of lm-evaluation-harness 0.4.13.
//!
//! 1. [`tasks`] reads a task's files into [`question`]s, few-shot examples included.
//! 2. [`encode`] turns each into token ids, once the window is known.
//! 3. [`score`] asks for log-likelihoods, in the batches that [`plan`] makes; [`generate_until`]
//!    lets the model write.
//! 4. [`outcome`] judges each item ([`answers`] for what was written), [`summary`] adds them up
//!    with the arithmetic of [`stats`].
//! 5. [`results`] keeps every item in a file; [`compare`] takes two of them, item by item.
//!
//! Prompts are data of the published tasks and are kept to the letter, so that figures can be set
//! beside those of others; the same weights give the harness's log-likelihoods up to rounding.
//! Nothing that a model writes is ever run.

use std::io;
use std::path::PathBuf;

use crate::data::DataError;
use crate::generate::GenerateError;

pub mod question;
mod jsonl;
pub mod python_random;
pub mod tasks;
pub mod encode;
pub mod plan;
pub mod score;
pub mod generate_until;
pub mod answers;
pub mod outcome;
pub mod stats;
pub mod summary;
pub mod results;
pub mod compare;
pub mod evaluator;

/// Why nothing could be evaluated or compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A file of a task that is not there.
    #[error("{}: no such file or folder; task {task} reads it there", path.display())]
    Missing {
        /// Where it is expected.
        path: PathBuf,
        /// Who expects it.
        task: &'static str,
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
    /// A line that is not what the task or the file of results needs.
    #[error("{}: line {line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A file without an item, or without a byte.
    #[error("{}: there is nothing to evaluate in it", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Text that is no UTF-8.
    #[error("{}: not text: invalid UTF-8 at byte {offset}", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: usize,
    },
    /// A task that is asked without examples only.
    #[error("task {task} takes no shots, {shots} are asked for")]
    NoShots {
        /// The task.
        task: &'static str,
        /// How many were asked for.
        shots: usize,
    },
    /// Fewer examples than asked for.
    #[error("{}: {found} examples{of}, {wanted} shots are asked for", path.display())]
    TooFewShots {
        /// The file of the examples.
        path: PathBuf,
        /// How many there are.
        found: usize,
        /// Of which subject, as ` of SUBJECT`, where subjects have their own.
        of: String,
        /// How many were asked for.
        wanted: usize,
    },
    /// A text that nothing precedes, and no token to put there.
    #[error(
        "item {item} has no context, and the tokenizer names no begin-of-text and knows no \
         end-of-text token to put in its place"
    )]
    NoBegin {
        /// The item.
        item: String,
    },
    /// A continuation that cannot be scored.
    #[error("item {item}: its continuation has {tokens} tokens, the model scores 1 to {window}")]
    Continuation {
        /// The item.
        item: String,
        /// Tokens of the continuation.
        tokens: usize,
        /// The model's window.
        window: usize,
    },
    /// A score that is no number.
    #[error("item {item}: the model's log-likelihood is {value}; its weights may be damaged")]
    NotFinite {
        /// The item.
        item: String,
        /// What the model gave.
        value: f64,
    },
    /// A prompt that leaves no room to write.
    #[error(
        "item {item}: the prompt has {tokens} tokens, the model's window is {window} \
         (max_position_embeddings)"
    )]
    Prompt {
        /// The item.
        item: String,
        /// Tokens of the prompt.
        tokens: usize,
        /// The model's window.
        window: usize,
    },
    /// A file of results without all the items that it announces.
    #[error("{}: {found} of {expected} items; the run did not finish", path.display())]
    Unfinished {
        /// The file.
        path: PathBuf,
        /// Items in it.
        found: usize,
        /// Items of the run.
        expected: usize,
    },
    /// Files of results that do not belong together.
    #[error("{} and {} cannot be compared: {reason}", a.display(), b.display())]
    Unpaired {
        /// One file.
        a: PathBuf,
        /// The other.
        b: PathBuf,
        /// Where they differ.
        reason: String,
    },
    /// A tokenizer that refuses a text.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A prompt that cannot be continued.
    #[error(transparent)]
    Generate(#[from] GenerateError),
}
