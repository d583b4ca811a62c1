//! What a model remembers of the tokens it has seen, so that the next ones cost no recomputation.
//!
//! Per block: a Mamba-2 mixer keeps the window of its convolution and its state in f32, of a size
//! that does not depend on the number of tokens; attention keeps keys and values; an MLP nothing.
//! Which positions were padding is kept once for all blocks, and only if any was.

use burn::tensor::backend::Backend;
use burn::tensor::{Bool, DType, Int, Tensor};

use crate::nn::kv_cache::KvCache;
use crate::nn::mamba2::Mamba2State;
use crate::nn::pass::Pass;

use super::HybridLm;
use super::block::Mixer;

/// What a model remembers of a batch of sequences; empty at first.
///
/// A clone is a checkpoint to return to: it shares memory until one of the two goes on.
#[derive(Clone, Debug)]
pub struct Cache<B: Backend> {
    blocks: Vec<Memory<B>>,
    len: usize,
    /// True at real tokens, `[batch, len]`; `None` while all are.
    tokens: Option<Tensor<B, 2, Bool>>,
}

/// What one mixer remembers.
#[derive(Clone, Debug)]
pub enum Memory<B: Backend> {
    /// Of a Mamba-2 mixer; `None` before the first token.
    Mamba(Option<Mamba2State<B>>),
    /// Of an attention mixer.
    Attention(KvCache<B>),
    /// Of an MLP, which mixes no tokens.
    Mlp,
}

impl<B: Backend> Cache<B> {
    /// An empty cache for `model`.
    pub fn new(model: &HybridLm<B>) -> Self {
        let memory = |mixer: &Mixer<B>| match mixer {
            Mixer::Mamba(_) => Memory::Mamba(None),
            Mixer::Attention(_) => Memory::Attention(KvCache::default()),
            Mixer::Mlp(_) => Memory::Mlp,
        };
        let layers = model.layers.iter();
        Self {
            blocks: layers.map(|layer| memory(&layer.mixer)).collect(),
            len: 0,
            tokens: None,
        }
    }

    /// Number of positions, padding included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was seen yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What each block remembers, first to last.
    pub fn blocks(&self) -> &[Memory<B>] {
        &self.blocks
    }

    /// The same memory for each of `rows` sequences, of a cache of one: a common beginning is read
    /// once.
    ///
    /// # Panics
    /// If the cache is of several sequences.
    pub fn repeated(&self, rows: usize) -> Self {
        let blocks = self.blocks.iter().map(|memory| match memory {
            Memory::Mamba(state) => Memory::Mamba(state.as_ref().map(|state| state.repeated(rows))),
            Memory::Attention(cache) => Memory::Attention(cache.repeated(rows)),
            Memory::Mlp => Memory::Mlp,
        });
        Self {
            blocks: blocks.collect(),
            len: self.len,
            tokens: self.tokens.as_ref().map(|tokens| {
                let [batch, len] = tokens.dims();
                assert_eq!(batch, 1, "only a cache of one sequence can be repeated");
                tokens.clone().expand([rows, len])
            }),
        }
    }

    /// The memory of a block.
    pub(super) fn memory(&mut self, index: usize) -> &mut Memory<B> {
        self.blocks
            .get_mut(index)
            .expect("the cache was made for another model")
    }

    /// The circumstances of a pass over `ids`, whose positions are taken up here.
    pub(super) fn pass(
        &mut self,
        dtype: DType,
        ids: &Tensor<B, 2, Int>,
        tokens: Option<Tensor<B, 2, Bool>>,
    ) -> Pass<'static, B> {
        let [batch, seq] = ids.dims();
        let (past, device) = (self.len, ids.device());
        self.len += seq;
        if self.tokens.is_some() || tokens.is_some() {
            let all = |seq| Tensor::<B, 2, Int>::ones([batch, seq], &device).bool();
            let now = tokens.clone().unwrap_or_else(|| all(seq));
            self.tokens = Some(match self.tokens.take() {
                Some(before) => Tensor::cat(vec![before, now], 1),
                None if past > 0 => Tensor::cat(vec![all(past), now], 1),
                None => now,
            });
        }
        let pass = match tokens {
            Some(tokens) => Pass::new(dtype).with_tokens(tokens),
            None => Pass::new(dtype),
        };
        pass.after(past, self.tokens.clone())
    }
}
