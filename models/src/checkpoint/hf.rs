//! Hugging Face checkpoints: a folder with `config.json` and safetensors files.
//!
//! Reading: 1. the configuration; 2. the file names, from `model.safetensors` or from the index of
//! shards; 3. every file is memory-mapped and its header checked; 4. what is there is compared with
//! the parameter table, and *all* differences are reported together; 5. only then is anything
//! built, one tensor at a time. Writing goes the other way, one tensor at a time too.
//!
//! Keys: `backbone.` (files on the hub, and what transformers writes) or `model.` (transformers'
//! live module, "puzzle" files) before everything but `lm_head`. Linear weights are stored
//! transposed, `[d_output, d_input]`. `mtp.*` (multi-token prediction) is ignored. This is the only
//! file that knows these keys.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use burn::tensor::TensorData;
use burn::tensor::backend::Backend;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::{CheckpointError, Problem};
use crate::config::HybridConfig;
use crate::config::params::ParamSpec;
use crate::hybrid::HybridLm;

pub use save::{SaveOptions, save_hf};

mod save;

const CONFIG_FILE: &str = "config.json";
const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// Reads the model in `dir`; its matrices get the backend's default float dtype.
///
/// # Errors
/// [`CheckpointError::Rejected`] with every missing, unexpected, misshapen, duplicate or unreadable
/// tensor and file; or one error if the configuration cannot be read.
pub fn load_hf<B: Backend>(
    dir: &Path,
    device: &B::Device,
) -> Result<(HybridConfig, HybridLm<B>), CheckpointError> {
    let config = load_hf_config(dir)?;
    let mut problems = Vec::new();
    let files = open_files(dir, &mut problems)?;
    let tensors = collect_tensors(&files, &mut problems);
    check(&config, &tensors, &mut problems);
    if !problems.is_empty() {
        return Err(CheckpointError::Rejected {
            dir: dir.into(),
            problems,
        });
    }
    let model = HybridLm::build(&config, device, &mut |spec| {
        // Every key and dtype was checked above.
        let (_, view) = &tensors[&hf_key(&spec.name)];
        let stored = decode(view).expect("dtypes were checked");
        TensorData::new(from_hf_layout(spec, stored), spec.shape.clone())
    });
    Ok((config, model))
}

/// Reads only the configuration of the model in `dir`.
///
/// # Errors
/// If `config.json` cannot be read, or is not a usable configuration.
pub fn load_hf_config(dir: &Path) -> Result<HybridConfig, CheckpointError> {
    let path = dir.join(CONFIG_FILE);
    let text = fs::read_to_string(&path).map_err(CheckpointError::io("read", &path))?;
    HybridConfig::from_hf_json(&text).map_err(|source| CheckpointError::Config { path, source })
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

/// One mapped file.
struct TensorFile {
    name: String,
    map: Mmap,
}

/// Maps all files of the checkpoint. Those that cannot be read become problems.
fn open_files(dir: &Path, problems: &mut Vec<Problem>) -> Result<Vec<TensorFile>, CheckpointError> {
    let names = if dir.join(SINGLE_FILE).exists() {
        vec![SINGLE_FILE.to_owned()]
    } else {
        shard_names(dir, problems)?
    };
    let mut files = Vec::new();
    for name in names {
        match map_file(&dir.join(&name)) {
            Ok(map) => files.push(TensorFile { name, map }),
            Err(error) => {
                problems.push(Problem::UnreadableFile {
                    file: name,
                    reason: error.to_string(),
                });
            }
        }
    }
    Ok(files)
}

fn map_file(path: &Path) -> std::io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: the map is read-only and lives only while loading. Rust cannot exclude that another
    // process truncates the file meanwhile; as with every memory-mapped reader, that is a crash.
    unsafe { Mmap::map(&file) }
}

/// The distinct file names of the index.
fn shard_names(dir: &Path, problems: &mut Vec<Problem>) -> Result<Vec<String>, CheckpointError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let path = dir.join(INDEX_FILE);
    let text = fs::read_to_string(&path).map_err(CheckpointError::io("read", &path))?;
    let index: Index = match serde_json::from_str(&text) {
        Ok(index) => index,
        Err(error) => {
            let (file, reason) = (INDEX_FILE.into(), error.to_string());
            problems.push(Problem::UnreadableFile { file, reason });
            return Ok(Vec::new());
        }
    };
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    // An index is outside input: it may not lead out of its folder.
    let (inside, outside): (Vec<_>, Vec<_>) = names
        .into_iter()
        .partition(|name| Path::new(name).file_name() == Some(name.as_ref()));
    problems.extend(outside.into_iter().map(|file| {
        let reason = "the index may only name files in its own folder".into();
        Problem::UnreadableFile { file, reason }
    }));
    Ok(inside)
}

