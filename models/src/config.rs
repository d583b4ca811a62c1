//! What a hybrid model is made of: dimensions, block pattern and initialisation, checked.
//!
//! [`HybridConfig`] is plain data. [`HybridConfig::validate`] is called by everything that builds
//! or reads a model, before anything is allocated; afterwards products of dimensions fit in 64
//! bits. Sizes that follow from others (`d_inner`, the width of `in_proj`, ..) are methods, never
//! fields, so that they cannot disagree.
//!
//! Hugging Face spells the same data in several ways: [`hf`]. Known sizes by name: [`presets`].

use serde::{Deserialize, Serialize};

pub mod pattern;
pub mod params;
pub mod presets;
pub mod hf;

use params::ParamSpec;
pub use pattern::{MixerKind, Pattern};

/// Largest value of any dimension. Bounds every product below 2^63 and rejects garbage early.
const MAX_DIMENSION: usize = 1 << 24;

/// Largest number of parameters: well above the family's largest (56 billion).
const MAX_PARAMS: u64 = 1 << 42;

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

/// Why a configuration cannot be a model.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A dimension is zero, or below what the layer can do.
    #[error("{field} is {value}, must be at least {min}")]
    TooSmall {
        /// The field.
        field: &'static str,
        /// Its value.
        value: usize,
        /// The least value.
        min: usize,
    },
    /// A dimension is beyond any model.
    #[error("{field} is {value}, the largest supported value is {max}")]
    TooLarge {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The largest value.
        max: u64,
    },
    /// One dimension has to be a multiple of another.
    #[error("{field} is {value}, not a multiple of {divisor_field} = {divisor}")]
    NotDivisible {
        /// The dividend.
        field: &'static str,
        /// Its value.
        value: usize,
        /// The divisor.
        divisor_field: &'static str,
        /// Its value.
        divisor: usize,
    },
    /// A real number is outside of its range, or not finite.
    #[error("{field} is {value}, must be {range}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// Its value.
        value: f64,
        /// The allowed range, in words.
        range: &'static str,
    },
    /// The pattern has no blocks.
    #[error("the block pattern is empty")]
    EmptyPattern,
    /// A letter that names no block.
    #[error("block pattern has {letter:?} at position {position}, expected 'M', '*' or '-'")]
    UnknownBlock {
        /// The letter.
        letter: char,
        /// Where it stands, from 0.
        position: usize,
    },
    /// No preset has this name.
    #[error("no preset {name:?}, there are: {known}")]
    UnknownPreset {
        /// The name that was asked for.
        name: String,
        /// All names.
        known: String,
    },
    /// The text is no JSON.
    #[error("config is not valid json: {reason}")]
    Json {
        /// What the parser says.
        reason: String,
    },
    /// A key that the model cannot be built without is not there.
    #[error("config key {key:?} is missing")]
    MissingKey {
        /// The key, or its accepted spellings.
        key: String,
    },
    /// A key has a value of another type.
    #[error("config key {key:?} is {found}, expected {expected}")]
    WrongType {
        /// The key.
        key: String,
        /// What stands there.
        found: String,
        /// What should.
        expected: &'static str,
    },
    /// Two keys say different things about the same quantity.
    #[error("config contradicts itself: {first_key:?} is {first}, {second_key:?} is {second}")]
    Contradiction {
        /// One key.
        first_key: String,
        /// Its value.
        first: String,
        /// The other key.
        second_key: String,
        /// Its value.
        second: String,
    },
    /// A value asks for something that this implementation does not have.
    #[error("config key {key:?} is {value}: {reason}")]
    Unsupported {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What is not supported.
        reason: &'static str,
    },
}

