//! From a directory with weights in 4 bits back to one in 16 or 32: the values that its loader
//! computes with, for whatever reads no 4-bit weights.

use std::path::Path;

use super::ServingError;
use super::config_text::without_entry;
use super::directory::{Directory, Force, check_apart, check_output, copy_others};
use super::quantize::{Progress, write, write_index};
use super::served_file::FilePlan;
use crate::checkpoint::files::{CONFIG_FILE, stored_bytes, stored_dtype};
use crate::config::hf::StoredFloat;
use crate::durable;

/// Writes the values of the 4-bit weights of `input` to `output`, everything else as it is.
///
/// # Errors
/// [`ServingError`]; `output` is then as it was.
pub fn dequantize_directory(
    input: &Path,
    output: &Path,
    stored: StoredFloat,
    force: Force,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), ServingError> {
    let directory = Directory::open(input)?;
    let Some(format) = directory.format()? else {
        let path = input.join(CONFIG_FILE);
        return Err(ServingError::NotQuantized { path });
    };
    check_apart(input, output)?;
    check_output(output, force)?;
    let quantized = directory.quantized(format)?;
    let dtype = stored_dtype(stored);
    let linear_bytes: u64 = quantized
        .linears
        .iter()
        .map(|(_, parts)| parts.bytes())
        .sum();
    let others = quantized
        .others
        .iter()
        .map(|tensor| tensor.view.data().len() as u64);
    let total = linear_bytes + others.sum::<u64>();
    durable::write_folder(output, |aside| {
        let names: Vec<_> = directory.files.names().collect();
        let mut plans: Vec<_> = names.iter().map(|_| FilePlan::new(format)).collect();
        let place = |file: &str| {
            let place = names.iter().position(|name| *name == file);
            place.expect("a tensor is in one of the files")
        };
        for (linear, parts) in &quantized.linears {
            let (rows, k) = parts.shape();
            plans[place(parts.file())].add(&format!("{linear}.weight"), dtype, &[rows, k]);
        }
        for tensor in &quantized.others {
            let view = &tensor.view;
            plans[place(tensor.file())].add(&tensor.key, view.dtype(), view.shape());
        }
        write_index(aside, names.iter().copied().zip(&plans))?;
        let mut files = Vec::new();
        for (name, plan) in names.iter().zip(plans) {
            let path = aside.join(name);
            files.push(
                plan.create(&path)
                    .map_err(ServingError::io("write", &path))?,
            );
        }
        let mut read = 0;
        let mut done = |key: &str, bytes: u64| {
            read += bytes;
            progress(Progress { key, read, total });
        };
        for (linear, parts) in &quantized.linears {
            let values = parts.dequantize(&parts.join());
            let file = &mut files[place(parts.file())];
            file.write(&format!("{linear}.weight"), &stored_bytes(&values, stored))
                .map_err(ServingError::io("write", output))?;
            done(linear, parts.bytes());
        }
        for tensor in &quantized.others {
            let file = &mut files[place(tensor.file())];
            file.write(&tensor.key, tensor.view.data())
                .map_err(ServingError::io("write", output))?;
            tensor.release();
            done(&tensor.key, tensor.view.data().len() as u64);
        }
        for file in files {
            file.finish().map_err(ServingError::io("write", output))?;
        }
        let config = without_entry(&directory.config, "quantization_config");
        write(&aside.join(CONFIG_FILE), config.as_bytes())?;
        copy_others(input, aside)
    })
}
