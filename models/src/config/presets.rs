//! Known sizes by name: toys in the style of the family, and the published models.
//!
//! Published dimensions: Megatron-Bridge's providers (reference table in `docs`). The 12B's Mamba
//! heads are 128 of width 80, as in every code base, although both papers say "head dimension 64".
//! In all presets the inputs and outputs of every linear layer but `lm_head` are multiples of 16,
//! so NVFP4 blocks are never partial.

use super::{Bias, ConfigError, DtInit, DtLimit, HybridConfig, Pattern, Residual, SpecialTokens};

/// Vocabulary of the published models.
pub const PUBLISHED_VOCAB: usize = 131_072;

/// One row of the table below.
struct Preset {
    name: &'static str,
    pattern: &'static str,
    d_model: usize,
    d_ffn: usize,
    /// Query heads, key/value heads, head width.
    attention: [usize; 3],
    /// Heads, head width, groups, state size.
    mamba: [usize; 4],
    chunk_len: usize,
    context_len: usize,
}

/// Parameter counts of the toys are without embedding and `lm_head` (`2 * vocab * d_model`).
#[rustfmt::skip]
const PRESETS: [Preset; 11] = [
    Preset { name: "tiny-1m", pattern: "M-M-M*-M-", d_model: 128, d_ffn: 512,
             attention: [4, 2, 32], mamba: [16, 16, 2, 32], chunk_len: 16, context_len: 1024 },
    Preset { name: "small-5m", pattern: "M-M-M*-M-M-", d_model: 256, d_ffn: 1024,
             attention: [8, 2, 32], mamba: [16, 32, 2, 64], chunk_len: 32, context_len: 1024 },
    Preset { name: "small-30m", pattern: "M-M-M-M*-M-M-M-", d_model: 512, d_ffn: 2048,
             attention: [8, 2, 64], mamba: [16, 64, 4, 64], chunk_len: 64, context_len: 2048 },
    Preset { name: "small-130m", pattern: "M-M-M-M*-M-M-M-M*-M-M-M-M-", d_model: 768, d_ffn: 3072,
             attention: [12, 4, 64], mamba: [32, 64, 4, 128], chunk_len: 128, context_len: 4096 },
    Preset { name: "small-1b", pattern: "M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M-", d_model: 2048,
             d_ffn: 8192, attention: [16, 8, 128], mamba: [64, 64, 8, 128], chunk_len: 128,
             context_len: 8192 },
    Preset { name: "4b", pattern: PATTERN_4B_8B, d_model: 3072, d_ffn: 12288,
             attention: [32, 8, 128], mamba: [112, 64, 8, 128], chunk_len: 128, context_len: 8192 },
    Preset { name: "8b", pattern: PATTERN_4B_8B, d_model: 4096, d_ffn: 21504,
             attention: [32, 8, 128], mamba: [128, 64, 8, 128], chunk_len: 128, context_len: 8192 },
    Preset { name: "9b", pattern: PATTERN_9B, d_model: 4480, d_ffn: 15680,
             attention: [40, 8, 128], mamba: [128, 80, 8, 128], chunk_len: 128,
             context_len: 131_072 },
    Preset { name: "12b", pattern: PATTERN_12B, d_model: 5120, d_ffn: 20480,
             attention: [40, 8, 128], mamba: [128, 80, 8, 128], chunk_len: 128,
             context_len: 131_072 },
    Preset { name: "47b", pattern: PATTERN_47B, d_model: 8192, d_ffn: 30720,
             attention: [64, 8, 128], mamba: [256, 64, 8, 256], chunk_len: 128, context_len: 8192 },
    Preset { name: "56b", pattern: PATTERN_56B, d_model: 8192, d_ffn: 32768,
             attention: [64, 8, 128], mamba: [256, 64, 8, 256], chunk_len: 128, context_len: 8192 },
];

const PATTERN_4B_8B: &str = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-";
const PATTERN_9B: &str = "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-";
const PATTERN_12B: &str = "M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M-";
const PATTERN_47B: &str = concat!(
    "M-M-M-M-M-M-M-M-M*-M-M-M-M-M-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*",
    "-M-M-M-M-M-M-M---MM---M-M*-M-M-M-M-M-",
);
const PATTERN_56B: &str = concat!(
    "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*",
    "-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
);

impl HybridConfig {
    /// The preset of this name with this vocabulary ([`PUBLISHED_VOCAB`] for the published ones).
    ///
    /// # Errors
    /// [`ConfigError::UnknownPreset`], or what [`HybridConfig::validate`] says of the vocabulary.
    pub fn preset(name: &str, vocab_size: usize) -> Result<Self, ConfigError> {
        let preset = PRESETS
            .iter()
            .find(|preset| preset.name == name)
            .ok_or_else(|| {
                let known = Self::preset_names().collect::<Vec<_>>().join(", ");
                ConfigError::UnknownPreset {
                    name: name.into(),
                    known,
                }
            })?;
        let [n_attention_heads, n_kv_heads, attention_head_dim] = preset.attention;
        let [n_mamba_heads, mamba_head_dim, n_groups, d_state] = preset.mamba;
        let config = Self {
            vocab_size,
            d_model: preset.d_model,
            pattern: preset.pattern.parse::<Pattern>()?,
            n_attention_heads,
            n_kv_heads,
            attention_head_dim,
            d_ffn: preset.d_ffn,
            n_mamba_heads,
            mamba_head_dim,
            n_groups,
            d_state,
            d_conv: 4,
            chunk_len: preset.chunk_len,
            context_len: preset.context_len,
            norm_eps: 1e-5,
            dt_limit: DtLimit {
                min: 0.0,
                max: None,
            },
            dt_init: DtInit {
                min: 1e-3,
                max: 0.1,
                floor: 1e-4,
            },
            init_std: 0.02,
            conv_bias: Bias::Learned,
            mamba_bias: Bias::Absent,
            attention_bias: Bias::Absent,
            mlp_bias: Bias::Absent,
            residual: Residual::Activations,
            special_tokens: SpecialTokens {
                bos: 1,
                eos: vec![2],
                pad: 0,
            },
        };
        config.validate()?;
        Ok(config)
    }

    /// Names of all presets, smallest first.
    pub fn preset_names() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|preset| preset.name)
    }
}
