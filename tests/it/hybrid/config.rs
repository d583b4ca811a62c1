//! `config.json` in every spelling, and every way in which a configuration can be wrong.

use std::fs;

use burn_nvfp4_models::config::hf::StoredFloat;
use burn_nvfp4_models::config::{DtLimit, HybridConfig, Residual};
use serde_json::{Value, json};

use super::support::{fixture_root, fixtures};

/// A small valid configuration in the Nano-v2 spelling.
fn valid() -> Value {
    json!({
        "model_type": "nemotron_h", "vocab_size": 80, "hidden_size": 48,
        "hybrid_override_pattern": "M-*-", "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 12, "intermediate_size": 96, "ssm_state_size": 16, "mamba_num_heads": 6,
        "mamba_head_dim": 16, "n_groups": 2, "conv_kernel": 4, "chunk_size": 16,
        "layer_norm_epsilon": 1e-5,
    })
}

/// `valid()` with some keys replaced; `null` removes.
fn edited(edits: &Value) -> String {
    let mut config = valid();
    for (key, value) in edits.as_object().unwrap() {
        config[key] = value.clone();
    }
    config.to_string()
}

fn parse(edits: Value) -> HybridConfig {
    HybridConfig::from_hf_json(&edited(&edits)).unwrap_or_else(|e| panic!("{edits}: {e}"))
}

#[test]
fn spellings_of_one_model_give_one_config() {
    let reference = parse(json!({}));
    for edits in [
        json!({"head_dim": null, "attention_head_dim": 12}),
        json!({"head_dim": 12, "attention_head_dim": 12}),
        json!({"layer_norm_epsilon": null, "rms_norm_eps": 1e-5}),
        json!({"layer_norm_epsilon": null, "norm_eps": 0.00001}),
        json!({"n_groups": null, "mamba_n_groups": 2}),
        json!({"n_groups": null, "mamba_num_groups": 2}),
        json!({"conv_kernel": null, "mamba_d_conv": 4}),
        json!({"ssm_state_size": null, "mamba_state_dim": 16}),
        json!({"chunk_size": null, "mamba_chunk_size": 16}),
        json!({"use_conv_bias": true}),
        json!({"mamba_conv_bias": true}),
        json!({"time_step_min": 0.001, "mamba_dt_max": 0.1, "mamba_dt_init_floor": 1e-4}),
        json!({"hybrid_override_pattern": "M-|*-"}),
        json!({"hybrid_override_pattern": "M-*-/*E"}),
        json!({"layers_block_type": ["mamba", "mlp", "attention", "mlp"]}),
        json!({"hybrid_override_pattern": null,
               "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"]}),
        json!({"num_hidden_layers": 4}),
        json!({"num_hidden_layers": 52}),
        json!({"time_step_limit": null}),
        json!({"time_step_limit": [0.0, {"__float__": "Infinity"}]}),
        json!({"time_step_limit": [0, 1e30]}),
        json!({"mamba_dt_limit": [0.0, 1e30]}),
        json!({"eos_token_id": [2], "sliding_window": null, "expand": 7, "rope_theta": 10000}),
        json!({"torch_dtype": "bfloat16", "mamba_proj_bias": true, "num_nextn_predict_layers": 1}),
    ] {
        assert_eq!(parse(edits.clone()), reference, "{edits}");
    }
    let bare = edited(&json!({})).replacen('{', "{\"time_step_limit\": [0.0, Infinity], ", 1);
    assert_eq!(HybridConfig::from_hf_json(&bare).unwrap(), reference);
}

#[test]
fn values_are_read_and_not_defaulted() {
    let limit = parse(json!({"time_step_limit": [0.03, 0.2]})).dt_limit;
    assert_eq!(
        limit,
        DtLimit {
            min: 0.03,
            max: Some(0.2)
        }
    );
    assert_eq!(
        parse(json!({"residual_in_fp32": true})).residual,
        Residual::F32
    );
    assert_eq!(
        parse(json!({"eos_token_id": [2, 11]})).special_tokens.eos,
        [2, 11]
    );
    assert!(
        !parse(json!({"use_conv_bias": false}))
            .conv_bias
            .is_learned()
    );
    assert!(
        parse(json!({"attention_bias": true}))
            .attention_bias
            .is_learned()
    );
}

