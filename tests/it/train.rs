//! The training loop, end to end on tiny models.
//!
//! Everything here that trains holds [`crate::device::exclusive`]: policy, seed and step are
//! settings of the one CPU device, so two runs at the same time would disturb each other.

mod accumulation;
mod clipping;
mod export;
mod guard;
mod layers;
mod memory;
mod mixed;
mod non_finite;
mod oscillation;
mod overfit;
mod parts;
mod ranks;
mod resume;
mod saving;

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::backend::AutodiffBackend;
use burn::train::Interrupter;
use burn_hybrid_ops::TrainingEngine;
use burn_nvfp4_models::checkpoint::run::{Position, RunCheckpoint, RunDirectory};
use burn_nvfp4_models::config::HybridConfig;
use burn_nvfp4_models::data::{
    BatchShape, Corpus, TokenFile, Tokenizer, TrainBatches, ValidationBatches,
};
use burn_nvfp4_models::hybrid::HybridLm;
use burn_nvfp4_models::train::TrainError;
use burn_nvfp4_models::train::fit::{Batches, Display, Trainee, fit};
use burn_nvfp4_models::train::guard::GuardConfig;
use burn_nvfp4_models::train::log::{LogLine, RunLog};
use burn_nvfp4_models::train::numerics::Numerics;
use burn_nvfp4_models::train::optim::OptimizerConfig;
use burn_nvfp4_models::train::oscillation::WatchedWeights;
use burn_nvfp4_models::train::plan::{Outcome, Snapshot, StepPlan};
use burn_nvfp4_models::train::schedule::{DecayShape, Schedule};
use burn_nvfp4_models::train::strategy::StepStrategy;
use burn_nvfp4_models::train::strategy::ranks::Rank;
use serde_json::json;

/// One block of each kind, 20 thousand parameters.
fn tiny() -> HybridConfig {
    let mut config = HybridConfig::preset("tiny-1m", 256).unwrap();
    config.pattern = "M-*-".parse().unwrap();
    (config.d_model, config.d_ffn) = (32, 64);
    (
        config.n_attention_heads,
        config.n_kv_heads,
        config.attention_head_dim,
    ) = (2, 1, 16);
    (
        config.n_mamba_heads,
        config.mamba_head_dim,
        config.n_groups,
        config.d_state,
    ) = (4, 8, 2, 8);
    config.chunk_len = 16;
    config.validate().unwrap();
    config
}

const OPTIMIZER: OptimizerConfig = OptimizerConfig {
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 1e-8,
    weight_decay: 0.1,
    clip_norm: Some(1.0),
};

fn shape(sequences: usize, length: usize, accumulate: usize) -> BatchShape {
    let one = |value| NonZeroUsize::new(value).unwrap();
    BatchShape {
        sequences: one(sequences),
        length: one(length),
        accumulate: one(accumulate),
    }
}

/// A text with some structure.
fn tokens(dir: &Path) -> Arc<TokenFile> {
    let path = dir.join("text.txt");
    let line = |i: u64| format!("{} times {} is {}\n", i % 13, i % 7, (i % 13) * (i % 7));
    std::fs::write(&path, (0..800).map(line).collect::<String>()).unwrap();
    let corpus = Corpus::at(&path).unwrap();
    Arc::new(TokenFile::prepare(&corpus, &Tokenizer::Bytes, dir).unwrap())
}

/// A run of the tiny model, from the start or from a checkpoint, until `stop_after`.
struct Run<'a> {
    tokens: &'a Arc<TokenFile>,
    directory: RunDirectory,
    shape: BatchShape,
    total: u64,
    save_every: u64,
    keep: usize,
    /// Highest learning rate.
    peak: f64,
    guard: GuardConfig,
    snapshot: Snapshot,
}

/// Stops at the first NaN, and lets spikes be.
const STRICT: GuardConfig = GuardConfig {
    non_finite_in_a_row: 1,
    spike: None,
};

/// A folder for runs on one text.
struct Place {
    folder: tempfile::TempDir,
    tokens: Arc<TokenFile>,
}

impl Place {
    fn new() -> Self {
        Self::of(tokens)
    }

    fn of(tokens: impl FnOnce(&Path) -> Arc<TokenFile>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tokens = tokens(folder.path());
        Self { folder, tokens }
    }

    /// Eight steps with a checkpoint in the middle, unless a test says otherwise.
    fn run(&self, name: &str, shape: BatchShape) -> Run<'_> {
        Run {
            tokens: &self.tokens,
            directory: RunDirectory::at(&self.folder.path().join(name)),
            shape,
            total: 8,
            save_every: 4,
            keep: 9,
            peak: 3e-3,
            guard: STRICT,
            snapshot: Snapshot::Shared,
        }
    }
}

