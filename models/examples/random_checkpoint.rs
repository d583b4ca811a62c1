//! Writes a checkpoint of a preset with random weights in bf16, to measure with where the real one
//! is too much to fetch.
//!
//! `cargo run --release -p burn-nvfp4-models --example random_checkpoint -- 4b DIR`
//!
//! One tensor is in memory at a time. Matrices are uniform with the preset's standard deviation;
//! everything else starts where training starts.

#![expect(clippy::print_stderr, reason = "an example reports on stderr")]

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn_nvfp4_models::checkpoint::hf::{hf_key, hf_shape};
use burn_nvfp4_models::config::HybridConfig;
use burn_nvfp4_models::config::hf::StoredFloat;
use burn_nvfp4_models::config::params::ParamSpec;
use burn_nvfp4_models::config::presets::PUBLISHED_VOCAB;
use half::bf16;
use safetensors::tensor::{Dtype, View, serialize_to_file};

/// Bytes of a file from which the next tensor starts another.
const SHARD: usize = 5_000_000_000;

/// A tensor whose values are made when it is written.
struct Random {
    spec: ParamSpec,
    shape: Vec<usize>,
    std: f64,
    seed: u64,
}

impl View for Random {
    fn dtype(&self) -> Dtype {
        Dtype::BF16
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut state = self.seed;
        let (low, high) = match self.shape.len() {
            1 if self.spec.name.ends_with("a_log") => (0.0, 2.7),
            1 if self.spec.name.ends_with("dt_bias") => (-6.0, -2.0),
            1 => (1.0, 1.0),
            // A uniform variable has the standard deviation of its width over the root of 12.
            _ => (-self.std * 1.732, self.std * 1.732),
        };
        let mut bytes = Vec::with_capacity(self.data_len());
        for _ in 0..self.shape.iter().product::<usize>() {
            // Knuth's MMIX generator; its upper bits are good enough for weights.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let unit = (state >> 40) as f64 / (1_u64 << 24) as f64;
            bytes.extend(bf16::from_f64(low + (high - low) * unit).to_le_bytes());
        }
        Cow::Owned(bytes)
    }

    fn data_len(&self) -> usize {
        2 * self.shape.iter().product::<usize>()
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [preset, dir] = arguments.as_slice() else {
        return Err("usage: random_checkpoint PRESET DIR".into());
    };
    let (config, dir) = (
        HybridConfig::preset(preset, PUBLISHED_VOCAB)?,
        Path::new(dir),
    );
    std::fs::create_dir_all(dir)?;
    let mut shards: Vec<Vec<Random>> = vec![Vec::new()];
    for (seed, spec) in (1..).zip(config.params()) {
        let full = |shard: &Vec<Random>| shard.iter().map(View::data_len).sum::<usize>() >= SHARD;
        if shards.last().is_some_and(full) {
            shards.push(Vec::new());
        }
        let std = config.init_std;
        let shape = hf_shape(&spec);
        let tensor = Random {
            spec,
            shape,
            std,
            seed,
        };
        if let Some(shard) = shards.last_mut() {
            shard.push(tensor);
        }
    }
    let mut index = BTreeMap::new();
    let n = shards.len();
    for (number, shard) in (1..).zip(shards) {
        let file = format!("model-{number:05}-of-{n:05}.safetensors");
        let key = |tensor: &Random| hf_key(&tensor.spec.name);
        index.extend(shard.iter().map(|tensor| (key(tensor), file.clone())));
        let tensors = shard.into_iter().map(|tensor| (key(&tensor), tensor));
        let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        serialize_to_file(tensors, Some(about), &dir.join(&file))?;
        eprintln!("{file}");
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": index});
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string())?;
    std::fs::write(
        dir.join("config.json"),
        config.to_hf_json(StoredFloat::Bf16),
    )?;
    Ok(())
}
