//! Batches by position: which windows a micro-batch holds is a function of the seed and its place.
//!
//! 1. The training part is cut into windows of `length` inputs plus one target, stride `length`.
//! 2. Sample `(step * accumulate + micro) * sequences + row` lies in epoch `sample / windows`.
//! 3. Each epoch visits every window once, in the order of a keyed permutation: a four-round
//!    Feistel network on the next power of four, walked until it lands inside (Black and Rogaway
//!    2002).
//!
//! There is no generator and no state but the position, so resuming needs none either.

use std::num::NonZeroUsize;
use std::sync::Arc;

use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use serde::{Deserialize, Serialize};

use super::{DataError, Split, TokenFile};

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
}

/// A micro-batch: `targets[b, t]` is the token after `inputs[b, t]`.
#[derive(Clone, Debug)]
pub struct TokenBatch<B: Backend> {
    /// `[sequences, length]`.
    pub inputs: Tensor<B, 2, Int>,
    /// `[sequences, length]`.
    pub targets: Tensor<B, 2, Int>,
}

/// The order in which windows are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowOrder {
    seed: u64,
    windows: u64,
}

impl WindowOrder {
    /// The order of `windows` windows, at least one, under `seed`.
    pub fn new(seed: u64, windows: u64) -> Self {
        Self {
            seed,
            windows: windows.max(1),
        }
    }

    /// The window of a sample; samples count on through the epochs.
    pub fn window(&self, sample: u64) -> u64 {
        let (epoch, mut index) = (sample / self.windows, sample % self.windows);
        let half_bits = (64 - (self.windows - 1).leading_zeros()).div_ceil(2).max(1);
        let key = mix(self.seed ^ mix(epoch));
        loop {
            index = feistel(index, half_bits, key);
            if index < self.windows {
                return index;
            }
        }
    }
}

/// A permutation of `0..4^half_bits`.
fn feistel(index: u64, half_bits: u32, key: u64) -> u64 {
    let mask = (1 << half_bits) - 1;
    let (mut left, mut right) = (index >> half_bits, index & mask);
    for round in 0..4 {
        (left, right) = (right, left ^ (mix(key ^ (right << 8) ^ round) & mask));
    }
    (left << half_bits) | right
}

/// The finaliser of SplitMix64.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// How many windows a part has.
///
/// # Errors
/// [`DataError::TooShort`] if it has none.
fn windows(tokens: &TokenFile, split: Split, length: NonZeroUsize) -> Result<u64, DataError> {
    let length = length.get() as u64;
    let available = tokens.tokens(split);
    match available.saturating_sub(1) / length {
        0 => Err(DataError::TooShort {
            path: tokens.corpus().to_owned(),
            split,
            tokens: available,
            needed: length.saturating_add(1),
        }),
        windows => Ok(windows),
    }
}

/// Reads windows that start at the given tokens.
fn batch<B: Backend>(
    tokens: &TokenFile,
    split: Split,
    starts: impl ExactSizeIterator<Item = u64>,
    length: usize,
    device: &B::Device,
) -> TokenBatch<B> {
    let rows = starts.len();
    let mut inputs = Vec::with_capacity(rows * length);
    let mut targets = Vec::with_capacity(rows * length);
    let mut window = vec![0; length + 1];
    for start in starts {
        tokens.read(split, start, &mut window);
        inputs.extend_from_slice(&window[..length]);
        targets.extend_from_slice(&window[1..]);
    }
    let tensor = |ids| Tensor::from_data(TensorData::new(ids, [rows, length]), device);
    TokenBatch {
        inputs: tensor(inputs),
        targets: tensor(targets),
    }
}

/// The training part as burn-train's data loader: micro-batches from a step on, without end.
#[derive(Clone, Debug)]
pub struct TrainBatches<B: Backend> {
    tokens: Arc<TokenFile>,
    order: WindowOrder,
    shape: BatchShape,
    first_step: u64,
    device: B::Device,
}

impl<B: Backend> TrainBatches<B> {
    /// Micro-batches from step `first_step` (counted from 0) on.
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
        let windows = windows(&tokens, Split::Training, shape.length)?;
        Ok(Self {
            tokens,
            order: WindowOrder::new(seed, windows),
            shape,
            first_step,
            device,
        })
    }

    /// Windows in an epoch.
    pub fn windows(&self) -> u64 {
        self.order.windows
    }

    /// The micro-batch at a position.
    pub fn at(&self, step: u64, micro: u64) -> TokenBatch<B> {
        let length = self.shape.length.get();
        let sequences = self.shape.sequences.get() as u64;
        let micro = step
            .wrapping_mul(self.shape.accumulate.get() as u64)
            .wrapping_add(micro);
        let first = micro.wrapping_mul(sequences);
        let starts: Vec<_> = (0..sequences)
            .map(|row| self.order.window(first.wrapping_add(row)) * length as u64)
            .collect();
        batch(
            &self.tokens,
            Split::Training,
            starts.into_iter(),
            length,
            &self.device,
        )
    }
}

