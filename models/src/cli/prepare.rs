//! What a run is, before a backend is chosen: configuration, model, tokens, directory.
//!
//! Everything that can be refused is refused here, before anything but the token cache is written.

use std::fs;
use std::io::{IsTerminal, stdout};
use std::path::{Path, PathBuf};

use serde_json::Value;

use burn_nvfp4_models::checkpoint::run::{
    Found, RunCheckpoint, RunDirectory, RunError, RunLock, Versions, differences,
};
use burn_nvfp4_models::config::HybridConfig;
use burn_nvfp4_models::data::dataset::is_tokens;
use burn_nvfp4_models::data::{Corpus, Dataset, TokenFile, Tokenizer};
use burn_nvfp4_models::study::record::RunRecord;
use burn_nvfp4_models::train::config::{ModelSource, TrainConfig};

use super::args::TrainArgs;
use super::{Failure, backend, sources};

/// The default run.
const DEFAULT: &str = include_str!("../../../configs/default.toml");

/// A run as it is asked for.
#[derive(Debug)]
pub(super) struct Request {
    /// The resolved configuration.
    pub(super) config: TrainConfig,
    pub(super) directory: RunDirectory,
    pub(super) begin: Begin,
    /// The right to write into the directory, if it was taken already.
    pub(super) lock: Option<RunLock>,
    /// Folder for the tokens of a text.
    pub(super) cache: PathBuf,
    /// Indices of the GPUs, one for each rank.
    pub(super) devices: Vec<usize>,
    pub(super) plain: bool,
    pub(super) log_every: usize,
}

/// Everything that is known before a backend is chosen.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The resolved configuration.
    pub(crate) config: TrainConfig,
    /// The same as TOML.
    pub(super) config_text: String,
    /// The model.
    pub(crate) model: HybridConfig,
    pub(super) tokenizer: Tokenizer,
    pub(super) data: Dataset,
    pub(super) directory: RunDirectory,
    pub(super) begin: Begin,
    pub(super) lock: Option<RunLock>,
    pub(super) identity: Value,
    /// Indices of the GPUs, one for each rank.
    pub(super) devices: Vec<usize>,
    pub(super) plain: bool,
    pub(super) log_every: usize,
}

/// Where a run begins.
#[derive(Debug)]
pub(super) enum Begin {
    /// In a directory of its own.
    New,
    /// At the first step once more, where a run came to no checkpoint.
    Again,
    /// After a checkpoint, because newer ones are damaged as these lines say.
    After(Box<RunCheckpoint>, Vec<String>),
}

impl Begin {
    /// The checkpoint that the run continues from.
    pub(super) fn checkpoint(&self) -> Option<&RunCheckpoint> {
        match self {
            Self::New | Self::Again => None,
            Self::After(checkpoint, _) => Some(checkpoint),
        }
    }
}

/// Resolves and checks the arguments, and tokenises the text.
///
/// # Errors
/// [`Failure`], one line each.
pub(super) fn prepare(arguments: &TrainArgs) -> Result<Prepared, Failure> {
    let Resolved {
        config,
        directory,
        begin,
        lock,
    } = resolve(arguments)?;
    let runs = directory.path().parent().unwrap_or(Path::new("."));
    prepare_request(Request {
        cache: runs.join("tokens"),
        devices: devices(arguments, &config),
        config,
        directory,
        begin,
        lock,
        plain: arguments.plain || !stdout().is_terminal(),
        log_every: arguments.log_every,
    })
}

/// The devices that are asked for: the arguments' or the configuration's, else the first.
fn devices(arguments: &TrainArgs, config: &TrainConfig) -> Vec<usize> {
    match (arguments.device, &config.parallel) {
        (Some(device), _) => vec![device],
        (None, Some(parallel)) => parallel.devices.clone(),
        (None, None) => vec![0],
    }
}

/// The tokenizer and the model of a configuration whose backend is there and whose policy fits.
///
/// # Errors
/// [`Failure`], one line each.
pub(super) fn check(
    config: &TrainConfig,
    devices: &[usize],
) -> Result<(Tokenizer, HybridConfig), Failure> {
    backend::training::check(config.precision.backend, devices)?;
    let tokenizer = match &config.data.tokenizer {
        None => Tokenizer::Bytes,
        Some(path) => Tokenizer::from_file(path).map_err(Failure::error)?,
    };
    let model = model_config(&config.model, &tokenizer)?;
    config.precision.policy(&model).map_err(Failure::usage)?;
    Ok((tokenizer, model))
}

/// Checks what is asked for, and tokenises the text.
///
/// # Errors
/// [`Failure`], one line each.
pub(super) fn prepare_request(request: Request) -> Result<Prepared, Failure> {
    let Request {
        config,
        directory,
        begin,
        lock,
        cache,
        devices,
        plain,
        log_every,
    } = request;
    let (tokenizer, model) = check(&config, &devices)?;
    let data = open_data(&config, &tokenizer, &cache)?;
    let identity = config.identity(&model, data.fingerprint(), &tokenizer.name());
    if let Some(checkpoint) = begin.checkpoint() {
        let differences = differences(&checkpoint.state.identity, &identity);
        if !differences.is_empty() {
            let path = directory.checkpoint(checkpoint.step());
            return Err(Failure::error(RunError::Differs { path, differences }));
        }
        let (there, here) = (&checkpoint.state.versions, Versions::current());
        if *there != here {
            warn(&format!(
                "the checkpoint was written by nvfp4 {} on Burn {}, this is {} on Burn {}: the \
                 run may differ from an uninterrupted one",
                there.nvfp4, there.burn, here.nvfp4, here.burn
            ));
        }
    }
    let config_text = toml::to_string(&config).map_err(Failure::error)?;
    Ok(Prepared {
        config,
        config_text,
        model,
        tokenizer,
        data,
        directory,
        begin,
        lock,
        identity,
        devices,
        plain,
        log_every,
    })
}

