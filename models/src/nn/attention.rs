//! Causal grouped-query attention without positions, biases aside exactly
//! `softmax(q k^T / sqrt(d)) v`.
//!
//! There is no positional encoding at all: the Mamba blocks carry order (some published configs
//! name a `rope_theta`; nothing uses it). Keys and values are never repeated for the query heads
//! that share them; instead those heads are stacked as rows of one product per key/value head.

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Bool, Int, Tensor};
use burn_hybrid_ops::op::AttentionShape;
use burn_hybrid_ops::{HybridEngine, ops};

use super::activation::softmax;
use super::kv_cache::KvCache;
use super::linear::Linear;
use super::pass::Pass;
use super::source::ParamSource;
use super::wide;
use crate::config::HybridConfig;

/// Score of what may not be seen. Finite, so that a row that sees nothing (padding) stays finite
/// and cannot turn later sums into NaN; `exp(MASKED - max)` is still exactly 0 elsewhere.
const MASKED: f32 = -1e30;

/// The attention mixer.
#[derive(Module, Debug)]
pub struct Attention<B: Backend> {
    /// `d_model -> n_heads * head_dim`.
    pub q_proj: Linear<B>,
    /// `d_model -> n_kv_heads * head_dim`.
    pub k_proj: Linear<B>,
    /// `d_model -> n_kv_heads * head_dim`.
    pub v_proj: Linear<B>,
    /// `n_heads * head_dim -> d_model`.
    pub o_proj: Linear<B>,
    n_kv_heads: usize,
    /// Query heads per key/value head.
    n_shared: usize,
    head_dim: usize,
}

impl<B: Backend> Attention<B> {
    /// Takes the parameters below `{name}.`.
    pub fn new(source: &mut ParamSource<'_, B>, name: &str, config: &HybridConfig) -> Self {
        Self {
            q_proj: Linear::new(source, &format!("{name}.q_proj")),
            k_proj: Linear::new(source, &format!("{name}.k_proj")),
            v_proj: Linear::new(source, &format!("{name}.v_proj")),
            o_proj: Linear::new(source, &format!("{name}.o_proj")),
            n_kv_heads: config.n_kv_heads,
            n_shared: config.n_attention_heads / config.n_kv_heads,
            head_dim: config.attention_head_dim,
        }
    }
}

impl<B: HybridEngine> Attention<B> {
    /// `[batch, seq, d_model]` to the same. Padded tokens are not seen.
    ///
    /// With a cache the tokens follow those in it, as the pass says too, and are added to it.
    pub fn forward(
        &self,
        x: Tensor<B, 3>,
        cache: Option<&mut KvCache<B>>,
        pass: &Pass<'_, B>,
    ) -> Tensor<B, 3> {
        let q = self.q_proj.forward(x.clone());
        let k = self.k_proj.forward(x.clone());
        let v = self.v_proj.forward(x);
        // The kernel knows no cache and no padding: that is what training looks like.
        let alone = cache.is_none() && pass.keys().is_none() && pass.past() == 0;
        let by_kernel = alone
            .then(|| ops::causal_attention(&q, &k, &v, self.shape()))
            .flatten();
        let y = by_kernel.unwrap_or_else(|| self.attend(q, k, v, cache, pass));
        self.o_proj.forward(y)
    }

    fn shape(&self) -> AttentionShape {
        AttentionShape {
            n_heads: self.n_kv_heads * self.n_shared,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
        }
    }

    /// What stands between the projections, of `[batch, seq, heads * head_dim]`.
    fn attend(
        &self,
        q: Tensor<B, 3>,
        k: Tensor<B, 3>,
        v: Tensor<B, 3>,
        cache: Option<&mut KvCache<B>>,
        pass: &Pass<'_, B>,
    ) -> Tensor<B, 3> {
        let [batch, seq, _] = q.dims();
        let (kv, shared, width) = (self.n_kv_heads, self.n_shared, self.head_dim);

        // Scaling q touches seq * d elements, scaling the scores seq * seq.
        let q = q * (width as f64).sqrt().recip();
        let q = q
            .reshape([batch, seq, kv, shared, width])
            .permute([0, 2, 3, 1, 4])
            .reshape([batch, kv, shared * seq, width]);
        let k = k.reshape([batch, seq, kv, width]).permute([0, 2, 3, 1]); // [batch, kv, width, seq]
        let v = v.reshape([batch, seq, kv, width]).swap_dims(1, 2); // [batch, kv, seq, width]
        let (k, v) = match cache {
            Some(cache) => cache.append(k, v),
            None => (k, v),
        };
        let keys = k.dims()[3];

        let scores = q.matmul(k); // [batch, kv, shared * seq, keys]
        let dtype = scores.dtype();
        let scores = scores
            .cast(wide(dtype))
            .reshape([batch, kv * shared, seq, keys]);
        let hidden = hidden_keys(batch, [seq, keys], pass, &scores.device());
        let scores = scores.mask_fill(hidden.expand([batch, kv * shared, seq, keys]), MASKED);
        let weights = softmax(scores)
            .cast(dtype)
            .reshape([batch, kv, shared * seq, keys]);

        let y = weights.matmul(v); // [batch, kv, shared * seq, width]
        y.reshape([batch, kv, shared, seq, width])
            .permute([0, 3, 1, 2, 4])
            .reshape([batch, seq, kv * shared * width])
    }
}

/// True where a query (third axis) may not see a key (fourth axis): later tokens, slots of the
/// cache that no token has reached, and padding.
fn hidden_keys<B: Backend>(
    batch: usize,
    [seq, keys]: [usize; 2],
    pass: &Pass<'_, B>,
    device: &B::Device,
) -> Tensor<B, 4, Bool> {
    // Burn's "tril mask" is false on and below the diagonal, which the offset moves to the right.
    let offset = i64::try_from(pass.past()).expect("a number of tokens in memory");
    let later = Tensor::<B, 2, Bool>::tril_mask([seq, keys], offset, device);
    let later = later.reshape([1, 1, seq, keys]);
    match pass.keys() {
        Some(tokens) => {
            let reached = tokens.dims()[1];
            let padding = tokens.clone().bool_not();
            // What no token has reached is later than every query.
            let padding = if reached < keys {
                let rest = Tensor::<B, 2, Int>::zeros([batch, keys - reached], device).bool();
                Tensor::cat(vec![padding, rest], 1)
            } else {
                padding
            };
            let shape = [batch, 1, seq, keys];
            let padding = padding.reshape([batch, 1, 1, keys]);
            later.expand(shape).bool_or(padding.expand(shape))
        }
        None => later,
    }
}
