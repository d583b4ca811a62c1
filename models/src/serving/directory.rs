//! A Hugging Face directory as a whole: its configuration, its tensors, its other files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use burn_nvfp4::export::ServingFormat;

use super::ServingError;
use crate::checkpoint::files::{CONFIG_FILE, FileTensor, INDEX_FILE, TensorFiles};
use crate::checkpoint::quantized::{LinearParts, QuantizedTensors, Tensors, announced_format};
use crate::checkpoint::{CheckpointError, Problem};
use crate::config::lenient::Lenient;
use crate::durable;

/// Weights in other formats than safetensors: the same numbers again, or none that are read here.
const OTHER_WEIGHTS: [&str; 6] = ["bin", "pt", "pth", "gguf", "h5", "msgpack"];

/// Further files that describe a quantization, and would describe the wrong one.
const OTHER_CONFIGS: [&str; 2] = ["hf_quant_config.json", "recipe.yaml"];

/// An opened directory.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    /// Text of `config.json`.
    pub(super) config: String,
    pub(super) files: TensorFiles,
}

impl Directory {
    /// Opens `config.json` and maps the tensor files.
    pub(super) fn open(path: &Path) -> Result<Self, ServingError> {
        let config_path = path.join(CONFIG_FILE);
        let config = fs::read_to_string(&config_path);
        let config = config.map_err(ServingError::io("read", &config_path))?;
        match Lenient::parse(&config) {
            Ok(Lenient::Object(_)) => {}
            Ok(_) | Err(_) => return Err(ServingError::Config { path: config_path }),
        }
        let mut problems = Vec::new();
        let files = TensorFiles::open(path, &mut problems)?;
        let tensors = files.tensors(&mut problems);
        check_distinct(&tensors, &mut problems);
        if problems.is_empty() {
            Ok(Self {
                path: path.into(),
                config,
                files,
            })
        } else {
            Err(ServingError::Checkpoint(CheckpointError::Rejected {
                dir: path.into(),
                problems,
            }))
        }
    }

    /// The format of its 4-bit weights, if it announces one.
    pub(super) fn format(&self) -> Result<Option<ServingFormat>, ServingError> {
        Ok(announced_format(
            &self.path.join(CONFIG_FILE),
            &self.config,
        )?)
    }

    /// Refuses a directory that announces any quantization.
    pub(super) fn check_unquantized(&self) -> Result<(), ServingError> {
        let method = match self.format() {
            Ok(None) => return Ok(()),
            Ok(Some(format)) => format!("{format:?}"),
            Err(error) => error.to_string(),
        };
        let path = self.path.join(CONFIG_FILE);
        Err(ServingError::Quantized { path, method })
    }
}

/// Finds tensors of one name in several files: the output could hold one of them only.
fn check_distinct(tensors: &[FileTensor<'_>], problems: &mut Vec<Problem>) {
    let mut files = BTreeMap::new();
    for tensor in tensors {
        if let Some(first) = files.insert(&tensor.key, tensor.file()) {
            let (key, first) = (tensor.key.clone(), first.to_owned());
            let second = tensor.file().to_owned();
            problems.push(Problem::Duplicate { key, first, second });
        }
    }
}

/// The tensors of a quantized directory.
pub(super) struct QuantizedDirectory<'a> {
    /// Linears in 4 bits, by name.
    pub(super) linears: Vec<(String, LinearParts<'a>)>,
    /// Everything else, in the order of the files.
    pub(super) others: Vec<FileTensor<'a>>,
}

impl Directory {
    /// Finds the linears in 4 bits; there is one, or another tensor.
    pub(super) fn quantized(
        &self,
        format: ServingFormat,
    ) -> Result<QuantizedDirectory<'_>, ServingError> {
        let mut problems = Vec::new();
        let all = self.files.tensors(&mut problems);
        let order: Vec<_> = all.iter().map(|tensor| tensor.key.clone()).collect();
        let mut tensors: Tensors<'_> = all
            .into_iter()
            .map(|tensor| (tensor.key.clone(), tensor))
            .collect();
        let mut quantized =
            QuantizedTensors::take(Some(format), &self.files, &mut tensors, str::to_owned);
        let mut linears = Vec::new();
        for (linear, shape) in quantized.shapes() {
            let key = format!("{linear}.weight");
            // Without codes of two axes, what is there cannot be complete.
            let shape = shape.unwrap_or([0, 0]);
            let Some(parts) = quantized.linear(&key, &shape, true, &mut problems) else {
                continue;
            };
            if let Some(floats) = tensors.get(&key) {
                let (first, second) = (parts.file().to_owned(), floats.file().to_owned());
                problems.push(Problem::Duplicate { key, first, second });
            }
            linears.push((linear, parts));
        }
        if !problems.is_empty() {
            return Err(ServingError::Checkpoint(CheckpointError::Rejected {
                dir: self.path.clone(),
                problems,
            }));
        }
        let others: Vec<_> = order.iter().filter_map(|key| tensors.remove(key)).collect();
        // What is written from it could not be opened again: an index names files by their tensors.
        if linears.is_empty() && others.is_empty() {
            let path = self.path.clone();
            return Err(ServingError::Empty { path });
        }
        Ok(QuantizedDirectory { linears, others })
    }
}

