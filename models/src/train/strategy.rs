//! The training loop: burn-train's `SupervisedLearningStrategy`, in steps instead of epochs.
//!
//! One step:
//! 1. tell the backend where the run is ([`Numerics::begin_step`]);
//! 2. forward and backward of every micro-batch, gradients summed;
//! 3. average them, measure and clip their global norm; stop if anything is NaN or infinite;
//! 4. learning rate, AdamW;
//! 5. log, metrics; validation and checkpoint when they are due;
//! 6. stop at a step boundary, with a checkpoint, if the interrupter says so.
//!
//! After the last step the model is validated in the recipe's forward and in high precision.
//!
//! burn's own strategy works in epochs, sums accumulated gradients, steps the schedule per
//! micro-batch, and has no position to resume from. `fit` cannot return an error, so the result
//! waits in [`StepStrategy::take_outcome`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use burn::data::dataloader::Progress;
use burn::module::AutodiffModule;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::Tensor;
use burn::train::metric::store::EventStoreClient;
use burn::train::{
    EventProcessorTraining, InferenceStep, Learner, LearnerEvent, LearningComponentsMarker,
    SupervisedLearningStrategy, SupervisedTrainingEventProcessor, TrainLoader, TrainStep,
    TrainingComponents, TrainingItem, ValidLoader,
};
use burn_hybrid_ops::TrainingEngine;

use crate::checkpoint::run::{RunCheckpoint, RunDirectory, RunState};
use crate::data::TokenBatch;

use super::TrainError;
use super::gradients::{ScalarF32, average_and_clip, find_non_finite};
use super::log::{Forward, LogLine, RunLog};
use super::numerics::Numerics;
use super::optim::{GroupedAdamW, read_moments};
use super::output::{Figures, LossOutput, bits_per_byte};
use super::params::read_parameters;
use super::plan::{Ending, FinalFigures, Outcome, StepPlan};
use super::schedule::WarmupStableDecay;
use super::tap::optimizer_record;

/// The types of a run: any backend, our schedule and optimizer, any model.
pub type Components<B, M> = LearningComponentsMarker<B, WarmupStableDecay, M, GroupedAdamW<B, M>>;

/// A batch without autodiff.
type InnerBatch<B> = TokenBatch<<B as burn::tensor::backend::AutodiffBackend>::InnerBackend>;

/// What a model has to be to be trained here: a loss per micro-batch.
pub trait Trainable<B: TrainingEngine>:
    AutodiffModule<B, InnerModule = Self::Inference>
    + TrainStep<Input = TokenBatch<B>, Output = LossOutput<B::InnerBackend>>
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
        + std::fmt::Display
        + 'static,
    M::InnerModule:
        InferenceStep<Input = TokenBatch<B::InnerBackend>, Output = LossOutput<B::InnerBackend>>,
{
    type Inference = M::InnerModule;
}

/// The loop; see the module.
#[derive(Debug)]
pub struct StepStrategy {
    plan: StepPlan,
    directory: RunDirectory,
    numerics: Box<dyn Numerics>,
    log: Mutex<RunLog>,
    outcome: Mutex<Option<Result<Outcome, TrainError>>>,
}

impl StepStrategy {
    /// A loop that saves to `directory` and writes to `log`.
    pub fn new(
        plan: StepPlan,
        directory: RunDirectory,
        log: RunLog,
        numerics: Box<dyn Numerics>,
    ) -> Arc<Self> {
        let (log, outcome) = (Mutex::new(log), Mutex::new(None));
        Arc::new(Self {
            plan,
            directory,
            numerics,
            log,
            outcome,
        })
    }

    /// Steps that were taken before.
    pub fn done(&self) -> u64 {
        self.plan.done
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

    fn log(&self, line: &LogLine) -> Result<(), TrainError> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.write(line).map_err(|source| TrainError::Log {
            path: log.path().to_owned(),
            source,
        })
    }
}

impl<B: TrainingEngine, M: Trainable<B>> SupervisedLearningStrategy<Components<B, M>>
    for StepStrategy
{
    fn fit(
        &self,
        components: TrainingComponents<Components<B, M>>,
        learner: Learner<Components<B, M>>,
        train: TrainLoader<Components<B, M>>,
        valid: ValidLoader<Components<B, M>>,
        _starting_epoch: usize,
    ) -> (M, SupervisedTrainingEventProcessor<Components<B, M>>) {
        let TrainingComponents {
            interrupter,
            event_processor,
            event_store,
            ..
        } = components;
        let mut run = Loop {
            strategy: self,
            learner,
            valid,
            events: event_processor,
            store: event_store,
            step: self.plan.done,
            saved: None,
            begin: Instant::now(),
            training_seconds: 0.0,
            taken: 0,
        };
        let outcome = run.run(&train, || interrupter.should_stop());
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        (run.learner.model(), run.events)
    }
}