impl HybridConfig {
    /// Checks every dimension, divisibility and range.
    ///
    /// # Errors
    /// The first violation, in the order of the fields.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, value, min) in self.dimensions() {
            if value < min {
                return Err(ConfigError::TooSmall { field, value, min });
            }
            if value > MAX_DIMENSION {
                let (value, max) = (value as u64, MAX_DIMENSION as u64);
                return Err(ConfigError::TooLarge { field, value, max });
            }
        }
        if self.pattern.is_empty() {
            return Err(ConfigError::EmptyPattern);
        }
        for (field, value, divisor_field, divisor) in [
            (
                "n_attention_heads",
                self.n_attention_heads,
                "n_kv_heads",
                self.n_kv_heads,
            ),
            (
                "n_mamba_heads",
                self.n_mamba_heads,
                "n_groups",
                self.n_groups,
            ),
        ] {
            if !value.is_multiple_of(divisor) {
                return Err(ConfigError::NotDivisible {
                    field,
                    value,
                    divisor_field,
                    divisor,
                });
            }
        }
        for (field, value, max) in [
            (
                "d_inner",
                self.n_mamba_heads.checked_mul(self.mamba_head_dim),
                MAX_DIMENSION,
            ),
            (
                "attention width",
                self.n_attention_heads.checked_mul(self.attention_head_dim),
                MAX_DIMENSION,
            ),
            (
                "n_groups * d_state",
                self.n_groups.checked_mul(self.d_state),
                MAX_DIMENSION,
            ),
        ] {
            if value.is_none_or(|value| value > max) {
                let value = value.map_or(u64::MAX, |value| value as u64);
                return Err(ConfigError::TooLarge {
                    field,
                    value,
                    max: max as u64,
                });
            }
        }
        self.validate_reals()?;
        match self.checked_num_params() {
            Some(count) if count <= MAX_PARAMS => Ok(()),
            count => Err(ConfigError::TooLarge {
                field: "parameter count",
                value: count.unwrap_or(u64::MAX),
                max: MAX_PARAMS,
            }),
        }
    }

    /// Name, value and least value of every dimension.
    fn dimensions(&self) -> [(&'static str, usize, usize); 14] {
        [
            ("vocab_size", self.vocab_size, 1),
            ("d_model", self.d_model, 1),
            ("n_blocks", self.pattern.len().max(1), 1),
            ("n_attention_heads", self.n_attention_heads, 1),
            ("n_kv_heads", self.n_kv_heads, 1),
            ("attention_head_dim", self.attention_head_dim, 1),
            ("d_ffn", self.d_ffn, 1),
            ("n_mamba_heads", self.n_mamba_heads, 1),
            ("mamba_head_dim", self.mamba_head_dim, 1),
            ("n_groups", self.n_groups, 1),
            ("d_state", self.d_state, 1),
            // One tap has no window to carry from one call to the next.
            ("d_conv", self.d_conv, 2),
            ("chunk_len", self.chunk_len, 1),
            ("context_len", self.context_len, 1),
        ]
    }

    fn validate_reals(&self) -> Result<(), ConfigError> {
        let positive = |field, value: f64| {
            if value.is_finite() && value > 0.0 {
                Ok(())
            } else {
                let range = "finite and greater than 0";
                Err(ConfigError::OutOfRange {
                    field,
                    value,
                    range,
                })
            }
        };
        positive("norm_eps", self.norm_eps)?;
        positive("init_std", self.init_std)?;
        positive("dt_init.min", self.dt_init.min)?;
        positive("dt_init.floor", self.dt_init.floor)?;
        positive("dt_init.max", self.dt_init.max)?;
        if self.dt_init.max < self.dt_init.min {
            return Err(ConfigError::OutOfRange {
                field: "dt_init.max",
                value: self.dt_init.max,
                range: "at least dt_init.min",
            });
        }
        let DtLimit { min, max } = self.dt_limit;
        if !(min.is_finite() && min >= 0.0) {
            let range = "finite and at least 0";
            return Err(ConfigError::OutOfRange {
                field: "dt_limit.min",
                value: min,
                range,
            });
        }
        match max {
            Some(value) if !(value.is_finite() && value > min) => Err(ConfigError::OutOfRange {
                field: "dt_limit.max",
                value,
                range: "finite and greater than dt_limit.min",
            }),
            _ => Ok(()),
        }
    }

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

    /// [`Self::num_params`] before the dimensions are known to be sane.
    fn checked_num_params(&self) -> Option<u64> {
        self.params()
            .iter()
            .try_fold(0u64, |sum, spec| sum.checked_add(spec.checked_numel()?))
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
