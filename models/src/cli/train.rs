//! `nvfp4 train`: a run on a backend, and what it leaves behind.
//!
//! 1. [`super::prepare`]: what the run is; what can be refused is refused.
//! 2. [`super::backend`]: which backend.
//! 3. Model, log, loop ([`burn_nvfp4_models::train::fit`]).
//! 4. Summary, plot, sample.

use std::fs;
use std::io::{Write, stdout};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::DType;
use burn::train::Interrupter;
use burn_hybrid_ops::{HybridEngine, TrainingEngine};
use burn_nvfp4::engine::Support;
use serde_json::json;

use burn_nvfp4_models::checkpoint::run::{Position, RunDirectory, RunLock};
use burn_nvfp4_models::data::{Floors, Split, TokenFile, TrainBatches, ValidationBatches};
use burn_nvfp4_models::durable;
use burn_nvfp4_models::generate::{Generation, Sampling};
use burn_nvfp4_models::hybrid::HybridLm;
use burn_nvfp4_models::train::TrainError;
use burn_nvfp4_models::train::config::Activations;
use burn_nvfp4_models::train::fit::{Batches, Display, Trainee, fit};
use burn_nvfp4_models::train::log::{self, FinalLine, LogLine, RunLog};
use burn_nvfp4_models::train::numerics::Quantized;
use burn_nvfp4_models::train::output::bits_per_byte;
use burn_nvfp4_models::train::plan::{Ending, FinalFigures, Outcome, StepPlan};
use burn_nvfp4_models::train::strategy::ranks::Rank;
use burn_nvfp4_models::train::strategy::{Alarm, StepStrategy};

use super::args::TrainArgs;
use super::backend::peak_tflops;
use super::backend::training::{self, OnTraining, Training, Trains};
use super::memory::Memory;
use super::prepare::{Begin, Prepared, prepare, warn};
use super::{Failure, Success, plot, report, signal};

/// What the validation of a run is compared with.
#[derive(Clone, Copy, Debug)]
struct Reference {
    /// What byte counts of the training text give on the validation windows.
    floors: Floors,
    /// Bytes of text per validation token.
    bytes_per_token: f64,
}

/// Runs `nvfp4 train`.
///
/// # Errors
/// [`Failure`], one line each.
pub(crate) fn train(arguments: &TrainArgs) -> Result<Success, Failure> {
    let prepared = prepare(arguments)?;
    let (backend, devices) = (prepared.config.precision.backend, prepared.devices.clone());
    training::dispatch(backend, &devices, prepared)
}

impl OnTraining for Prepared {
    fn dtype(&self) -> DType {
        self.config.precision.activations.dtype()
    }

    fn run<E: Trains>(self, devices: Vec<E::Device>) -> Result<Success, Failure> {
        let policy = self.config.precision.policy(&self.model);
        let policy = policy.map_err(Failure::usage)?;
        let (seed, support) = (self.config.seed, E::support(&devices[0]));
        let exchanges = training::exchanges::<E>(&devices);
        let mut ranks = Vec::with_capacity(devices.len());
        for (device, exchange) in devices.iter().cloned().zip(exchanges) {
            let numerics = Quantized::<Training<E>>::new(device.clone(), policy.clone(), seed);
            let mut numerics = numerics.map_err(Failure::usage)?;
            // What is measured is written, so it is measured where it is written.
            if ranks.is_empty() {
                numerics = numerics.with_statistics(self.config.statistics_every);
            }
            ranks.push(Rank {
                device,
                numerics: Box::new(numerics),
                exchange,
            });
        }
        let trained = self.train::<Training<E>>(ranks, &support);
        // Another run of this process begins with empty memory pools.
        for device in &devices {
            E::memory_cleanup(device);
        }
        trained
    }
}