#[test]
fn bad_configs_name_what_is_wrong() {
    let cases = [
        (
            json!({"vocab_size": 0}),
            "vocab_size is 0, must be at least 1",
        ),
        (
            json!({"hidden_size": 1u64 << 40}),
            "d_model is 1099511627776, the largest supported",
        ),
        (
            json!({"hidden_size": -1}),
            "\"hidden_size\" is -1, expected a whole number",
        ),
        (
            json!({"hidden_size": 48.5}),
            "\"hidden_size\" is 48.5, expected a whole number",
        ),
        (
            json!({"hidden_size": "48"}),
            "\"hidden_size\" is \"48\", expected a whole number",
        ),
        (json!({"hidden_size": null}), "\"hidden_size\" is missing"),
        (
            json!({"head_dim": null}),
            "\"head_dim or attention_head_dim\" is missing",
        ),
        (
            json!({"mamba_head_dim": 1u64 << 23}),
            "d_inner is 50331648, the largest supported",
        ),
        (
            json!({"vocab_size": 1u64 << 24, "hidden_size": 1u64 << 24}),
            "parameter count is",
        ),
        (json!({"conv_kernel": 1}), "d_conv is 1, must be at least 2"),
        (json!({"chunk_size": 0}), "chunk_len is 0"),
        (
            json!({"num_key_value_heads": 3}),
            "n_attention_heads is 4, not a multiple of n_kv_heads",
        ),
        (
            json!({"n_groups": 4}),
            "n_mamba_heads is 6, not a multiple of n_groups = 4",
        ),
        (json!({"n_groups": 0}), "n_groups is 0"),
        // A megabyte of letters made a table of a gigabyte, before any tensor was looked for.
        (
            json!({"hybrid_override_pattern": "M".repeat(1025)}),
            "number of blocks is 1025, the largest supported value is 1024",
        ),
        (
            json!({"hybrid_override_pattern": ""}),
            "block pattern is empty",
        ),
        (
            json!({"hybrid_override_pattern": "M-x"}),
            "has 'x' at position 2",
        ),
        (
            json!({"hybrid_override_pattern": "MEM*"}),
            "mixture-of-experts blocks are not supported",
        ),
        (
            json!({"hybrid_override_pattern": null}),
            "or layers_block_type\" is missing",
        ),
        (
            json!({"layers_block_type": ["mamba", "mlp"]}),
            "contradicts itself: \"hybrid_override",
        ),
        (
            json!({"hybrid_override_pattern": null, "layers_block_type": ["moe"]}),
            "not supported",
        ),
        (
            json!({"hybrid_override_pattern": null, "layers_block_type": ["conv"]}),
            "not known",
        ),
        (json!({"hybrid_override_pattern": 3}), "expected a string"),
        (
            json!({"attention_head_dim": 128}),
            "\"head_dim\" is 12, \"attention_head_dim\" is 128",
        ),
        (
            json!({"rms_norm_eps": 1e-6}),
            "\"layer_norm_epsilon\" is 0.00001, \"rms_norm_eps\"",
        ),
        (
            json!({"layer_norm_epsilon": 0.0}),
            "norm_eps is 0, must be finite and greater than 0",
        ),
        (
            json!({"layer_norm_epsilon": {"__float__": "NaN"}}),
            "norm_eps is NaN",
        ),
        (
            json!({"initializer_range": {"__float__": "Infinity"}}),
            "init_std is inf, must be finite",
        ),
        (
            json!({"time_step_limit": [0.2, 0.1]}),
            "dt_limit.max is 0.1, must be",
        ),
        (
            json!({"time_step_limit": [-1.0, 0.1]}),
            "dt_limit.min is -1, must be",
        ),
        (
            json!({"time_step_limit": [0.0]}),
            "a list of 1, expected a lower and an upper bound",
        ),
        (
            json!({"time_step_limit": 0.1}),
            "expected a list of numbers",
        ),
        (
            json!({"time_step_min": 0.2, "time_step_max": 0.1}),
            "dt_init.max is 0.1, must be",
        ),
        (
            json!({"tie_word_embeddings": true}),
            "tied embeddings are not supported",
        ),
        (
            json!({"sliding_window": 4096}),
            "sliding window attention is not supported",
        ),
        (
            json!({"mlp_hidden_act": "silu"}),
            "only squared relu is supported",
        ),
        (
            json!({"mamba_hidden_act": "gelu"}),
            "only silu is supported",
        ),
        (
            json!({"attention_dropout": 0.1}),
            "dropout is not supported",
        ),
        (
            json!({"model_type": "llama"}),
            "only the nemotron_h family is supported",
        ),
        (json!({"use_bias": 1}), "expected true or false"),
        (
            json!({"eos_token_id": -2}),
            "expected a token id or a list of them",
        ),
    ];
    for (edits, expected) in cases {
        let error = match HybridConfig::from_hf_json(&edited(&edits)) {
            Ok(config) => panic!("{edits} was accepted: {config:?}"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(expected), "{edits}: {error}");
        assert!(
            !error.contains('\n'),
            "{edits}: more than one line: {error}"
        );
    }
    for text in ["", "{", "[]", "{\"vocab_size\": }", "\u{0}"] {
        let error = HybridConfig::from_hf_json(text).unwrap_err().to_string();
        assert!(
            error.contains("config is not valid json"),
            "{text:?}: {error}"
        );
    }
}

#[test]
fn written_json_is_that_of_transformers() {
    let mut compared = 0;
    for dir in fixtures() {
        let text = fs::read_to_string(dir.join("config.json")).unwrap();
        let config = HybridConfig::from_hf_json(&text).unwrap();
        let written = config.to_hf_json(StoredFloat::F32);
        assert_eq!(
            HybridConfig::from_hf_json(&written).unwrap(),
            config,
            "{}",
            dir.display()
        );
        let original: Result<Value, _> = serde_json::from_str(&text);
        if let Some(original) = original
            .ok()
            .filter(|v| v.get("layers_block_type").is_some())
        {
            let written: Value = serde_json::from_str(&written).unwrap();
            assert_eq!(written, original, "{}", dir.display());
            compared += 1;
        }
    }
    assert!(
        compared > 0,
        "no fixture has the spelling of transformers 5"
    );
}

#[test]
fn presets_are_the_published_configs() {
    for (preset, dir) in [
        ("4b", "h-4b-base-8k"),
        ("8b", "h-8b-base-8k"),
        ("9b", "nano-9b-v2-base"),
        ("12b", "nano-12b-v2-base"),
        ("47b", "h-47b-base-8k"),
        ("56b", "h-56b-base-8k"),
    ] {
        let path = fixture_root().join("configs").join(dir).join("config.json");
        let published = HybridConfig::from_hf_json(&fs::read_to_string(path).unwrap()).unwrap();
        let preset = HybridConfig::preset(preset, published.vocab_size).unwrap();
        // Snapshots of the first generation say 256; no result depends on it.
        assert_eq!(
            HybridConfig {
                chunk_len: preset.chunk_len,
                ..published
            },
            preset,
            "{dir}"
        );
    }
}

#[test]
fn unknown_presets_and_vocabularies_are_errors() {
    let error = HybridConfig::preset("13b", 256).unwrap_err().to_string();
    assert!(
        error.contains("no preset \"13b\"") && error.contains("tiny-1m"),
        "{error}"
    );
    let error = HybridConfig::preset("tiny-1m", 0).unwrap_err().to_string();
    assert!(error.contains("vocab_size is 0"), "{error}");
}

#[test]
fn own_form_survives_json_and_refuses_unknown_fields() {
    for name in HybridConfig::preset_names() {
        let config = HybridConfig::preset(name, 1000).unwrap();
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<HybridConfig>(&text).unwrap(), config);
        let with_typo = text.replacen('{', "{\"d_modell\": 1, ", 1);
        assert!(serde_json::from_str::<HybridConfig>(&with_typo).is_err());
    }
}