impl<B: Backend> DataLoader<B, TokenBatch<B>> for TrainBatches<B> {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<TokenBatch<B>> + 'a> {
        Box::new(TrainIterator {
            batches: self,
            step: self.first_step,
            micro: 0,
        })
    }

    fn num_items(&self) -> usize {
        usize::try_from(self.order.windows).unwrap_or(usize::MAX)
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

impl<B: Backend> Iterator for TrainIterator<'_, B> {
    type Item = TokenBatch<B>;

    fn next(&mut self) -> Option<TokenBatch<B>> {
        let batch = self.batches.at(self.step, self.micro);
        self.micro += 1;
        if self.micro == self.batches.shape.accumulate.get() as u64 {
            (self.step, self.micro) = (self.step + 1, 0);
        }
        Some(batch)
    }
}

impl<B: Backend> DataLoaderIterator<TokenBatch<B>> for TrainIterator<'_, B> {
    fn progress(&self) -> Progress {
        let shape = &self.batches.shape;
        let micro = self.step * shape.accumulate.get() as u64 + self.micro;
        let samples = micro.saturating_mul(shape.sequences.get() as u64);
        let windows = self.batches.order.windows;
        let seen = usize::try_from(samples % windows).unwrap_or(usize::MAX);
        Progress::new(seen, self.batches.num_items())
    }
}

/// A fixed set of validation windows, spread evenly over the validation part.
#[derive(Clone, Debug)]
pub struct ValidationBatches<B: Backend> {
    tokens: Arc<TokenFile>,
    /// First token of each window.
    starts: Arc<[u64]>,
    sequences: usize,
    length: usize,
    device: B::Device,
}

impl<B: Backend> ValidationBatches<B> {
    /// `count` windows, or as many as there are, in batches of `shape.sequences`.
    ///
    /// # Errors
    /// [`DataError::TooShort`] if the validation part is shorter than one window.
    pub fn new(
        tokens: Arc<TokenFile>,
        shape: BatchShape,
        count: NonZeroUsize,
        device: B::Device,
    ) -> Result<Self, DataError> {
        let length = shape.length.get();
        let available = windows(&tokens, Split::Validation, shape.length)?;
        let count = available.min(count.get() as u64);
        // The product is taken in 128 bits: neither factor is bounded by the data.
        let spread = |index: u64| {
            let window = u128::from(index) * u128::from(available) / u128::from(count);
            u64::try_from(window).unwrap_or(0) * length as u64
        };
        let starts = (0..count).map(spread).collect();
        Ok(Self {
            tokens,
            starts,
            sequences: shape.sequences.get(),
            length,
            device,
        })
    }

    /// Number of windows.
    pub fn windows(&self) -> usize {
        self.starts.len()
    }

    /// The ids to be predicted, window by window.
    pub fn targets(&self) -> Vec<Vec<u32>> {
        let mut window = vec![0; self.length];
        let read = |&start: &u64| {
            self.tokens.read(Split::Validation, start + 1, &mut window);
            window
                .iter()
                .map(|&id| u32::try_from(id).unwrap_or(0))
                .collect()
        };
        self.starts.iter().map(read).collect()
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
        self.starts.len()
    }

    fn to_device(&self, device: &B::Device) -> Arc<dyn DataLoader<B, TokenBatch<B>>> {
        Arc::new(Self {
            device: device.clone(),
            ..self.clone()
        })
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<B, TokenBatch<B>>> {
        let end = end.min(self.starts.len());
        let starts = self.starts[start.min(end)..end].into();
        Arc::new(Self {
            starts,
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
        let end = set.starts.len().min(self.next + set.sequences);
        let starts = &set.starts[self.next..end];
        if starts.is_empty() {
            return None;
        }
        self.next = end;
        let starts = starts.iter().copied();
        Some(batch(
            &set.tokens,
            Split::Validation,
            starts,
            set.length,
            &set.device,
        ))
    }
}

impl<B: Backend> DataLoaderIterator<TokenBatch<B>> for ValidationIterator<'_, B> {
    fn progress(&self) -> Progress {
        Progress::new(self.next, self.batches.starts.len())
    }
}

#[cfg(test)]
mod tests {
    use super::WindowOrder;

    #[test]
    fn every_epoch_visits_every_window_once_in_another_order() {
        for windows in [1, 2, 3, 4, 5, 17, 64, 65, 1000] {
            let order = WindowOrder::new(7, windows);
            let epochs: Vec<Vec<u64>> = (0..3)
                .map(|epoch| {
                    (0..windows)
                        .map(|i| order.window(epoch * windows + i))
                        .collect()
                })
                .collect();
            for epoch in &epochs {
                let mut sorted = epoch.clone();
                sorted.sort_unstable();
                assert!(
                    sorted.into_iter().eq(0..windows),
                    "{windows} windows: {epoch:?}"
                );
            }
            assert!(windows < 17 || epochs[0] != epochs[1], "{windows} windows");
        }
    }

    #[test]
    fn seeds_give_different_orders_and_equal_seeds_equal_ones() {
        let first = |seed| {
            (0..50)
                .map(|i| WindowOrder::new(seed, 50).window(i))
                .collect::<Vec<_>>()
        };
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }
}
