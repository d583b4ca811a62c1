//! What the ranks of a run tell each other: sums of gradients, and a few words.
//!
//! A rank is one device of the run with a thread of its own; all of them take the same steps on the
//! same parameters, each with its share of the data. Once per step their gradients are summed. All
//! that a rank decides, it decides by what all have said, in the order of the ranks: so every rank
//! decides alike, although devices may differ in the last bit of a norm.
//!
//! [`Alone`] is one device. [`host`] sums in the host's memory and is the specification: it runs on
//! any backend, so the rules for several ranks are tested without a GPU. `collective` sums with
//! the devices' own all-reduce, NCCL on CUDA, in builds with the feature `distributed`.

mod meeting;
pub mod host;
#[cfg(feature = "distributed")]
pub mod collective;

use burn::tensor::ops::FloatTensor;
use burn_hybrid_ops::TrainingEngine;

/// What a rank says at a meeting; what is not asked for stays as it is by default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Word {
    /// Whether the run should end before the next step.
    pub stop: bool,
    /// Loss of the rank's share of a step.
    pub loss: f64,
    /// Global gradient norm as the rank has measured it.
    pub norm: f64,
    /// Where the rank has found NaN or infinity.
    pub place: Option<String>,
}

/// Another rank has stopped: with an error, or a panic on its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rank {rank} has stopped, so the run stops; earlier checkpoints are intact")]
pub struct RankLost {
    /// Which.
    pub rank: usize,
}

/// How one rank hears of the others. Dropping it tells them that the rank is gone.
pub trait Exchange<B: TrainingEngine>: Send {
    /// Which rank this is, counted from 0. The first one writes, the others do not.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn ranks(&self) -> usize;

    /// Waits for the words of all ranks, and returns them in their order.
    ///
    /// # Errors
    /// [`RankLost`] if one is gone.
    fn gather(&self, word: Word) -> Result<Vec<Word>, RankLost>;

    /// The sums over all ranks of some tensors, which have the same shapes and dtypes on each; the
    /// same bits on every rank.
    ///
    /// # Errors
    /// [`RankLost`] if one is gone.
    fn sum(
        &self,
        tensors: Vec<FloatTensor<B::InnerBackend>>,
    ) -> Result<Vec<FloatTensor<B::InnerBackend>>, RankLost>;
}

/// The only rank of a run.
#[derive(Clone, Copy, Debug)]
pub struct Alone;

impl<B: TrainingEngine> Exchange<B> for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn ranks(&self) -> usize {
        1
    }

    fn gather(&self, word: Word) -> Result<Vec<Word>, RankLost> {
        Ok(vec![word])
    }

    fn sum(
        &self,
        tensors: Vec<FloatTensor<B::InnerBackend>>,
    ) -> Result<Vec<FloatTensor<B::InnerBackend>>, RankLost> {
        Ok(tensors)
    }
}