/// How a run ended, and what each rank has trained.
type Trained<B> = (Outcome, Vec<HybridLm<<B as AutodiffBackend>::InnerBackend>>);

impl Run<'_> {
    fn go<B: TrainingEngine>(
        &self,
        numerics: Box<dyn Numerics>,
        resume: Option<RunCheckpoint>,
        stop: &Interrupter,
    ) -> Result<Outcome, TrainError> {
        self.go_watching::<B>(numerics, resume, stop, None)
    }

    fn go_watching<B: TrainingEngine>(
        &self,
        numerics: Box<dyn Numerics>,
        resume: Option<RunCheckpoint>,
        stop: &Interrupter,
        oscillation: Option<WatchedWeights>,
    ) -> Result<Outcome, TrainError> {
        let rank = Rank::<B>::alone(B::Device::default(), numerics);
        self.go_on_watching(vec![rank], resume, stop, oscillation)
            .map(|(outcome, _models)| outcome)
    }

    /// The run on some ranks, and what each of them has trained.
    fn go_on<B: TrainingEngine>(
        &self,
        ranks: Vec<Rank<B>>,
        resume: Option<RunCheckpoint>,
        stop: &Interrupter,
    ) -> Result<Trained<B>, TrainError> {
        self.go_on_watching(ranks, resume, stop, None)
    }

    fn go_on_watching<B: TrainingEngine>(
        &self,
        ranks: Vec<Rank<B>>,
        resume: Option<RunCheckpoint>,
        stop: &Interrupter,
        oscillation: Option<WatchedWeights>,
    ) -> Result<Trained<B>, TrainError> {
        let device = B::Device::default();
        let seed = 7;
        let count = ranks.len();
        let (checkpoint, directory) = (resume.clone(), self.directory.clone());
        let trainee = move |device: &B::Device| {
            let model: HybridLm<B> = tiny().init(device, seed);
            let trainee = Trainee::new(model, &OPTIMIZER);
            Ok(match checkpoint.clone() {
                None => trainee,
                Some(checkpoint) => trainee.restore(checkpoint, &directory, device)?,
            })
        };
        let path = self.directory.log();
        let position = resume
            .as_ref()
            .map_or_else(Position::default, |it| it.state.position.clone());
        let first_step = position.data_step;
        let log = match &resume {
            None => {
                RunDirectory::create(self.directory.path()).unwrap();
                let null = json!(null);
                let (config, model, data) = (null.clone(), null.clone(), null);
                RunLog::create(
                    &path,
                    &LogLine::Start {
                        config,
                        model,
                        parameters: 0,
                        data,
                        ranks: count,
                    },
                )
            }
            Some(_) => {
                self.directory.recover(position.step).unwrap();
                let damaged = Vec::new();
                let (step, bytes) = (position.step, position.log_bytes);
                let line = LogLine::Resume {
                    step,
                    damaged,
                    ranks: count,
                };
                RunLog::resume(&path, bytes, &line)
            }
        };
        let schedule = Schedule {
            peak: self.peak,
            last: 0.0,
            warmup: 2,
            decay: 4,
            total: self.total,
            shape: DecayShape::Linear,
        };
        let plan = StepPlan {
            position,
            total: self.total,
            tokens_per_step: self.shape.tokens_per_step(),
            schedule,
            clip_norm: OPTIMIZER.clip_norm,
            validate_every: 4,
            save_every: self.save_every,
            keep: self.keep,
            snapshot: self.snapshot,
            guard: self.guard,
            oscillation,
            layers: vec!["layers.1.mixer.up_proj".to_owned()],
            parameters: 20_000,
            peak_flops: Some(1e12),
            train_bytes_per_token: 1.0,
            valid_bytes_per_token: 1.0,
            identity: json!({}),
            config: String::new(),
        };
        let windows = NonZeroUsize::new(4).unwrap();
        let batches = Batches {
            train: TrainBatches::new(
                self.tokens.clone(),
                self.shape,
                seed,
                first_step,
                device.clone(),
            )
            .unwrap(),
            valid: ValidationBatches::new(self.tokens.clone(), self.shape, windows, device)
                .unwrap(),
        };
        let strategy =
            StepStrategy::new(plan, self.directory.clone(), log.unwrap(), Box::new(|_| {}));
        if let Some(checkpoint) = &resume {
            strategy.take_up(checkpoint);
        }
        let display = Display::Plain {
            sink: Box::new(std::io::sink()),
            every: 1,
        };
        fit(ranks, trainee, batches, &strategy, display, stop.clone())
    }
}
