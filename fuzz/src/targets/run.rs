//! Checkpoints of a training run, with the sums that they would have: otherwise every mutation
//! would end there.

use std::path::Path;

use burn_nvfp4_models::checkpoint::run::RunDirectory;
use burn_nvfp4_models::config::HybridConfig;
use burn_nvfp4_models::data::fingerprint::Fingerprint;
use burn_nvfp4_models::train::config::{ModelSource, TrainConfig};

use crate::bundle::{Bundle, Desk};

const FILES: [&str; 3] = [
    "parameters.safetensors",
    "moments.safetensors",
    "state.json",
];
const FOLDER: &str = "checkpoints/step-00000001/";

/// Loads a checkpoint and compares it with the model of its configuration.
pub(super) fn resume(desk: &Desk, bundle: &Bundle<'_>) -> bool {
    let mut sums = String::new();
    for name in FILES {
        let bytes = bundle.file(name).unwrap_or_default();
        desk.write(&desk.path(&format!("{FOLDER}{name}")), &bytes);
        sums += &line(name, &bytes);
    }
    sums += &line("SUMS", sums.as_bytes());
    let sums = bundle.part("SUMS").unwrap_or(sums.as_bytes());
    desk.write(&desk.path(&format!("{FOLDER}SUMS")), sums);
    let Ok(checkpoint) = RunDirectory::at(&desk.path("")).load(None) else {
        return false;
    };
    let path = Path::new("state.json");
    let Ok(config) = TrainConfig::from_toml(&checkpoint.state.config, path) else {
        return false;
    };
    let preset = match &config.model {
        ModelSource::Preset(name) => name,
        ModelSource::Config(_) => "tiny-1m",
    };
    match HybridConfig::preset(preset, 256) {
        Ok(model) => {
            checkpoint.parameter_problems(&model);
            config.precision.policy(&model).is_ok()
        }
        Err(_) => false,
    }
}

/// A line of sums.
fn line(name: &str, bytes: &[u8]) -> String {
    format!("{:016x} {} {name}\n", Fingerprint::of(bytes), bytes.len())
}
