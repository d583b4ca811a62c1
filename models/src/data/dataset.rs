//! What a run reads: its sources opened, its training mixture, and what it is validated on.
//!
//! A source is a folder of shards, or text, which is tokenised into a cache first. Text is split as
//! [`TokenFile`] says. Of shards, a share at the end is held out, from the start of a document on,
//! or nothing where a folder of its own is for validation.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::shards::{MANIFEST, Shards};
use super::{
    ByteCounts, Corpus, Curriculum, DataError, Mixture, Split, TokenFile, TokenStream, Tokenizer,
    fingerprint::Fingerprint,
};

/// Tokens of the mixture whose text gives the byte counts of a run on shards.
const SAMPLE: u64 = 1 << 20;

/// What a run on shards is validated on.
#[derive(Clone, Debug, PartialEq)]
pub enum HeldOut {
    /// This share of each source, at its end.
    Share(f64),
    /// A folder of shards.
    Folder(PathBuf),
}

/// An open source.
#[derive(Clone, Debug)]
enum Opened {
    File(Arc<TokenFile>),
    Shards(Arc<Shards>),
}

/// The data of a run.
#[derive(Clone, Debug)]
pub struct Dataset {
    name: PathBuf,
    sources: Vec<Opened>,
    mixture: Arc<Mixture>,
    /// Streams with their share of the validation windows.
    held_out: Vec<(TokenStream, f64)>,
    fingerprint: u64,
    validation_fingerprint: Option<u64>,
}

/// How the sources of a run are read.
#[derive(Clone, Debug)]
pub struct Reading {
    /// In which order the sources follow each other.
    pub curriculum: Curriculum,
    /// Sequences of the whole run.
    pub sequences: u64,
    /// Tokens of a sequence.
    pub length: NonZeroUsize,
    /// Seed of the order within the sources.
    pub seed: u64,
}

impl Dataset {
    /// The data of a run on one text.
    ///
    /// # Errors
    /// [`DataError::TooShort`].
    pub fn of_file(file: TokenFile, length: NonZeroUsize, seed: u64) -> Result<Self, DataError> {
        let file = Arc::new(file);
        let split = Split::Validation;
        let held_out = TokenStream::File {
            file: file.clone(),
            split,
        };
        Ok(Self {
            name: file.corpus().to_owned(),
            fingerprint: file.fingerprint(),
            validation_fingerprint: None,
            mixture: Arc::new(Mixture::of_file(file.clone(), length, seed)?),
            sources: vec![Opened::File(file)],
            held_out: vec![(held_out, 1.0)],
        })
    }

    /// Opens sources at these paths; text is tokenised into `cache`.
    ///
    /// # Errors
    /// Any [`DataError`] about them: missing, damaged, of another tokenizer, too short.
    pub fn open(
        paths: &[PathBuf],
        held_out: Option<&HeldOut>,
        reading: Reading,
        tokenizer: &Tokenizer,
        cache: &Path,
    ) -> Result<Self, DataError> {
        let open = |path: &PathBuf| {
            if is_tokens(path) {
                shards(path, tokenizer).map(Opened::Shards)
            } else {
                let corpus = Corpus::at(path)?;
                let file = TokenFile::prepare(&corpus, tokenizer, cache)?;
                Ok(Opened::File(Arc::new(file)))
            }
        };
        let sources = paths.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let counts = reading.curriculum.counts(0..reading.sequences);
        let (mut train, mut valid) = (Vec::new(), Vec::new());
        for (source, count) in sources.iter().zip(counts) {
            let (training, validation) = source.split(held_out)?;
            train.push(training);
            let share = count as f64 / reading.sequences.max(1) as f64;
            valid.extend(
                validation
                    .filter(|_| count > 0)
                    .map(|stream| (stream, share)),
            );
        }
        let mut fingerprint = Fingerprint::default();
        for source in &sources {
            fingerprint.update(&source.fingerprint().to_le_bytes());
        }
        let mut validation_fingerprint = None;
        if let Some(HeldOut::Folder(path)) = held_out {
            let shards = shards(path, tokenizer)?;
            validation_fingerprint = Some(shards.fingerprint());
            let range = 0..shards.tokens();
            let split = Split::Validation;
            valid = vec![(
                TokenStream::Shards {
                    shards,
                    range,
                    split,
                },
                1.0,
            )];
        }
        let Reading {
            curriculum,
            length,
            seed,
            ..
        } = reading;
        Ok(Self {
            name: paths
                .iter()
                .map(|path| path.display().to_string())
                .collect::<Vec<_>>()
                .join(", ")
                .into(),
            mixture: Arc::new(Mixture::new(train, curriculum, length, seed)?),
            sources,
            held_out: valid,
            fingerprint: fingerprint.finish(),
            validation_fingerprint,
        })
    }

