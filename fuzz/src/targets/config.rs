//! Configurations: of a model, as JSON, and of a run, as TOML.

use std::path::Path;

use burn_nvfp4_models::checkpoint::hf::{config_format, load_hf_config};
use burn_nvfp4_models::config::HybridConfig;
use burn_nvfp4_models::config::hf::StoredFloat;
use burn_nvfp4_models::train::config::TrainConfig;

use crate::bundle::{Bundle, Desk};

/// `config.json` and the quantization that it announces. What is written again reads the same.
pub(super) fn model(desk: &Desk, bundle: &Bundle<'_>) -> bool {
    desk.lay(bundle, &["config.json"]);
    let format = config_format(&desk.path(""));
    let Ok(config) = load_hf_config(&desk.path("")) else {
        return false;
    };
    for stored in [StoredFloat::F32, StoredFloat::Bf16] {
        let again = HybridConfig::from_hf_json(&config.to_hf_json(stored));
        assert_eq!(again.as_ref(), Ok(&config));
    }
    let counted: u64 = config.params().iter().map(|spec| spec.numel()).sum();
    assert_eq!(config.num_params(), counted);
    format.is_ok()
}

/// The TOML of a run, with the policy that it makes for a model. What is written again reads the
/// same.
pub(super) fn training(_: &Desk, bundle: &Bundle<'_>) -> bool {
    let text = bundle.text("run.toml");
    let Ok(config) = TrainConfig::from_toml(&text, Path::new("run.toml")) else {
        return false;
    };
    let written = toml::to_string(&config).expect("a configuration can be written");
    let again = TrainConfig::from_toml(&written, Path::new("again.toml"));
    assert_eq!(again.ok().as_ref(), Some(&config), "{written}");
    let schedule = config.schedule();
    assert!(schedule.learning_rate(config.steps).is_finite());
    let model = HybridConfig::preset("tiny-1m", 256).expect("a preset of ours");
    config.precision.policy(&model).is_ok()
}
