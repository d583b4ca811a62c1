//! The training loop: burn-train's `SupervisedLearningStrategy`, in steps instead of epochs.
//!
//! One step:
//! 1. tell the backend where the run is ([`Numerics::begin_step`]);
//! 2. forward and backward of every micro-batch, gradients summed, over all ranks too;
//! 3. measure their global norm;
//! 4. judge the step ([`super::guard`]): update the model, skip the step, go back, or stop;
//! 5. learning rate, AdamW of the averaged and clipped gradients; what the arithmetic carries
//!    follows (`carrying`);
//! 6. log, metrics; validation and checkpoint when they are due (`saving`, `validation`);
//! 7. stop at a step boundary, with a checkpoint, if the interrupter says so.
//!
//! After the last step the model is validated in the recipe's forward and in high precision.
//!
//! On several devices every rank runs this loop on a thread of its own ([`ranks`]); what they tell
//! each other goes through an [`Exchange`]. The first rank validates, saves, logs and sounds; the
//! others wait for it at the next step.
//!
//! burn's own strategy works in epochs, sums accumulated gradients, steps the schedule per
//! micro-batch, and has no position to resume from. `fit` cannot return an error, so the result
//! waits in [`StepStrategy::take_outcome`].

mod carrying;
pub mod ranks;
mod saving;
mod validation;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use burn::data::dataloader::Progress;
use burn::module::AutodiffModule;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::Tensor;
use burn::train::metric::store::EventStoreClient;
use burn::train::{
    EventProcessorTraining, InferenceStep, Learner, LearnerEvent, LearningComponentsMarker,
    SupervisedTrainingEventProcessor, TrainStep, TrainingItem, ValidLoader,
};
use burn_hybrid_ops::TrainingEngine;

use crate::checkpoint::run::writer::CheckpointWriter;
use crate::checkpoint::run::{Best, NamedTensors, Position, RunCheckpoint, RunDirectory};
use crate::data::{TokenBatch, TrainBatches};

use super::TrainError;
use super::diagnosis::{Diagnose, place_in_backward, place_in_forward};
use super::exchange::{Exchange, Word};
use super::gradients::{ScalarF32, clip_factor, global_norm, sum_over_ranks};
use super::guard::Verdict;
use super::layers::{OperandFigure, Statistics};
use super::log::{Forward, LogLine, RunLog, SkipReason, SkippedLine};
use super::numerics::Numerics;
use super::optim::{GroupedAdamW, scale_at_update};
use super::oscillation::TracesOf;
use super::output::{Figures, LossOutput, bits_per_byte, flop_utilisation};
use super::plan::{Ending, FinalFigures, Outcome, StepPlan};
use super::schedule::WarmupStableDecay;

/// The types of a run: any backend, our schedule and optimizer, any model.
pub type Components<B, M> = LearningComponentsMarker<B, WarmupStableDecay, M, GroupedAdamW<B, M>>;

/// A batch without autodiff.
type InnerBatch<B> = TokenBatch<<B as burn::tensor::backend::AutodiffBackend>::InnerBackend>;

/// What a model has to be to be trained here: a loss per micro-batch.
pub trait Trainable<B: TrainingEngine>:
    AutodiffModule<B, InnerModule = Self::Inference>
    + TrainStep<Input = TokenBatch<B>, Output = LossOutput<B::InnerBackend>>
    + Diagnose<B>
    + std::fmt::Display
    + 'static
{
    /// The model without autodiff.
    type Inference: InferenceStep<Input = InnerBatch<B>, Output = LossOutput<B::InnerBackend>>;
}

impl<B, M> Trainable<B> for M
where
    B: TrainingEngine,
    M: AutodiffModule<B>
        + TrainStep<Input = TokenBatch<B>, Output = LossOutput<B::InnerBackend>>
        + Diagnose<B>
        + std::fmt::Display
        + 'static,
    M::InnerModule:
        InferenceStep<Input = TokenBatch<B::InnerBackend>, Output = LossOutput<B::InnerBackend>>,
{
    type Inference = M::InnerModule;
}

/// Tells whoever watches the run of something that they should know now, in one line.
pub type Alarm = Box<dyn Fn(&str) + Send + Sync>;

