//! The configuration of a run: one TOML file, checked, resolved, logged, and kept in checkpoints.
//!
//! There are no defaults in code: `configs/default.toml` is the default run, and every number that
//! changes a result stands in it. Absent means absent (no clipping, no tokenizer file).

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use burn::tensor::DType;
use burn_nvfp4::oscillation::OsciReset;
use burn_nvfp4::recipe::{Override, PRESETS, Policy, Recipe, RecipeError, ScaleRenewal, WarmUp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::HybridConfig;
use crate::data::BatchShape;
use crate::hybrid::step_memory::StepMemory;

pub use super::data::DataConfig;
use super::guard::GuardConfig;
use super::optim::OptimizerConfig;
use super::oscillation::WatchedWeights;
use super::plan::Snapshot;
use super::schedule::{DecayShape, Schedule};

/// Most tokens in one micro-batch: beyond it the logits alone pass 64 GB.
const MAX_MICRO_BATCH: usize = 1 << 26;
/// Bound of every count of steps or tokens that is not bounded by the data.
const MAX_COUNT: u64 = 1 << 40;

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainConfigError {
    /// Sources, weights or phases that do not belong together.
    #[error("data: {0}")]
    Data(String),
    /// Not TOML, an unknown field, a missing one, or a value of the wrong kind.
    #[error("{}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser says, on one line.
        reason: String,
    },
    /// A value that makes no sense.
    #[error("{field} is {value}, it must be {expected}")]
    Value {
        /// Path of the field.
        field: &'static str,
        /// What it is.
        value: String,
        /// What would be right.
        expected: String,
    },
}

/// Everything that a run is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Name of the run; its directory is `runs/<name>` unless `--out` says otherwise.
    pub name: String,
    /// Seed of initial values, order of the data, and random rounding.
    pub seed: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// What one device could do in the dtype of the GEMMs, in TFLOP/s, for the model FLOP
    /// utilisation; absent: by the data sheet of a GPU that is known, with bf16 activations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_tflops: Option<f64>,
    /// Steps from one measurement of what quantization does to the next; absent: never. A measured
    /// step takes up to two and a half times as long, and changes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistics_every: Option<NonZeroU64>,
    /// Which model.
    pub model: ModelSource,
    /// Which text.
    pub data: DataConfig,
    /// Tokens per step.
    pub batch: BatchShape,
    /// AdamW and clipping.
    pub optimizer: OptimizerConfig,
    /// Learning rate over the run.
    pub schedule: ScheduleConfig,
    /// Which arithmetic, on what.
    pub precision: PrecisionConfig,
    /// Which devices train together; absent: one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel: Option<ParallelConfig>,
    /// What a step keeps; absent: all that backward needs.
    #[serde(default, skip_serializing_if = "is_default")]
    pub memory: StepMemory,
    /// When and on how much to validate.
    pub validation: ValidationConfig,
    /// When to save.
    pub checkpoint: CheckpointConfig,
    /// Which steps do not update the model.
    pub guard: GuardConfig,
    /// What to write at the end.
    pub sample: SampleConfig,
}

/// Where the model's dimensions come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ModelSource {
    /// A size by name; the vocabulary is the tokenizer's.
    Preset(String),
    /// A Hugging Face `config.json`.
    Config(PathBuf),
}

/// Warm-up, stable, decay, as shares of the run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Learning rate of the stable phase.
    pub peak: f64,
    /// Learning rate of the last step.
    pub last: f64,
    /// Share of the steps until the peak.
    pub warmup: f64,
    /// Share of the steps of the decay.
    pub decay: f64,
    /// Shape of the decay.
    pub shape: DecayShape,
}

/// Which arithmetic, on what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrecisionConfig {
    /// What runs the tensors.
    pub backend: BackendName,
    /// Recipe of the quantized layers, by name or in full.
    #[serde(with = "burn_nvfp4::recipe::named")]
    pub recipe: Recipe,
    /// Which layers are quantized, by name.
    pub policy: String,
    /// Dtype of the activations and of the inputs of GEMMs; absent: f32.
    #[serde(default, skip_serializing_if = "is_default")]
    pub activations: Activations,
    /// Another recipe for the first part of the run; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<WarmUp>,
    /// From this share of the run on, the forward GEMMs run in high precision; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high_precision_forward_from: Option<f64>,
    /// Watches the weights of quantized layers for oscillation; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub osci_reset: Option<OsciReset>,
    /// Other recipes for layers by pattern; the last match decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<Override>,
}