    /// What was asked for, for messages.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// The training sequences.
    pub fn mixture(&self) -> &Arc<Mixture> {
        &self.mixture
    }

    /// The one text of a run on a text.
    pub fn file(&self) -> Option<&TokenFile> {
        match &self.sources[..] {
            [Opened::File(file)] => Some(file),
            _ => None,
        }
    }

    /// Streams to validate on, with the windows of each, `count` in all: in the proportions in
    /// which the run reads the sources, and at least one of each.
    pub fn validation(&self, count: NonZeroUsize) -> Vec<(TokenStream, u64)> {
        let total: f64 = self.held_out.iter().map(|(_, share)| share).sum();
        let (mut given, mut sum) = (0, 0.0);
        let mut out = Vec::new();
        for (stream, share) in &self.held_out {
            // Rounded sums, so that the parts add up to the whole.
            sum += share;
            let until = share_of(sum / total, count.get() as u64);
            let windows = until.saturating_sub(given).max(1);
            given = until;
            out.push((stream.clone(), windows));
        }
        out
    }

    /// Equal for equal sources and tokenizer. A folder of its own for validation is not in it, so
    /// that a run may be resumed with another one.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Equal for equal tokens in the folder that is for validation; `None` where a part of the
    /// sources is held out, which [`Self::fingerprint`] is of.
    pub fn validation_fingerprint(&self) -> Option<u64> {
        self.validation_fingerprint
    }

    /// Number of training tokens, or of those held out.
    pub fn tokens(&self, split: Split) -> u64 {
        match split {
            Split::Training => self.mixture.sources().map(TokenStream::tokens).sum(),
            Split::Validation => self
                .held_out
                .iter()
                .map(|(stream, _)| stream.tokens())
                .sum(),
        }
    }

    /// Bytes per training token, averaged over the sources as they are, not as they are blended.
    pub fn bytes_per_token(&self) -> f64 {
        let sum = |part: &dyn Fn(&Opened) -> u64| self.sources.iter().map(part).sum::<u64>();
        let bytes = sum(&|source| match source {
            Opened::File(file) => file.bytes(Split::Training),
            Opened::Shards(shards) => shards.manifest().bytes,
        });
        let tokens = sum(&|source| match source {
            Opened::File(file) => file.tokens(Split::Training),
            Opened::Shards(shards) => shards.tokens(),
        });
        bytes as f64 / tokens.max(1) as f64
    }

    /// Counts of byte pairs: of the whole training text of a run on a text, and otherwise of the
    /// text of the first million tokens of the mixture.
    ///
    /// # Errors
    /// [`DataError::Shard`] if a shard holds an id outside its vocabulary.
    pub fn counts(&self, tokenizer: &Tokenizer) -> Result<ByteCounts, DataError> {
        if let Some(file) = self.file() {
            return Ok(file.counts().clone());
        }
        let mut counts = ByteCounts::default();
        let length = self.mixture.length();
        let mut window = vec![0; usize::try_from(length).unwrap_or(0)];
        for sequence in 0..SAMPLE.div_ceil(length) {
            self.mixture.read(sequence, &mut window)?;
            let ids: Vec<_> = window.iter().map(|id| id.cast_unsigned()).collect();
            counts.add_document(&tokenizer.decode(&ids));
        }
        Ok(counts)
    }
}

impl Opened {
    fn fingerprint(&self) -> u64 {
        match self {
            Self::File(file) => file.fingerprint(),
            Self::Shards(shards) => shards.fingerprint(),
        }
    }