/// What the ranks of a run have in common; see the module.
pub struct StepStrategy {
    plan: StepPlan,
    directory: RunDirectory,
    log: Mutex<RunLog>,
    alarm: Alarm,
    /// What the loops take up when they begin.
    carried: Mutex<NamedTensors>,
    outcome: Mutex<Option<Result<Outcome, TrainError>>>,
}

impl std::fmt::Debug for StepStrategy {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("StepStrategy")
            .field("plan", &self.plan)
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

impl StepStrategy {
    /// A loop that saves to `directory`, writes to `log`, and sounds `alarm`.
    pub fn new(plan: StepPlan, directory: RunDirectory, log: RunLog, alarm: Alarm) -> Arc<Self> {
        let (log, outcome) = (Mutex::new(log), Mutex::new(None));
        let carried = Mutex::default();
        Arc::new(Self {
            plan,
            directory,
            log,
            alarm,
            carried,
            outcome,
        })
    }

    /// Has the loop continue with what the arithmetic carried when `checkpoint` was saved.
    pub fn take_up(&self, checkpoint: &RunCheckpoint) {
        *self.carried.lock().unwrap_or_else(PoisonError::into_inner) = checkpoint.carried.clone();
    }

    /// What every rank takes up when it begins.
    fn carried(&self) -> NamedTensors {
        let carried = self.carried.lock();
        carried.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the loop goes by.
    pub fn plan(&self) -> &StepPlan {
        &self.plan
    }

    /// Where the run lives.
    pub fn directory(&self) -> &RunDirectory {
        &self.directory
    }

    /// How the run ended; `None` if it has not run.
    pub fn take_outcome(&self) -> Option<Result<Outcome, TrainError>> {
        self.outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn set_outcome(&self, outcome: Result<Outcome, TrainError>) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    }

    /// Logs a line. A log that cannot be written is no reason to stop: its lines wait.
    fn log(&self, line: &LogLine) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let was_waiting = log.is_waiting();
        if let Err(error) = log.write(line)
            && !was_waiting
        {
            let path = log.path().display();
            (self.alarm)(&format!(
                "{path}: cannot write: {error}; the run goes on, its lines wait in memory"
            ));
        }
    }

    /// Length of the log.
    fn log_bytes(&self) -> u64 {
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .bytes()
    }
}

/// The state of a run in progress, as one rank has it.
struct Loop<'a, B: TrainingEngine, M: Trainable<B>> {
    strategy: &'a StepStrategy,
    learner: Learner<Components<B, M>>,
    numerics: Box<dyn Numerics>,
    exchange: Box<dyn Exchange<B>>,
    /// What the first rank has, and no other.
    front: Option<Front<B, M>>,
    /// How far it is.
    position: Position,
    /// Where it last updated the model.
    good: Position,
    /// Weights that are watched, where the run watches any.
    traces: Option<TracesOf<B>>,
    /// How many of them oscillated in the last window.
    oscillating: Option<u64>,
    writer: CheckpointWriter,
    /// The last step that was handed to the writer, or that the run began after.
    saved: u64,
    /// True while a checkpoint is due.
    due: bool,
    /// What is the best checkpoint if the save that is under way succeeds; until then it is that of
    /// `position`.
    best_under_way: Option<Best>,
    /// Why the last save failed, if it did.
    unsaved: Option<String>,
    begin: Instant,
    /// Time spent in training steps.
    training_seconds: f64,
    /// Time in which training waited for checkpoints.
    waited_seconds: f64,
    /// Steps that this process took.
    taken: usize,
}

/// What validates and shows.
struct Front<B: TrainingEngine, M: Trainable<B>> {
    valid: ValidLoader<Components<B, M>>,
    events: SupervisedTrainingEventProcessor<Components<B, M>>,
    store: Arc<EventStoreClient>,
}

/// How the steps of a run ended.
enum Ended {
    /// On request.
    Interrupted,
    /// After the last one, with its validation, if there was one.
    AtLastStep(Option<f64>),
}

