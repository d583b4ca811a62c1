//! What a hybrid model is made of: dimensions, block pattern and initialisation, checked.
//!
//! [`HybridConfig`] is plain data. [`HybridConfig::validate`] is called by everything that builds
//! or reads a model, before anything is allocated; afterwards products of dimensions fit in 64
//! bits. Sizes that follow from others (`d_inner`, the width of `in_proj`, ..) are methods, never
//! fields, so that they cannot disagree.
//!
//! Hugging Face spells the same data in several ways: [`hf`]. Known sizes by name: [`presets`].

use serde::{Deserialize, Serialize};

pub mod error;
pub mod pattern;
pub mod params;
mod validate;
pub(crate) mod lenient;
pub mod presets;
pub mod hf;

pub use error::ConfigError;
use params::ParamSpec;
pub use pattern::{MixerKind, Pattern};

/// A Nemotron-H style model: a pre-norm stack of Mamba-2, attention and MLP blocks.
///
/// `d_inner` is `n_mamba_heads * mamba_head_dim`; the `expand` of older descriptions is a decoy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HybridConfig {
    /// Number of token ids; rows of the embedding and columns of `lm_head`.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// One mixer per block, first to last.
    pub pattern: Pattern,
    /// Query heads of an attention block.
    pub n_attention_heads: usize,
    /// Key and value heads of an attention block; divides `n_attention_heads`.
    pub n_kv_heads: usize,
    /// Width of an attention head, independent of `d_model / n_attention_heads`.
    pub attention_head_dim: usize,
    /// Hidden width of an MLP block.
    pub d_ffn: usize,
    /// Heads of a Mamba-2 block (H).
    pub n_mamba_heads: usize,
    /// Width of a Mamba-2 head (P).
    pub mamba_head_dim: usize,
    /// Groups that share B and C, and groups of the gated norm (G); divides `n_mamba_heads`.
    pub n_groups: usize,
    /// State size per channel (N).
    pub d_state: usize,
    /// Taps of the causal convolution (K), at least 2.
    pub d_conv: usize,
    /// Tokens per chunk of the SSD algorithm (Q). Changes speed, never results.
    pub chunk_len: usize,
    /// Longest sequence the model was made for. Nothing in the model depends on it.
    pub context_len: usize,
    /// Added to the mean square inside every norm.
    pub norm_eps: f64,
    /// Bounds of the discretisation step after softplus.
    pub dt_limit: DtLimit,
    /// How `dt_bias` starts.
    pub dt_init: DtInit,
    /// Standard deviation of the initial weights (sigma); output projections get
    /// `sigma / sqrt(n_blocks)`.
    pub init_std: f64,
    /// Bias of the convolution.
    pub conv_bias: Bias,
    /// Bias of the Mamba-2 projections.
    pub mamba_bias: Bias,
    /// Bias of the attention projections.
    pub attention_bias: Bias,
    /// Bias of the MLP projections.
    pub mlp_bias: Bias,
    /// Dtype of the residual stream.
    pub residual: Residual,
    /// Token ids with a meaning of their own.
    pub special_tokens: SpecialTokens,
}

/// Whether a layer has a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// No bias.
    Absent,
    /// A learned bias.
    Learned,
}

impl Bias {
    /// The bias of `Learned` when `present`.
    pub fn from_bool(present: bool) -> Self {
        if present { Self::Learned } else { Self::Absent }
    }

    /// Whether there is a bias.
    pub fn is_learned(self) -> bool {
        self == Self::Learned
    }
}

/// In which dtype blocks add to the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Residual {
    /// In the dtype of the activations, as the published models do.
    Activations,
    /// In f32.
    F32,
}

/// Bounds of `dt = clamp(softplus(dt_raw + dt_bias), min, max)`.
///
/// The family was trained without bounds, which is `[0, inf)`. Stock transformers 5 clamps at
/// `time_step_min` in prefill; [`HybridConfig::with_transformers_dt_floor`] reproduces that.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DtLimit {
    /// Lower bound; 0 is no bound, since softplus is positive.
    pub min: f64,
    /// Upper bound, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

