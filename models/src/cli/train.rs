//! `nvfp4 train`: from arguments to a finished run.
//!
//! 1. Configuration: the file, or that of the checkpoint, or the built-in one; arguments on top.
//! 2. Everything that can be refused is refused before anything is written.
//! 3. Text to tokens, model, backend; the run itself.
//! 4. Summary, plot, sample.

use std::fs;
use std::io::{IsTerminal, Write, stdout};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::train::Interrupter;
use serde_json::{Value, json};

use crate::checkpoint::run::{RunCheckpoint, RunDirectory, RunError, differences};
use crate::config::HybridConfig;
use crate::data::{Corpus, Floors, Split, TokenFile, Tokenizer, TrainBatches, ValidationBatches};
use crate::generate::{Sampling, generate};
use crate::hybrid::HybridLm;
use crate::train::config::{ModelSource, TrainConfig};
use crate::train::fit::{Batches, Display, Trainee, fit};
use crate::train::log::{self, FinalLine, LogLine, RunLog};
use crate::train::numerics::Numerics;
use crate::train::output::bits_per_byte;
use crate::train::strategy::{Ending, FinalFigures, Outcome, StepPlan, StepStrategy};

use super::args::TrainArgs;
use super::{Failure, Success, backend, plot, report, signal, sources};

/// The default run.
const DEFAULT: &str = include_str!("../../../configs/default.toml");

/// Everything that is known before a backend is chosen.
#[derive(Debug)]
pub struct Prepared {
    /// The resolved configuration.
    pub config: TrainConfig,
    /// The model.
    pub model: HybridConfig,
    tokenizer: Tokenizer,
    tokens: Arc<TokenFile>,
    directory: RunDirectory,
    resume: Option<RunCheckpoint>,
    identity: Value,
    plain: bool,
    log_every: usize,
}

/// Runs `nvfp4 train`.
///
/// # Errors
/// [`Failure`], one line each.
pub fn train(arguments: &TrainArgs) -> Result<Success, Failure> {
    let prepared = prepare(arguments)?;
    backend::dispatch(prepared)
}