impl Prepared {
    /// Steps 3 and 4 on a backend.
    fn train<B: TrainingEngine>(
        mut self,
        ranks: Vec<Rank<B>>,
        support: &Support,
    ) -> Result<Success, Failure> {
        let device = &ranks[0].device.clone();
        let position = match self.begin.checkpoint() {
            None => Position::default(),
            Some(checkpoint) => checkpoint.state.position.clone(),
        };
        let (precision, steps) = (&self.config.precision, self.config.steps);
        let oscillation = precision.watched_weights(&self.model, steps);
        let oscillation = oscillation.map_err(Failure::usage)?;
        let batches = self.batches::<B>(position.data_step, device)?;
        let reference = self.reference(&batches.valid)?;
        // Before anything is written: what does not fit is refused here.
        let first = Mutex::new(Some(self.trainee::<B>(device).map_err(Failure::error)?));
        let memory = Memory::watch(self.config.precision.backend, self.devices[0]);
        let (log, _lock) = self.open_directory(&position)?;
        say(&self.heading(position.step));
        say(&format!(
            "linear quantized by {}; GEMM: {}",
            support.quantize, support.gemm
        ));
        let alarms = Alarms::default();
        let directory = self.directory.clone();
        let alarm = alarms.sound(self.plain);
        let plan = StepPlan {
            oscillation,
            ..self.plan(position, &reference)
        };
        let strategy = StepStrategy::new(plan, directory, log, alarm);
        if let Some(checkpoint) = self.begin.checkpoint() {
            strategy.take_up(checkpoint);
        }
        let interrupter = Interrupter::new();
        signal::install(&interrupter)?;
        let display = if self.plain {
            Display::Plain {
                sink: Box::new(stdout()),
                every: self.log_every,
            }
        } else {
            signal::keep_in_raw_mode();
            Display::Terminal
        };
        let this = Arc::new(self);
        // The first rank asks first. The others build theirs from the host's memory too, so all
        // begin with the same bits; one after the other, because each copies the whole state.
        let trainee = {
            let this = this.clone();
            move |device: &B::Device| {
                let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
                first.take().map_or_else(|| this.trainee::<B>(device), Ok)
            }
        };
        let fitted = fit(ranks, trainee, batches, &strategy, display, interrupter);
        alarms.say_kept();
        let (outcome, models) = fitted.map_err(Failure::error)?;
        if let Ending::Finished(figures) = outcome.ending {
            let line = this.final_line(&outcome, figures, &reference, memory.peak())?;
            this.finish(&line, &outcome, reference.floors)?;
            this.sample(&models[0], device)?;
        }
        let step = outcome.step;
        if let Some(reason) = outcome.unsaved {
            let message = format!("the state of step {step} could not be saved: {reason}");
            return Err(Failure::Error(message));
        }
        match outcome.ending {
            Ending::Interrupted => {
                let folder = this.directory.path().display();
                let command = format!("nvfp4 train --resume --out {folder}");
                say(&format!(
                    "interrupted after step {step}; continue with: {command}"
                ));
                Ok(Success::Interrupted)
            }
            Ending::Finished(_) => Ok(Success::Done),
        }
    }

    /// The model and its optimizer, as they begin or as the checkpoint has them.
    fn trainee<B: TrainingEngine>(
        &self,
        device: &B::Device,
    ) -> Result<Trainee<B, HybridLm<B>>, TrainError> {
        let model = self.model.try_init(device, self.config.seed)?;
        let model = model
            .with_activations(self.config.precision.activations.dtype())
            .with_step_memory(self.config.memory);
        let trainee = Trainee::new(model, &self.config.optimizer);
        match self.begin.checkpoint() {
            None => Ok(trainee),
            Some(checkpoint) => Ok(trainee.restore(checkpoint.clone(), &self.directory, device)?),
        }
    }

    /// Makes the directory or tidies it up, and opens the log. Nobody else writes there meanwhile.
    fn open_directory(&mut self, position: &Position) -> Result<(RunLog, RunLock), Failure> {
        let taken = self.lock.take();
        let (directory, path) = (&self.directory, self.directory.log());
        if let Begin::New = self.begin {
            RunDirectory::create(directory.path()).map_err(Failure::error)?;
        }
        let lock = taken
            .map_or_else(|| directory.lock(), Ok)
            .map_err(Failure::error)?;
        for aside in directory.recover(position.step).map_err(Failure::error)? {
            warn(&format!(
                "a checkpoint of a later step is now {}",
                aside.display()
            ));
        }
        durable::write_file::<std::io::Error>(&directory.config(), |out| {
            out.write_all(self.config_text.as_bytes())
        })
        .map_err(|error| {
            let path = directory.config();
            Failure::Error(format!("{}: cannot write: {error}", path.display()))
        })?;
        let log = match &self.begin {
            Begin::New | Begin::Again => RunLog::create(&path, &self.first_line()),
            Begin::After(..) if !path.exists() => RunLog::create(&path, &self.first_line()),
            Begin::After(_, damaged) => {
                let (step, damaged) = (position.step, damaged.clone());
                let ranks = self.devices.len();
                let first = LogLine::Resume {
                    step,
                    damaged,
                    ranks,
                };
                RunLog::resume(&path, position.log_bytes, &first)
            }
        };
        let log = log.map_err(|error| {
            Failure::Error(format!("{}: cannot write the log: {error}", path.display()))
        })?;
        Ok((log, lock))
    }

