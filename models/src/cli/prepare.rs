//! What a run is, before a backend is chosen: configuration, model, tokens, directory.
//!
//! Everything that can be refused is refused here, before anything but the token cache is written.

use std::fs;
use std::io::{IsTerminal, stdout};
use std::path::{Path, PathBuf};

use serde_json::Value;

use burn_nvfp4_models::checkpoint::run::{RunCheckpoint, RunDirectory, RunError, differences};
use burn_nvfp4_models::config::HybridConfig;
use burn_nvfp4_models::data::dataset::is_tokens;
use burn_nvfp4_models::data::{Corpus, Dataset, TokenFile, Tokenizer};
use burn_nvfp4_models::train::config::{ModelSource, TrainConfig};

use super::args::TrainArgs;
use super::{Failure, backend, sources};

/// The default run.
const DEFAULT: &str = include_str!("../../../configs/default.toml");

/// Everything that is known before a backend is chosen.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The resolved configuration.
    pub(crate) config: TrainConfig,
    /// The model.
    pub(crate) model: HybridConfig,
    pub(super) tokenizer: Tokenizer,
    pub(super) data: Dataset,
    pub(super) directory: RunDirectory,
    pub(super) resume: Option<RunCheckpoint>,
    pub(super) identity: Value,
    /// Index of the GPU.
    pub(super) device: usize,
    pub(super) plain: bool,
    pub(super) log_every: usize,
}

/// Resolves and checks the arguments, and tokenises the text.
///
/// # Errors
/// [`Failure`], one line each.
pub(super) fn prepare(arguments: &TrainArgs) -> Result<Prepared, Failure> {
    let (config, directory, resume) = resolve(arguments)?;
    backend::check(config.precision.backend, arguments.device)?;
    let tokenizer = match &config.data.tokenizer {
        None => Tokenizer::Bytes,
        Some(path) => Tokenizer::from_file(path).map_err(Failure::error)?,
    };
    let model = model_config(&config.model, &tokenizer)?;
    config.precision.policy(&model).map_err(Failure::usage)?;
    let data = open_data(&config, &tokenizer, &directory)?;
    let identity = config.identity(&model, data.fingerprint(), &tokenizer.name());
    if let Some(checkpoint) = &resume {
        let differences = differences(&checkpoint.state.identity, &identity);
        if !differences.is_empty() {
            let path = directory.checkpoint(checkpoint.state.step);
            return Err(Failure::error(RunError::Differs { path, differences }));
        }
    }
    Ok(Prepared {
        config,
        model,
        tokenizer,
        data,
        directory,
        resume,
        identity,
        device: arguments.device,
        plain: arguments.plain || !stdout().is_terminal(),
        log_every: arguments.log_every,
    })
}

/// Opens what the run reads; text is tokenised into a cache beside the runs.
fn open_data(
    config: &TrainConfig,
    tokenizer: &Tokenizer,
    directory: &RunDirectory,
) -> Result<Dataset, Failure> {
    let cache = directory
        .path()
        .parent()
        .unwrap_or(Path::new("."))
        .join("tokens");
    let data = &config.data;
    let corpus = match &data.path {
        Some(path) if !is_tokens(path) => Corpus::at(path).map_err(Failure::error)?,
        None if data.sources.is_empty() => sources::locked_dependencies()?,
        Some(_) | None => {
            let (held_out, reading) = (data.held_out(), config.reading());
            let reading = reading.map_err(Failure::usage)?;
            return Dataset::open(&data.paths(), held_out.as_ref(), reading, tokenizer, &cache)
                .map_err(Failure::error);
        }
    };
    let tokens = TokenFile::prepare(&corpus, tokenizer, &cache).map_err(Failure::error)?;
    Dataset::of_file(tokens, config.batch.length, config.seed).map_err(Failure::error)
}

/// The configuration, the directory, and the checkpoint to continue from.
fn resolve(
    arguments: &TrainArgs,
) -> Result<(TrainConfig, RunDirectory, Option<RunCheckpoint>), Failure> {
    let from_file = |path: &PathBuf| {
        let text = fs::read_to_string(path)
            .map_err(|error| Failure::Usage(format!("{}: cannot read: {error}", path.display())))?;
        TrainConfig::from_toml(&text, path).map_err(Failure::usage)
    };
    let given = arguments.config.as_ref().map(from_file).transpose()?;
    let built_in = || TrainConfig::from_toml(DEFAULT, Path::new("configs/default.toml"));
    let place = |config: &TrainConfig| {
        let default = || Path::new("runs").join(&config.name);
        RunDirectory::at(&arguments.out.clone().unwrap_or_else(default))
    };
    let (mut config, resume) = match (given, arguments.resume) {
        (given, None) => (
            given.map_or_else(built_in, Ok).map_err(Failure::usage)?,
            None,
        ),
        (given, Some(step)) => {
            let config = given.map_or_else(built_in, Ok).map_err(Failure::usage)?;
            let directory = place(&config);
            let checkpoint = directory.load(step).map_err(Failure::error)?;
            let config = if arguments.config.is_some() {
                config
            } else {
                serde_json::from_value(checkpoint.state.config.clone()).map_err(|error| {
                    let path = directory.checkpoint(checkpoint.state.step);
                    Failure::Error(format!("{}: state.json: {error}", path.display()))
                })?
            };
            (config, Some((directory, checkpoint)))
        }
    };
    arguments.apply(&mut config).map_err(Failure::usage)?;
    config.validate().map_err(Failure::usage)?;
    match resume {
        Some((directory, checkpoint)) => Ok((config, directory, Some(checkpoint))),
        None => {
            let directory = place(&config);
            directory.check_new().map_err(Failure::error)?;
            Ok((config, directory, None))
        }
    }
}

/// The model's dimensions, with room for every id of the tokenizer.
pub(super) fn model_config(
    source: &ModelSource,
    tokenizer: &Tokenizer,
) -> Result<HybridConfig, Failure> {
    let model = match source {
        ModelSource::Preset(name) => {
            // A multiple of 16 keeps `lm_head` free of partial blocks.
            let vocab = tokenizer.vocab_size().next_multiple_of(16);
            HybridConfig::preset(name, vocab).map_err(Failure::usage)?
        }
        ModelSource::Config(path) => {
            let text = fs::read_to_string(path).map_err(|error| {
                Failure::Usage(format!("{}: cannot read: {error}", path.display()))
            })?;
            HybridConfig::from_hf_json(&text)
                .map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?
        }
    };
    tokenizer
        .check_vocabulary(model.vocab_size)
        .map_err(Failure::error)?;
    Ok(model)
}
