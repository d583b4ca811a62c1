//! From a directory with weights in 4 bits back to one in 16 or 32: the values that its loader
//! computes with, for whatever reads no 4-bit weights.

use std::path::Path;

use super::ServingError;
use super::config_text::without_entry;
use super::directory::{
    Directory, Force, check_apart, check_output, copy_others, without_end_slash, write_folder,
};
use super::quantize::{Progress, write, write_index};
use super::served_file::FilePlan;
use crate::checkpoint::files::{CONFIG_FILE, stored_bytes, stored_dtype};
use crate::config::hf::StoredFloat;

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
    let output = &without_end_slash(output);
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
    write_folder(output, |aside| {
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::checkpoint::files::{INDEX_FILE, SINGLE_FILE};
    use crate::serving::{Inspected, inspect_directory};

    const CONFIG: &str = r#"{"quantization_config":
        {"quant_method": "modelopt", "quant_algo": "W4A16_NVFP4"}}"#;
    const SHARD: &str = "a.safetensors";
    const SCALE: &str = r#"{"x.input_scale":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#;
    const BIAS: &str = r#"{"x.bias":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#;

    /// A directory of one shard, or of one file without an index, with this header.
    fn lay(dir: &Path, weight_map: Option<&str>, file: &str, header: &str) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join(CONFIG_FILE), CONFIG).unwrap();
        if let Some(map) = weight_map {
            let index = format!("{{\"weight_map\": {map}}}");
            fs::write(dir.join(INDEX_FILE), index).unwrap();
        }
        let data: &[u8] = if header == "{}" { &[] } else { &[0; 4] };
        let length = (header.len() as u64).to_le_bytes();
        let bytes = [&length, header.as_bytes(), data].concat();
        fs::write(dir.join(file), bytes).unwrap();
    }

    fn dequantize(input: &Path, output: &Path) -> Result<(), ServingError> {
        let (stored, force) = (StoredFloat::F32, Force::Refuse);
        dequantize_directory(input, output, stored, force, &mut |_| {})
    }

    /// Every file of an empty list is `model.safetensors`: from an index that names no file, a
    /// directory was written with neither that file nor an index, which nothing could open. Shards
    /// in which there is nothing but ignored scales became an index that names no file.
    #[test]
    fn a_quantized_directory_without_weights_is_refused_and_nothing_is_written() {
        for (name, weight_map, file, header) in [
            ("no file named", Some("{}"), SHARD, BIAS),
            (
                "empty shard",
                Some(r#"{"x": "a.safetensors"}"#),
                SHARD,
                "{}",
            ),
            ("scale", Some(r#"{"x": "a.safetensors"}"#), SHARD, SCALE),
            ("empty file", None, SINGLE_FILE, "{}"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let (input, output) = (dir.path().join("in"), dir.path().join("out"));
            lay(&input, weight_map, file, header);
            let errors = [
                dequantize(&input, &output).unwrap_err(),
                inspect_directory(&input, &Inspected::Alone, &mut |_| {}).unwrap_err(),
            ];
            for error in errors {
                assert!(
                    matches!(error, ServingError::Empty { .. }),
                    "{name}: {error}"
                );
                assert_eq!(error.to_string().lines().count(), 1, "{error}");
            }
            assert!(!output.exists(), "{name}");
        }
    }

    #[test]
    fn a_directory_with_any_other_tensor_can_be_opened_after_it_was_dequantized() {
        let map = Some(r#"{"x.bias": "a.safetensors"}"#);
        for (weight_map, file) in [(map, SHARD), (None, SINGLE_FILE)] {
            let dir = tempfile::tempdir().unwrap();
            let (input, output) = (dir.path().join("in"), dir.path().join("out"));
            lay(&input, weight_map, file, BIAS);
            dequantize(&input, &output).unwrap();
            let written = Directory::open(&output).unwrap();
            assert_eq!(written.files.names().collect::<Vec<_>>(), [file]);
            assert_eq!(written.files.tensors(&mut Vec::new())[0].key, "x.bias");
        }
    }
}