impl<B: TrainingEngine, M: Trainable<B>> Loop<'_, B, M> {
    /// Takes every step that is left.
    fn run(
        &mut self,
        train: &TrainBatches<B>,
        should_stop: impl Fn() -> bool,
    ) -> Result<Ended, TrainError> {
        let plan = &self.strategy.plan;
        let accumulate = train.shape().accumulate.get();
        let mut batches = train.micro_batches();
        let mut last_loss = None;
        while self.position.step < plan.total {
            // The first rank's word counts, and nobody begins a step before it is given.
            let word = Word {
                stop: should_stop(),
                ..Word::default()
            };
            if self.exchange.gather(word)?[0].stop {
                self.save(self.position.clone(), None);
                return Ok(Ended::Interrupted);
            }
            let micro: Result<_, _> = batches.by_ref().take(accumulate).collect();
            if micro.is_err() {
                // What was trained is not lost by what cannot be read.
                self.save(self.position.clone(), None);
            }
            self.train_step(micro?)?;
            let step = self.position.step;
            let last = step == plan.total;
            self.due |= step.is_multiple_of(plan.save_every);
            // A row of outliers may end in a rewind, which wants a checkpoint from before it.
            let save = (self.due && self.position.outliers_in_a_row == 0) || last;
            let mut validated = None;
            if step.is_multiple_of(plan.validate_every) || last {
                validated = self.validate(Forward::Recipe);
                last_loss = validated;
            }
            if self.good.step == step {
                self.good = self.position.clone();
            }
            if save {
                self.due = false;
                self.save(self.position.clone(), validated);
            }
            self.poll_writer();
        }
        Ok(Ended::AtLastStep(last_loss))
    }

    /// What the first rank says when the steps are over.
    fn conclude(&mut self, ended: Ended) -> Outcome {
        let plan = &self.strategy.plan;
        let validated = match ended {
            Ended::Interrupted => return self.outcome(Ending::Interrupted),
            Ended::AtLastStep(validated) => validated,
        };
        let last = plan.total.saturating_sub(1);
        self.numerics.begin_step(last, plan.total);
        // A run that is resumed at its end has this validation in its log.
        let recipe = validated.or_else(|| self.measure(Forward::Recipe));
        let high_precision = self.validate(Forward::HighPrecision);
        self.outcome(Ending::Finished(FinalFigures {
            recipe: recipe.unwrap_or(f64::NAN),
            high_precision: high_precision.unwrap_or(f64::NAN),
        }))
    }

    fn outcome(&self, ending: Ending) -> Outcome {
        let seconds = self.begin.elapsed().as_secs_f64();
        Outcome {
            step: self.position.step,
            ending,
            seconds,
            tokens_per_second: self.tokens_per_second(),
            skipped: self.position.skipped,
            waited_seconds: self.waited_seconds,
            unsaved: None,
        }
    }

    fn tokens_per_second(&self) -> f64 {
        (self.taken * self.strategy.plan.tokens_per_step) as f64 / self.training_seconds
    }

    /// Logs a line, if this is the rank that writes.
    fn log(&self, line: &LogLine) {
        if self.front.is_some() {
            self.strategy.log(line);
        }
    }

    /// Sounds the alarm, if this is the rank that writes.
    fn alarm(&self, text: &str) {
        if self.front.is_some() {
            (self.strategy.alarm)(text);
        }
    }

    /// Steps 1 to 6 of the module's list.
    fn train_step(&mut self, micro_batches: Vec<TokenBatch<B>>) -> Result<(), TrainError> {
        let plan = &self.strategy.plan;
        let begin = Instant::now();
        let step = self.position.step;
        self.numerics.begin_step(step, plan.total);
        let (mut grads, loss) = self.accumulate(&micro_batches);
        let average = 1.0 / (micro_batches.len() * self.exchange.ranks()) as f64;
        let model = self.learner.model();
        sum_over_ranks::<B, M>(&model, &mut grads, &*self.exchange)?;
        // The loss first: reading it waits for the sums, hence for the backward of all ranks. Only
        // then may this one wait for its device with a lock that another one's backward needs, as
        // looking for operands that are no numbers does.
        let own = Word {
            loss: f64::from(loss.clone().into_scalar_f32()),
            norm: global_norm::<B, M>(&model, &grads, average),
            place: self.numerics.take_non_finite(),
            ..Word::default()
        };
        let operand = own.place.clone();
        let words = self.exchange.gather(own)?;
        let loss_value = words.iter().map(|word| word.loss).sum::<f64>() * average;
        // Devices may differ in the last bit of a norm, so that of the first rank holds for all.
        let norm = words[0].norm;
        self.position.step += 1;
        self.position.data_step += 1;
        self.taken += 1;
        let sound = words.iter().all(|word| word.place.is_none());
        let finite = sound && loss_value.is_finite() && norm.is_finite();
        let verdict = plan.guard.judge(&mut self.position, loss_value, finite);
        let place = match verdict {
            Verdict::NonFinite => {
                Some(self.place_of_non_finite(&grads, &micro_batches, operand)?)
            }
            Verdict::Update | Verdict::Skip { .. } | Verdict::Rewind { .. } => None,
        };
        drop(model);
        let operands = self.take_statistics();
        self.learner.lr_step();
        if verdict != Verdict::Update {
            self.training_seconds += begin.elapsed().as_secs_f64();
        }
        match verdict {
            Verdict::Update => {
                let factor = clip_factor(norm, average, plan.clip_norm);
                scale_at_update::<B>(&mut grads, factor, &loss.device());
                self.learner.optimizer_step(grads);
                self.position.updates += 1;
                self.follow_update();
                self.training_seconds += begin.elapsed().as_secs_f64();
                self.report_step(loss, [loss_value, norm], operands, begin);
                self.position.log_bytes = self.strategy.log_bytes();
                self.good = self.position.clone();
                Ok(())
            }
            Verdict::NonFinite => self.skip(SkipReason::NonFinite, [loss_value, norm], place),
            Verdict::Skip { .. } => self.skip(SkipReason::Spike, [loss_value, norm], None),
            Verdict::Rewind { limit } => {
                // What is read takes their place on the device.
                drop(grads);
                self.rewind([loss_value, norm], limit)
            }
        }
    }

    /// Layer and operand where a step went wrong, and on which rank of several.
    fn place_of_non_finite(
        &self,
        grads: &GradientsParams,
        micro_batches: &[TokenBatch<B>],
        operand: Option<String>,
    ) -> Result<String, TrainError> {
        let model = self.learner.model();
        let own = Word {
            place: place_in_forward(&model, micro_batches, operand),
            ..Word::default()
        };
        // Looking ran quantized layers again: what those found is not the next step's.
        let _ = self.numerics.take_non_finite();
        let words = self.exchange.gather(own)?;
        let several = words.len() > 1;
        let found = words.into_iter().map(|word| word.place).enumerate();
        let found = found
            .filter_map(|(rank, place)| Some((rank, place?)))
            .next();
        Ok(match found {
            Some((rank, place)) if several => format!("{place} on rank {rank}"),
            Some((_, place)) => place,
            None => place_in_backward::<B, M>(&model, grads),
        })
    }

    /// What quantization did in this step, logged if it was sampled. A step that goes wrong is
    /// where it is wanted most.
    fn take_statistics(&self) -> Arc<[OperandFigure]> {
        let Statistics { operands, gemms } = self.numerics.take_statistics();
        let step = self.position.step;
        if !gemms.is_empty() {
            self.log(&LogLine::Gemms { step, gemms });
        }
        if !operands.is_empty() {
            let operands = operands.clone();
            self.log(&LogLine::Quantization { step, operands });
        }
        operands.into()
    }

    /// Tells log and metrics of a step that updated the model.
    fn report_step(
        &mut self,
        loss: Tensor<B::InnerBackend, 1>,
        [loss_value, grad_norm]: [f64; 2],
        operands: Arc<[OperandFigure]>,
        begin: Instant,
    ) {
        let plan = &self.strategy.plan;
        if self.front.is_none() {
            return;
        }
        let step = self.position.step;
        let tokens_per_second = plan.tokens_per_step as f64 / begin.elapsed().as_secs_f64();
        let elapsed = self.begin.elapsed().as_secs_f64();
        let figures = Figures {
            loss: loss_value,
            bits_per_byte: bits_per_byte(loss_value, plan.train_bytes_per_token),
            grad_norm: Some(grad_norm),
            tokens_per_second,
            mfu: plan
                .peak_flops
                .map(|peak| flop_utilisation(tokens_per_second, plan.parameters, peak)),
            skipped: self.position.skipped,
            oscillating: self.oscillating,
            operands,
            seconds_left: (plan.total - step) as f64 * elapsed / self.taken as f64,
        };
        let learning_rate = self.learner.lr_current();
        self.log(&LogLine::Step {
            step,
            loss: figures.loss,
            bits_per_byte: figures.bits_per_byte,
            learning_rate,
            grad_norm,
            tokens: step * plan.tokens_per_step as u64,
            tokens_per_second,
            mfu: figures.mfu,
            seconds: elapsed,
        });
        let item = LossOutput {
            loss,
            tokens: plan.tokens_per_step,
            figures: Some(figures),
        };
        let (progress, step) = (self.progress(), Some(count(step)));
        let item = TrainingItem::new(item, progress.clone(), progress, step, Some(learning_rate));
        if let Some(front) = &mut self.front {
            front
                .events
                .process_train(LearnerEvent::ProcessedItem(item));
        }
    }

    /// Sums of gradients and losses over the micro-batches.
    fn accumulate(
        &self,
        micro_batches: &[TokenBatch<B>],
    ) -> (GradientsParams, Tensor<B::InnerBackend, 1>) {
        let mut summed = GradientsAccumulator::new();
        let mut total: Option<Tensor<B::InnerBackend, 1>> = None;
        let first = self.exchange.rank() * micro_batches.len();
        let mut passes = || {
            for (index, batch) in micro_batches.iter().enumerate() {
                let index = u32::try_from(first + index).unwrap_or(u32::MAX);
                let mut output = None;
                self.numerics.in_micro_batch(index, &mut || {
                    output = Some(self.learner.train_step(batch.clone()));
                });
                let output = output.expect("the pass was called");
                summed.accumulate(&self.learner.model(), output.grads);
                let loss = output.item.loss;
                total = Some(match total.take() {
                    Some(total) => total + loss,
                    None => loss,
                });
            }
        };
        // One micro-batch has nobody to share with.
        if micro_batches.len() > 1 {
            self.numerics.share_weights(&mut passes);
        } else {
            passes();
        }
        (summed.grads(), total.expect("the training data has no end"))
    }

    /// Counts, logs and sounds a step that left the model as it is; stops the run if that is one
    /// non-finite step too many.
    fn skip(
        &mut self,
        reason: SkipReason,
        [loss, norm]: [f64; 2],
        place: Option<String>,
    ) -> Result<(), TrainError> {
        let position = &self.position;
        let line = SkippedLine {
            step: position.step,
            reason,
            loss: loss.to_string(),
            grad_norm: norm.to_string(),
            place: place.clone(),
            in_a_row: match reason {
                SkipReason::NonFinite => position.non_finite_in_a_row,
                SkipReason::Spike => position.outliers_in_a_row,
            },
            skipped: position.skipped,
        };
        let why = match (&place, reason) {
            (Some(place), _) => format!("NaN or infinity in {place}"),
            (None, SkipReason::NonFinite) => "NaN or infinity".to_owned(),
            (None, SkipReason::Spike) => "the loss is an outlier".to_owned(),
        };
        self.alarm(&format!(
            "step {}: no update, loss {loss}, gradient norm {norm}: {why}; {} in a row, {} in all",
            line.step, line.in_a_row, line.skipped
        ));
        self.log(&LogLine::Skipped(line));
        self.position.log_bytes = self.strategy.log_bytes();
        let in_a_row = self.position.non_finite_in_a_row;
        if reason == SkipReason::Spike || in_a_row < self.strategy.plan.guard.non_finite_in_a_row {
            return Ok(());
        }
        // The model has not changed since: this is the checkpoint of that step.
        let good = self.good.clone();
        let step = good.step;
        self.save(good, None);
        Err(TrainError::NonFinite {
            step: self.position.step,
            in_a_row,
            loss,
            norm,
            place: place.unwrap_or_default(),
            good: step,
        })
    }

    fn progress(&self) -> Progress {
        Progress::new(count(self.position.step), count(self.strategy.plan.total))
    }
}

/// burn counts in `usize`.
fn count(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
