//! From a directory in 16 or 32 bits to one in 4.
//!
//! 1. Which tensors are quantized, and which share a tensor scale ([`super::selection`]).
//! 2. The header of each output file; an output file has the tensors of the input file of the same
//!    name.
//! 3. Group by group: the amax over its members, codes and scales of each, to their places. What is
//!    kept is copied. Pages that were read are given back.
//! 4. The configuration, with the quantization added to its text, and all other files.
//!
//! The output appears under its name when it is complete.

use std::collections::BTreeMap;
use std::path::Path;

use burn_nvfp4::export::ServingFormat;
use burn_nvfp4::format::PackedMatrix;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use super::ServingError;
use super::config_text::with_entry;
use super::directory::{
    Directory, Force, check_apart, check_output, copy_others, without_end_slash, write_folder,
};
use super::selection::{Kept, Selection, fused_groups};
use super::served_file::{FilePlan, ServedFile};
use super::weights::{WeightRule, finite_amax};
use crate::checkpoint::files::{CONFIG_FILE, FileTensor, INDEX_FILE, SINGLE_FILE};
use crate::durable;

/// How a directory is quantized.
#[derive(Debug)]
pub struct QuantizeOptions {
    /// Whose names and configuration.
    pub format: ServingFormat,
    /// Whose arithmetic.
    pub rule: WeightRule,
    /// Which tensors stay.
    pub selection: Selection,
    /// What happens to an output that exists.
    pub force: Force,
}

/// What became of a directory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quantized {
    /// Tensors in 4 bits.
    pub quantized: usize,
    /// Their elements.
    pub elements: u64,
    /// Their bytes before and after.
    pub bytes: (u64, u64),
    /// 2-D weights that stay as they are, by name of the module, and why.
    pub kept: BTreeMap<String, Kept>,
    /// Bytes of all tensors before and after.
    pub total: (u64, u64),
}

impl Quantized {
    /// Bits that an element of a quantized weight takes, scales included.
    pub fn bits_per_weight(&self) -> f64 {
        self.bytes.1 as f64 * 8.0 / self.elements.max(1) as f64
    }
}

/// What is going on.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The tensor that was written.
    pub key: &'a str,
    /// Bytes read so far.
    pub read: u64,
    /// Bytes of the whole.
    pub total: u64,
}

/// Quantizes the directory `input` into `output`.
///
/// # Errors
/// [`ServingError`], before anything is written where that can be known; `output` is then as it
/// was.
pub fn quantize_directory(
    input: &Path,
    output: &Path,
    options: &QuantizeOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Quantized, ServingError> {
    let output = &without_end_slash(output);
    let directory = Directory::open(input)?;
    directory.check_unquantized()?;
    check_apart(input, output)?;
    check_output(output, options.force)?;
    let tensors = directory.files.tensors(&mut Vec::new());
    let keys = tensors.iter().map(|tensor| tensor.key.as_str());
    options.selection.check_matched(keys)?;

    // Step 1.
    let mut report = Quantized::default();
    let (mut linears, mut kept) = (Vec::new(), Vec::new());
    for tensor in tensors {
        let (dtype, shape) = (tensor.view.dtype(), tensor.view.shape());
        match options.selection.keeps(&tensor.key, dtype, shape) {
            None => linears.push(tensor),
            Some(why) => {
                if let (Some(module), 2) = (tensor.key.strip_suffix(".weight"), shape.len()) {
                    report.kept.insert(module.to_owned(), why);
                }
                kept.push(tensor);
            }
        }
    }
    if linears.is_empty() {
        return Err(nothing(input, &report));
    }
    check_room(&kept, options.format)?;
    let all = linears.iter().chain(&kept);
    let total = all.map(|tensor| tensor.view.data().len() as u64).sum();
    report.total.0 = total;

    let groups = fused_groups(linears);
    write_folder(output, |aside| {
        // Step 2.
        let mut files = create_files(&directory, aside, &groups, &kept, options.format)?;
        // Step 3.
        let mut read = 0;
        let mut done = |tensor: &FileTensor<'_>| {
            tensor.release();
            let key = &tensor.key;
            read += tensor.view.data().len() as u64;
            progress(Progress { key, read, total });
        };
        for group in &groups {
            let amax = group_amax(group)?;
            for tensor in group {
                let matrix = quantize(tensor, options.rule, amax)?;
                let file = files
                    .get_mut(tensor.file())
                    .expect("one for each input file");
                let linear = module(&tensor.key);
                file.write_weight(linear, &matrix)
                    .map_err(ServingError::io("write", output))?;
                report.quantized += 1;
                report.elements += (matrix.rows() * matrix.k()) as u64;
                report.bytes.0 += tensor.view.data().len() as u64;
                report.bytes.1 += matrix.bytes() as u64;
                done(tensor);
            }
        }
        for tensor in &kept {
            let file = files
                .get_mut(tensor.file())
                .expect("one for each input file");
            file.write(&tensor.key, tensor.view.data())
                .map_err(ServingError::io("write", output))?;
            done(tensor);
        }
        for file in files.into_values() {
            file.finish().map_err(ServingError::io("write", output))?;
        }
        // Step 4.
        let modules: Vec<_> = report.kept.keys().cloned().collect();
        write_configuration(aside, &directory.config, options.format, &modules)?;
        copy_others(input, aside)
    })?;
    report.total.1 = report.total.0 - report.bytes.0 + report.bytes.1;
    Ok(report)
}

