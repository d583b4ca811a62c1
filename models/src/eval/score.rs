//! Log-likelihoods of rows under a model.
//!
//! 1. [`plan`](super::plan) makes groups of inputs with a common beginning, and batches of those.
//! 2. The beginning of a group goes through the model once; its cache is repeated for each row of
//!    a batch. Long inputs go through in pieces, so that scores of attention stay small.
//! 3. `lm_head` sees the positions whose predictions are scored, and no others, in pieces: logits
//!    of all positions over a large vocabulary would be the largest tensor by far.
//! 4. `ln p(id) = logit - max - ln sum exp(logit - max)` in f32 on the device; the sums over a row
//!    in f64 here.
//!
//! A row's result does not depend on the other rows, up to rounding, as long as linears compute in
//! high precision. Quantized operands have one scale a tensor, so there the batch matters, padding
//! included: equal batches give equal results.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use super::encode::Row;
use super::plan::{Input, groups, inputs};
use crate::hybrid::HybridLm;
use crate::hybrid::cache::Cache;

/// Positions that go through the model at once.
const PIECE: usize = 1024;

/// Logits that exist at once: 128 MiB in f32.
const LOGITS: usize = 1 << 25;

/// How likely the scored ids of a row are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Sum over the scored ids, in nats.
    pub log_likelihood: f64,
    /// Whether each of them has the largest logit (of equals, any).
    pub is_greedy: bool,
    /// How many there are.
    pub tokens: usize,
}

/// Scores rows with a model.
#[derive(Debug)]
pub struct Scorer<'a, B: Backend> {
    /// The model.
    pub model: &'a HybridLm<B>,
    /// Where it is.
    pub device: B::Device,
    /// Most positions of a batch; one row may have more.
    pub batch_tokens: usize,
}

/// A position whose prediction is asked for, and by whom.
struct Probe {
    /// Position in the batch, rows one after the other.
    at: usize,
    /// The ids and the rows that want them.
    wanted: Vec<(u32, usize)>,
}

