//! `nvfp4 quantize`, `dequantize`, `export`: Hugging Face directories in 4 bits, and back.

use std::collections::BTreeMap;
use std::time::Instant;

use burn_nvfp4::Progress as RunProgress;
use burn_nvfp4::export::ServingFormat;
use burn_nvfp4_models::checkpoint::run::RunDirectory;
use burn_nvfp4_models::config::hf::StoredFloat;
use burn_nvfp4_models::data::Tokenizer;
use burn_nvfp4_models::serving::{
    DEFAULT_EXCLUDES, ExportOptions, Force, Kept, Progress, QuantizeOptions, Selection, TrainedRun,
    WeightRule, dequantize_directory, export_run, quantize_directory,
};
use burn_nvfp4_models::train::config::TrainConfig;
use indicatif::ProgressBar;

use super::args::{
    DequantizeArgs, ExportArgs, ExportName, FloatName, FormatName, QuantizeArgs, RuleName,
    SelectionArgs,
};
use super::{Failure, Success, prepare, progress, say};

/// Bytes of a megabyte, in speeds and sizes.
const MB: f64 = 1e6;

/// Runs `nvfp4 quantize`.
///
/// # Errors
/// [`Failure`], one line each.
pub(crate) fn quantize(arguments: &QuantizeArgs) -> Result<Success, Failure> {
    let options = QuantizeOptions {
        format: match arguments.format {
            FormatName::Modelopt => ServingFormat::Modelopt,
            FormatName::CompressedTensors => ServingFormat::CompressedTensors,
        },
        rule: rule(arguments.rule),
        selection: selection(&arguments.selection)?,
        force: force(arguments.force),
    };
    let start = Instant::now();
    let mut bar = Bar::default();
    let done = quantize_directory(
        &arguments.input,
        &arguments.output,
        &options,
        &mut |progress| bar.show(progress),
    );
    bar.clear();
    let done = done.map_err(Failure::error)?;
    let seconds = start.elapsed().as_secs_f64();
    say(&format!(
        "{}: {} weights in NVFP4, {:.1} MB for {:.1} MB ({:.2} bits each); {}",
        arguments.output.display(),
        done.quantized,
        done.bytes.1 as f64 / MB,
        done.bytes.0 as f64 / MB,
        done.bits_per_weight(),
        kept(&done.kept),
    ));
    say(&format!(
        "{:.1} MB in all for {:.1} MB, {seconds:.1} s, {:.0} MB/s",
        done.total.1 as f64 / MB,
        done.total.0 as f64 / MB,
        done.total.0 as f64 / MB / seconds,
    ));
    Ok(Success::Done)
}

/// Runs `nvfp4 dequantize`.
///
/// # Errors
/// [`Failure`], one line each.
pub(crate) fn dequantize(arguments: &DequantizeArgs) -> Result<Success, Failure> {
    let stored = stored(arguments.dtype);
    let (input, output) = (&arguments.input, &arguments.output);
    let mut bar = Bar::default();
    let done = dequantize_directory(
        input,
        output,
        stored,
        force(arguments.force),
        &mut |progress| bar.show(progress),
    );
    bar.clear();
    done.map_err(Failure::error)?;
    Ok(Success::Done)
}