    fn batches<B: TrainingEngine>(
        &self,
        first_step: u64,
        device: &B::Device,
    ) -> Result<Batches<B>, Failure> {
        let (data, shape) = (&self.data, self.config.batch);
        let windows = data.validation(self.config.validation.windows);
        let valid = ValidationBatches::of(windows, shape, device.clone());
        Ok(Batches {
            train: TrainBatches::of(data.mixture().clone(), shape, first_step, device.clone()),
            valid: valid.map_err(Failure::error)?,
        })
    }

    /// What byte counts of the training text give on the validation windows, and how long these
    /// are.
    fn reference<B: HybridEngine>(
        &self,
        valid: &ValidationBatches<B>,
    ) -> Result<Reference, Failure> {
        let targets = valid.targets().map_err(Failure::error)?;
        let texts: Vec<_> = targets
            .iter()
            .map(|ids| self.tokenizer.decode(ids))
            .collect();
        let counts = self.data.counts(&self.tokenizer).map_err(Failure::error)?;
        let length = |lists: usize| lists.max(1) as f64;
        let bytes_per_token = match self.data.file() {
            Some(file) => file.bytes_per_token(Split::Validation),
            None => {
                let bytes = texts.iter().map(Vec::len).sum::<usize>() as f64;
                bytes / length(targets.iter().map(Vec::len).sum())
            }
        };
        Ok(Reference {
            floors: counts.floors(texts.iter().map(Vec::as_slice)),
            bytes_per_token,
        })
    }

    fn plan(&self, position: Position, reference: &Reference) -> StepPlan {
        let config = &self.config;
        StepPlan {
            position,
            total: config.steps,
            tokens_per_step: config.batch.tokens_per_step(),
            schedule: config.schedule(),
            clip_norm: config.optimizer.clip_norm,
            validate_every: config.validation.every,
            save_every: config.checkpoint.every,
            keep: config.checkpoint.keep,
            snapshot: config.precision.backend.snapshot(),
            guard: config.guard,
            oscillation: None,
            layers: match config.statistics_every {
                None => Vec::new(),
                Some(_) => self.model.linear_names(),
            },
            parameters: self.model.num_params(),
            peak_flops: self
                .peak_tflops()
                .map(|peak| peak * 1e12 * self.devices.len() as f64),
            train_bytes_per_token: self.data.bytes_per_token(),
            valid_bytes_per_token: reference.bytes_per_token,
            identity: self.identity.clone(),
            config: self.config_text.clone(),
        }
    }

    /// What one device could do; that of a data sheet where GEMMs are in bf16 and nobody says else.
    fn peak_tflops(&self) -> Option<f64> {
        let precision = &self.config.precision;
        let known = || match precision.activations {
            Activations::Bf16 => peak_tflops(precision.backend, self.devices[0]),
            Activations::F32 => None,
        };
        self.config.peak_tflops.or_else(known)
    }

    fn first_line(&self) -> LogLine {
        let validation = self.data.validation_fingerprint();
        LogLine::Start {
            config: json!(self.config),
            model: json!(self.model),
            parameters: self.model.num_params(),
            data: json!({
                "corpus": self.data.name(),
                "tokenizer": self.tokenizer.name(),
                "fingerprint": format!("{:016x}", self.data.fingerprint()),
                "validation_fingerprint": validation.map(|it| format!("{it:016x}")),
                "files": self.data.file().map(TokenFile::files),
                "train_tokens": self.data.tokens(Split::Training),
                "validation_tokens": self.data.tokens(Split::Validation),
                "bytes_per_token": self.data.bytes_per_token(),
                "epochs": self.data.mixture().epochs(0..self.config.sequences()),
            }),
            ranks: self.devices.len(),
        }
    }