/// Checks that no tensor that stays has the name of a part of the format: it would be read as one.
fn check_room(kept: &[FileTensor<'_>], format: ServingFormat) -> Result<(), ServingError> {
    let taken = kept.iter().find(|tensor| {
        let (_, suffix) = tensor.key.rsplit_once('.').unwrap_or_default();
        // Model Optimizer calls codes `weight`, like a weight of floats.
        let is_float = suffix == "weight" && tensor.view.dtype() != Dtype::U8;
        format.suffixes().contains(&suffix) && !is_float
    });
    match taken {
        Some(tensor) => Err(ServingError::Taken {
            key: tensor.key.clone(),
        }),
        None => Ok(()),
    }
}

/// Output files by the name of the input file, with the headers written, and the index.
fn create_files<'a>(
    directory: &'a Directory,
    aside: &Path,
    groups: &[Vec<FileTensor<'_>>],
    kept: &[FileTensor<'_>],
    format: ServingFormat,
) -> Result<BTreeMap<&'a str, ServedFile>, ServingError> {
    let names = directory.files.names();
    let mut plans: BTreeMap<&str, FilePlan> =
        names.map(|name| (name, FilePlan::new(format))).collect();
    let mut plan = |tensor: &FileTensor<'_>, add: &dyn Fn(&mut FilePlan)| {
        add(plans
            .get_mut(tensor.file())
            .expect("one for each input file"));
    };
    for tensor in groups.iter().flatten() {
        let shape = tensor.view.shape();
        plan(tensor, &|plan| {
            plan.add_weight(module(&tensor.key), shape[0], shape[1])
        });
    }
    for tensor in kept {
        let view = &tensor.view;
        plan(tensor, &|plan| {
            plan.add(&tensor.key, view.dtype(), view.shape())
        });
    }
    write_index(aside, plans.iter().map(|(name, plan)| (*name, plan)))?;
    let files = plans.into_iter().map(|(name, plan)| {
        let path = aside.join(name);
        let file = plan
            .create(&path)
            .map_err(ServingError::io("write", &path))?;
        Ok((name, file))
    });
    files.collect()
}

/// Writes the index of the files, unless they are the one that loaders look for without an index.
pub(crate) fn write_index<'a>(
    dir: &Path,
    files: impl Iterator<Item = (&'a str, &'a FilePlan)> + Clone,
) -> Result<(), ServingError> {
    if files.clone().all(|(name, _)| name == SINGLE_FILE) {
        return Ok(());
    }
    let names = files
        .clone()
        .flat_map(|(file, plan)| plan.names().map(move |name| (name.to_owned(), json!(file))));
    let map: serde_json::Map<String, Value> = names.collect();
    let total: u64 = files.map(|(_, plan)| plan.bytes()).sum();
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    write(&dir.join(INDEX_FILE), format!("{index:#}\n").as_bytes())
}

/// Writes `config.json` with the quantization, and what else the format has.
pub(crate) fn write_configuration(
    dir: &Path,
    config: &str,
    format: ServingFormat,
    kept: &[String],
) -> Result<(), ServingError> {
    let entry = format.quantization_config(kept);
    let config = with_entry(config, "quantization_config", &entry);
    write(&dir.join(CONFIG_FILE), config.as_bytes())?;
    if let Some((name, contents)) = format.further_file(kept) {
        write(&dir.join(name), format!("{contents:#}\n").as_bytes())?;
    }
    Ok(())
}

/// The amax over the members of a group.
pub(super) fn group_amax(group: &[FileTensor<'_>]) -> Result<f32, ServingError> {
    let mut amax = 0.0_f32;
    for tensor in group {
        let floats = tensor.floats().expect("a selected tensor holds floats");
        amax = amax.max(finite_amax(tensor, &floats)?);
    }
    Ok(amax)
}

/// Codes and scales of one selected tensor.
pub(super) fn quantize(
    tensor: &FileTensor<'_>,
    rule: WeightRule,
    amax: f32,
) -> Result<PackedMatrix, ServingError> {
    let floats = tensor.floats().expect("a selected tensor holds floats");
    let shape = tensor.view.shape();
    let matrix = rule.quantize(&floats, (shape[0], shape[1]), amax);
    Ok(matrix.expect("a selected tensor divides into blocks"))
}

/// The name of the module of a weight.
pub(super) fn module(key: &str) -> &str {
    key.strip_suffix(".weight").unwrap_or(key)
}

fn nothing(input: &Path, report: &Quantized) -> ServingError {
    let mut reasons: Vec<_> = report.kept.values().collect();
    reasons.sort();
    reasons.dedup();
    let reasons: Vec<_> = reasons.into_iter().map(|kept| kept.reason()).collect();
    let reasons = match reasons.as_slice() {
        [] => "there is no 2-D tensor called *.weight".to_owned(),
        reasons => reasons.join(", "),
    };
    let path = input.into();
    ServingError::Nothing { path, reasons }
}

/// Writes a small file of an output that is not complete.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), ServingError> {
    durable::write_synced(path, bytes).map_err(ServingError::io("write", path))
}
