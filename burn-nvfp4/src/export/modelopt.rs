//! NVIDIA Model Optimizer's names and configuration, read by vLLM, TensorRT-LLM and SGLang.
//!
//! The tensor scale is a decode scale, `amax / 2688`. Weights only (`W4A16_NVFP4`): quantized
//! activations would need an `input_scale` for each linear.

use serde_json::{Value, json};

/// Codes, block scales, tensor scale.
pub(super) const SUFFIXES: [&str; 3] = ["weight", "weight_scale", "weight_scale_2"];

/// The file that holds the configuration beside `config.json`.
pub(super) const CONFIG_FILE: &str = "hf_quant_config.json";

/// What the weights are, in Model Optimizer's words.
const ALGORITHM: &str = "W4A16_NVFP4";

pub(super) fn quantization_config(kept: &[String]) -> Value {
    json!({
        "quant_method": "modelopt",
        "quant_algo": ALGORITHM,
        "kv_cache_scheme": null,
        "producer": producer(),
        "ignore": kept,
        "config_groups": {"group_0": {
            "weights": {"num_bits": 4, "type": "float", "group_size": 16, "dynamic": false},
            "targets": ["Linear"],
        }},
    })
}

pub(super) fn hf_quant_config(kept: &[String]) -> Value {
    json!({
        "producer": producer(),
        "quantization": {
            "quant_algo": ALGORITHM,
            "kv_cache_quant_algo": null,
            "group_size": 16,
            "exclude_modules": kept,
        },
    })
}

/// With and without quantized activations: the weights are the same.
pub(super) fn is_named_by(config: &Value) -> bool {
    config["quant_method"] == "modelopt"
        && ["NVFP4", ALGORITHM]
            .iter()
            .any(|name| config["quant_algo"] == *name)
}

fn producer() -> Value {
    json!({"name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION")})
}
