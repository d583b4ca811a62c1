//! Tokens from a model, one at a time for a batch of prompts.
//!
//! 1. Prompts of unequal length are padded on the left, so that all rows end together.
//! 2. The prompts go through the model in pieces: scores of attention take memory in proportion to
//!    the piece times the tokens before it, and the `lm_head` is applied to the last token only.
//! 3. Every further token is one step from the cache; nothing is computed twice.
//!
//! What ends a text is the caller's to know: a generation never ends by itself.

use burn::tensor::{Int, Tensor, TensorData};
use burn_hybrid_ops::HybridEngine;

use crate::hybrid::HybridLm;
use crate::hybrid::cache::Cache;

pub use sampling::{Draw, Sampling, SamplingError};

mod sampling;

/// Positions that go through the model at once while it reads prompts.
const PIECE: usize = 512;

/// Id at padding. Any id will do, since padding influences nothing.
const PADDING: u32 = 0;

/// Why nothing can be generated.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// A batch without rows.
    #[error("there is no prompt")]
    NoPrompt,
    /// A row without a token, from which no first token follows.
    #[error("the prompt is empty; the model needs at least one token to continue")]
    EmptyPrompt,
    /// An id without an embedding.
    #[error("the prompt holds token {id}, the model has a vocabulary of {vocab}")]
    OutsideVocabulary {
        /// The id.
        id: u32,
        /// Number of ids that the model knows.
        vocab: usize,
    },
    /// A setting out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
}

/// A batch of texts that grow by one token per call of [`Iterator::next`], one id per row.
#[derive(Debug)]
pub struct Generation<'a, B: HybridEngine> {
    model: &'a HybridLm<B>,
    cache: Cache<B>,
    sampling: Sampling,
    device: B::Device,
    /// The end of the last piece of the prompts, or the last tokens: `[batch, 1, d_model]`.
    hidden: Tensor<B, 3>,
    /// Ids that were handed out, and that the model has not seen.
    unseen: Option<Vec<u32>>,
    drawn: u64,
}

impl<'a, B: HybridEngine> Generation<'a, B> {
    /// Reads the prompts, one row each.
    ///
    /// # Errors
    /// [`GenerateError`] before anything is computed.
    pub fn start<P: AsRef<[u32]>>(
        model: &'a HybridLm<B>,
        prompts: &[P],
        sampling: Sampling,
        device: &B::Device,
    ) -> Result<Self, GenerateError> {
        sampling.validate()?;
        let prompts: Vec<&[u32]> = prompts.iter().map(AsRef::as_ref).collect();
        check(&prompts, model.embeddings.weight.dims()[0])?;
        let mut cache = Cache::new(model);
        let hidden = read(model, &prompts, &mut cache, device).ok_or(GenerateError::NoPrompt)?;
        Ok(Self {
            model,
            cache,
            sampling,
            device: device.clone(),
            hidden,
            unseen: None,
            drawn: 0,
        })
    }

    /// What the model remembers.
    pub fn cache(&self) -> &Cache<B> {
        &self.cache
    }
}

impl<B: HybridEngine> Iterator for Generation<'_, B> {
    type Item = Vec<u32>;

    fn next(&mut self) -> Option<Vec<u32>> {
        if let Some(ids) = self.unseen.take() {
            let ids = int_tensor(&ids, [ids.len(), 1], &self.device);
            self.hidden = self.model.extend_hidden(ids, None, &mut self.cache);
        }
        let logits = self.model.logits(self.hidden.clone());
        let [_, _, vocab] = logits.dims();
        let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
        let index = self.drawn;
        let rows = logits.chunks(vocab).enumerate();
        let ids: Vec<u32> = rows
            .map(|(row, logits)| self.sampling.choose(logits, Draw { row, index }))
            .collect();
        self.drawn += 1;
        self.unseen = Some(ids.clone());
        Some(ids)
    }
}

/// Checks that every prompt can be read.
fn check(prompts: &[&[u32]], vocab: usize) -> Result<(), GenerateError> {
    if prompts.is_empty() {
        return Err(GenerateError::NoPrompt);
    }
    if prompts.iter().any(|prompt| prompt.is_empty()) {
        return Err(GenerateError::EmptyPrompt);
    }
    let is_known = |id: u32| usize::try_from(id).is_ok_and(|id| id < vocab);
    match prompts.iter().copied().flatten().find(|&&id| !is_known(id)) {
        Some(&id) => Err(GenerateError::OutsideVocabulary { id, vocab }),
        None => Ok(()),
    }
}

/// Steps 1 and 2: what `lm_head` sees of the last position, `[batch, 1, d_model]`; `None` if there
/// is none.
fn read<B: HybridEngine>(
    model: &HybridLm<B>,
    prompts: &[&[u32]],
    cache: &mut Cache<B>,
    device: &B::Device,
) -> Option<Tensor<B, 3>> {
    let batch = prompts.len();
    let longest = prompts.iter().map(|prompt| prompt.len()).max()?;
    let padded = prompts.iter().any(|prompt| prompt.len() < longest);
    let mut last = None;
    for start in (0..longest).step_by(PIECE) {
        let seq = PIECE.min(longest - start);
        let (mut ids, mut tokens) = (Vec::new(), Vec::new());
        for prompt in prompts {
            let padding = longest - prompt.len();
            for position in start..start + seq {
                let id = position.checked_sub(padding).map(|at| prompt[at]);
                ids.push(id.unwrap_or(PADDING));
                tokens.push(id.is_some());
            }
        }
        let ids = int_tensor(&ids, [batch, seq], device);
        let tokens = TensorData::new(tokens, [batch, seq]);
        let tokens = padded.then(|| Tensor::from_data(tokens, device));
        let hidden = model.extend_hidden(ids, tokens, cache);
        last = Some(hidden.narrow(1, seq - 1, 1));
    }
    last
}

fn int_tensor<B: HybridEngine>(
    ids: &[u32],
    shape: [usize; 2],
    device: &B::Device,
) -> Tensor<B, 2, Int> {
    let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    Tensor::from_data(TensorData::new(ids, shape), device)
}
