//! Writing of Hugging Face checkpoints.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use safetensors::tensor::{Dtype, View, serialize_to_file};

use super::{CheckpointError, hf_key, hf_shape, is_transposed};
use crate::checkpoint::files::{CONFIG_FILE, INDEX_FILE, SINGLE_FILE, stored_bytes, stored_dtype};
use crate::config::HybridConfig;
use crate::config::hf::StoredFloat;
use crate::config::params::ParamSpec;
use crate::hybrid::HybridLm;

/// How a checkpoint is written.
#[derive(Clone, Copy, Debug)]
pub struct SaveOptions {
    /// Dtype of the tensors in the files; `a_log`, `d_skip` and `dt_bias` are f32 in any case.
    pub stored: StoredFloat,
    /// Start a new file before one exceeds this many bytes of tensors; none: one file.
    pub max_shard_bytes: Option<u64>,
}

/// Writes `config.json` and the tensors of `model` to `dir`, which is created.
///
/// With [`StoredFloat::F32`], reading it back gives the same bits.
///
/// # Errors
/// [`CheckpointError::Occupied`] if `dir` holds tensors already (old shards would mix with new
/// ones), or what the file system says.
///
/// # Panics
/// If `model` was not built from `config`.
pub fn save_hf<B: Backend>(
    model: &HybridLm<B>,
    config: &HybridConfig,
    dir: &Path,
    options: SaveOptions,
) -> Result<(), CheckpointError> {
    fs::create_dir_all(dir).map_err(CheckpointError::io("create", dir))?;
    for name in [SINGLE_FILE, INDEX_FILE] {
        let path = dir.join(name);
        if path.exists() {
            return Err(CheckpointError::Occupied { path });
        }
    }

    let mut tensors = Collect {
        specs: config.params(),
        stored: options.stored,
        out: Vec::new(),
    };
    model.visit(&mut tensors);
    assert!(
        tensors.specs.len() == tensors.out.len(),
        "the model is not one of this config"
    );
    let shards = split(tensors.out, options.max_shard_bytes.unwrap_or(u64::MAX));
    let n_shards = shards.len();
    let mut index = BTreeMap::new();
    let mut total_size = 0;
    for (number, shard) in shards.into_iter().enumerate() {
        let file = match n_shards {
            1 => SINGLE_FILE.to_owned(),
            _ => format!("model-{:05}-of-{n_shards:05}.safetensors", number + 1),
        };
        index.extend(
            shard
                .iter()
                .map(|tensor| (tensor.key.clone(), file.clone())),
        );
        total_size += shard
            .iter()
            .map(|tensor| tensor.bytes() as u64)
            .sum::<u64>();
        let path = dir.join(file);
        // transformers refuses files without this entry.
        let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let views = shard.into_iter().map(|tensor| (tensor.key.clone(), tensor));
        serialize_to_file(views, Some(about), &path)
            .map_err(|source| CheckpointError::Write { path, source })?;
    }
    if n_shards > 1 {
        let metadata = serde_json::json!({"total_size": total_size});
        let index = serde_json::json!({"metadata": metadata, "weight_map": index});
        write(&dir.join(INDEX_FILE), &format!("{index:#}\n"))?;
    }
    write(
        &dir.join(CONFIG_FILE),
        &format!("{}\n", config.to_hf_json(options.stored)),
    )
}

fn write(path: &Path, text: &str) -> Result<(), CheckpointError> {
    fs::write(path, text).map_err(CheckpointError::io("write", path))
}

/// A parameter that is converted only while it is written.
struct StoredTensor {
    key: String,
    shape: Vec<usize>,
    stored: StoredFloat,
    values: Box<dyn Fn() -> TensorData>,
}

impl StoredTensor {
    fn bytes(&self) -> usize {
        let width = match self.stored {
            StoredFloat::F32 => 4,
            StoredFloat::Bf16 => 2,
        };
        width * self.shape.iter().product::<usize>()
    }
}

impl View for StoredTensor {
    fn dtype(&self) -> Dtype {
        stored_dtype(self.stored)
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = (self.values)().convert::<f32>();
        let values = values.as_slice::<f32>().expect("converted to f32 just now");
        Cow::Owned(stored_bytes(values, self.stored))
    }

    fn data_len(&self) -> usize {
        self.bytes()
    }
}

/// Visits parameters, which come in the order of the table.
struct Collect {
    specs: Vec<ParamSpec>,
    stored: StoredFloat,
    out: Vec<StoredTensor>,
}

impl<B: Backend> ModuleVisitor<B> for Collect {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let spec = &self.specs[self.out.len()];
        let tensor = param.val();
        assert_eq!(
            tensor.dims().as_slice(),
            spec.shape,
            "shape of {}",
            spec.name
        );
        let transposed = is_transposed(spec);
        self.out.push(StoredTensor {
            key: hf_key(&spec.name),
            shape: hf_shape(spec),
            stored: spec.stored(self.stored),
            values: Box::new(move || {
                let tensor = tensor.clone();
                if transposed {
                    tensor.swap_dims(0, 1)
                } else {
                    tensor
                }
                .into_data()
            }),
        });
    }
}

/// Cuts the tensors, in order, into groups of at most `max_bytes`, but at least one tensor.
fn split(tensors: Vec<StoredTensor>, max_bytes: u64) -> Vec<Vec<StoredTensor>> {
    let mut shards: Vec<Vec<StoredTensor>> = Vec::new();
    let mut used = 0;
    for tensor in tensors {
        let bytes = tensor.bytes() as u64;
        match shards.last_mut() {
            Some(shard) if used + bytes <= max_bytes => {
                used += bytes;
                shard.push(tensor);
            }
            _ => {
                used = bytes;
                shards.push(vec![tensor]);
            }
        }
    }
    shards
}
