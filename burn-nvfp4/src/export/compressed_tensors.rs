//! compressed-tensors' `nvfp4-pack-quantized`, read by vLLM and transformers.
//!
//! The tensor scale is an encode scale, `2688 / amax`: the inverse of Model Optimizer's. Weights
//! only (`NVFP4A16`): quantized activations would need an `input_global_scale` for each linear.

use serde_json::{Value, json};

/// Codes, block scales, tensor scale.
pub(super) const SUFFIXES: [&str; 3] = ["weight_packed", "weight_scale", "weight_global_scale"];

const METHOD: &str = "compressed-tensors";
const FORMAT: &str = "nvfp4-pack-quantized";

pub(super) fn quantization_config(kept: &[String]) -> Value {
    json!({
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "ignore": kept,
        "config_groups": {"group_0": {
            "targets": ["Linear"],
            "format": FORMAT,
            "weights": {
                "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16,
                "symmetric": true, "dynamic": false, "scale_dtype": "torch.float8_e4m3fn",
                "zp_dtype": "torch.float8_e4m3fn",
            },
            "input_activations": null,
            "output_activations": null,
        }},
    })
}

pub(super) fn is_named_by(config: &Value) -> bool {
    config["quant_method"] == METHOD && config["format"] == FORMAT
}
