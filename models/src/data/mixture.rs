//! Several sources as one endless run of sequences: which tokens a sequence holds is a function of
//! the seed and its number.
//!
//! 1. [`Curriculum`]: sequence `n` of the run is number `k` of source `i`.
//! 2. [`WindowOrder`]: number `k` of a source is one of its windows; each epoch visits every window
//!    once, in an order of its own for each seed, source and epoch.
//! 3. The window is read from the source's ids, document after document: a sequence may begin
//!    within a document and hold the ends of several, the separators count in the loss, and nothing
//!    is masked, as is usual in pretraining (Megatron-LM's GPT dataset without `--reset-*`).
//!
//! Nothing is stored but counts, so resuming at a step needs none of the steps before.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use super::blend::Curriculum;
use super::order::{WindowOrder, mix};
use super::{DataError, Split, TokenFile, TokenStream};

/// The sources of a run and the order in which they are read.
#[derive(Clone, Debug)]
pub struct Mixture {
    sources: Vec<(TokenStream, WindowOrder)>,
    curriculum: Curriculum,
    length: u64,
}

/// Where a sequence of a run comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the source.
    pub source: usize,
    /// How often the whole source was read before.
    pub epoch: u64,
    /// Window of the source.
    pub window: u64,
}

impl Mixture {
    /// Windows of `length` tokens of some sources, blended by `curriculum`, which is of as many.
    ///
    /// # Errors
    /// [`DataError::TooShort`] if a source has none.
    pub fn new(
        streams: Vec<TokenStream>,
        curriculum: Curriculum,
        length: NonZeroUsize,
        seed: u64,
    ) -> Result<Self, DataError> {
        let length = length.get() as u64;
        let mut sources = Vec::with_capacity(streams.len());
        for (index, stream) in streams.into_iter().enumerate() {
            // The first source has the order that it would have alone.
            let seed = match index {
                0 => seed,
                index => mix(seed ^ mix(index as u64)),
            };
            let order = WindowOrder::new(seed, stream.windows(length)?);
            sources.push((stream, order));
        }
        Ok(Self {
            sources,
            curriculum,
            length,
        })
    }

    /// The training part of one token file.
    ///
    /// # Errors
    /// [`DataError::TooShort`] if it is shorter than one window.
    pub fn of_file(
        file: Arc<TokenFile>,
        length: NonZeroUsize,
        seed: u64,
    ) -> Result<Self, DataError> {
        let split = Split::Training;
        let stream = TokenStream::File { file, split };
        Self::new(vec![stream], Curriculum::single(), length, seed)
    }

    /// The sources, in the order of their indices.
    pub fn sources(&self) -> impl Iterator<Item = &TokenStream> {
        self.sources.iter().map(|(stream, _)| stream)
    }

    /// Windows of all sources together.
    pub fn windows(&self) -> u64 {
        let windows = self.sources.iter().map(|(_, order)| order.windows());
        windows.fold(0, u64::saturating_add)
    }

    /// Tokens of a sequence.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Where a sequence of the run comes from.
    pub fn place(&self, sequence: u64) -> Place {
        let (source, number) = self.curriculum.place(sequence);
        let order = &self.sources[source].1;
        Place {
            source,
            epoch: number / order.windows(),
            window: order.window(number),
        }
    }

    /// How often each source is gone through by some sequences of the run.
    pub fn epochs(&self, sequences: Range<u64>) -> Vec<f64> {
        let counts = self.curriculum.counts(sequences);
        let windows = self.sources.iter().map(|(_, order)| order.windows());
        counts
            .into_iter()
            .zip(windows)
            .map(|(count, windows)| count as f64 / windows as f64)
            .collect()
    }

    /// Copies a sequence and the token behind it.
    ///
    /// # Errors
    /// [`DataError::Shard`] if a shard holds an id outside its vocabulary.
    ///
    /// # Panics
    /// If `ids` is longer than a window and its target.
    pub fn read(&self, sequence: u64, ids: &mut [i32]) -> Result<(), DataError> {
        let place = self.place(sequence);
        let (stream, _) = &self.sources[place.source];
        stream.read(place.window * self.length, ids)
    }
}