impl PrecisionConfig {
    /// The recipe's name, if it is a preset.
    pub fn recipe_name(&self) -> &'static str {
        let preset = PRESETS.iter().find(|preset| preset.recipe == self.recipe);
        preset.map_or("a recipe of its own", |preset| preset.name)
    }

    /// True if a tensor scale of some layer outlasts its step.
    fn keeps_scales(&self) -> bool {
        let others = self.overrides.iter().map(|one| one.recipe);
        let warm_up = self.warm_up.iter().map(|warm_up| warm_up.recipe);
        let mut recipes = std::iter::once(self.recipe).chain(others).chain(warm_up);
        recipes.any(|recipe| recipe.scale_renewal != ScaleRenewal::EveryUse)
    }

    /// What does not go together: field, value, what would be right.
    fn problem(&self) -> Option<(&'static str, String, String)> {
        // A trace quantizes a weight under its own amax, fprop under the one that is kept.
        (self.osci_reset.is_some() && self.keeps_scales()).then(|| {
            let expected = "absent with a recipe that has scale_renewal".to_owned();
            ("precision.osci_reset", "given".to_owned(), expected)
        })
    }

    /// The policy for a model: names resolved, patterns checked against its layers.
    ///
    /// # Errors
    /// [`RecipeError`]: an unknown name, a pattern that matches nothing, ..
    pub fn policy(&self, model: &HybridConfig) -> Result<Policy, RecipeError> {
        let mut policy = Policy::by_name(&self.policy, self.recipe)?;
        if let Some(share) = self.high_precision_forward_from {
            policy = policy.with_high_precision_forward_from(share)?;
        }
        let mut spec = policy.spec().clone();
        spec.warm_up = self.warm_up;
        spec.overrides.extend(self.overrides.iter().cloned());
        spec.blocks = Some(model.n_blocks());
        let policy = Policy::new(spec)?;
        policy.check_layers(&model.linear_names())?;
        Ok(policy)
    }

    /// The weights that a run of so many steps watches, if it watches any.
    ///
    /// # Errors
    /// As [`Self::policy`]; numbers of the schedule that mean nothing.
    pub fn watched_weights(
        &self,
        model: &HybridConfig,
        total: u64,
    ) -> Result<Option<WatchedWeights>, RecipeError> {
        let Some(schedule) = self.osci_reset else {
            return Ok(None);
        };
        schedule.validate()?;
        Ok(Some(WatchedWeights {
            schedule,
            policy: self.policy(model)?,
            layers: model.linear_names().into_iter().collect(),
            total,
        }))
    }
}

/// Dtype of the activations. Parameters, their gradients and the optimizer's states are f32, and so
/// is what happens inside of norms, the scan, softmax and the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Activations {
    /// As the parameters.
    #[default]
    F32,
    /// Half the memory, and the tensor cores of GPUs.
    Bf16,
}

impl Activations {
    /// The dtype.
    pub const fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// Which devices train together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParallelConfig {
    /// Their indices. Each takes an equal share of every step, so the run is the same on any number
    /// of them, up to the order of sums.
    pub devices: Vec<usize>,
}

impl ParallelConfig {
    /// What makes no sense in it, with these steps and a recipe that keeps tensor scales between
    /// them or does not: field, value, what would be right.
    fn problem(
        &self,
        batch: &BatchShape,
        keeps_scales: bool,
    ) -> Option<(&'static str, String, String)> {
        let devices = &self.devices;
        let problem =
            |expected: String| Some(("parallel.devices", format!("{devices:?}"), expected));
        let repeated = |index: usize| devices[..index].contains(&devices[index]);
        if (0..devices.len()).any(repeated) {
            return problem("indices of different devices".to_owned());
        }
        let Some(ranks) = std::num::NonZeroUsize::new(devices.len()) else {
            return problem("at least one device".to_owned());
        };
        // Each device would keep the amaxes of its own data, and a checkpoint those of the first.
        if keeps_scales && ranks.get() > 1 {
            return problem("one device with a recipe that has scale_renewal".to_owned());
        }
        batch.share(ranks).err().and_then(|_| {
            problem(format!(
                "as many as divide batch.sequences * batch.accumulate, which is {} * {}",
                batch.sequences, batch.accumulate
            ))
        })
    }
}

