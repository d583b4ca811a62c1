//! Batches by position: which windows a micro-batch holds is a function of the seed and its place.
//!
//! Row `row` of micro-batch `micro` of step `step` is sequence `(step * accumulate + micro) *
//! sequences + row` of the run, and [`Mixture`] says which tokens a sequence holds. There is no
//! generator and no state but the position, so resuming needs none either.
//!
//! On several ranks a step holds the same sequences: rank `r` of `n` takes the `r`-th of `n` equal
//! parts, in as many micro-batches as every other rank ([`BatchShape::share`]).

use std::num::NonZeroUsize;
use std::sync::Arc;

use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use serde::{Deserialize, Serialize};

use super::{DataError, Mixture, Split, TokenFile, TokenStream};

/// Shape of a training step's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchShape {
    /// Windows in a micro-batch.
    pub sequences: NonZeroUsize,
    /// Tokens in a window.
    pub length: NonZeroUsize,
    /// Micro-batches in a step, whose gradients are averaged.
    pub accumulate: NonZeroUsize,
}

impl BatchShape {
    /// Tokens that one step trains on; saturates.
    pub fn tokens_per_step(&self) -> usize {
        self.sequences
            .get()
            .saturating_mul(self.length.get())
            .saturating_mul(self.accumulate.get())
    }

    /// Sequences of one step; saturates.
    pub fn sequences_per_step(&self) -> usize {
        self.sequences.get().saturating_mul(self.accumulate.get())
    }

    /// What each of some ranks takes of a step.
    ///
    /// Whole micro-batches are dealt out as far as their number can be divided, and cut into equal
    /// parts for the rest.
    ///
    /// # Errors
    /// [`UnevenBatch`] if the sequences of a step cannot be divided by the ranks.
    pub fn share(&self, ranks: NonZeroUsize) -> Result<Self, UnevenBatch> {
        let uneven = UnevenBatch {
            shape: *self,
            ranks,
        };
        let dealt = greatest_common_divisor(self.accumulate.get(), ranks.get());
        let cut = ranks.get() / dealt;
        if !self.sequences.get().is_multiple_of(cut) {
            return Err(uneven);
        }
        let sequences = NonZeroUsize::new(self.sequences.get() / cut).ok_or(uneven)?;
        let accumulate = NonZeroUsize::new(self.accumulate.get() / dealt).ok_or(uneven)?;
        Ok(Self {
            sequences,
            accumulate,
            ..*self
        })
    }
}

/// Euclid's.
fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

/// A step that cannot be divided evenly: some ranks would wait for others for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a step of {} * {} sequences (batch.sequences * batch.accumulate) cannot be divided by {ranks} \
     devices, it must be a multiple of {ranks}",
    shape.sequences, shape.accumulate
)]
pub struct UnevenBatch {
    shape: BatchShape,
    ranks: NonZeroUsize,
}

/// A micro-batch: `targets[b, t]` is the token after `inputs[b, t]`.
#[derive(Clone, Debug)]
pub struct TokenBatch<B: Backend> {
    /// `[sequences, length]`.
    pub inputs: Tensor<B, 2, Int>,
    /// `[sequences, length]`.
    pub targets: Tensor<B, 2, Int>,
}

/// Reads windows: `fill` copies the ids of the window with an index and of its last target.
fn batch<B: Backend>(
    rows: usize,
    length: usize,
    device: &B::Device,
    fill: impl Fn(usize, &mut [i32]) -> Result<(), DataError>,
) -> Result<TokenBatch<B>, DataError> {
    let mut inputs = Vec::with_capacity(rows * length);
    let mut targets = Vec::with_capacity(rows * length);
    let mut window = vec![0; length + 1];
    for row in 0..rows {
        fill(row, &mut window)?;
        inputs.extend_from_slice(&window[..length]);
        targets.extend_from_slice(&window[1..]);
    }
    let tensor = |ids| Tensor::from_data(TensorData::new(ids, [rows, length]), device);
    Ok(TokenBatch {
        inputs: tensor(inputs),
        targets: tensor(targets),
    })
}

/// A batch that was read.
///
/// # Panics
/// With the message of the error: burn's data loaders cannot return one.
fn given<B: Backend>(read: Result<TokenBatch<B>, DataError>) -> TokenBatch<B> {
    read.unwrap_or_else(|error| panic!("{error}"))
}

/// The training part as burn-train's data loader: micro-batches from a step on, without end.
#[derive(Clone, Debug)]
pub struct TrainBatches<B: Backend> {
    mixture: Arc<Mixture>,
    /// What is taken of a step.
    shape: BatchShape,
    /// Sequences of a whole step.
    step_sequences: u64,
    /// The first sequence of a step that is taken.
    first_sequence: u64,
    first_step: u64,
    device: B::Device,
}

