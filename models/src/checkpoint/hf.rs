//! Hugging Face checkpoints: a folder with `config.json` and safetensors files.
//!
//! Reading: 1. the configuration; 2. every file is memory-mapped and its header checked
//! ([`super::files`]); 3. what is there is compared with the parameter table, and *all* differences
//! are reported together; 4. only then is anything built, one tensor at a time, whose pages are
//! given back at once. Writing goes the other way, one tensor at a time too.
//!
//! Keys: `backbone.` (files on the hub, and what transformers writes) or `model.` (transformers'
//! live module, "puzzle" files) before everything but `lm_head`. Linear weights are stored
//! transposed, `[d_output, d_input]`, and may be in 4 bits (`quantized`). `mtp.*` (multi-token
//! prediction) is ignored. This is the only file that knows these keys.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::TensorData;
use burn::tensor::backend::Backend;
use burn_nvfp4::PackedWeights;
use burn_nvfp4::export::ServingFormat;
use safetensors::tensor::Dtype;

use super::files::{CONFIG_FILE, FileTensor, TensorFiles, transpose};
use super::quantized::{LinearParts, QuantizedTensors, Tensors, announced_format};
use super::{CheckpointError, Problem};
use crate::config::HybridConfig;
use crate::config::params::ParamSpec;
use crate::hybrid::HybridLm;

pub use save::{SaveOptions, save_hf};

mod save;

/// A model and what its checkpoint says beyond parameters.
#[derive(Debug)]
pub struct LoadedHf<B: Backend> {
    /// Its dimensions.
    pub config: HybridConfig,
    /// The model. Where the checkpoint holds 4-bit weights, their values.
    pub model: HybridLm<B>,
    /// The 4-bit weights themselves, by layer: what
    /// [`set_packed_weights`](burn_nvfp4::set_packed_weights) takes. Empty if there are none.
    pub packed: PackedWeights,
}

/// Reads the model in `dir`; its matrices get the backend's default float dtype.
///
/// # Errors
/// [`CheckpointError::Rejected`] with every missing, unexpected, misshapen, duplicate or unreadable
/// tensor and file; or one error if the configuration cannot be read.
pub fn load_hf<B: Backend>(
    dir: &Path,
    device: &B::Device,
) -> Result<(HybridConfig, HybridLm<B>), CheckpointError> {
    let LoadedHf { config, model, .. } = load_hf_packed(dir, device)?;
    Ok((config, model))
}

/// [`load_hf`], with the 4-bit weights as they are stored.
///
/// # Errors
/// As [`load_hf`].
pub fn load_hf_packed<B: Backend>(
    dir: &Path,
    device: &B::Device,
) -> Result<LoadedHf<B>, CheckpointError> {
    let (config, format) = read_config(dir)?;
    let mut problems = Vec::new();
    let files = TensorFiles::open(dir, &mut problems)?;
    let mut tensors = collect_tensors(&files, &mut problems);
    let quantized = QuantizedTensors::take(format, &files, &mut tensors, written_key);
    let joined = check(&config, &tensors, quantized, &mut problems);
    if !problems.is_empty() {
        return Err(CheckpointError::Rejected {
            dir: dir.into(),
            problems,
        });
    }
    let mut packed = PackedWeights::default();
    let model = HybridLm::build(&config, device, &mut |spec| {
        let values = match joined.get(&spec.name) {
            Some(linear) => {
                let matrix = linear.join();
                let values = linear.dequantize(&matrix);
                let layer = spec.name.strip_suffix(".weight").unwrap_or(&spec.name);
                packed.insert(layer, matrix);
                let [rows, cols] = [spec.shape[1], spec.shape[0]];
                transpose(&values, |value| value, rows, cols)
            }
            // Every key and dtype was checked above.
            None => values(spec, &tensors[&hf_key(&spec.name)]),
        };
        TensorData::new(values, spec.shape.clone())
    });
    Ok(LoadedHf {
        config,
        model,
        packed,
    })
}

/// Reads only the configuration of the model in `dir`.
///
/// # Errors
/// If `config.json` cannot be read, or is not a usable configuration.
pub fn load_hf_config(dir: &Path) -> Result<HybridConfig, CheckpointError> {
    Ok(read_config(dir)?.0)
}

/// The format of 4-bit weights that the configuration in `dir` announces, if any.
///
/// # Errors
/// As [`load_hf_config`], and if it announces a quantization that is not read here.
pub fn config_format(dir: &Path) -> Result<Option<ServingFormat>, CheckpointError> {
    Ok(read_config(dir)?.1)
}

