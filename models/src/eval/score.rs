//! Log-likelihoods of rows under a model.
//!
//! 1. [`plan`](super::plan) makes groups of inputs with a common beginning, and batches of those.
//! 2. The beginning of a group goes through the model once; its cache is repeated for each row of
//!    a batch. Long inputs go through in pieces, so that scores of attention stay small.
//!    Batches are independent, so several can be computed at a time.
//! 3. `lm_head` sees the positions whose predictions are scored, and no others, in pieces: logits
//!    of all positions over a large vocabulary would be the largest tensor by far.
//! 4. `ln p(id) = logit - max - ln sum exp(logit - max)` in f32 on the device; the sums over a row
//!    in f64 here.
//!
//! A row's result does not depend on the other rows, up to rounding, as long as linears compute in
//! high precision. Quantized operands have one scale a tensor, so there the batch matters, padding
//! included: equal batches give equal results.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use burn::tensor::{Int, Tensor, TensorData};
use burn_hybrid_ops::HybridEngine;

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

impl Score {
    /// Of a row of which nothing is scored yet.
    fn start(row: &Row) -> Self {
        Self {
            log_likelihood: 0.0,
            is_greedy: true,
            tokens: row.targets().len(),
        }
    }
}

/// Scores rows with a model.
#[derive(Debug)]
pub struct Scorer<'a, B: HybridEngine> {
    /// The model.
    pub model: &'a HybridLm<B>,
    /// Where it is.
    pub device: B::Device,
    /// Most positions of a batch; one row may have more.
    pub batch_tokens: usize,
    /// Batches that are computed at a time. The tensors of a small model are too small to be split
    /// between the cores of a CPU; a GPU is shared by one thread.
    pub threads: NonZeroUsize,
}

/// Rows and their scores.
type Scored = Vec<(usize, Score)>;

impl<B: HybridEngine> Scorer<'_, B> {
    /// The score of each row. `done` is told how many more are finished.
    ///
    /// # Panics
    /// If an id has no embedding.
    pub fn score(&self, rows: &[&Row], done: &mut dyn FnMut(usize)) -> Vec<Score> {
        let mut scores: Vec<Score> = rows.iter().map(|row| Score::start(row)).collect();
        let inputs = inputs(rows);
        for group in groups(&inputs, self.batch_tokens) {
            let beginning = (group.prefix > 0).then(|| {
                let first = &inputs[group.batches[0][0]];
                self.worker().read(&first.ids[..group.prefix])
            });
            let members = |batch: &Vec<usize>| -> Vec<&Input<'_>> {
                batch.iter().map(|&input| &inputs[input]).collect()
            };
            let batches: Vec<Vec<&Input<'_>>> = group.batches.iter().map(members).collect();
            self.run(&batches, (group.prefix, beginning), rows, &mut |scored| {
                done(scored.len());
                for (row, score) in scored {
                    scores[row] = score;
                }
            });
        }
        scores
    }

    /// Scores batches whose inputs continue a beginning, on as many threads as there may be.
    fn run(
        &self,
        batches: &[Vec<&Input<'_>>],
        (prefix, beginning): (usize, Option<Cache<B>>),
        rows: &[&Row],
        collect: &mut dyn FnMut(Scored),
    ) {
        let threads = self.threads.get().min(batches.len());
        if threads <= 1 {
            let worker = self.worker();
            for batch in batches {
                collect(worker.score(batch, (prefix, beginning.as_ref()), rows));
            }
            return;
        }
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            for _ in 0..threads {
                // Copies share their memory; a model itself cannot be shared between threads.
                let (worker, beginning) = (self.worker(), beginning.clone());
                let (sender, next) = (sender.clone(), &next);
                scope.spawn(move || {
                    while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let scored = worker.score(batch, (prefix, beginning.as_ref()), rows);
                        // Nobody listens any more if another thread has failed.
                        let _ = sender.send(scored);
                    }
                });
            }
            drop(sender);
            receiver.iter().for_each(collect);
        });
    }

    fn worker(&self) -> Worker<B> {
        Worker {
            model: self.model.clone(),
            device: self.device.clone(),
        }
    }
}

/// What one thread scores with.
struct Worker<B: HybridEngine> {
    model: HybridLm<B>,
    device: B::Device,
}

/// A position whose prediction is asked for, and by whom.
struct Probe {
    /// Position in the batch, rows one after the other.
    at: usize,
    /// The ids and the rows that want them.
    wanted: Vec<(u32, usize)>,
}

impl<B: HybridEngine> Worker<B> {
    /// A cache that holds these ids.
    fn read(&self, ids: &[u32]) -> Cache<B> {
        let mut cache = Cache::new(&self.model);
        self.hidden(self.ids(ids, 1), &mut cache);
        cache
    }

    /// Steps 2 to 4 for one batch, whose inputs continue `beginning` after `prefix` ids.
    fn score(
        &self,
        batch: &[&Input<'_>],
        (prefix, beginning): (usize, Option<&Cache<B>>),
        rows: &[&Row],
    ) -> Scored {
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
            None if longest > PIECE => self.hidden(ids, &mut Cache::new(&self.model)),
            None => self.model.forward_hidden(ids),
        };
        let [_, _, width] = hidden.dims();
        let hidden = hidden.reshape([batch.len() * longest, width]);
        let vocab = self.model.embeddings.weight.dims()[0];
        let members = batch.iter().flat_map(|input| &input.rows);
        let mut scores: BTreeMap<usize, Score> =
            members.map(|&row| (row, Score::start(rows[row]))).collect();
        for probes in probes.chunks((LOGITS / vocab).max(1)) {
            self.read_probes(hidden.clone(), probes, &mut scores);
        }
        scores.into_iter().collect()
    }

    /// Steps 3 and 4 for some positions of `hidden`, `[positions, d_model]`.
    fn read_probes(
        &self,
        hidden: Tensor<B, 2>,
        probes: &[Probe],
        scores: &mut BTreeMap<usize, Score>,
    ) {
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
                let score = scores.get_mut(&row).expect("a row of this batch");
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