/// A backend of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum BackendName {
    /// burn-ndarray.
    Ndarray,
    /// burn-flex.
    Flex,
    /// burn-wgpu (Vulkan, Metal, DirectX, WebGPU); in builds with the feature `wgpu`.
    Wgpu,
    /// burn-cuda; in builds with the feature `cuda`.
    Cuda,
}

impl BackendName {
    /// How checkpoints get the tensors of this backend.
    pub fn snapshot(self) -> Snapshot {
        match self {
            Self::Ndarray | Self::Flex => Snapshot::Shared,
            Self::Wgpu | Self::Cuda => Snapshot::Copied,
        }
    }
}

/// When and on how much to validate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidationConfig {
    /// Steps between validations.
    pub every: u64,
    /// Windows of the batch length, always the same ones.
    pub windows: std::num::NonZeroUsize,
}

/// When to save.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Steps between checkpoints.
    pub every: u64,
    /// How many of the newest stay, besides that with the lowest validation loss.
    pub keep: usize,
}

/// The text that the trained model writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleConfig {
    /// What it continues.
    pub prompt: String,
    /// How many tokens it adds; 0: no sample.
    pub tokens: usize,
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Only this many of the most likely tokens are drawn from; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<std::num::NonZeroUsize>,
}

impl TrainConfig {
    /// Reads and checks a TOML file's text; `path` is for the message.
    ///
    /// # Errors
    /// [`TrainConfigError::Syntax`] or what [`Self::validate`] finds.
    pub fn from_toml(text: &str, path: &Path) -> Result<Self, TrainConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| {
                text.bytes()
                    .take(span.start)
                    .filter(|&byte| byte == b'\n')
                    .count()
                    + 1
            });
            let reason = error
                .message()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ");
            let reason = format!("line {line}: {reason}");
            TrainConfigError::Syntax {
                path: path.to_owned(),
                reason,
            }
        })?;
        config.validate()?;
        Ok(config)
    }

    /// Checks every number.
    ///
    /// # Errors
    /// [`TrainConfigError::Value`] with the first field that makes no sense.
    pub fn validate(&self) -> Result<(), TrainConfigError> {
        let share = |value: f64| (0.0..=1.0).contains(&value);
        let rate = |value: f64| value.is_finite() && value >= 0.0;
        let count = |value: u64| (1..=MAX_COUNT).contains(&value);
        let (schedule, optimizer) = (&self.schedule, &self.optimizer);
        let micro_batch = self
            .batch
            .sequences
            .get()
            .checked_mul(self.batch.length.get());
        let beta = |value: f64| (0.0..1.0).contains(&value);
        let counts = format!("from 1 to {MAX_COUNT}");
        let checks: [(&'static str, bool, String, &str); 15] = [
            (
                "name",
                is_file_name(&self.name),
                format!("{:?}", self.name),
                "a file name",
            ),
            ("steps", count(self.steps), self.steps.to_string(), &counts),
            (
                "batch.sequences * batch.length",
                micro_batch.is_some_and(|tokens| tokens <= MAX_MICRO_BATCH),
                format!("{} * {}", self.batch.sequences, self.batch.length),
                "at most 67108864 tokens; use batch.accumulate for more",
            ),
            (
                "batch.accumulate",
                count(self.batch.accumulate.get() as u64),
                self.batch.accumulate.to_string(),
                &counts,
            ),
            (
                "optimizer.beta1",
                beta(optimizer.beta1),
                optimizer.beta1.to_string(),
                "in [0, 1)",
            ),
            (
                "optimizer.beta2",
                beta(optimizer.beta2),
                optimizer.beta2.to_string(),
                "in [0, 1)",
            ),
            (
                "optimizer.epsilon",
                rate(optimizer.epsilon) && optimizer.epsilon > 0.0,
                optimizer.epsilon.to_string(),
                "positive",
            ),
            (
                "optimizer.weight_decay",
                rate(optimizer.weight_decay),
                optimizer.weight_decay.to_string(),
                "0 or more",
            ),
            (
                "optimizer.clip_norm",
                optimizer
                    .clip_norm
                    .is_none_or(|limit| limit.is_finite() && limit > 0.0),
                format!("{:?}", optimizer.clip_norm),
                "positive, or absent",
            ),
            (
                "schedule.peak",
                rate(schedule.peak) && schedule.peak > 0.0,
                schedule.peak.to_string(),
                "positive",
            ),
            (
                "schedule.last",
                rate(schedule.last) && schedule.last <= schedule.peak,
                schedule.last.to_string(),
                "from 0 to schedule.peak",
            ),
            (
                "schedule.warmup + schedule.decay",
                share(schedule.warmup)
                    && share(schedule.decay)
                    && share(schedule.warmup + schedule.decay),
                format!("{} + {}", schedule.warmup, schedule.decay),
                "shares of the run that add up to at most 1",
            ),
            (
                "validation.every and checkpoint.every",
                count(self.validation.every) && count(self.checkpoint.every),
                format!("{} and {}", self.validation.every, self.checkpoint.every),
                &counts,
            ),
            (
                "checkpoint.keep",
                self.checkpoint.keep >= 1,
                "0".to_owned(),
                "at least 1",
            ),
            (
                "sample.temperature",
                rate(self.sample.temperature),
                self.sample.temperature.to_string(),
                "0 or more",
            ),
        ];
        self.data.validate()?;
        let peak = |peak: f64| peak.is_finite() && peak > 0.0;
        let problem = match checks.into_iter().find(|(_, holds, ..)| !holds) {
            Some((field, _, value, expected)) => Some((field, value, expected.to_owned())),
            None if !self.peak_tflops.is_none_or(peak) => {
                let value = format!("{:?}", self.peak_tflops);
                Some(("peak_tflops", value, "positive, or absent".to_owned()))
            }
            None => {
                let parallel = self.parallel.as_ref();
                let keeps_scales = self.precision.keeps_scales();
                let problem = parallel.and_then(|it| it.problem(&self.batch, keeps_scales));
                let problem = problem.or_else(|| self.precision.problem());
                problem.or_else(|| self.guard.problem())
            }
        };
        match problem {
            None => Ok(()),
            Some((field, value, expected)) => Err(TrainConfigError::Value {
                field,
                value,
                expected,
            }),
        }
    }

    /// The schedule in steps.
    pub fn schedule(&self) -> Schedule {
        let ScheduleConfig {
            peak,
            last,
            warmup,
            decay,
            shape,
        } = self.schedule;
        let (warmup, decay) = (share_of(warmup, self.steps), share_of(decay, self.steps));
        Schedule {
            peak,
            last,
            warmup,
            decay,
            total: self.steps,
            shape,
        }
    }

    /// Sequences of the whole run.
    pub fn sequences(&self) -> u64 {
        self.sequences_until(1.0)
    }

    /// Sequences of the steps before a share of the run.
    pub(super) fn sequences_until(&self, share: f64) -> u64 {
        let per_step = self
            .batch
            .sequences
            .get()
            .saturating_mul(self.batch.accumulate.get());
        share_of(share, self.steps).saturating_mul(per_step as u64)
    }

    /// What a resumed run must share with the one that it continues; on which and how many devices
    /// it trains, where files lie, how often it validates and saves, what the guard does and what
    /// the run writes at the end may change.
    pub fn identity(&self, model: &HybridConfig, data: u64, tokenizer: &str) -> Value {
        let mut identity = json!({
            "seed": self.seed,
            "steps": self.steps,
            "model": model,
            "data": format!("{data:016x}"),
            "tokenizer": tokenizer,
            "batch": self.batch,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "precision": self.precision,
        });
        if let Some(blend) = self.data.blend() {
            identity["blend"] = blend;
        }
        // Recomputation changes no number; the parts of a sum do.
        if let Some(chunk) = self.memory.loss_chunk {
            identity["loss_chunk"] = json!(chunk);
        }
        identity
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A share of some steps, rounded to the nearest.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share in [0, 1] of at most 2^40 steps, checked by `validate`"
)]
fn share_of(share: f64, steps: u64) -> u64 {
    ((share * steps as f64).round() as u64).min(steps)
}

/// True for a name of one normal path component.
fn is_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let first = components.next();
    matches!(first, Some(std::path::Component::Normal(_))) && components.next().is_none()
}

#[cfg(test)]
mod tests;
