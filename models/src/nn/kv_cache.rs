//! Keys and values of the tokens that an attention block has seen.
//!
//! Both lie in buffers that are longer than what is in them and double when they are full, so a
//! token is written in place and the earlier ones are copied a constant number of times in all.
//! Attention reads the whole buffer: its shape, and with it the kernel that a GPU compiles or
//! tunes, changes only when it doubles. Slots that no token has reached hold zeros, and the causal
//! mask hides them as it hides later tokens.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// Slots of the smallest buffer.
const SMALLEST: usize = 64;

/// Keys and values of one attention block; empty at first.
#[derive(Clone, Debug)]
pub struct KvCache<B: Backend> {
    buffers: Option<Buffers<B>>,
    len: usize,
}

/// The buffers, laid out as the two products of attention read them.
#[derive(Clone, Debug)]
struct Buffers<B: Backend> {
    /// `[batch, kv_heads, head_dim, slots]`.
    keys: Tensor<B, 4>,
    /// `[batch, kv_heads, slots, head_dim]`.
    values: Tensor<B, 4>,
}

impl<B: Backend> Default for KvCache<B> {
    fn default() -> Self {
        Self {
            buffers: None,
            len: 0,
        }
    }
}

impl<B: Backend> KvCache<B> {
    /// Number of tokens in the cache.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is in the cache.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The keys, oldest first: `[batch, kv_heads, len, head_dim]`; `None` if there are none.
    pub fn keys(&self) -> Option<Tensor<B, 4>> {
        let buffers = self.buffers.as_ref()?;
        Some(buffers.keys.clone().swap_dims(2, 3).narrow(2, 0, self.len))
    }

    /// The values, oldest first: `[batch, kv_heads, len, head_dim]`; `None` if there are none.
    pub fn values(&self) -> Option<Tensor<B, 4>> {
        let buffers = self.buffers.as_ref()?;
        Some(buffers.values.clone().narrow(2, 0, self.len))
    }

    /// The same for each of `rows` sequences, of a cache of one.
    ///
    /// # Panics
    /// If the cache is of several sequences.
    pub fn repeated(&self, rows: usize) -> Self {
        let repeat = |tensor: &Tensor<B, 4>| {
            assert_eq!(
                tensor.dims()[0],
                1,
                "only a cache of one sequence can be repeated"
            );
            tensor.clone().repeat_dim(0, rows)
        };
        Self {
            buffers: self.buffers.as_ref().map(|buffers| Buffers {
                keys: repeat(&buffers.keys),
                values: repeat(&buffers.values),
            }),
            len: self.len,
        }
    }

    /// Appends tokens, and returns keys and values of all tokens, with slots to spare behind them
    /// unless these are the first ones.
    ///
    /// # Shapes
    /// Keys: `[batch, kv_heads, head_dim, seq]`, returned with at least `len` in place of `seq`;
    /// values: `[batch, kv_heads, seq, head_dim]`, likewise.
    pub(super) fn append(
        &mut self,
        keys: Tensor<B, 4>,
        values: Tensor<B, 4>,
    ) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let [batch, heads, width, seq] = keys.dims();
        let (start, end) = (self.len, self.len + seq);
        // Taken out, so that nothing else holds the buffers and they are written in place.
        let buffers = self.buffers.take();
        let is_first = buffers.is_none();
        let new = (keys, values);
        let Buffers { keys, values } = match buffers {
            Some(buffers) => buffers.with_slots(end),
            None => Buffers::zeros_like(&new.0, end),
        };
        let buffers = Buffers {
            keys: keys.slice_assign([0..batch, 0..heads, 0..width, start..end], new.0.clone()),
            values: values.slice_assign([0..batch, 0..heads, start..end, 0..width], new.1.clone()),
        };
        let all = if is_first {
            new
        } else {
            (buffers.keys.clone(), buffers.values.clone())
        };
        self.buffers = Some(buffers);
        self.len = end;
        all
    }
}

impl<B: Backend> Buffers<B> {
    /// Buffers of zeros for `count` tokens like those whose keys are given.
    fn zeros_like(keys: &Tensor<B, 4>, count: usize) -> Self {
        let [batch, heads, width, _] = keys.dims();
        let slots = slots_for(count);
        let options = (&keys.device(), keys.dtype());
        Self {
            keys: Tensor::zeros([batch, heads, width, slots], options),
            values: Tensor::zeros([batch, heads, slots, width], options),
        }
    }

    /// The same with room for `count` tokens.
    fn with_slots(self, count: usize) -> Self {
        let [batch, heads, width, slots] = self.keys.dims();
        let missing = slots_for(count).saturating_sub(slots);
        if missing == 0 {
            return self;
        }
        let options = (&self.keys.device(), self.keys.dtype());
        let keys = Tensor::zeros([batch, heads, width, missing], options);
        let values = Tensor::zeros([batch, heads, missing, width], options);
        Self {
            keys: Tensor::cat(vec![self.keys, keys], 3),
            values: Tensor::cat(vec![self.values, values], 2),
        }
    }
}

/// Slots of a buffer for `count` tokens.
fn slots_for(count: usize) -> usize {
    count.next_power_of_two().max(SMALLEST)
}