/// Tensors by their key with the written prefix, each with the name of its file.
type Tensors<'a> = BTreeMap<String, (&'a str, TensorView<'a>)>;

fn collect_tensors<'a>(files: &'a [TensorFile], problems: &mut Vec<Problem>) -> Tensors<'a> {
    let mut tensors = Tensors::new();
    for TensorFile { name: file, map } in files {
        let parsed = match SafeTensors::deserialize(map) {
            Ok(parsed) => parsed,
            Err(error) => {
                let (file, reason) = (file.clone(), error.to_string());
                problems.push(Problem::UnreadableFile { file, reason });
                continue;
            }
        };
        for (key, view) in parsed.tensors() {
            if key.starts_with("mtp.") {
                continue;
            }
            let key = match key.strip_prefix("model.") {
                Some(rest) => format!("backbone.{rest}"),
                None => key,
            };
            if let Some((first, _)) = tensors.get(&key) {
                let (first, second) = ((*first).into(), file.clone());
                problems.push(Problem::Duplicate { key, first, second });
            } else {
                tensors.insert(key, (file, view));
            }
        }
    }
    tensors
}

/// Compares what is there with what the configuration asks for.
fn check(config: &HybridConfig, tensors: &Tensors<'_>, problems: &mut Vec<Problem>) {
    // Tensors of an unreadable file are not missing; nobody can say what is in it.
    let all_readable = problems
        .iter()
        .all(|p| !matches!(p, Problem::UnreadableFile { .. }));
    let mut unexpected: BTreeMap<&str, &str> = tensors
        .iter()
        .map(|(key, (file, _))| (key.as_str(), *file))
        .collect();
    for spec in config.params() {
        let key = hf_key(&spec.name);
        let expected = hf_shape(&spec);
        unexpected.remove(key.as_str());
        match tensors.get(&key) {
            None if all_readable => problems.push(Problem::Missing { key }),
            None => {}
            Some((_, view)) => {
                if view.shape() != expected {
                    let (key, found) = (key.clone(), view.shape().to_vec());
                    problems.push(Problem::Misshapen {
                        key,
                        found,
                        expected,
                    });
                }
                if !matches!(view.dtype(), Dtype::F32 | Dtype::BF16 | Dtype::F16) {
                    let dtype = format!("{:?}", view.dtype());
                    problems.push(Problem::UnsupportedDtype { key, dtype });
                }
            }
        }
    }
    problems.extend(unexpected.into_iter().map(|(key, file)| {
        let (key, file) = (key.into(), file.into());
        Problem::Unexpected { key, file }
    }));
}

/// The numbers of a tensor in f32; files are little-endian and need not be aligned.
fn decode(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let halves = || {
        view.data()
            .chunks_exact(2)
            .map(|b| u16::from_le_bytes([b[0], b[1]]))
    };
    let words = || {
        view.data()
            .chunks_exact(4)
            .map(|b| [b[0], b[1], b[2], b[3]])
    };
    let dtype = view.dtype();
    if dtype == Dtype::F32 {
        Some(words().map(f32::from_le_bytes).collect())
    } else if dtype == Dtype::BF16 {
        Some(
            halves()
                .map(|bits| bf16::from_bits(bits).to_f32())
                .collect(),
        )
    } else if dtype == Dtype::F16 {
        Some(halves().map(|bits| f16::from_bits(bits).to_f32()).collect())
    } else {
        None
    }
}

/// From `[d_output, d_input]` in the file to Burn's `[d_input, d_output]`.
fn from_hf_layout(spec: &ParamSpec, stored: Vec<f32>) -> Vec<f32> {
    if is_transposed(spec) {
        transpose(&stored, spec.shape[1], spec.shape[0])
    } else {
        stored
    }
}

/// `[rows, cols]` to `[cols, rows]`, in tiles so that both sides stay in cache.
fn transpose(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut y = vec![0.0; x.len()];
    for row0 in (0..rows).step_by(TILE) {
        for col0 in (0..cols).step_by(TILE) {
            for row in row0..rows.min(row0 + TILE) {
                for col in col0..cols.min(col0 + TILE) {
                    y[col * rows + row] = x[row * cols + col];
                }
            }
        }
    }
    y
}