/// Checks that writing `output` does not take `input` away.
pub(super) fn check_apart(input: &Path, output: &Path) -> Result<(), ServingError> {
    match (input.canonicalize(), output.canonicalize()) {
        (Ok(from), Ok(to)) if from.starts_with(&to) => {
            let path = output.into();
            Err(ServingError::InPlace { path })
        }
        _ => Ok(()),
    }
}

/// The path of an output without a slash at its end: what is written goes beside it first, under
/// its name and an ending, which would be a name inside of it.
pub(super) fn without_end_slash(output: &Path) -> PathBuf {
    output.components().collect()
}

/// Checks that `output` can be written without losing anything but a checkpoint that may go.
pub(super) fn check_output(output: &Path, force: Force) -> Result<(), ServingError> {
    let path = || output.to_owned();
    match force {
        _ if output.symlink_metadata().is_err() => {}
        Force::Refuse => return Err(ServingError::Exists { path: path() }),
        Force::Replace => {
            let is_empty = fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_none());
            if !is_empty && !output.join(CONFIG_FILE).is_file() {
                return Err(ServingError::NotACheckpoint { path: path() });
            }
        }
    }
    // Writing removes whatever has one of these names, an input among it.
    for aside in durable::beside_folder(output) {
        if aside.symlink_metadata().is_ok() {
            let output = path();
            return Err(ServingError::InTheWay { aside, output });
        }
    }
    Ok(())
}

/// Writes a folder as [`durable::write_folder`] does. Every error names a path.
pub(super) fn write_folder(
    output: &Path,
    fill: impl FnOnce(&Path) -> Result<(), ServingError>,
) -> Result<(), ServingError> {
    enum Failed {
        Folder(io::Error),
        Inside(ServingError),
    }

    impl From<io::Error> for Failed {
        fn from(source: io::Error) -> Self {
            Self::Folder(source)
        }
    }

    let written = durable::write_folder(output, |aside| fill(aside).map_err(Failed::Inside));
    written.map_err(|failed| match failed {
        Failed::Folder(source) => ServingError::io("write", output)(source),
        Failed::Inside(error) => error,
    })
}

/// What happens to an output that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// It stays, and the command fails.
    Refuse,
    /// It is replaced once the new one is complete, if it is a checkpoint.
    Replace,
}

/// Copies the files that are neither tensors nor their configuration: tokenizer, chat template,
/// generation settings, code. Not folders, and nothing that `to` has already: an index may give its
/// shards any name.
pub(crate) fn copy_others(from: &Path, to: &Path) -> Result<(), ServingError> {
    let entries = fs::read_dir(from).map_err(ServingError::io("list", from))?;
    for entry in entries {
        let entry = entry.map_err(ServingError::io("list", from))?;
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        let extension = Path::new(name.as_ref()).extension();
        let extension = extension.and_then(|e| e.to_str()).unwrap_or("");
        let left_out = [CONFIG_FILE, INDEX_FILE].contains(&name.as_ref())
            || OTHER_CONFIGS.contains(&name.as_ref())
            || extension == "safetensors"
            || OTHER_WEIGHTS.contains(&extension)
            || name.ends_with(".bin.index.json")
            || to.join(name.as_ref()).exists();
        // Through links: a download cache is full of them.
        if !left_out && path.is_file() {
            let target = to.join(entry.file_name());
            fs::copy(&path, &target).map_err(ServingError::io("copy", &path))?;
        }
    }
    Ok(())
}
