//! A folder with checkpoints of small random models of bytes.

use burn::backend::NdArray;
use burn_nvfp4_models::checkpoint::hf::{SaveOptions, save_hf};

use super::*;

/// The folder.
pub(crate) struct Shelf {
    dir: TempDir,
}

impl Shelf {
    /// With one in `model`.
    pub(crate) fn new() -> Self {
        let shelf = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        shelf.add("model", |_| {});
        shelf
    }

    /// Writes a checkpoint whose configuration `change` has changed.
    pub(crate) fn add(&self, name: &str, change: impl FnOnce(&mut HybridConfig)) {
        self.add_seeded(name, 3, change);
    }

    /// The same with other weights.
    pub(crate) fn add_seeded(&self, name: &str, seed: u64, change: impl FnOnce(&mut HybridConfig)) {
        let mut config = HybridConfig::preset("tiny-1m", 256).unwrap();
        config.pattern = "M-*-".parse().unwrap();
        (config.d_model, config.d_ffn) = (32, 64);
        config.context_len = 1 << 20;
        config.special_tokens.eos = vec![255];
        change(&mut config);
        let model = config.init::<NdArray>(&Default::default(), seed);
        let options = SaveOptions {
            stored: StoredFloat::F32,
            max_shard_bytes: None,
        };
        save_hf(&model, &config, &self.path(name), options).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file, with the folders on the way.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// `nvfp4` with these arguments.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nvfp4"));
        command.current_dir(self.dir.path()).args(arguments);
        command
    }
}
