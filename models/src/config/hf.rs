//! `config.json` of the Nemotron-H family: every spelling in, transformers 5's spelling out.
//!
//! The family's files were written by four code bases. They disagree in key names (`head_dim` or
//! `attention_head_dim`), in how blocks are listed (`hybrid_override_pattern` or
//! `layers_block_type`) and in how infinity is written (bare `Infinity`, which is not JSON,
//! `{"__float__": "Infinity"}`, `1e30`, or nothing at all). Two spellings of one quantity in the
//! same file have to agree. Keys that change nothing here (`expand`, `rope_theta`, ..) are ignored;
//! keys that would change the function of the model to something that is not implemented are
//! errors. This is the only file that knows these keys.

use serde_json::{Value, json};

use super::{
    Bias, ConfigError, DtInit, DtLimit, HybridConfig, MixerKind, Pattern, Residual, SpecialTokens,
};
use keys::Keys;

mod keys;

/// Upper bounds from here on mean "no bound"; some writers avoid infinity with `1e30`.
const UNBOUNDED: f64 = 1e30;

/// How the numbers of a checkpoint are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredFloat {
    /// As they are.
    F32,
    /// Rounded to bf16.
    Bf16,
}

impl StoredFloat {
    fn hf_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
        }
    }
}

impl HybridConfig {
    /// Reads a `config.json` and checks it.
    ///
    /// The length of the block pattern wins over `num_hidden_layers`, as in transformers.
    ///
    /// # Errors
    /// Invalid JSON, missing keys, wrong types, contradictions, unsupported features, and what
    /// [`HybridConfig::validate`] finds.
    pub fn from_hf_json(text: &str) -> Result<Self, ConfigError> {
        let keys = Keys::parse(text)?;
        reject_unsupported(&keys)?;
        let config = Self {
            vocab_size: keys.size(&["vocab_size"])?,
            d_model: keys.size(&["hidden_size"])?,
            pattern: pattern(&keys)?,
            n_attention_heads: keys.size(&["num_attention_heads"])?,
            n_kv_heads: keys.size(&["num_key_value_heads"])?,
            attention_head_dim: keys.size(&["head_dim", "attention_head_dim"])?,
            d_ffn: keys.size(&["intermediate_size"])?,
            n_mamba_heads: keys.size(&["mamba_num_heads"])?,
            mamba_head_dim: keys.size(&["mamba_head_dim"])?,
            n_groups: keys.size(&["n_groups", "mamba_n_groups", "mamba_num_groups"])?,
            d_state: keys.size(&["ssm_state_size", "mamba_state_dim"])?,
            d_conv: keys.size_or(&["conv_kernel", "mamba_d_conv"], 4)?,
            chunk_len: keys.size_or(&["chunk_size", "mamba_chunk_size"], 128)?,
            context_len: keys.size_or(&["max_position_embeddings"], 4096)?,
            norm_eps: keys.real_or(&["layer_norm_epsilon", "rms_norm_eps", "norm_eps"], 1e-5)?,
            dt_limit: dt_limit(&keys)?,
            dt_init: DtInit {
                min: keys.real_or(&["time_step_min", "mamba_dt_min"], 1e-3)?,
                max: keys.real_or(&["time_step_max", "mamba_dt_max"], 0.1)?,
                floor: keys.real_or(&["time_step_floor", "mamba_dt_init_floor"], 1e-4)?,
            },
            init_std: keys.real_or(&["initializer_range"], 0.02)?,
            conv_bias: Bias::from_bool(keys.flag_or(&["use_conv_bias", "mamba_conv_bias"], true)?),
            // `mamba_proj_bias` sits beside `use_bias` in every file and is read by nobody.
            mamba_bias: Bias::from_bool(keys.flag_or(&["use_bias"], false)?),
            attention_bias: Bias::from_bool(keys.flag_or(&["attention_bias"], false)?),
            mlp_bias: Bias::from_bool(keys.flag_or(&["mlp_bias"], false)?),
            residual: match keys.flag_or(&["residual_in_fp32"], false)? {
                true => Residual::F32,
                false => Residual::Activations,
            },
            special_tokens: SpecialTokens {
                bos: keys.token_or("bos_token_id", 1)?,
                eos: keys.tokens_or("eos_token_id", 2)?,
                pad: keys.token_or("pad_token_id", 0)?,
            },
        };
        config.validate()?;
        Ok(config)
    }

