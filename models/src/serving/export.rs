//! From the parameters of a training run to a Hugging Face directory, in 4 bits where the run's
//! forward multiplies 4 bits.
//!
//! A linear whose fprop quantizes its weight is quantized here by the same code from the same
//! tensor under the same amax, its own or the one that the run keeps between renewals (numerics
//! §13): what is written is what a forward of this checkpoint multiplies, 16x16 tiles included
//! (each tile scale stands in 16 rows). Everything else is stored as floats and listed as kept.
//!
//! But for q, k and v of attention: servers run the three as one GEMM and take the largest of their
//! tensor scales for all, under which the others would come out too large. They are rounded again
//! under the largest amax of the three, and [`Exported::fused`] counts them.

use std::collections::BTreeMap;
use std::path::Path;

use burn_nvfp4::cpu::{Contraction, MatrixView, quantize, quantize_with_amax, tensor_amax};
use burn_nvfp4::export::{ServingFormat, served};
use burn_nvfp4::format::PackedMatrix;
use burn_nvfp4::recipe::{OperandSpec, Rounding, ScaleRule, Transform};
use burn_nvfp4::rng::{RandomKey, Stream};
use burn_nvfp4::{Policy, Progress};

use super::ServingError;
use super::directory::{Force, check_output, without_end_slash, write_folder};
use super::quantize::{write, write_configuration, write_index};
use super::selection::fused_name;
use super::served_file::FilePlan;
use crate::checkpoint::files::{CONFIG_FILE, SINGLE_FILE, stored_bytes, stored_dtype, transpose};
use crate::checkpoint::hf::{hf_key, hf_shape, is_transposed};
use crate::checkpoint::run::{NamedTensors, OF_BACKEND};
use crate::config::HybridConfig;
use crate::config::hf::StoredFloat;
use crate::config::params::ParamSpec;

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

/// A run at one of its checkpoints.
#[derive(Clone, Copy, Debug)]
pub struct TrainedRun<'a> {
    /// Dimensions of the model.
    pub config: &'a HybridConfig,
    /// Its parameters, f32.
    pub parameters: &'a NamedTensors,
    /// What the arithmetic carried from step to step: the amaxes that it keeps between renewals.
    pub carried: &'a NamedTensors,
    /// Which linears are quantized, and how.
    pub policy: &'a Policy,
    /// That of the forward to be served.
    pub progress: Progress,
}

/// What became of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Linears in 4 bits.
    pub quantized: usize,
    /// Those of them that are rounded again, under a tensor scale that they share.
    pub fused: usize,
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
    quantized: Option<Quantizing>,
}

/// How a weight is quantized.
#[derive(Clone, Copy)]
struct Quantizing {
    operand: OperandSpec,
    /// The amax that it is under, if not its own.
    amax: Option<f32>,
}

/// Writes a run to `output`.
///
/// # Errors
/// [`ServingError`]; `output` is then as it was.
///
/// # Panics
/// If the parameters are not those of the configuration: a run checks that when it loads them.
pub fn export_run(
    run: &TrainedRun<'_>,
    output: &Path,
    options: &ExportOptions,
) -> Result<Exported, ServingError> {
    let output = &without_end_slash(output);
    check_output(output, options.force)?;
    let items = run.config.params().into_iter().map(|spec| {
        let values = &run.parameters[&spec.name];
        Item {
            quantized: options.format.and_then(|_| run.quantizing(&spec)),
            values: values
                .as_slice()
                .expect("a run keeps its parameters in f32"),
            spec,
        }
    });
    let mut items: Vec<Item<'_>> = items.collect();
    let fused = share_scales(&mut items)?;
    let kept = items.iter().filter(|item| item.quantized.is_none());
    let kept: Vec<_> = kept
        .filter(|item| is_transposed(&item.spec))
        .map(|item| linear(&item.spec))
        .collect();
    let mut report = Exported {
        fused,
        kept: kept.len(),
        ..Exported::default()
    };
    if let (Some(_), true) = (
        options.format,
        items.iter().all(|item| item.quantized.is_none()),
    ) {
        return Err(ServingError::NoQuantizedForward);
    }
    write_folder(output, |aside| {
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
                    Some(quantizing) => {
                        report.quantized += 1;
                        let matrix = item.quantize(quantizing)?;
                        file.write_weight(&linear(&item.spec), &matrix)
                    }
                    None => file.write(&key, &item.bytes(item.spec.stored(options.stored))),
                };
                written.map_err(ServingError::io("write", &path))?;
            }
            file.finish().map_err(ServingError::io("write", &path))?;
        }
        let text = format!("{}\n", run.config.to_hf_json(options.stored));
        match options.format {
            Some(format) => write_configuration(aside, &text, format, &kept),
            None => write(&aside.join(CONFIG_FILE), text.as_bytes()),
        }
    })?;
    Ok(report)
}

