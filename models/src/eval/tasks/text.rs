//! Any text: how well it is predicted, in bits per byte.
//!
//! Each file is one item. It is scored as it is, without the detokenization that WikiText's task
//! has, and bytes and words are those of the file.

use std::path::{Path, PathBuf};

use super::super::EvalError;
use super::super::jsonl::read_bytes;
use super::super::outcome::Measure;
use super::super::question::{Item, Question};
use super::Loaded;
use crate::data::fingerprint::Fingerprint;

/// The name of the task in results.
pub const NAME: &str = "text";

/// What is reported.
pub const MEASURES: &[Measure] = &[
    Measure::BitsPerByte,
    Measure::NatsPerToken,
    Measure::BytePerplexity,
    Measure::WordPerplexity,
];

/// Reads the files.
///
/// # Errors
/// [`EvalError`] with the file that is missing, empty or no text.
pub fn load(files: &[PathBuf]) -> Result<Loaded, EvalError> {
    let mut fingerprint = Fingerprint::default();
    let mut items = Vec::new();
    for path in files {
        let text = read(path)?;
        fingerprint.update(text.as_bytes());
        items.push(Item {
            subject: NAME.to_owned(),
            id: path.display().to_string(),
            question: Question::Text(text),
        });
    }
    Ok(Loaded {
        items,
        shots: 0,
        fingerprint: fingerprint.finish(),
    })
}

fn read(path: &Path) -> Result<String, EvalError> {
    let path = path.to_owned();
    let bytes = read_bytes(&path, NAME)?;
    if bytes.is_empty() {
        return Err(EvalError::Empty { path });
    }
    String::from_utf8(bytes).map_err(|error| EvalError::NotText {
        path,
        offset: error.utf8_error().valid_up_to(),
    })
}