    /// The `config.json` that transformers 5 writes for this model, with sorted keys.
    pub fn to_hf_json(&self, stored: StoredFloat) -> String {
        let limit_max = match self.dt_limit.max {
            Some(max) => json!(max),
            None => json!({"__float__": "Infinity"}),
        };
        let eos = match self.special_tokens.eos.as_slice() {
            [only] => json!(only),
            several => json!(several),
        };
        let blocks: Vec<&str> = self.pattern.iter().map(block_type).collect();
        let mut value = json!({
            "attention_bias": self.attention_bias.is_learned(),
            "bos_token_id": self.special_tokens.bos,
            "chunk_size": self.chunk_len,
            "conv_kernel": self.d_conv,
            "dtype": stored.hf_name(),
            "eos_token_id": eos,
            "head_dim": self.attention_head_dim,
            "hidden_size": self.d_model,
            "initializer_range": self.init_std,
            "intermediate_size": self.d_ffn,
            "layer_norm_epsilon": self.norm_eps,
            "layers_block_type": blocks,
            "mamba_head_dim": self.mamba_head_dim,
            "mamba_num_heads": self.n_mamba_heads,
            "max_position_embeddings": self.context_len,
            "mlp_bias": self.mlp_bias.is_learned(),
            "n_groups": self.n_groups,
            "num_attention_heads": self.n_attention_heads,
            "num_key_value_heads": self.n_kv_heads,
            "pad_token_id": self.special_tokens.pad,
            "residual_in_fp32": self.residual == Residual::F32,
            "ssm_state_size": self.d_state,
            "time_step_floor": self.dt_init.floor,
            "time_step_limit": [self.dt_limit.min, limit_max],
            "time_step_max": self.dt_init.max,
            "time_step_min": self.dt_init.min,
            "use_bias": self.mamba_bias.is_learned(),
            "use_conv_bias": self.conv_bias.is_learned(),
            "vocab_size": self.vocab_size,
        });
        for constants in [family_constants(), unused_experts()] {
            if let (Value::Object(all), Value::Object(more)) = (&mut value, constants) {
                all.extend(more);
            }
        }
        serde_json::to_string_pretty(&value).expect("finite numbers and strings are valid json")
    }
}

/// Keys with the same value in every model that this crate can express.
fn family_constants() -> Value {
    json!({
        "architectures": ["NemotronHForCausalLM"],
        "attention_dropout": 0.0,
        "expand": 2,
        "hidden_dropout": 0.0,
        "mamba_hidden_act": "silu",
        "mamba_proj_bias": false,
        "mamba_ssm_cache_dtype": "float32",
        "mlp_hidden_act": "relu2",
        "model_type": "nemotron_h",
        "num_logits_to_keep": 1,
        "rescale_prenorm_residual": true,
        "sliding_window": null,
        "tie_word_embeddings": false,
        "transformers_version": "5.23.0",
        "use_cache": true,
        "use_mamba_kernels": true,
    })
}

/// Keys of the mixture-of-experts members of the family; transformers writes its defaults for the
/// others too.
fn unused_experts() -> Value {
    json!({
        "moe_intermediate_size": 7688,
        "moe_latent_size": null,
        "moe_shared_expert_intermediate_size": 7688,
        "moe_shared_expert_overlap": true,
        "mtp_layers_block_type": ["full_attention", "moe"],
        "n_group": 1,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "norm_topk_prob": true,
        "num_experts_per_tok": 2,
        "num_nextn_predict_layers": 0,
        "output_router_logits": false,
        "routed_scaling_factor": 1.0,
        "topk_group": 1,
    })
}

fn block_type(kind: MixerKind) -> &'static str {
    match kind {
        MixerKind::Mamba => "linear_attention",
        MixerKind::Attention => "full_attention",
        MixerKind::Mlp => "mlp",
    }
}