    /// What runs, in three lines; what multiplies is the backend's to say.
    fn heading(&self, done: u64) -> String {
        let (config, data) = (&self.config, &self.data);
        let files = match data.file() {
            Some(file) => format!("{} files, ", file.files()),
            None => String::new(),
        };
        let note = match data.file() {
            Some(file) => file.skipped().to_string(),
            None => {
                let epochs = data.mixture().epochs(0..config.sequences());
                let epochs: Vec<_> = epochs.iter().map(|epochs| format!("{epochs:.2}")).collect();
                format!("epochs of each source: {}", epochs.join(", "))
            }
        };
        let precision = &config.precision;
        let on = match self.devices.as_slice() {
            [_] => String::new(),
            devices => format!(", {} ranks on devices {devices:?}", devices.len()),
        };
        let start = if done > 0 {
            format!("from step {done} ")
        } else {
            String::new()
        };
        format!(
            "data   {}: {files}{} training and {} validation tokens ({note})\n\
             model  {} parameters, {} blocks, recipe {} under policy {} on {:?}{on}\n\
             run    {start}to step {} of {} tokens, into {}",
            data.name().display(),
            data.tokens(Split::Training),
            data.tokens(Split::Validation),
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

    /// The last line of the log.
    fn final_line(
        &self,
        outcome: &Outcome,
        figures: FinalFigures,
        reference: &Reference,
        peak_memory_bytes: Option<u64>,
    ) -> Result<FinalLine, Failure> {
        let (floors, bytes) = (reference.floors, reference.bytes_per_token);
        Ok(FinalLine {
            step: outcome.step,
            train_loss: log::train_loss(&self.logged()?),
            validation_loss: figures.recipe,
            validation_bits_per_byte: bits_per_byte(figures.recipe, bytes),
            high_precision_loss: figures.high_precision,
            high_precision_bits_per_byte: bits_per_byte(figures.high_precision, bytes),
            order0_bits_per_byte: floors.order0,
            order1_bits_per_byte: floors.order1,
            tokens_per_second: outcome.tokens_per_second,
            seconds: outcome.seconds,
            waited_seconds: Some(outcome.waited_seconds),
            peak_memory_bytes,
        })
    }

    /// The lines of the log that count.
    fn logged(&self) -> Result<Vec<LogLine>, Failure> {
        let path = self.directory.log();
        let lines = log::read(&path);
        let lines =
            lines.map_err(|error| Failure::Error(format!("{}: {error}", path.display())))?;
        Ok(log::current(lines))
    }

    /// Step 4: the last line, the picture, the summary.
    fn finish(&self, line: &FinalLine, outcome: &Outcome, floors: Floors) -> Result<(), Failure> {
        let path = self.directory.log();
        log::append(&path, &LogLine::Final(*line))
            .map_err(|error| Failure::Error(format!("{}: {error}", path.display())))?;
        let picture = self.directory.path().join("loss.svg");
        plot::loss_curve(&picture, &self.logged()?, floors)
            .map_err(|error| Failure::Error(format!("{}: {error:#}", picture.display())))?;
        say(&report::summary(
            line,
            outcome,
            self.config.precision.recipe_name(),
            self.directory.path(),
        ));
        Ok(())
    }

    /// Lets the model write, to the terminal and to `sample.txt`.
    fn sample<B: HybridEngine>(
        &self,
        model: &HybridLm<B>,
        device: &B::Device,
    ) -> Result<(), Failure> {
        let sample = &self.config.sample;
        if sample.tokens == 0 {
            return Ok(());
        }
        let mut prompt = Vec::new();
        self.tokenizer
            .encode_into(&sample.prompt, Path::new("sample.prompt"), &mut prompt)
            .map_err(Failure::error)?;
        if prompt.is_empty() {
            // A text begins after the end of another one.
            prompt.push(self.tokenizer.separator().unwrap_or(0));
        }
        let sampling = Sampling {
            temperature: sample.temperature,
            top_k: sample.top_k,
            top_p: None,
            seed: self.config.seed,
        };
        let generation = Generation::start(model, &[&prompt], sampling, device);
        let generation = generation.map_err(Failure::error)?;
        let mut ids = prompt.clone();
        ids.extend(generation.take(sample.tokens).flatten());
        let text = self.tokenizer.decode(&ids);
        let path = self.directory.path().join("sample.txt");
        fs::write(&path, &text).map_err(|error| {
            Failure::Error(format!("{}: cannot write: {error}", path.display()))
        })?;
        say(&format!("sample:\n{}", report::printable(&text)));
        Ok(())
    }
}

/// What the loop has to say at once: on stderr beside plain lines, and after the full-screen
/// display, which would paint over it.
#[derive(Default)]
struct Alarms {
    kept: Arc<Mutex<Vec<String>>>,
}

impl Alarms {
    fn sound(&self, at_once: bool) -> Alarm {
        let kept = self.kept.clone();
        Box::new(move |text| {
            if at_once {
                warn(text);
            } else {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.push(text.to_owned());
            }
        })
    }

    fn say_kept(&self) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.drain(..).for_each(|text| warn(&text));
    }
}

/// Writes to stdout; a closed pipe is no reason to lose a run.
fn say(text: &str) {
    let _ = writeln!(stdout(), "{text}");
}
