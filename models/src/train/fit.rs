//! Puts a run together: burn-train's `SupervisedTraining` and `Learner` around our loop.

use std::io::Write;
use std::num::NonZeroUsize;
use std::sync::Arc;

use burn::module::AutodiffModule;
use burn::train::{Interrupter, Learner, SupervisedTraining, TrainingStrategy};
use burn_hybrid_ops::TrainingEngine;

use crate::checkpoint::run::{RunCheckpoint, RunDirectory, RunError};
use crate::data::{TrainBatches, ValidationBatches};

use super::TrainError;
use super::layers::LayerMetric;
use super::metrics::{Figure, FigureMetric};
use super::no_metric_log::NoMetricLog;
use super::optim::{GroupedAdamW, OptimizerConfig, write_moments};
use super::params::write_parameters;
use super::plan::Outcome;
use super::renderer::PlainRenderer;
use super::schedule::WarmupStableDecay;
use super::strategy::ranks::{MakeLearner, Rank, Team};
use super::strategy::{Components, StepStrategy, Trainable};

/// Where progress is shown.
pub enum Display {
    /// burn-train's TUI, which takes the terminal over.
    Terminal,
    /// A line every so many steps.
    Plain {
        /// Where lines go.
        sink: Box<dyn Write + Send + Sync>,
        /// Steps between lines.
        every: usize,
    },
}

impl std::fmt::Debug for Display {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Terminal => "Terminal",
            Self::Plain { .. } => "Plain",
        })
    }
}

/// A model and the optimizer that belongs to it.
#[derive(Debug)]
pub struct Trainee<B: TrainingEngine, M: Trainable<B>> {
    model: M,
    optimizer: GroupedAdamW<B, M>,
}

impl<B: TrainingEngine, M: Trainable<B>> Trainee<B, M> {
    /// A model that has not been trained.
    pub fn new(model: M, config: &OptimizerConfig) -> Self {
        Self {
            model,
            optimizer: GroupedAdamW::new(config),
        }
    }

    /// The state of a checkpoint, in the place of a model of the same shape.
    ///
    /// # Errors
    /// [`RunError::Misfit`] with every tensor that does not fit.
    pub fn restore(
        self,
        checkpoint: RunCheckpoint,
        directory: &RunDirectory,
        device: &B::Device,
    ) -> Result<Self, RunError> {
        use burn::optim::Optimizer;

        let step = checkpoint.step();
        let misfit = |problems| RunError::Misfit {
            path: directory.checkpoint(step),
            problems,
        };
        let updates = checkpoint.state.position.updates;
        let updates = usize::try_from(updates).unwrap_or(usize::MAX);
        let model =
            write_parameters::<B, M>(self.model, &checkpoint.parameters, device).map_err(misfit)?;
        let records =
            write_moments::<B, M>(&model, checkpoint.moments, updates, device).map_err(misfit)?;
        Ok(Self {
            model,
            optimizer: self.optimizer.load_record(records),
        })
    }
}

/// What a run reads.
#[derive(Debug)]
pub struct Batches<B: TrainingEngine> {
    /// Training: whole steps, from that on at which the run begins. Ranks share them.
    pub train: TrainBatches<B>,
    /// Validation, on the device of the first rank.
    pub valid: ValidationBatches<B::InnerBackend>,
}

/// Trains until the last step or until `interrupter` stops the run, with one rank or several.
///
/// Every rank calls `trainee` on its own thread, for its device, the first one first; what it gives
/// has to be the same on each. Returns how the run ended and the models of all ranks without
/// autodiff, which are equal.
///
/// # Errors
/// [`TrainError::Uneven`] if the ranks cannot share a step evenly, what `trainee` reports, and
/// whatever stopped the run: NaN too many times in a row, losses that stay up.
pub fn fit<B: TrainingEngine, M: Trainable<B>>(
    ranks: Vec<Rank<B>>,
    trainee: impl Fn(&B::Device) -> Result<Trainee<B, M>, TrainError> + Send + Sync + 'static,
    batches: Batches<B>,
    strategy: &Arc<StepStrategy>,
    display: Display,
    interrupter: Interrupter,
) -> Result<(Outcome, Vec<M::Inference>), TrainError> {
    let plan = strategy.plan();
    let count = NonZeroUsize::new(ranks.len()).expect("a run has a rank");
    let share = |rank: Rank<B>| {
        let (number, device) = (rank.exchange.rank(), rank.device.clone());
        let share = batches.train.share(number, count, device)?;
        Ok((rank, share))
    };
    let ranks = ranks.into_iter().map(share);
    let ranks = ranks.collect::<Result<Vec<_>, TrainError>>()?;
    let (schedule, done) = (plan.schedule, plan.position.step);
    let make: MakeLearner<B, M> = Arc::new(move |device| {
        let Trainee { model, optimizer } = trainee(device)?;
        let scheduler = WarmupStableDecay::after(schedule, done);
        Ok(Learner::new(model, optimizer, scheduler))
    });
    let learner = make(&ranks[0].0.device)?;
    let team = Team::new(strategy.clone(), ranks, make);
    let mut training = SupervisedTraining::<Components<B, M>>::new(
        strategy.directory().path(),
        Arc::new(batches.train.clone()),
        Arc::new(batches.valid),
    )
    .with_interrupter(interrupter)
    .with_metric_logger(NoMetricLog)
    .with_application_logger(None)
    .with_training_strategy(TrainingStrategy::Custom(team.clone()));
    let is_shown = |figure: &Figure| match figure {
        Figure::FlopUtilisation => plan.peak_flops.is_some(),
        Figure::OscillatingWeights => plan.oscillation.is_some(),
        Figure::Loss
        | Figure::BitsPerByte
        | Figure::LearningRate
        | Figure::GradNorm
        | Figure::TokensPerSecond
        | Figure::SkippedSteps
        | Figure::SecondsLeft => true,
    };
    for figure in Figure::ALL.into_iter().filter(is_shown) {
        training = training.metric_train_numeric(FigureMetric::new(figure));
    }
    for layer in &plan.layers {
        training = training.metric_train_numeric(LayerMetric::new(layer));
    }
    for figure in [Figure::Loss, Figure::BitsPerByte] {
        training = training.metric_valid_numeric(FigureMetric::new(figure));
    }
    if let Display::Plain { sink, every } = display {
        training = training.renderer(PlainRenderer::new(sink, every));
    }
    let result = training.launch(learner);
    let others = team.take_models();
    let others = others.iter().map(AutodiffModule::valid);
    let models = std::iter::once(result.model).chain(others).collect();
    // Dropping the renderer gives the terminal back before anything else is written.
    drop(result.renderer);
    let outcome = strategy
        .take_outcome()
        .expect("launch runs the strategy to its end")?;
    Ok((outcome, models))
}