impl<B: Backend> TrainBatches<B> {
    /// Micro-batches of one token file from step `first_step` (counted from 0) on.
    ///
    /// # Errors
    /// [`DataError::TooShort`] if the training part is shorter than one window.
    pub fn new(
        tokens: Arc<TokenFile>,
        shape: BatchShape,
        seed: u64,
        first_step: u64,
        device: B::Device,
    ) -> Result<Self, DataError> {
        let mixture = Arc::new(Mixture::of_file(tokens, shape.length, seed)?);
        Ok(Self::of(mixture, shape, first_step, device))
    }

    /// Micro-batches of several sources, whose windows are as long as `shape` says, from step
    /// `first_step` on.
    pub fn of(
        mixture: Arc<Mixture>,
        shape: BatchShape,
        first_step: u64,
        device: B::Device,
    ) -> Self {
        Self {
            mixture,
            shape,
            step_sequences: shape.sequences_per_step() as u64,
            first_sequence: 0,
            first_step,
            device,
        }
    }

    /// The share of one of some ranks, counted from 0, for its device.
    ///
    /// # Errors
    /// [`UnevenBatch`] if the sequences of a step cannot be divided by the ranks.
    pub fn share(
        &self,
        rank: usize,
        ranks: NonZeroUsize,
        device: B::Device,
    ) -> Result<Self, UnevenBatch> {
        let shape = self.shape.share(ranks)?;
        let before = (rank * shape.sequences_per_step()) as u64;
        Ok(Self {
            shape,
            first_sequence: self.first_sequence + before,
            device,
            ..self.clone()
        })
    }

    /// What is taken of a step.
    pub fn shape(&self) -> BatchShape {
        self.shape
    }

    /// Windows in an epoch, of all sources together.
    pub fn windows(&self) -> u64 {
        self.mixture.windows()
    }

    /// The micro-batch at a position.
    ///
    /// # Panics
    /// With the message of an error of [`Self::read`].
    pub fn at(&self, step: u64, micro: u64) -> TokenBatch<B> {
        given(self.read(step, micro))
    }

    /// All micro-batches, from the first step on, without end.
    pub fn micro_batches(&self) -> impl Iterator<Item = Result<TokenBatch<B>, DataError>> + '_ {
        let mut positions = self.positions();
        std::iter::from_fn(move || Some(positions.read()))
    }

    fn positions(&self) -> TrainIterator<'_, B> {
        TrainIterator {
            batches: self,
            step: self.first_step,
            micro: 0,
        }
    }

    /// Reads the micro-batch at a position.
    ///
    /// # Errors
    /// [`DataError::Shard`] if a shard holds an id outside its vocabulary.
    pub fn read(&self, step: u64, micro: u64) -> Result<TokenBatch<B>, DataError> {
        let sequences = self.shape.sequences.get();
        let first = step
            .wrapping_mul(self.step_sequences)
            .wrapping_add(self.first_sequence)
            .wrapping_add(micro.wrapping_mul(sequences as u64));
        batch(
            sequences,
            self.shape.length.get(),
            &self.device,
            |row, ids| self.mixture.read(first.wrapping_add(row as u64), ids),
        )
    }
}

impl<B: Backend> DataLoader<B, TokenBatch<B>> for TrainBatches<B> {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<TokenBatch<B>> + 'a> {
        Box::new(self.positions())
    }

    fn num_items(&self) -> usize {
        usize::try_from(self.windows()).unwrap_or(usize::MAX)
    }

    fn to_device(&self, device: &B::Device) -> Arc<dyn DataLoader<B, TokenBatch<B>>> {
        Arc::new(Self {
            device: device.clone(),
            ..self.clone()
        })
    }

    /// A slice of an endless sequence is the sequence from another step on.
    fn slice(&self, start: usize, _end: usize) -> Arc<dyn DataLoader<B, TokenBatch<B>>> {
        Arc::new(Self {
            first_step: self.first_step + start as u64,
            ..self.clone()
        })
    }
}

/// Walks the positions.
struct TrainIterator<'a, B: Backend> {
    batches: &'a TrainBatches<B>,
    step: u64,
    micro: u64,
}

impl<B: Backend> TrainIterator<'_, B> {
    fn read(&mut self) -> Result<TokenBatch<B>, DataError> {
        let batch = self.batches.read(self.step, self.micro);
        self.micro += 1;
        if self.micro == self.batches.shape.accumulate.get() as u64 {
            (self.step, self.micro) = (self.step + 1, 0);
        }
        batch
    }
}

impl<B: Backend> Iterator for TrainIterator<'_, B> {
    type Item = TokenBatch<B>;

    fn next(&mut self) -> Option<TokenBatch<B>> {
        Some(given(self.read()))
    }
}