    /// What is trained on, and what is held out.
    fn split(
        &self,
        held_out: Option<&HeldOut>,
    ) -> Result<(TokenStream, Option<TokenStream>), DataError> {
        Ok(match (self, held_out) {
            (Self::File(file), _) => {
                let part = |split| TokenStream::File {
                    file: file.clone(),
                    split,
                };
                (part(Split::Training), Some(part(Split::Validation)))
            }
            (Self::Shards(shards), Some(held_out)) => {
                let part = |range, split| TokenStream::Shards {
                    shards: shards.clone(),
                    range,
                    split,
                };
                let all = shards.tokens();
                match held_out {
                    HeldOut::Folder(_) => (part(0..all, Split::Training), None),
                    HeldOut::Share(share) => {
                        let cut = shards.document_start(share_of(1.0 - share, all));
                        let rest = part(cut..all, Split::Validation);
                        (part(0..cut, Split::Training), Some(rest))
                    }
                }
            }
            (Self::Shards(shards), None) => {
                return Err(DataError::NothingHeldOut {
                    path: shards.folder().to_owned(),
                });
            }
        })
    }
}

/// True for a folder that `nvfp4 tokenize` wrote.
pub fn is_tokens(path: &Path) -> bool {
    path.join(MANIFEST).is_file()
}

/// Opens a folder of shards of this tokenizer.
fn shards(path: &Path, tokenizer: &Tokenizer) -> Result<Arc<Shards>, DataError> {
    let shards = Shards::open(path)?;
    if shards.header().tokenizer != tokenizer.fingerprint() {
        return Err(DataError::OtherTokenizer {
            path: path.to_owned(),
            made_by: shards.manifest().tokenizer.clone(),
            run: tokenizer.name(),
        });
    }
    Ok(Arc::new(shards))
}

/// A share of a count, rounded to the nearest.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share in [0, 1]; the cast saturates, and the minimum bounds it"
)]
fn share_of(share: f64, count: u64) -> u64 {
    ((share * count as f64).round() as u64).min(count)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::num::NonZeroU64;

    use super::*;
    use crate::data::documents::{Inputs, Layout, TextDocuments};
    use crate::data::tokenize::{Existing, Job, tokenize};

    /// A folder of tokens of this text.
    fn tokens(folder: &Path, name: &str, text: &str) -> PathBuf {
        let (path, out) = (folder.join(format!("{name}.txt")), folder.join(name));
        fs::write(&path, text).unwrap();
        let job = Job {
            inputs: &Inputs::find(&[path]).unwrap(),
            layout: &Layout {
                text: TextDocuments::BlankLine,
                field: "text".to_owned(),
            },
            tokenizer: &Tokenizer::Bytes,
            folder: &out,
            shard_tokens: NonZeroU64::new(1000).unwrap(),
            threads: NonZeroUsize::MIN,
            existing: Existing::Keep,
        };
        tokenize(job, &mut |_| {}).unwrap();
        out
    }

    /// Nothing told a folder for validation from another one: a study paired runs across them.
    #[test]
    fn a_folder_for_validation_has_a_fingerprint_and_is_in_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        let train = tokens(folder, "train", &"one and two\n\n".repeat(50));
        let [first, second] =
            ["first", "second"].map(|name| tokens(folder, name, &format!("{name}\n\n").repeat(20)));
        let open = |held_out: &HeldOut| {
            let reading = Reading {
                curriculum: Curriculum::single(),
                sequences: 10,
                length: NonZeroUsize::new(16).unwrap(),
                seed: 1,
            };
            let paths = std::slice::from_ref(&train);
            Dataset::open(paths, Some(held_out), reading, &Tokenizer::Bytes, folder).unwrap()
        };
        let (a, b) = (
            open(&HeldOut::Folder(first)),
            open(&HeldOut::Folder(second)),
        );
        assert!(a.validation_fingerprint().is_some());
        assert_ne!(a.validation_fingerprint(), b.validation_fingerprint());
        // That of the sources, which is in the identity of runs, knows nothing of it.
        let held_out = open(&HeldOut::Share(0.1));
        assert_eq!(held_out.validation_fingerprint(), None);
        assert_eq!(a.fingerprint(), b.fingerprint());
        assert_eq!(a.fingerprint(), held_out.fingerprint());
    }
}