/// `dt_bias` starts where `softplus(dt_bias) = max(exp(U(ln min, ln max)), floor)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DtInit {
    /// Smallest drawn step.
    pub min: f64,
    /// Largest drawn step.
    pub max: f64,
    /// Floor under the drawn step.
    pub floor: f64,
}

/// Token ids with a meaning of their own; the model itself never looks at them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecialTokens {
    /// Begin of a document.
    pub bos: u32,
    /// Ends a generation; the first one ends a document.
    pub eos: Vec<u32>,
    /// Fills shorter rows.
    pub pad: u32,
}

impl HybridConfig {
    /// Number of blocks, each a norm and one mixer (L).
    pub fn n_blocks(&self) -> usize {
        self.pattern.len()
    }

    /// Channels inside a Mamba-2 block (I).
    pub fn d_inner(&self) -> usize {
        self.n_mamba_heads * self.mamba_head_dim
    }

    /// Channels of the convolution: x, B and C.
    pub fn conv_dim(&self) -> usize {
        self.d_inner() + 2 * self.n_groups * self.d_state
    }

    /// Outputs of `in_proj`: z, x, B, C, dt.
    pub fn in_proj_out(&self) -> usize {
        self.d_inner() + self.conv_dim() + self.n_mamba_heads
    }

    /// Channels that the gated norm normalises together.
    pub fn gated_norm_group(&self) -> usize {
        self.d_inner() / self.n_groups
    }

    /// Width of all queries.
    pub fn attention_width(&self) -> usize {
        self.n_attention_heads * self.attention_head_dim
    }

    /// Width of all keys, and of all values.
    pub fn kv_width(&self) -> usize {
        self.n_kv_heads * self.attention_head_dim
    }

    /// Bytes of recurrent state per sequence, in f32: `d_conv` convolution columns and the ssm
    /// state of every Mamba-2 block.
    pub fn state_bytes_f32(&self) -> u64 {
        let per_block = self.conv_dim() * self.d_conv + self.d_inner() * self.d_state;
        4 * per_block as u64 * self.pattern.count(MixerKind::Mamba) as u64
    }

    /// Bytes of keys and values per token, in bf16, over all attention blocks.
    pub fn kv_bytes_bf16_per_token(&self) -> u64 {
        2 * 2 * self.kv_width() as u64 * self.pattern.count(MixerKind::Attention) as u64
    }

    /// Every parameter, in the order of the modules: name, shape, initial values, decay.
    pub fn params(&self) -> Vec<ParamSpec> {
        params::all(self)
    }

    /// Number of parameters, by arithmetic; nothing is allocated.
    pub fn num_params(&self) -> u64 {
        self.params().iter().map(ParamSpec::numel).sum()
    }

    /// Number of parameters of one block with this mixer, its norm included.
    pub fn num_params_of(&self, kind: MixerKind) -> u64 {
        params::block(self, 0, kind)
            .iter()
            .map(ParamSpec::numel)
            .sum()
    }

    /// Names of all linear layers, in the order of the forward pass.
    ///
    /// These are the names that a precision policy matches: `layers.0.mixer.in_proj`, ..,
    /// `lm_head`.
    pub fn linear_names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for (index, kind) in self.pattern.iter().enumerate() {
            names.extend(
                kind.linears()
                    .iter()
                    .map(|l| format!("layers.{index}.mixer.{l}")),
            );
        }
        names.push("lm_head".into());
        names
    }

    /// The same model with the `dt` floor that stock transformers 5 applies in prefill.
    ///
    /// For bug-for-bug comparisons only: the models were trained without it.
    pub fn with_transformers_dt_floor(&self) -> Self {
        let dt_limit = DtLimit {
            min: self.dt_init.min,
            max: None,
        };
        Self {
            dt_limit,
            ..self.clone()
        }
    }
}