/// Opens what the run reads; text is tokenised into a cache.
fn open_data(
    config: &TrainConfig,
    tokenizer: &Tokenizer,
    cache: &Path,
) -> Result<Dataset, Failure> {
    let data = &config.data;
    let corpus = match &data.path {
        Some(path) if !is_tokens(path) => Corpus::at(path).map_err(Failure::error)?,
        None if data.sources.is_empty() => sources::locked_dependencies()?,
        Some(_) | None => {
            let (held_out, reading) = (data.held_out(), config.reading());
            let reading = reading.map_err(Failure::usage)?;
            return Dataset::open(&data.paths(), held_out.as_ref(), reading, tokenizer, cache)
                .map_err(Failure::error);
        }
    };
    let tokens = TokenFile::prepare(&corpus, tokenizer, cache).map_err(Failure::error)?;
    Dataset::of_file(tokens, config.batch.length, config.seed).map_err(Failure::error)
}

/// What the arguments ask for, before anything of it is opened.
struct Resolved {
    config: TrainConfig,
    directory: RunDirectory,
    begin: Begin,
    lock: Option<RunLock>,
}

/// The configuration, the directory, and where the run begins.
fn resolve(arguments: &TrainArgs) -> Result<Resolved, Failure> {
    let given = arguments.config.as_deref().map(from_file).transpose()?;
    let has_config = given.is_some();
    let built_in = || TrainConfig::from_toml(DEFAULT, Path::new("configs/default.toml"));
    let mut config = given.map_or_else(built_in, Ok).map_err(Failure::usage)?;
    let place = |config: &TrainConfig| {
        let default = || Path::new("runs").join(&config.name);
        RunDirectory::at(&arguments.out.clone().unwrap_or_else(default))
    };
    let resumed = match arguments.resume {
        None => None,
        Some(step) => {
            let directory = place(&config);
            // Before anything is read: a run that is still ending writes a newer checkpoint.
            let lock = directory.has_run().then(|| directory.lock());
            let lock = lock.transpose().map_err(Failure::error)?;
            let begin = beginning(&directory, step)?;
            if !has_config {
                config = kept_config(&directory, &begin, config)?;
            }
            Some((directory, begin, lock))
        }
    };
    arguments.apply(&mut config).map_err(Failure::usage)?;
    config.validate().map_err(Failure::usage)?;
    let (directory, begin, lock) = match resumed {
        Some(resumed) => resumed,
        None => {
            let directory = place(&config);
            directory.check_new().map_err(Failure::error)?;
            (directory, Begin::New, None)
        }
    };
    Ok(Resolved {
        config,
        directory,
        begin,
        lock,
    })
}

fn from_file(path: &Path) -> Result<TrainConfig, Failure> {
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::Usage(format!("{}: cannot read: {error}", path.display())))?;
    TrainConfig::from_toml(&text, path).map_err(Failure::usage)
}

/// Where a run continues: after a step, after the newest intact checkpoint, or at its beginning.
pub(super) fn beginning(directory: &RunDirectory, step: Option<u64>) -> Result<Begin, Failure> {
    if step.is_some() {
        let checkpoint = directory.load(step).map_err(Failure::error)?;
        return Ok(Begin::After(Box::new(checkpoint), Vec::new()));
    }
    match directory.load_newest_intact() {
        Ok(Found {
            checkpoint,
            damaged,
        }) => {
            let damaged: Vec<_> = damaged.iter().map(RunError::to_string).collect();
            for problem in &damaged {
                let step = checkpoint.step();
                warn(&format!(
                    "{problem}; it is passed over for that of step {step}"
                ));
            }
            Ok(Begin::After(Box::new(checkpoint), damaged))
        }
        Err(RunError::NoCheckpoint { path }) if directory.has_run() => {
            let path = path.display();
            if RunRecord::read(&directory.log()).is_ok_and(|record| record.last.is_some()) {
                return Err(Failure::Error(format!(
                    "{path}: the run is complete and its checkpoints are gone; to train it again, \
                     choose another --out"
                )));
            }
            warn(&format!("{path}: no checkpoint yet, the run begins again"));
            Ok(Begin::Again)
        }
        Err(error) => Err(Failure::error(error)),
    }
}

/// The configuration that a run was begun with.
fn kept_config(
    directory: &RunDirectory,
    begin: &Begin,
    otherwise: TrainConfig,
) -> Result<TrainConfig, Failure> {
    match begin.checkpoint() {
        Some(checkpoint) => {
            let path = directory.checkpoint(checkpoint.step()).join("state.json");
            TrainConfig::from_toml(&checkpoint.state.config, &path).map_err(Failure::error)
        }
        None if directory.config().is_file() => from_file(&directory.config()),
        None => Ok(otherwise),
    }
}

/// Says on stderr what the user should know, though the command goes on.
pub(super) fn warn(text: &str) {
    super::say(&format!("warning: {text}"));
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