/// The state of a run in progress.
struct Loop<'a, B: TrainingEngine, M: Trainable<B>> {
    strategy: &'a StepStrategy,
    learner: Learner<Components<B, M>>,
    valid: ValidLoader<Components<B, M>>,
    events: SupervisedTrainingEventProcessor<Components<B, M>>,
    store: Arc<EventStoreClient>,
    /// Steps taken.
    step: u64,
    /// The last step that has a checkpoint.
    saved: Option<u64>,
    begin: Instant,
    /// Time spent in training steps.
    training_seconds: f64,
    /// Steps that this process took.
    taken: usize,
}

impl<B: TrainingEngine, M: Trainable<B>> Loop<'_, B, M> {
    fn run(
        &mut self,
        train: &TrainLoader<Components<B, M>>,
        should_stop: impl Fn() -> bool,
    ) -> Result<Outcome, TrainError> {
        let plan = &self.strategy.plan;
        let mut batches = train.iter();
        while self.step < plan.total {
            if should_stop() {
                self.save()?;
                return Ok(self.outcome(Ending::Interrupted));
            }
            let micro = (0..plan.accumulate).map_while(|_| batches.next());
            self.train_step(micro, batches_progress(plan, self.step))?;
            let last = self.step == plan.total;
            if self.step.is_multiple_of(plan.validate_every) && !last {
                self.validate(Forward::Recipe)?;
            }
            if self.step.is_multiple_of(plan.save_every) || last {
                self.save()?;
            }
        }
        self.strategy
            .numerics
            .begin_step(plan.total.saturating_sub(1), plan.total);
        let recipe = self.validate(Forward::Recipe)?;
        let high_precision = self.validate(Forward::HighPrecision)?;
        Ok(self.outcome(Ending::Finished(FinalFigures {
            recipe,
            high_precision,
        })))
    }

    fn outcome(&self, ending: Ending) -> Outcome {
        let seconds = self.begin.elapsed().as_secs_f64();
        Outcome {
            step: self.step,
            ending,
            seconds,
            tokens_per_second: self.tokens_per_second(),
        }
    }

    fn tokens_per_second(&self) -> f64 {
        (self.taken * self.strategy.plan.tokens_per_step) as f64 / self.training_seconds
    }

    /// Steps 1 to 5 of the module's list.
    fn train_step(
        &mut self,
        micro_batches: impl Iterator<Item = TokenBatch<B>>,
        progress: Progress,
    ) -> Result<(), TrainError> {
        let plan = &self.strategy.plan;
        let begin = Instant::now();
        self.strategy.numerics.begin_step(self.step, plan.total);
        let (mut grads, loss) = self.accumulate(micro_batches);
        let average = 1.0 / plan.accumulate as f64;
        let model = self.learner.model();
        let norm = average_and_clip::<B, M>(&model, &mut grads, average, plan.clip_norm);
        let loss_value = f64::from(loss.clone().into_scalar_f32()) * average;
        self.check_finite(&model, &grads, loss_value, norm)?;
        drop(model);
        self.learner.lr_step();
        self.learner.optimizer_step(grads);
        self.step += 1;
        self.taken += 1;
        let seconds = begin.elapsed().as_secs_f64();
        self.training_seconds += seconds;

        let figures = Figures {
            loss: loss_value,
            bits_per_byte: bits_per_byte(loss_value, plan.train_bytes_per_token),
            grad_norm: Some(norm),
            tokens_per_second: plan.tokens_per_step as f64 / seconds,
            seconds_left: (plan.total - self.step) as f64 * self.begin.elapsed().as_secs_f64()
                / self.taken as f64,
        };
        let rate = self.learner.lr_current();
        self.strategy.log(&LogLine::Step {
            step: self.step,
            loss: figures.loss,
            bits_per_byte: figures.bits_per_byte,
            learning_rate: rate,
            grad_norm: norm,
            tokens: self.step * plan.tokens_per_step as u64,
            tokens_per_second: figures.tokens_per_second,
            seconds: self.begin.elapsed().as_secs_f64(),
        })?;
        let item = LossOutput {
            loss,
            tokens: plan.tokens_per_step,
            figures: Some(figures),
        };
        let item = TrainingItem::new(
            item,
            progress,
            self.progress(),
            Some(count(self.step)),
            Some(rate),
        );
        self.events.process_train(LearnerEvent::ProcessedItem(item));
        Ok(())
    }

    /// Sums of gradients and losses over the micro-batches.
    fn accumulate(
        &self,
        micro_batches: impl Iterator<Item = TokenBatch<B>>,
    ) -> (GradientsParams, Tensor<B::InnerBackend, 1>) {
        let mut summed = GradientsAccumulator::new();
        let mut total: Option<Tensor<B::InnerBackend, 1>> = None;
        for batch in micro_batches {
            let output = self.learner.train_step(batch);
            summed.accumulate(&self.learner.model(), output.grads);
            let loss = output.item.loss;
            total = Some(match total {
                Some(total) => total + loss,
                None => loss,
            });
        }
        (summed.grads(), total.expect("the training data has no end"))
    }

    /// Stops the run at the first number that is none, and says where it appeared.
    fn check_finite(
        &self,
        model: &M,
        grads: &GradientsParams,
        loss: f64,
        norm: f64,
    ) -> Result<(), TrainError> {
        let operand = self.strategy.numerics.take_non_finite();
        if operand.is_none() && loss.is_finite() && norm.is_finite() {
            return Ok(());
        }
        let place = operand
            .or_else(|| find_non_finite::<B, M>(model, grads))
            .unwrap_or_else(|| "no single tensor (a sum overflowed)".to_owned());
        Err(TrainError::NonFinite {
            step: self.step + 1,
            loss,
            norm,
            place,
        })
    }

    fn progress(&self) -> Progress {
        Progress::new(count(self.step), count(self.strategy.plan.total))
    }

    /// Mean loss over the validation windows.
    fn validate(&mut self, forward: Forward) -> Result<f64, TrainError> {
        let model = self.learner.model().valid();
        let mean = || {
            let (mut sum, mut tokens) = (0.0, 0);
            for batch in self.valid.iter() {
                let output = model.step(batch);
                sum += f64::from(output.loss.into_scalar_f32()) * output.tokens as f64;
                tokens += output.tokens;
            }
            sum / tokens as f64
        };
        let mut loss = f64::NAN;
        match forward {
            Forward::Recipe => loss = mean(),
            Forward::HighPrecision => {
                self.strategy
                    .numerics
                    .in_high_precision(&mut || loss = mean());
            }
        }
        // Validation is not training: what it found is not a reason to stop the next step.
        let _ = self.strategy.numerics.take_non_finite();
        let bits_per_byte = bits_per_byte(loss, self.strategy.plan.valid_bytes_per_token);
        self.strategy.log(&LogLine::Validation {
            step: self.step,
            forward,
            loss,
            bits_per_byte,
        })?;
        if forward == Forward::Recipe {
            self.show_validation(loss, bits_per_byte);
        }
        Ok(loss)
    }

    /// Sends a validation to the metrics, as one item.
    fn show_validation(&mut self, loss: f64, bits_per_byte: f64) {
        let figures = Figures {
            loss,
            bits_per_byte,
            grad_norm: None,
            tokens_per_second: f64::NAN,
            seconds_left: f64::NAN,
        };
        let loss = Tensor::from_floats([loss], &Default::default());
        let item = LossOutput {
            loss,
            tokens: 0,
            figures: Some(figures),
        };
        let item = TrainingItem::new(item, self.progress(), self.progress(), None, None);
        self.events.process_valid(LearnerEvent::ProcessedItem(item));
    }

    /// Saves a checkpoint, once per step.
    fn save(&mut self) -> Result<(), TrainError> {
        if self.saved == Some(self.step) || self.step == self.strategy.plan.done {
            return Ok(());
        }
        let plan = &self.strategy.plan;
        let model = self.learner.model();
        let records = optimizer_record(&self.learner, &self.store)
            .expect("a learner that took a step has optimizer state");
        let checkpoint = RunCheckpoint {
            state: RunState {
                version: RunState::VERSION,
                step: self.step,
                identity: plan.identity.clone(),
                config: plan.config.clone(),
            },
            parameters: read_parameters::<B, M>(&model),
            moments: read_moments::<B, M>(&model, &records),
        };
        self.strategy.directory.save(&checkpoint, plan.keep)?;
        self.saved = Some(self.step);
        self.strategy.log(&LogLine::Checkpoint { step: self.step })
    }
}

/// burn counts in `usize`.
fn count(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn batches_progress(plan: &StepPlan, step: u64) -> Progress {
    Progress::new(count(step + 1), count(plan.total))
}
