//! Ids by index, from wherever they lie: a part of a token file, or a range of a folder of shards.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::{DataError, Shards, Split, TokenFile};

/// A run of ids that windows are cut from.
#[derive(Clone, Debug)]
pub enum TokenStream {
    /// A part of a corpus that was tokenised for a run.
    File {
        /// The file.
        file: Arc<TokenFile>,
        /// Which part.
        split: Split,
    },
    /// A range of a folder of shards.
    Shards {
        /// The folder.
        shards: Arc<Shards>,
        /// Which ids.
        range: Range<u64>,
        /// What they are for, for messages.
        split: Split,
    },
}

impl TokenStream {
    /// Number of ids.
    pub fn tokens(&self) -> u64 {
        match self {
            Self::File { file, split } => file.tokens(*split),
            Self::Shards { range, .. } => range.end.saturating_sub(range.start),
        }
    }

    /// Copies the ids from index `start` on.
    ///
    /// # Errors
    /// [`DataError::Shard`] if a shard holds an id outside its vocabulary.
    ///
    /// # Panics
    /// If the range leaves the stream: callers cut windows by [`Self::tokens`].
    pub fn read(&self, start: u64, ids: &mut [i32]) -> Result<(), DataError> {
        match self {
            Self::File { file, split } => {
                file.read(*split, start, ids);
                Ok(())
            }
            Self::Shards { shards, range, .. } => {
                let end = start.checked_add(ids.len() as u64);
                assert!(
                    end.is_some_and(|end| end <= self.tokens()),
                    "ids {start}..+{} of {}",
                    ids.len(),
                    self.tokens()
                );
                shards.read(range.start + start, ids)
            }
        }
    }

    /// Where the ids lie, for messages.
    pub fn path(&self) -> &Path {
        match self {
            Self::File { file, .. } => file.corpus(),
            Self::Shards { shards, .. } => shards.folder(),
        }
    }

    /// What the ids are for.
    pub fn split(&self) -> Split {
        match self {
            Self::File { split, .. } | Self::Shards { split, .. } => *split,
        }
    }

    /// How many windows of `length` inputs and one target there are, stride `length`.
    ///
    /// # Errors
    /// [`DataError::TooShort`] if there is none.
    pub fn windows(&self, length: u64) -> Result<u64, DataError> {
        match self.tokens().saturating_sub(1) / length {
            0 => Err(DataError::TooShort {
                path: self.path().to_owned(),
                split: self.split(),
                tokens: self.tokens(),
                needed: length.saturating_add(1),
            }),
            windows => Ok(windows),
        }
    }
}
