//! Hugging Face checkpoints: the model of `config.json` from safetensors files, with their index
//! and with weights in 4 bits.

use burn::backend::NdArray;
use burn_nvfp4_models::checkpoint::hf::load_hf_packed;
use burn_nvfp4_models::generate::{Generation, Sampling};

use crate::bundle::{Bundle, Desk};

/// The files of a directory.
pub(super) const FILES: [&str; 5] = [
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "a.safetensors",
    "b.safetensors",
];

/// Most bytes of recurrent state for which a model is run: it is a product of two dimensions of
/// which the weights hold the sum.
const MAX_STATE: u64 = 1 << 18;

/// Loads a model, and lets it write two tokens.
pub(super) fn load(desk: &Desk, bundle: &Bundle<'_>) -> bool {
    desk.lay(bundle, &FILES);
    let device = Default::default();
    let loaded = match load_hf_packed::<NdArray>(&desk.path(""), &device) {
        Ok(loaded) => loaded,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    if loaded.config.state_bytes_f32() <= MAX_STATE {
        let generation = Generation::start(&loaded.model, &[&[0, 0, 0]], Sampling::GREEDY, &device);
        let written = generation
            .expect("0 is an id of every model")
            .take(2)
            .count();
        assert_eq!(written, 2);
    }
    true
}