impl<B: Backend> DataLoaderIterator<TokenBatch<B>> for TrainIterator<'_, B> {
    fn progress(&self) -> Progress {
        let batches = self.batches;
        let micro = self.micro * batches.shape.sequences.get() as u64;
        let samples = self.step.saturating_mul(batches.step_sequences) + micro;
        let windows = self.batches.windows();
        let seen = usize::try_from(samples % windows).unwrap_or(usize::MAX);
        Progress::new(seen, self.batches.num_items())
    }
}

/// A fixed set of validation windows, spread evenly over each stream.
#[derive(Clone, Debug)]
pub struct ValidationBatches<B: Backend> {
    streams: Arc<[TokenStream]>,
    /// Stream and first token of each window.
    windows: Arc<[(usize, u64)]>,
    sequences: usize,
    length: usize,
    device: B::Device,
}

impl<B: Backend> ValidationBatches<B> {
    /// `count` windows of a token file, or as many as there are, in batches of `shape.sequences`.
    ///
    /// # Errors
    /// [`DataError::TooShort`] if the validation part is shorter than one window.
    pub fn new(
        tokens: Arc<TokenFile>,
        shape: BatchShape,
        count: NonZeroUsize,
        device: B::Device,
    ) -> Result<Self, DataError> {
        let (file, split) = (tokens, Split::Validation);
        let stream = TokenStream::File { file, split };
        Self::of(vec![(stream, count.get() as u64)], shape, device)
    }

    /// So many windows of each stream, or as many as it has.
    ///
    /// # Errors
    /// [`DataError::TooShort`] if a stream is shorter than one window.
    pub fn of(
        streams: Vec<(TokenStream, u64)>,
        shape: BatchShape,
        device: B::Device,
    ) -> Result<Self, DataError> {
        let length = shape.length.get() as u64;
        let mut windows = Vec::new();
        for (index, (stream, count)) in streams.iter().enumerate() {
            let available = stream.windows(length)?;
            let count = available.min(*count);
            // The product is taken in 128 bits: neither factor is bounded by the data.
            let spread = |number: u64| {
                let window = u128::from(number) * u128::from(available) / u128::from(count);
                (index, u64::try_from(window).unwrap_or(0) * length)
            };
            windows.extend((0..count).map(spread));
        }
        Ok(Self {
            streams: streams.into_iter().map(|(stream, _)| stream).collect(),
            windows: windows.into(),
            sequences: shape.sequences.get(),
            length: shape.length.get(),
            device,
        })
    }

    /// Number of windows.
    pub fn windows(&self) -> usize {
        self.windows.len()
    }

    /// The ids to be predicted, window by window.
    ///
    /// # Errors
    /// [`DataError::Shard`] if a shard holds an id outside its vocabulary.
    pub fn targets(&self) -> Result<Vec<Vec<u32>>, DataError> {
        let mut window = vec![0; self.length];
        let mut read = |&(stream, start): &(usize, u64)| {
            self.streams[stream].read(start + 1, &mut window)?;
            let ids = window.iter();
            Ok(ids.map(|&id| u32::try_from(id).unwrap_or(0)).collect())
        };
        self.windows.iter().map(&mut read).collect()
    }
}

impl<B: Backend> DataLoader<B, TokenBatch<B>> for ValidationBatches<B> {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<TokenBatch<B>> + 'a> {
        Box::new(ValidationIterator {
            batches: self,
            next: 0,
        })
    }

    fn num_items(&self) -> usize {
        self.windows.len()
    }

    fn to_device(&self, device: &B::Device) -> Arc<dyn DataLoader<B, TokenBatch<B>>> {
        Arc::new(Self {
            device: device.clone(),
            ..self.clone()
        })
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<B, TokenBatch<B>>> {
        let end = end.min(self.windows.len());
        let windows = self.windows[start.min(end)..end].into();
        Arc::new(Self {
            windows,
            ..self.clone()
        })
    }
}

/// Walks the windows of a validation set.
struct ValidationIterator<'a, B: Backend> {
    batches: &'a ValidationBatches<B>,
    next: usize,
}

impl<B: Backend> Iterator for ValidationIterator<'_, B> {
    type Item = TokenBatch<B>;

    fn next(&mut self) -> Option<TokenBatch<B>> {
        let set = self.batches;
        let end = set.windows.len().min(self.next + set.sequences);
        let windows = &set.windows[self.next..end];
        if windows.is_empty() {
            return None;
        }
        self.next = end;
        let read = batch(windows.len(), set.length, &set.device, |row, ids| {
            let (stream, start) = windows[row];
            set.streams[stream].read(start, ids)
        });
        // `targets` has read all of them before the first step.
        Some(given(read))
    }
}

impl<B: Backend> DataLoaderIterator<TokenBatch<B>> for ValidationIterator<'_, B> {
    fn progress(&self) -> Progress {
        Progress::new(self.next, self.batches.windows.len())
    }
}