/// The configuration, and the format of quantized weights that it announces.
fn read_config(dir: &Path) -> Result<(HybridConfig, Option<ServingFormat>), CheckpointError> {
    let path = dir.join(CONFIG_FILE);
    let text = fs::read_to_string(&path).map_err(CheckpointError::io("read", &path))?;
    let config = HybridConfig::from_hf_json(&text);
    let config = config.map_err(|source| CheckpointError::Config {
        path: path.clone(),
        source,
    })?;
    Ok((config, announced_format(&path, &text)?))
}

/// The key of a parameter, with the prefix that is written.
pub fn hf_key(name: &str) -> String {
    let name = match name.rsplit_once('.') {
        Some((path, "a_log")) => format!("{path}.A_log"),
        Some((path, "d_skip")) => format!("{path}.D"),
        _ => name.into(),
    };
    if name.starts_with("lm_head.") {
        name
    } else {
        format!("backbone.{name}")
    }
}

/// Whether a parameter is stored transposed: matrices are, except the embedding.
pub fn is_transposed(spec: &ParamSpec) -> bool {
    spec.shape.len() == 2 && !spec.name.starts_with("embeddings.")
}

/// The shape of a parameter in a file.
pub fn hf_shape(spec: &ParamSpec) -> Vec<usize> {
    let mut shape = spec.shape.clone();
    if is_transposed(spec) {
        shape.reverse();
    }
    shape
}

/// All tensors by their key with the prefix that is written.
fn collect_tensors<'a>(files: &'a TensorFiles, problems: &mut Vec<Problem>) -> Tensors<'a> {
    let mut tensors = Tensors::new();
    for tensor in files.tensors(problems) {
        if tensor.key.starts_with("mtp.") {
            continue;
        }
        let key = written_key(&tensor.key);
        if let Some(first) = tensors.get(&key) {
            let (first, second) = (first.file().into(), tensor.file().into());
            problems.push(Problem::Duplicate { key, first, second });
        } else {
            tensors.insert(key, tensor);
        }
    }
    tensors
}

/// A key with the prefix that is written.
fn written_key(key: &str) -> String {
    match key.strip_prefix("model.") {
        Some(rest) => format!("backbone.{rest}"),
        None => key.to_owned(),
    }
}

/// Compares what is there with what the configuration asks for. Returns the linears in 4 bits that
/// are complete, by parameter.
fn check<'a>(
    config: &HybridConfig,
    tensors: &Tensors<'_>,
    mut quantized: QuantizedTensors<'a>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, LinearParts<'a>> {
    // Tensors of an unreadable file are not missing; nobody can say what is in it.
    let all_readable = problems
        .iter()
        .all(|p| !matches!(p, Problem::UnreadableFile { .. }));
    let mut joined = BTreeMap::new();
    let mut unexpected: BTreeMap<&str, &str> = tensors
        .iter()
        .map(|(key, tensor)| (key.as_str(), tensor.file()))
        .collect();
    for spec in config.params() {
        let key = hf_key(&spec.name);
        let expected = hf_shape(&spec);
        unexpected.remove(key.as_str());
        if is_transposed(&spec)
            && let Some(linear) = quantized.linear(&key, &expected, all_readable, problems)
        {
            if tensors.contains_key(&key) {
                let (first, second) = (tensors[&key].file().into(), linear.file().into());
                problems.push(Problem::Duplicate { key, first, second });
            }
            joined.insert(spec.name, linear);
            continue;
        }
        match tensors.get(&key) {
            None if quantized.has_seen(&key) => {}
            None if all_readable => problems.push(Problem::Missing { key }),
            None => {}
            Some(tensor) => {
                if tensor.view.shape() != expected {
                    let (key, found) = (key.clone(), tensor.view.shape().to_vec());
                    problems.push(Problem::Misshapen {
                        key,
                        found,
                        expected,
                    });
                }
                if !matches!(tensor.view.dtype(), Dtype::F32 | Dtype::BF16 | Dtype::F16) {
                    let dtype = format!("{:?}", tensor.view.dtype());
                    problems.push(Problem::UnsupportedDtype { key, dtype });
                }
            }
        }
    }
    let unexpected = unexpected.into_iter();
    problems.extend(unexpected.chain(quantized.left_over()).map(|(key, file)| {
        let (key, file) = (key.into(), file.into());
        Problem::Unexpected { key, file }
    }));
    joined
}

/// The values of a parameter, in Burn's layout.
fn values(spec: &ParamSpec, tensor: &FileTensor<'_>) -> Vec<f32> {
    let stored = tensor.floats().expect("dtypes were checked");
    let values = if is_transposed(spec) {
        stored.transposed(spec.shape[1], spec.shape[0])
    } else {
        stored.to_f32()
    };
    tensor.release();
    values
}
