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

use burn::backend::Autodiff;
use burn::tensor::DType;
use burn::train::Interrupter;
use burn_hybrid_ops::{HybridEngine, TrainingEngine};
use burn_nvfp4::engine::Support;
use burn_nvfp4::{Nvfp4, Nvfp4Engine};
use serde_json::json;

use burn_nvfp4_models::checkpoint::run::{Position, RunDirectory, RunLock};
use burn_nvfp4_models::data::{Floors, Split, TokenFile, TrainBatches, ValidationBatches};
use burn_nvfp4_models::durable;
use burn_nvfp4_models::generate::{Generation, Sampling};
use burn_nvfp4_models::hybrid::HybridLm;
use burn_nvfp4_models::train::fit::{Batches, Display, Trainee, fit};
use burn_nvfp4_models::train::log::{self, FinalLine, LogLine, RunLog};
use burn_nvfp4_models::train::numerics::{Numerics, Quantized};
use burn_nvfp4_models::train::output::bits_per_byte;
use burn_nvfp4_models::train::plan::{Ending, FinalFigures, Outcome, StepPlan};
use burn_nvfp4_models::train::strategy::{Alarm, StepStrategy};

use super::args::TrainArgs;
use super::backend::OnBackend;
use super::prepare::{Begin, Prepared, prepare, warn};
use super::{Failure, Success, backend, plot, report, signal};

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
    let (backend, device) = (prepared.config.precision.backend, prepared.device);
    backend::dispatch(backend, device, prepared)
}

impl OnBackend for Prepared {
    fn dtype(&self) -> DType {
        self.config.precision.activations.dtype()
    }

    fn run<E: Nvfp4Engine + HybridEngine>(self, device: E::Device) -> Result<Success, Failure> {
        let policy = self.config.precision.policy(&self.model);
        let policy = policy.map_err(Failure::usage)?;
        let (seed, support) = (self.config.seed, E::support(&device));
        let numerics = Quantized::<Nvfp4<Autodiff<E>>>::new(device.clone(), policy, seed)
            .map(|numerics| numerics.with_statistics(self.config.statistics_every));
        let numerics = Box::new(numerics.map_err(Failure::usage)?);
        self.train::<Nvfp4<Autodiff<E>>>(&device, &support, numerics)
    }
}

impl Prepared {
    /// Steps 3 and 4 on a backend.
    fn train<B: TrainingEngine>(
        self,
        device: &B::Device,
        support: &Support,
        numerics: Box<dyn Numerics>,
    ) -> Result<Success, Failure> {
        let position = match self.begin.checkpoint() {
            None => Position::default(),
            Some(checkpoint) => checkpoint.state.position.clone(),
        };
        let batches = self.batches::<B>(position.data_step, device)?;
        let reference = self.reference(&batches.valid)?;
        let trainee = self.trainee::<B>(device)?;
        let (log, _lock) = self.open_directory(&position)?;
        say(&self.heading(position.step));
        say(&format!(
            "linear quantized by {}; GEMM: {}",
            support.quantize, support.gemm
        ));
        let alarms = Alarms::default();
        let directory = self.directory.clone();
        let alarm = alarms.sound(self.plain);
        let plan = self.plan(position, &reference);
        let strategy = StepStrategy::new(plan, directory, log, numerics, alarm);
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
        let schedule = self.config.schedule();
        let fitted = fit(trainee, batches, schedule, &strategy, display, interrupter);
        alarms.say_kept();
        let (outcome, model) = fitted.map_err(Failure::error)?;
        if let Ending::Finished(figures) = outcome.ending {
            self.finish(&model, &outcome, figures, reference, device)?;
        }
        let step = outcome.step;
        if let Some(reason) = outcome.unsaved {
            let message = format!("the state of step {step} could not be saved: {reason}");
            return Err(Failure::Error(message));
        }
        match outcome.ending {
            Ending::Interrupted => {
                let folder = self.directory.path().display();
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
    ) -> Result<Trainee<B, HybridLm<B>>, Failure> {
        let model = self.model.try_init(device, self.config.seed);
        let model = model.map_err(Failure::usage)?;
        let model = model
            .with_activations(self.config.precision.activations.dtype())
            .with_step_memory(self.config.memory);
        let trainee = Trainee::new(model, &self.config.optimizer);
        match self.begin.checkpoint() {
            None => Ok(trainee),
            Some(checkpoint) => trainee
                .restore(checkpoint.clone(), &self.directory, device)
                .map_err(Failure::error),
        }
    }

    /// Makes the directory or tidies it up, and opens the log. Nobody else writes there meanwhile.
    fn open_directory(&self, position: &Position) -> Result<(RunLog, RunLock), Failure> {
        let (directory, path) = (&self.directory, self.directory.log());
        if let Begin::New = self.begin {
            RunDirectory::create(directory.path()).map_err(Failure::error)?;
        }
        let lock = directory.lock().map_err(Failure::error)?;
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
                let first = LogLine::Resume { step, damaged };
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
            accumulate: config.batch.accumulate.get(),
            tokens_per_step: config.batch.tokens_per_step(),
            clip_norm: config.optimizer.clip_norm,
            validate_every: config.validation.every,
            save_every: config.checkpoint.every,
            keep: config.checkpoint.keep,
            snapshot: config.precision.backend.snapshot(),
            guard: config.guard,
            layers: match config.statistics_every {
                None => Vec::new(),
                Some(_) => self.model.linear_names(),
            },
            parameters: self.model.num_params(),
            peak_flops: config.peak_tflops.map(|peak| peak * 1e12),
            train_bytes_per_token: self.data.bytes_per_token(),
            valid_bytes_per_token: reference.bytes_per_token,
            identity: self.identity.clone(),
            config: self.config_text.clone(),
        }
    }

    fn first_line(&self) -> LogLine {
        LogLine::Start {
            config: json!(self.config),
            model: json!(self.model),
            parameters: self.model.num_params(),
            data: json!({
                "corpus": self.data.name(),
                "tokenizer": self.tokenizer.name(),
                "fingerprint": format!("{:016x}", self.data.fingerprint()),
                "files": self.data.file().map(TokenFile::files),
                "train_tokens": self.data.tokens(Split::Training),
                "validation_tokens": self.data.tokens(Split::Validation),
                "bytes_per_token": self.data.bytes_per_token(),
                "epochs": self.data.mixture().epochs(0..self.config.sequences()),
            }),
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
        let start = if done > 0 {
            format!("from step {done} ")
        } else {
            String::new()
        };
        format!(
            "data   {}: {files}{} training and {} validation tokens ({note})\n\
             model  {} parameters, {} blocks, recipe {} under policy {} on {:?}\n\
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

    /// Step 4.
    fn finish<B: HybridEngine>(
        &self,
        model: &HybridLm<B>,
        outcome: &Outcome,
        figures: FinalFigures,
        reference: Reference,
        device: &B::Device,
    ) -> Result<(), Failure> {
        let path = self.directory.log();
        let log_failure =
            |error: std::io::Error| Failure::Error(format!("{}: {error}", path.display()));
        let lines = log::current(log::read(&path).map_err(log_failure)?);
        let Reference {
            floors,
            bytes_per_token: bytes,
        } = reference;
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
            outcome,
            self.config.precision.recipe_name(),
            self.directory.path(),
        ));
        self.sample(model, device)
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
