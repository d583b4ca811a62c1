//! From the parameters of a training run to a Hugging Face directory, in 4 bits where the run's
//! forward multiplies 4 bits.
//!
//! A linear whose fprop quantizes its weight is quantized here by the same code from the same
//! tensor: what is written is what a forward of this checkpoint multiplies, 16x16 tiles included
//! (each tile scale stands in 16 rows). Everything else is stored as floats and listed as kept.
//! Weights that servers fuse keep the tensor scale of their own that they were trained with.

use std::path::Path;

use burn_nvfp4::cpu::{Contraction, MatrixView, quantize};
use burn_nvfp4::export::{ServingFormat, served};
use burn_nvfp4::format::PackedMatrix;
use burn_nvfp4::recipe::{OperandSpec, Rounding};
use burn_nvfp4::rng::{RandomKey, Stream};
use burn_nvfp4::{Policy, Progress};

use super::ServingError;
use super::directory::{Force, check_output};
use super::quantize::{write, write_configuration, write_index};
use super::served_file::FilePlan;
use crate::checkpoint::files::{CONFIG_FILE, SINGLE_FILE, stored_bytes, stored_dtype, transpose};
use crate::checkpoint::hf::{hf_key, hf_shape, is_transposed};
use crate::checkpoint::run::NamedTensors;
use crate::config::HybridConfig;
use crate::config::hf::StoredFloat;
use crate::config::params::ParamSpec;
use crate::durable;

/// Bytes of a file from which the next tensor starts another.
const SHARD: u64 = 5_000_000_000;

/// What a run is exported as.
#[derive(Clone, Copy, Debug)]
pub struct ExportOptions {
    /// Whose names and configuration; `None`: every weight as floats.
    pub format: Option<ServingFormat>,
    /// Dtype of what is not in 4 bits; `a_log`, `d_skip` and `dt_bias` are f32 in any case.
    pub stored: StoredFloat,
    /// What happens to an output that exists.
    pub force: Force,
}

/// What became of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Linears in 4 bits.
    pub quantized: usize,
    /// Linears as floats.
    pub kept: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
}

/// One parameter and how it is written.
struct Item<'a> {
    spec: ParamSpec,
    values: &'a [f32],
    /// How a linear in 4 bits is quantized.
    quantized: Option<OperandSpec>,
}

/// Writes the parameters of a run to `output`. `progress` is that of the forward to be served.
///
/// # Errors
/// [`ServingError`]; `output` is then as it was.
///
/// # Panics
/// If `parameters` are not those of `config`: a run checks that when it loads them.
pub fn export_run(
    config: &HybridConfig,
    parameters: &NamedTensors,
    (policy, progress): (&Policy, Progress),
    output: &Path,
    options: &ExportOptions,
) -> Result<Exported, ServingError> {
    check_output(output, options.force)?;
    let quantized = |spec: &ParamSpec| {
        options.format?;
        let layer = spec.name.strip_suffix(".weight")?;
        let rhs = policy.resolve(Some(layer), progress).fprop.rhs;
        (is_transposed(spec) && rhs.is_quantized()).then_some(rhs)
    };
    let items = config.params().into_iter().map(|spec| {
        let values = &parameters[&spec.name];
        Item {
            quantized: quantized(&spec),
            values: values
                .as_slice()
                .expect("a run keeps its parameters in f32"),
            spec,
        }
    });
    let items: Vec<Item<'_>> = items.collect();
    let kept = items.iter().filter(|item| item.quantized.is_none());
    let kept: Vec<_> = kept
        .filter(|item| is_transposed(&item.spec))
        .map(|item| linear(&item.spec))
        .collect();
    let mut report = Exported {
        kept: kept.len(),
        ..Exported::default()
    };
    if let (Some(_), true) = (
        options.format,
        items.iter().all(|item| item.quantized.is_none()),
    ) {
        return Err(ServingError::NoQuantizedForward);
    }
    durable::write_folder(output, |aside| {
        let plans = plan(&items, options);
        report.bytes = plans.iter().map(|(plan, _)| plan.bytes()).sum();
        let names: Vec<_> = match plans.len() {
            1 => vec![SINGLE_FILE.to_owned()],
            n => (1..=n)
                .map(|i| format!("model-{i:05}-of-{n:05}.safetensors"))
                .collect(),
        };
        let files = names.iter().map(String::as_str);
        write_index(aside, files.zip(plans.iter().map(|(plan, _)| plan)))?;
        for (name, (plan, items)) in names.iter().zip(plans) {
            let path = aside.join(name);
            let mut file = plan
                .create(&path)
                .map_err(ServingError::io("write", &path))?;
            for item in items {
                let key = hf_key(&item.spec.name);
                let written = match item.quantized {
                    Some(operand) => {
                        report.quantized += 1;
                        let matrix = item.quantize(&operand)?;
                        file.write_weight(&linear(&item.spec), &matrix)
                    }
                    None => file.write(&key, &item.bytes(item.spec.stored(options.stored))),
                };
                written.map_err(ServingError::io("write", &path))?;
            }
            file.finish().map_err(ServingError::io("write", &path))?;
        }
        let text = format!("{}\n", config.to_hf_json(options.stored));
        match options.format {
            Some(format) => write_configuration(aside, &text, format, &kept),
            None => write(&aside.join(CONFIG_FILE), text.as_bytes()),
        }
    })?;
    Ok(report)
}