/// Finds keys that ask for a model which this is not.
fn reject_unsupported(keys: &Keys) -> Result<(), ConfigError> {
    keys.expect_text(
        "model_type",
        &["nemotron_h"],
        "only the nemotron_h family is supported",
    )?;
    keys.expect_text(
        "mlp_hidden_act",
        &["relu2"],
        "only squared relu is supported",
    )?;
    keys.expect_text(
        "mamba_hidden_act",
        &["silu", "swish"],
        "only silu is supported",
    )?;
    keys.expect_false("tie_word_embeddings", "tied embeddings are not supported")?;
    keys.expect_absent(
        "sliding_window",
        "sliding window attention is not supported",
    )?;
    for key in ["attention_dropout", "hidden_dropout"] {
        let value = keys.real_or(&[key], 0.0)?;
        if value != 0.0 {
            let (key, value) = (key.into(), value.to_string());
            let reason = "dropout is not supported";
            return Err(ConfigError::Unsupported { key, value, reason });
        }
    }
    Ok(())
}

/// The block pattern from either spelling, or from both if they agree.
fn pattern(keys: &Keys) -> Result<Pattern, ConfigError> {
    let (letters_key, types_key) = ("hybrid_override_pattern", "layers_block_type");
    let letters = keys
        .text(letters_key)?
        .map(|text| pattern_from_letters(letters_key, text));
    let types = keys
        .texts(types_key)?
        .map(|types| pattern_from_types(types_key, &types));
    match (letters.transpose()?, types.transpose()?) {
        (Some(letters), Some(types)) if letters != types => Err(ConfigError::Contradiction {
            first_key: letters_key.into(),
            first: letters.to_string(),
            second_key: types_key.into(),
            second: types.to_string(),
        }),
        (Some(pattern), _) | (None, Some(pattern)) => Ok(pattern),
        (None, None) => Err(ConfigError::MissingKey {
            key: format!("{letters_key} or {types_key}"),
        }),
    }
}

/// Letters, with Megatron's `|` between pipeline stages; after a `/` follow the blocks of
/// multi-token prediction, which are not part of the model.
fn pattern_from_letters(key: &str, text: &str) -> Result<Pattern, ConfigError> {
    let main = text.split('/').next().unwrap_or_default();
    let letters: String = main.chars().filter(|&letter| letter != '|').collect();
    if letters.contains('E') {
        return Err(no_experts(key, text));
    }
    letters.parse()
}

fn pattern_from_types(key: &str, types: &[&str]) -> Result<Pattern, ConfigError> {
    let kind = |&name: &&str| match name {
        "mamba" | "linear_attention" => Ok(MixerKind::Mamba),
        "attention" | "full_attention" => Ok(MixerKind::Attention),
        "mlp" => Ok(MixerKind::Mlp),
        "moe" => Err(no_experts(key, name)),
        other => Err(ConfigError::Unsupported {
            key: key.into(),
            value: format!("{other:?}"),
            reason: "this block type is not known",
        }),
    };
    types
        .iter()
        .map(kind)
        .collect::<Result<_, _>>()
        .map(Pattern::new)
}

fn no_experts(key: &str, value: &str) -> ConfigError {
    ConfigError::Unsupported {
        key: key.into(),
        value: format!("{value:?}"),
        reason: "mixture-of-experts blocks are not supported",
    }
}

fn dt_limit(keys: &Keys) -> Result<DtLimit, ConfigError> {
    match keys.reals(&["time_step_limit", "mamba_dt_limit"])? {
        None => Ok(DtLimit {
            min: 0.0,
            max: None,
        }),
        Some((_, values)) if values.len() == 2 => Ok(DtLimit {
            min: values[0],
            max: Some(values[1]).filter(|&max| max < UNBOUNDED),
        }),
        Some((key, values)) => Err(ConfigError::WrongType {
            key: key.into(),
            found: format!("a list of {}", values.len()),
            expected: "a lower and an upper bound",
        }),
    }
}
