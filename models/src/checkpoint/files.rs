//! The safetensors files of a Hugging Face directory, memory-mapped.
//!
//! Reading costs no memory beyond what the caller keeps: pages of a tensor that was read are given
//! back with [`FileTensor::release`].

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::Path;

use burn_nvfp4::cpu::Element;
use bytemuck::Pod;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo, TensorView};

use super::{CheckpointError, Problem};
use crate::config::hf::StoredFloat;

/// The model's configuration.
pub const CONFIG_FILE: &str = "config.json";
/// All tensors, where one file holds them.
pub const SINGLE_FILE: &str = "model.safetensors";
/// Which shard holds which tensor.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// The mapped files of one directory.
#[derive(Debug)]
pub struct TensorFiles {
    files: Vec<TensorFile>,
}

#[derive(Debug)]
struct TensorFile {
    name: String,
    map: Mmap,
}

/// One tensor in one of the files.
#[derive(Clone, Debug)]
pub struct FileTensor<'a> {
    /// Its key in the file.
    pub key: String,
    /// Dtype, shape and bytes.
    pub view: TensorView<'a>,
    file: &'a TensorFile,
}

/// Elements of a float tensor by their dtype: in the file's memory where they are aligned there,
/// else copied.
#[derive(Clone, Debug)]
pub enum Floats<'a> {
    /// f32.
    F32(Cow<'a, [f32]>),
    /// bf16.
    Bf16(Cow<'a, [bf16]>),
    /// f16.
    F16(Cow<'a, [f16]>),
}

/// Runs one generic expression on whichever element type [`Floats`] hold.
macro_rules! on_floats {
    ($floats:expr, $data:ident => $body:expr) => {
        match $floats {
            $crate::checkpoint::files::Floats::F32($data) => $body,
            $crate::checkpoint::files::Floats::Bf16($data) => $body,
            $crate::checkpoint::files::Floats::F16($data) => $body,
        }
    };
}
pub(crate) use on_floats;

impl TensorFiles {
    /// Maps `model.safetensors`, or the shards that the index names. Files that cannot be read
    /// become problems.
    ///
    /// # Errors
    /// If there is neither, or the index cannot be read.
    pub fn open(dir: &Path, problems: &mut Vec<Problem>) -> Result<Self, CheckpointError> {
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
                    let (file, reason) = (name, error.to_string());
                    problems.push(Problem::UnreadableFile { file, reason });
                }
            }
        }
        Ok(Self { files })
    }

    /// File names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|file| file.name.as_str())
    }

    /// All tensors, file after file, each in the order of the file. A damaged header is a problem.
    pub fn tensors(&self, problems: &mut Vec<Problem>) -> Vec<FileTensor<'_>> {
        let mut all = Vec::new();
        for file in &self.files {
            match SafeTensors::deserialize(&file.map) {
                Ok(parsed) => {
                    let tensors = parsed.tensors().into_iter();
                    let mut tensors: Vec<_> = tensors
                        .map(|(key, view)| FileTensor { key, view, file })
                        .collect();
                    tensors.sort_by_key(|tensor| tensor.view.data().as_ptr());
                    all.append(&mut tensors);
                }
                Err(error) => {
                    let (file, reason) = (file.name.clone(), error.to_string());
                    problems.push(Problem::UnreadableFile { file, reason });
                }
            }
        }
        all
    }

    /// The free-form metadata of each readable file.
    pub fn metadata(&self) -> impl Iterator<Item = HashMap<String, String>> {
        self.files.iter().filter_map(|file| {
            let (_, metadata) = SafeTensors::read_metadata(&file.map).ok()?;
            metadata.metadata().clone()
        })
    }
}

impl<'a> FileTensor<'a> {
    /// Name of the file.
    pub fn file(&self) -> &'a str {
        &self.file.name
    }

    /// The elements, if they are floats of 16 or 32 bits.
    pub fn floats(&self) -> Option<Floats<'a>> {
        let data = self.view.data();
        let dtype = self.view.dtype();
        if dtype == Dtype::F32 {
            Some(Floats::F32(cast(data)))
        } else if dtype == Dtype::BF16 {
            Some(Floats::Bf16(cast(data)))
        } else if dtype == Dtype::F16 {
            Some(Floats::F16(cast(data)))
        } else {
            None
        }
    }

    /// Gives the memory of the tensor's pages back, where the system takes such advice; they are
    /// read again if they are asked for.
    pub fn release(&self) {
        #[cfg(unix)]
        {
            let data = self.view.data();
            let start = data.as_ptr() as usize - self.file.map.as_ptr() as usize;
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the mapping is shared and read-only, so dropping its pages loses nothing: an
            // access reads them from the file again.
            let advised = unsafe {
                self.file
                    .map
                    .unchecked_advise_range(advice, start, data.len())
            };
            // Advice that is not taken costs memory, nothing else.
            let _ = advised;
        }
    }
}

// Files are little-endian, and so is every platform that a backend runs on.
const _: () = assert!(cfg!(target_endian = "little"));

fn cast<T: Pod>(data: &[u8]) -> Cow<'_, [T]> {
    match bytemuck::try_cast_slice(data) {
        Ok(aligned) => Cow::Borrowed(aligned),
        Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(data)),
    }
}

impl Floats<'_> {
    /// All elements in f32, exactly.
    pub fn to_f32(&self) -> Vec<f32> {
        on_floats!(self, data => data.iter().map(|x| x.to_f32()).collect())
    }

    /// The transpose of a `[rows, cols]` matrix in f32.
    pub fn transposed(&self, rows: usize, cols: usize) -> Vec<f32> {
        on_floats!(self, data => transpose(data, Element::to_f32, rows, cols))
    }
}

/// `[rows, cols]` to `[cols, rows]`, in tiles so that both sides stay in cache.
pub(crate) fn transpose<T: Copy>(
    x: &[T],
    value: impl Fn(T) -> f32,
    rows: usize,
    cols: usize,
) -> Vec<f32> {
    const TILE: usize = 32;
    let mut y = vec![0.0; x.len()];
    for row0 in (0..rows).step_by(TILE) {
        for col0 in (0..cols).step_by(TILE) {
            for row in row0..rows.min(row0 + TILE) {
                for col in col0..cols.min(col0 + TILE) {
                    y[col * rows + row] = value(x[row * cols + col]);
                }
            }
        }
    }
    y
}

/// The dtype of a stored float in a file.
pub(crate) const fn stored_dtype(stored: StoredFloat) -> Dtype {
    match stored {
        StoredFloat::F32 => Dtype::F32,
        StoredFloat::Bf16 => Dtype::BF16,
    }
}

/// Values as they lie in a file.
pub(crate) fn stored_bytes(values: &[f32], stored: StoredFloat) -> Vec<u8> {
    match stored {
        StoredFloat::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        StoredFloat::Bf16 => {
            let halves = values.iter().map(|&v| bf16::from_f32(v).to_le_bytes());
            halves.flatten().collect()
        }
    }
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

/// The header of a safetensors file, padded as the format asks.
///
/// # Errors
/// What the format reports: tensors that do not follow each other.
pub(crate) fn header(
    about: Option<HashMap<String, String>>,
    infos: Vec<(String, TensorInfo)>,
) -> io::Result<Vec<u8>> {
    let metadata = Metadata::new(about, infos).map_err(io::Error::other)?;
    let mut header = serde_json::to_vec(&metadata)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}