impl TrainedRun<'_> {
    /// How fprop quantizes a parameter; `None` if it does not.
    fn quantizing(&self, spec: &ParamSpec) -> Option<Quantizing> {
        let layer = spec.name.strip_suffix(".weight")?;
        let recipe = self.policy.resolve(Some(layer), self.progress);
        let operand = recipe.fprop.rhs;
        if !is_transposed(spec) || !operand.is_quantized() {
            return None;
        }
        // A step that renews takes the amax of what it reads (numerics §13).
        let renews = recipe.scale_renewal.renews(self.progress.step);
        let reads_kept = !renews && operand.has_renewable_scale();
        let amax = reads_kept.then(|| self.kept_amax(layer)).flatten();
        Some(Quantizing { operand, amax })
    }

    /// The amax that the run keeps for the weight of a layer.
    fn kept_amax(&self, layer: &str) -> Option<f32> {
        let kept = self
            .carried
            .get(&format!("{OF_BACKEND}{layer}.fprop.rhs"))?;
        kept.as_slice::<f32>().ok()?.first().copied()
    }
}

/// Has the members of each group that servers run as one GEMM share a tensor scale, that of the
/// largest amax among them; returns how many linears those are.
fn share_scales(items: &mut [Item<'_>]) -> Result<usize, ServingError> {
    let mut groups = BTreeMap::<_, Vec<&mut Item<'_>>>::new();
    for item in items {
        // What has another kind of scale is refused when it is quantized.
        let has_one = |it: &Quantizing| it.operand.has_renewable_scale();
        let name = fused_name(&hf_key(&item.spec.name));
        if let Some(name) = name.filter(|_| item.quantized.as_ref().is_some_and(has_one)) {
            groups.entry(name).or_default().push(item);
        }
    }
    let mut shared = 0;
    for members in groups.into_values().filter(|members| members.len() > 1) {
        let joint = members.iter().map(|item| item.amax()).fold(0.0, f32::max);
        let rule = members[0].scale_rule();
        shared += members.len();
        for item in members {
            if item.scale_rule() != rule {
                let reason = "servers have one tensor scale for it and those that are fused with \
                              it, whose recipes choose scales by another rule";
                return Err(item.not_served(reason));
            }
            if let Some(quantizing) = &mut item.quantized {
                quantizing.amax = Some(joint);
            }
        }
    }
    Ok(shared)
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
    /// The amax that the weight is under.
    fn amax(&self) -> f32 {
        let given = self.quantized.and_then(|quantizing| quantizing.amax);
        given.unwrap_or_else(|| tensor_amax(self.values))
    }

    /// How the scales of a weight in NVFP4 are chosen.
    fn scale_rule(&self) -> Option<ScaleRule> {
        match self.quantized?.operand {
            OperandSpec::Nvfp4 { scale, .. } => Some(scale),
            OperandSpec::HighPrecision
            | OperandSpec::Mxfp4 { .. }
            | OperandSpec::Mxfp8 { .. }
            | OperandSpec::Fp8 { .. } => None,
        }
    }

    fn not_served(&self, reason: impl Into<String>) -> ServingError {
        ServingError::NotServed {
            key: hf_key(&self.spec.name),
            reason: reason.into(),
        }
    }

    /// The weight in the served form.
    fn quantize(&self, quantizing: Quantizing) -> Result<PackedMatrix, ServingError> {
        let Quantizing { operand, amax } = quantizing;
        if operand.rounding() == Some(Rounding::Stochastic) {
            return Err(self.not_served("its forward rounds the weight stochastically"));
        }
        if operand.transform() != Transform::None {
            let reason = "its forward multiplies the weight behind a Hadamard transform";
            return Err(self.not_served(reason));
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
        let packed = match amax {
            None => quantize(view, Contraction::Rows, &operand, key),
            Some(amax) => quantize_with_amax(view, Contraction::Rows, &operand, amax, key),
        };
        let packed = packed.map_err(|error| self.not_served(error.to_string()))?;
        served(&packed).map_err(|error| self.not_served(error.to_string()))
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