/// Runs `nvfp4 export`.
///
/// # Errors
/// [`Failure`], one line each.
pub(crate) fn export(arguments: &ExportArgs) -> Result<Success, Failure> {
    let directory = RunDirectory::at(&arguments.run);
    let checkpoint = directory.load(arguments.step).map_err(Failure::error)?;
    let step = checkpoint.step();
    let damaged = |error: String| {
        let path = directory.checkpoint(step);
        Failure::Error(format!("{}: {error}", path.display()))
    };
    let path = directory.checkpoint(step).join("state.json");
    let config = TrainConfig::from_toml(&checkpoint.state.config, &path);
    let config = config.map_err(Failure::error)?;
    let tokenizer_file = config.data.tokenizer.as_ref();
    let tokenizer = match tokenizer_file {
        None => Tokenizer::Bytes,
        Some(path) => Tokenizer::from_file(path).map_err(Failure::error)?,
    };
    let model = prepare::model_config(&config.model, &tokenizer)?;
    let problems = checkpoint.parameter_problems(&model);
    if !problems.is_empty() {
        return Err(damaged(problems.join("; ")));
    }
    let policy = config.precision.policy(&model).map_err(Failure::error)?;
    let options = ExportOptions {
        format: match arguments.format {
            ExportName::Modelopt => Some(ServingFormat::Modelopt),
            ExportName::CompressedTensors => Some(ServingFormat::CompressedTensors),
            ExportName::HighPrecision => None,
        },
        stored: stored(arguments.dtype),
        force: force(arguments.force),
    };
    // The last forward of the run so far.
    let progress = RunProgress {
        step: step.saturating_sub(1),
        total: config.steps,
    };
    let output = &arguments.output;
    let run = TrainedRun {
        config: &model,
        parameters: &checkpoint.parameters,
        carried: &checkpoint.carried,
        policy: &policy,
        progress,
    };
    let done = export_run(&run, output, &options).map_err(Failure::error)?;
    if let Some(path) = tokenizer_file {
        let target = output.join("tokenizer.json");
        std::fs::copy(path, &target).map_err(|error| {
            Failure::Error(format!("{}: cannot copy: {error}", target.display()))
        })?;
    }
    say(&format!(
        "{}: step {step}, {} linears in NVFP4, {} as floats, {:.1} MB{}",
        output.display(),
        done.quantized,
        done.kept,
        done.bytes as f64 / MB,
        match tokenizer_file {
            Some(_) => "",
            None => "; a model of bytes: commands that read it take --tokenizer bytes",
        }
    ));
    if done.fused > 0 {
        say(&format!(
            "{} linears, q, k and v of attention, are rounded again: servers have one tensor scale \
             for the three, the run's forward has one for each",
            done.fused,
        ));
    }
    Ok(Success::Done)
}

const fn stored(name: FloatName) -> StoredFloat {
    match name {
        FloatName::F32 => StoredFloat::F32,
        FloatName::Bf16 => StoredFloat::Bf16,
    }
}

/// The rule of a name.
pub(super) const fn rule(name: RuleName) -> WeightRule {
    match name {
        RuleName::TransformerEngine => WeightRule::TransformerEngine,
        RuleName::FourOverSix => WeightRule::FourOverSix,
        RuleName::Modelopt => WeightRule::Modelopt,
    }
}

/// The patterns that were given.
pub(super) fn selection(arguments: &SelectionArgs) -> Result<Selection, Failure> {
    let defaults: &[&str] = if arguments.no_default_excludes {
        &[]
    } else {
        &DEFAULT_EXCLUDES
    };
    Selection::excluding(defaults, &arguments.exclude).map_err(Failure::usage)
}

const fn force(force: bool) -> Force {
    if force { Force::Replace } else { Force::Refuse }
}

/// How many weights stay as they are, by reason.
fn kept(kept: &BTreeMap<String, Kept>) -> String {
    let mut reasons = BTreeMap::<Kept, usize>::new();
    for &reason in kept.values() {
        *reasons.entry(reason).or_default() += 1;
    }
    let reasons: Vec<_> = reasons
        .into_iter()
        .map(|(reason, count)| format!("{count} {}", reason.reason()))
        .collect();
    if reasons.is_empty() {
        "none kept".to_owned()
    } else {
        format!("kept: {}", reasons.join(", "))
    }
}

/// The progress bar, made when the size is known.
#[derive(Default)]
struct Bar(Option<ProgressBar>);

impl Bar {
    fn show(&mut self, progress: Progress<'_>) {
        let bar = self
            .0
            .get_or_insert_with(|| progress::bytes(progress.total));
        bar.set_position(progress.read);
        bar.set_message(progress.key.to_owned());
    }

    fn clear(self) {
        if let Some(bar) = self.0 {
            bar.finish_and_clear();
        }
    }
}