/// Steps 1 and 2, and the tokens.
fn prepare(arguments: &TrainArgs) -> Result<Prepared, Failure> {
    let (config, directory, resume) = resolve(arguments)?;
    backend::check_built(config.precision.backend)?;
    let tokenizer = match &config.data.tokenizer {
        None => Tokenizer::Bytes,
        Some(path) => Tokenizer::from_file(path).map_err(Failure::error)?,
    };
    let model = model_config(&config.model, &tokenizer)?;
    config.precision.policy(&model).map_err(Failure::usage)?;
    let corpus = match &config.data.path {
        None => sources::locked_dependencies()?,
        Some(path) => Corpus::at(path).map_err(Failure::error)?,
    };
    let cache = directory
        .path()
        .parent()
        .unwrap_or(Path::new("."))
        .join("tokens");
    let tokens = TokenFile::prepare(&corpus, &tokenizer, &cache).map_err(Failure::error)?;
    let identity = config.identity(&model, tokens.fingerprint(), &tokenizer.name());
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
        tokens: Arc::new(tokens),
        directory,
        resume,
        identity,
        plain: arguments.plain || !stdout().is_terminal(),
        log_every: arguments.log_every,
    })
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
fn model_config(source: &ModelSource, tokenizer: &Tokenizer) -> Result<HybridConfig, Failure> {
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

impl Prepared {
    /// Steps 3 and 4 on a backend.
    ///
    /// # Errors
    /// [`Failure`], one line each.
    pub fn run<B: AutodiffBackend>(
        self,
        device: &B::Device,
        numerics: Box<dyn Numerics>,
    ) -> Result<Success, Failure> {
        let done = self
            .resume
            .as_ref()
            .map_or(0, |checkpoint| checkpoint.state.step);
        let batches = self.batches::<B>(done, device)?;
        let floors = self.floors(&batches.valid);
        let model: HybridLm<B> = self
            .model
            .try_init(device, self.config.seed)
            .map_err(Failure::usage)?;
        let mut trainee = Trainee::new(model, &self.config.optimizer);
        let log = match &self.resume {
            None => {
                RunDirectory::create(self.directory.path()).map_err(Failure::error)?;
                RunLog::create(&self.log_path(), &self.first_line(done))
            }
            Some(checkpoint) => {
                trainee = trainee
                    .restore(checkpoint.clone(), &self.directory, device)
                    .map_err(Failure::error)?;
                RunLog::resume(&self.log_path(), done)
            }
        };
        let log = log.map_err(|error| {
            Failure::Error(format!(
                "{}: cannot write the log: {error}",
                self.log_path().display()
            ))
        })?;
        say(&self.heading(done));
        let strategy = StepStrategy::new(self.plan(done), self.directory.clone(), log, numerics);
        let interrupter = Interrupter::new();
        signal::install(&interrupter)?;
        let display = if self.plain {
            Display::Plain {
                sink: Box::new(stdout()),
                every: self.log_every,
            }
        } else {
            Display::Terminal
        };
        let schedule = self.config.schedule();
        let (outcome, model) = fit(trainee, batches, schedule, &strategy, display, interrupter)
            .map_err(Failure::error)?;
        match outcome.ending {
            Ending::Interrupted => {
                let command = format!(
                    "nvfp4 train --resume --out {}",
                    self.directory.path().display()
                );
                say(&format!(
                    "interrupted after step {}; continue with: {command}",
                    outcome.step
                ));
                Ok(Success::Interrupted)
            }
            Ending::Finished(figures) => {
                self.finish(&model, outcome, figures, floors, device)?;
                Ok(Success::Done)
            }
        }
    }

    fn batches<B: AutodiffBackend>(
        &self,
        done: u64,
        device: &B::Device,
    ) -> Result<Batches<B>, Failure> {
        let (tokens, shape) = (&self.tokens, self.config.batch);
        let windows = self.config.validation.windows;
        let (train, valid) = (
            TrainBatches::new(
                tokens.clone(),
                shape,
                self.config.seed,
                done,
                device.clone(),
            ),
            ValidationBatches::new(tokens.clone(), shape, windows, device.clone()),
        );
        Ok(Batches {
            train: train.map_err(Failure::error)?,
            valid: valid.map_err(Failure::error)?,
        })
    }

    /// What byte counts of the training text give on the validation windows.
    fn floors<B: Backend>(&self, valid: &ValidationBatches<B>) -> Floors {
        let windows: Vec<_> = valid
            .targets()
            .iter()
            .map(|ids| self.tokenizer.decode(ids))
            .collect();
        self.tokens
            .counts()
            .floors(windows.iter().map(Vec::as_slice))
    }

    fn plan(&self, done: u64) -> StepPlan {
        let config = &self.config;
        StepPlan {
            done,
            total: config.steps,
            accumulate: config.batch.accumulate.get(),
            tokens_per_step: config.batch.tokens_per_step(),
            clip_norm: config.optimizer.clip_norm,
            validate_every: config.validation.every,
            save_every: config.checkpoint.every,
            keep: config.checkpoint.keep,
            train_bytes_per_token: self.tokens.bytes_per_token(Split::Training),
            valid_bytes_per_token: self.tokens.bytes_per_token(Split::Validation),
            identity: self.identity.clone(),
            config: json!(config),
        }
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log.jsonl")
    }

    fn first_line(&self, _done: u64) -> LogLine {
        LogLine::Start {
            config: json!(self.config),
            model: json!(self.model),
            parameters: self.model.num_params(),
            data: json!({
                "corpus": self.tokens.corpus(),
                "tokenizer": self.tokenizer.name(),
                "fingerprint": format!("{:016x}", self.tokens.fingerprint()),
                "files": self.tokens.files(),
                "train_tokens": self.tokens.tokens(Split::Training),
                "validation_tokens": self.tokens.tokens(Split::Validation),
                "bytes_per_token": self.tokens.bytes_per_token(Split::Training),
            }),
        }
    }

    /// What runs, in three lines.
    fn heading(&self, done: u64) -> String {
        let (config, tokens) = (&self.config, &self.tokens);
        let precision = &config.precision;
        let start = if done > 0 {
            format!("from step {done} ")
        } else {
            String::new()
        };
        format!(
            "data   {}: {} files, {} training and {} validation tokens ({})\n\
             model  {} parameters, {} blocks, recipe {} under policy {} on {:?}\n\
             run    {start}to step {} of {} tokens, into {}",
            tokens.corpus().display(),
            tokens.files(),
            tokens.tokens(Split::Training),
            tokens.tokens(Split::Validation),
            tokens.skipped(),
            self.model.num_params(),
            self.model.n_blocks(),
            precision.recipe_name(),
            precision.policy,
            precision.backend,
            config.steps,
            config.batch.tokens_per_step(),
            self.directory.path().display(),
        )
    }

    /// Step 4.
    fn finish<B: Backend>(
        &self,
        model: &HybridLm<B>,
        outcome: Outcome,
        figures: FinalFigures,
        floors: Floors,
        device: &B::Device,
    ) -> Result<(), Failure> {
        let path = self.log_path();
        let log_failure =
            |error: std::io::Error| Failure::Error(format!("{}: {error}", path.display()));
        let lines = log::read(&path).map_err(log_failure)?;
        let bytes = self.tokens.bytes_per_token(Split::Validation);
        let line = FinalLine {
            step: outcome.step,
            train_loss: log::train_loss(&lines),
            validation_loss: figures.recipe,
            validation_bits_per_byte: bits_per_byte(figures.recipe, bytes),
            high_precision_loss: figures.high_precision,
            high_precision_bits_per_byte: bits_per_byte(figures.high_precision, bytes),
            order0_bits_per_byte: floors.order0,
            order1_bits_per_byte: floors.order1,
            tokens_per_second: outcome.tokens_per_second,
            seconds: outcome.seconds,
        };
        log::append(&path, &LogLine::Final(line)).map_err(log_failure)?;
        let picture = self.directory.path().join("loss.svg");
        plot::loss_curve(&picture, &lines, floors)
            .map_err(|error| Failure::Error(format!("{}: {error:#}", picture.display())))?;
        say(&report::summary(
            &line,
            self.config.precision.recipe_name(),
            self.directory.path(),
        ));
        self.sample(model, device)
    }

    /// Lets the model write, to the terminal and to `sample.txt`.
    fn sample<B: Backend>(&self, model: &HybridLm<B>, device: &B::Device) -> Result<(), Failure> {
        let sample = &self.config.sample;
        if sample.tokens == 0 {
            return Ok(());
        }
        let mut prompt = Vec::new();
        self.tokenizer
            .encode_into(&sample.prompt, Path::new("sample.prompt"), &mut prompt)
            .map_err(Failure::error)?;
        let (temperature, top_k) = (sample.temperature, sample.top_k);
        let sampling = Sampling {
            temperature,
            top_k,
            seed: self.config.seed,
        };
        let context: NonZeroUsize = self.config.batch.length;
        let mut ids = prompt.clone();
        ids.extend(generate(
            model,
            &prompt,
            sample.tokens,
            context,
            sampling,
            device,
        ));
        let text = self.tokenizer.decode(&ids);
        let path = self.directory.path().join("sample.txt");
        fs::write(&path, &text).map_err(|error| {
            Failure::Error(format!("{}: cannot write: {error}", path.display()))
        })?;
        say(&format!("sample:\n{}", report::printable(&text)));
        Ok(())
    }
}

/// Writes to stdout; a closed pipe is no reason to lose a run.
fn say(text: &str) {
    let _ = writeln!(stdout(), "{text}");
}