/// Cuts the parameters into files.
fn plan<'a, 'b>(
    items: &'b [Item<'a>],
    options: &ExportOptions,
) -> Vec<(FilePlan, Vec<&'b Item<'a>>)> {
    // Without weights in 4 bits the format names nothing.
    let format = options.format.unwrap_or(ServingFormat::Modelopt);
    let mut plans = vec![(FilePlan::new(format), Vec::new())];
    for item in items {
        if plans.last().is_some_and(|(plan, _)| plan.bytes() >= SHARD) {
            plans.push((FilePlan::new(format), Vec::new()));
        }
        let (plan, members) = plans.last_mut().expect("there is always one");
        let shape = hf_shape(&item.spec);
        match item.quantized {
            Some(_) => plan.add_weight(&linear(&item.spec), shape[0], shape[1]),
            None => {
                let dtype = stored_dtype(item.spec.stored(options.stored));
                plan.add(&hf_key(&item.spec.name), dtype, &shape);
            }
        }
        members.push(item);
    }
    plans
}

impl Item<'_> {
    /// The weight as fprop multiplies it, in the served form.
    fn quantize(&self, operand: &OperandSpec) -> Result<PackedMatrix, ServingError> {
        let fail = |reason: String| ServingError::NotServed {
            key: hf_key(&self.spec.name),
            reason,
        };
        if operand.rounding() == Some(Rounding::Stochastic) {
            return Err(fail(
                "its forward rounds the weight stochastically".to_owned(),
            ));
        }
        let [rows, cols] = [self.spec.shape[0], self.spec.shape[1]];
        let view = MatrixView::new(self.values, rows, cols).expect("parameters fill their shape");
        // Not read: nothing is drawn.
        let key = RandomKey {
            seed: 0,
            step: 0,
            micro_batch: 0,
            stream: Stream::Other(0),
        };
        let packed = quantize(view, Contraction::Rows, operand, key);
        let packed = packed.map_err(|error| fail(error.to_string()))?;
        served(&packed).map_err(|error| fail(error.to_string()))
    }

    /// The values in the layout of the file.
    fn bytes(&self, stored: StoredFloat) -> Vec<u8> {
        let transposed = is_transposed(&self.spec).then(|| {
            let [rows, cols] = [self.spec.shape[0], self.spec.shape[1]];
            transpose(self.values, |value| value, rows, cols)
        });
        stored_bytes(transposed.as_deref().unwrap_or(self.values), stored)
    }
}

/// The name of a linear in the file.
fn linear(spec: &ParamSpec) -> String {
    let key = hf_key(&spec.name);
    key.strip_suffix(".weight").unwrap_or(&key).to_owned()
}