impl<B: Backend> Scorer<'_, B> {
    /// The score of each row. `done` is told how many more are finished.
    ///
    /// # Panics
    /// If an id has no embedding.
    pub fn score(&self, rows: &[&Row], done: &mut dyn FnMut(usize)) -> Vec<Score> {
        let start = |row: &&Row| Score {
            log_likelihood: 0.0,
            is_greedy: true,
            tokens: row.targets().len(),
        };
        let mut scores: Vec<Score> = rows.iter().map(start).collect();
        let inputs = inputs(rows);
        for group in groups(&inputs, self.batch_tokens) {
            let beginning = (group.prefix > 0).then(|| {
                let first = &inputs[group.batches[0][0]];
                let mut cache = Cache::new(self.model);
                self.hidden(self.ids(&first.ids[..group.prefix], 1), &mut cache);
                cache
            });
            for batch in &group.batches {
                let batch: Vec<&Input<'_>> = batch.iter().map(|&input| &inputs[input]).collect();
                self.score_batch(&batch, group.prefix, beginning.as_ref(), rows, &mut scores);
                done(batch.iter().map(|input| input.rows.len()).sum());
            }
        }
        scores
    }

    /// Steps 2 to 4 for one batch, whose inputs continue `beginning` after `prefix` ids.
    fn score_batch(
        &self,
        batch: &[&Input<'_>],
        prefix: usize,
        beginning: Option<&Cache<B>>,
        rows: &[&Row],
        scores: &mut [Score],
    ) {
        let longest = batch.iter().map(|input| input.ids.len() - prefix);
        let longest = longest.max().unwrap_or(0);
        let mut ids = Vec::with_capacity(batch.len() * longest);
        let mut probes = Vec::new();
        for input in batch {
            let start = ids.len();
            ids.extend_from_slice(&input.ids[prefix..]);
            // Any id will do behind the end, since the model is causal.
            ids.resize(start + longest, 0);
            probes.extend((input.first..input.ids.len()).map(|position| Probe {
                at: start + position - prefix,
                wanted: wanted(input, position, rows),
            }));
        }
        let ids = self.ids(&ids, batch.len());
        let hidden = match beginning {
            Some(cache) => self.hidden(ids, &mut cache.repeated(batch.len())),
            None if longest > PIECE => self.hidden(ids, &mut Cache::new(self.model)),
            None => self.model.forward_hidden(ids),
        };
        let [_, _, width] = hidden.dims();
        let hidden = hidden.reshape([batch.len() * longest, width]);
        let vocab = self.model.embeddings.weight.dims()[0];
        for probes in probes.chunks((LOGITS / vocab).max(1)) {
            self.read_probes(hidden.clone(), probes, scores);
        }
    }

    /// Steps 3 and 4 for some positions of `hidden`, `[positions, d_model]`.
    fn read_probes(&self, hidden: Tensor<B, 2>, probes: &[Probe], scores: &mut [Score]) {
        let n = probes.len();
        let columns = probes.iter().map(|probe| probe.wanted.len());
        let columns = columns.max().unwrap_or(0);
        let mut ids = Vec::with_capacity(n * columns);
        for probe in probes {
            let wanted = probe.wanted.iter().map(|&(id, _)| i64::from(id));
            // The unwanted rest of a line is not looked at.
            ids.extend(wanted.chain(std::iter::repeat(0)).take(columns));
        }
        let ids = Tensor::<B, 2, Int>::from_data(TensorData::new(ids, [n, columns]), &self.device);
        let at = probes.iter().map(|probe| i64::try_from(probe.at));
        let at: Vec<i64> = at.map(|at| at.expect("a position in memory")).collect();
        let at = Tensor::<B, 1, Int>::from_data(TensorData::new(at, [n]), &self.device);

        let [_, width] = hidden.dims();
        let logits = self
            .model
            .logits(hidden.select(0, at).reshape([1, n, width]));
        let [_, _, vocab] = logits.dims();
        let logits = logits.reshape([n, vocab]);
        let max = logits.clone().max_dim(1);
        let below_max = logits - max;
        let wanted = below_max.clone().gather(1, ids); // [n, columns]
        let log_sum = below_max.exp().sum_dim(1).log(); // [n, 1]
        let wanted = wanted.into_data().iter::<f64>().collect::<Vec<_>>();
        let log_sum = log_sum.into_data().iter::<f64>().collect::<Vec<_>>();

        for ((probe, wanted), log_sum) in probes.iter().zip(wanted.chunks(columns)).zip(log_sum) {
            for (&(_, row), below_max) in probe.wanted.iter().zip(wanted) {
                let score = &mut scores[row];
                score.log_likelihood += below_max - log_sum;
                score.is_greedy &= *below_max == 0.0;
            }
        }
    }

    /// Sends ids behind `cache` through the model in pieces: `[batch, seq, d_model]`.
    fn hidden(&self, ids: Tensor<B, 2, Int>, cache: &mut Cache<B>) -> Tensor<B, 3> {
        let [_, seq] = ids.dims();
        let pieces = (0..seq).step_by(PIECE).map(|start| {
            let piece = ids.clone().narrow(1, start, PIECE.min(seq - start));
            self.model.extend_hidden(piece, None, cache)
        });
        Tensor::cat(pieces.collect(), 1)
    }

    /// Ids of `rows` rows: `[rows, ids / rows]`.
    fn ids(&self, ids: &[u32], rows: usize) -> Tensor<B, 2, Int> {
        let shape = [rows, ids.len() / rows];
        let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        Tensor::from_data(TensorData::new(ids, shape), &self.device)
    }
}

/// What the rows of an input want to know at a position.
fn wanted(input: &Input<'_>, position: usize, rows: &[&Row]) -> Vec<(u32, usize)> {
    let asking = input
        .rows
        .iter()
        .filter(|&&row| rows[row].first() <= position);
    let id = |row: usize| rows[row].targets()[position - rows[row].first()];
    asking.map(|&row| (id(row), row)).collect()
}

#[cfg(test)]
mod tests;
