//! A checkpoint's folder, as far as it can be checked without the weights.

use std::path::{Path, PathBuf};

use burn_hybrid_ops::HybridEngine;
use burn_nvfp4::export::WEIGHTS_ONLY;
use burn_nvfp4::{Nvfp4, Nvfp4Engine, Policy, presets};
use burn_nvfp4_models::checkpoint::hf::{config_format, load_hf_config, load_hf_packed};
use burn_nvfp4_models::config::HybridConfig;
use burn_nvfp4_models::data::Tokenizer;
use burn_nvfp4_models::hybrid::HybridLm;

use super::Failure;

/// The tokenizer in a checkpoint's folder.
const TOKENIZER_FILE: &str = "tokenizer.json";

/// A folder with a configuration, and a tokenizer that fits it.
pub(crate) struct ModelFolder {
    /// Where it is.
    pub(crate) dir: PathBuf,
    /// What the model is.
    pub(crate) config: HybridConfig,
    /// What it reads.
    pub(crate) tokenizer: Tokenizer,
    /// Whether it announces weights in 4 bits.
    pub(crate) is_quantized: bool,
}

impl ModelFolder {
    /// Opens `--model`, with the tokenizer of `--tokenizer` if there is one.
    ///
    /// # Errors
    /// [`Failure::Error`] that names what is missing, or does not fit.
    pub(crate) fn open(dir: &Path, asked: Option<&Path>) -> Result<Self, Failure> {
        if !dir.is_dir() {
            return Err(Failure::Error(format!(
                "{}: no such folder; --model takes one with config.json, safetensors files and \
                 {TOKENIZER_FILE}",
                dir.display()
            )));
        }
        let config = load_hf_config(dir).map_err(Failure::error)?;
        let tokenizer = tokenizer(dir, asked)?;
        tokenizer
            .check_vocabulary(config.vocab_size)
            .map_err(|error| Failure::Error(format!("{}: {error}", dir.display())))?;
        Ok(Self {
            is_quantized: config_format(dir).map_err(Failure::error)?.is_some(),
            dir: dir.to_owned(),
            config,
            tokenizer,
        })
    }

    /// Reads the weights. Those in 4 bits are multiplied as they are stored, all others in high
    /// precision: without any in 4 bits, the results are those of `E`.
    ///
    /// # Errors
    /// [`Failure::Error`] with everything that is wrong with the tensors.
    pub(crate) fn load<E: Nvfp4Engine + HybridEngine>(
        &self,
        device: &E::Device,
    ) -> Result<HybridLm<Nvfp4<E>>, Failure> {
        let loaded = load_hf_packed::<Nvfp4<E>>(&self.dir, device).map_err(Failure::error)?;
        let mut policy = Policy::uniform(presets::HIGH_PRECISION);
        for layer in loaded.packed.layers() {
            policy = policy
                .with_override(&globset::escape(layer), WEIGHTS_ONLY)
                .map_err(Failure::error)?;
        }
        burn_nvfp4::set_policy::<E>(device, policy).map_err(Failure::error)?;
        burn_nvfp4::set_packed_weights::<E>(device, loaded.packed);
        Ok(loaded.model)
    }

    /// Ids that end a text: the model's and the tokenizer's.
    pub(crate) fn ends(&self) -> Vec<u32> {
        let mut ends = self.config.special_tokens.eos.clone();
        ends.extend(self.tokenizer.separator());
        ends
    }
}

/// The tokenizer that is asked for, or the one in the folder.
fn tokenizer(dir: &Path, asked: Option<&Path>) -> Result<Tokenizer, Failure> {
    let file = match asked {
        Some(name) if name == Path::new("bytes") => return Ok(Tokenizer::Bytes),
        Some(file) => file.to_owned(),
        None => dir.join(TOKENIZER_FILE),
    };
    if !file.is_file() {
        return Err(Failure::Error(format!(
            "{}: no such file; --tokenizer names another one, or is `bytes` for a model of bytes",
            file.display()
        )));
    }
    Tokenizer::from_file(&file).map_err(Failure::error)
}
