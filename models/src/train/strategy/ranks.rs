//! The ranks of a run: one device each, the first on the caller's thread, the others on their own.
//!
//! burn-train's own strategy for several devices sums gradients in every backward pass, so once per
//! micro-batch; here the loop sums what it has accumulated, once per step.

use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Instant;

use burn::tensor::Device;
use burn::train::{
    Learner, SupervisedLearningStrategy, SupervisedTrainingEventProcessor, TrainLoader,
    TrainingComponents, ValidLoader,
};
use burn_hybrid_ops::TrainingEngine;

use super::{Components, Front, Loop, StepStrategy, Trainable};
use crate::checkpoint::run::writer::CheckpointWriter;
use crate::data::TrainBatches;
use crate::train::TrainError;
use crate::train::exchange::{Alone, Exchange};
use crate::train::numerics::Numerics;

/// Stack of a rank's thread, as large as the main thread's is at least: backward nests deeply.
const STACK: usize = 32 << 20;

/// What a rank has of its own besides model and data.
pub struct Rank<B: TrainingEngine> {
    /// Its device.
    pub device: B::Device,
    /// How the arithmetic of the device follows the run.
    pub numerics: Box<dyn Numerics>,
    /// How it hears of the others.
    pub exchange: Box<dyn Exchange<B>>,
}

impl<B: TrainingEngine> Rank<B> {
    /// The only rank of a run on one device.
    pub fn alone(device: B::Device, numerics: Box<dyn Numerics>) -> Self {
        Self {
            device,
            numerics,
            exchange: Box::new(Alone),
        }
    }
}

impl<B: TrainingEngine> std::fmt::Debug for Rank<B> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Rank")
            .field("rank", &self.exchange.rank())
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

/// Makes what a rank trains on its device.
pub(in crate::train) type MakeLearner<B, M> =
    Arc<dyn Fn(&Device<B>) -> Result<Learner<Components<B, M>>, TrainError> + Send + Sync>;

/// All ranks of a run, as burn-train takes them. It hands over the learner of the first.
pub(in crate::train) struct Team<B: TrainingEngine, M: Trainable<B>> {
    strategy: Arc<StepStrategy>,
    /// Each with its share of every step.
    ranks: Mutex<Vec<(Rank<B>, TrainBatches<B>)>>,
    learner: MakeLearner<B, M>,
    /// What the ranks but the first have trained.
    models: Mutex<Vec<M>>,
}

impl<B: TrainingEngine, M: Trainable<B>> Team<B, M> {
    pub(in crate::train) fn new(
        strategy: Arc<StepStrategy>,
        ranks: Vec<(Rank<B>, TrainBatches<B>)>,
        learner: MakeLearner<B, M>,
    ) -> Arc<Self> {
        Arc::new(Self {
            strategy,
            ranks: Mutex::new(ranks),
            learner,
            models: Mutex::default(),
        })
    }

    /// The models of all ranks but the first; empty before and after a run that failed.
    pub(in crate::train) fn take_models(&self) -> Vec<M> {
        take(&self.models)
    }

    /// Runs a rank that does not write, on a thread of its own. Its tensors are made there too:
    /// backends tell the work of threads apart.
    fn spawn<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        (rank, batches): (Rank<B>, TrainBatches<B>),
    ) -> ScopedJoinHandle<'scope, Result<M, TrainError>> {
        let number = rank.exchange.rank();
        let thread = thread::Builder::new().name(format!("rank {number}"));
        let spawned = thread.stack_size(STACK).spawn_scoped(scope, move || {
            let learner = (self.learner)(&rank.device)?;
            let mut run = self.strategy.begin(rank, learner, None);
            run.take_up(self.strategy.carried())?;
            run.run(&batches, || false)?;
            Ok(run.learner.model())
        });
        spawned.unwrap_or_else(|error| panic!("no thread for rank {number}: {error}"))
    }
}

impl<B: TrainingEngine, M: Trainable<B>> SupervisedLearningStrategy<Components<B, M>>
    for Team<B, M>
{
    fn fit(
        &self,
        components: TrainingComponents<Components<B, M>>,
        learner: Learner<Components<B, M>>,
        _train: TrainLoader<Components<B, M>>,
        valid: ValidLoader<Components<B, M>>,
        _starting_epoch: usize,
    ) -> (M, SupervisedTrainingEventProcessor<Components<B, M>>) {
        let mut ranks = take(&self.ranks).into_iter();
        let (first, batches) = ranks.next().expect("a run has a rank and runs once");
        let front = Front {
            valid,
            events: components.event_processor,
            store: components.event_store,
        };
        let (outcome, front, learner) = thread::scope(|scope| {
            let others: Vec<_> = ranks.map(|rank| self.spawn(scope, rank)).collect();
            let mut run = self.strategy.begin(first, learner, Some(front));
            let ended = run
                .take_up(self.strategy.carried())
                .map_err(TrainError::from)
                .and_then(|()| run.run(&batches, || components.interrupter.should_stop()));
            // With its end of the exchange gone, nobody waits for the first rank any more.
            run.exchange = Box::new(Alone);
            let others = all(others.into_iter().map(joined).collect());
            let outcome = cause(ended, others).map(|(ended, models)| {
                *self.models.lock().unwrap_or_else(PoisonError::into_inner) = models;
                run.conclude(ended)
            });
            (run.finish(outcome), run.front, run.learner)
        });
        self.strategy.set_outcome(outcome);
        let front = front.expect("the first rank has it");
        (learner.model(), front.events)
    }
}

impl StepStrategy {
    /// A rank before the first of its steps.
    fn begin<B: TrainingEngine, M: Trainable<B>>(
        &self,
        rank: Rank<B>,
        learner: Learner<Components<B, M>>,
        front: Option<Front<B, M>>,
    ) -> Loop<'_, B, M> {
        Loop {
            strategy: self,
            learner,
            numerics: rank.numerics,
            exchange: rank.exchange,
            front,
            position: self.plan.position.clone(),
            good: self.plan.position.clone(),
            traces: None,
            oscillating: None,
            writer: CheckpointWriter::new(self.directory.clone(), self.plan.keep),
            saved: self.plan.position.step,
            due: false,
            best_under_way: None,
            unsaved: None,
            begin: Instant::now(),
            training_seconds: 0.0,
            waited_seconds: 0.0,
            taken: 0,
        }
    }
}

fn take<T: Default>(place: &Mutex<T>) -> T {
    std::mem::take(&mut *place.lock().unwrap_or_else(PoisonError::into_inner))
}

/// What a rank has trained; its panic goes on here.
fn joined<M>(rank: ScopedJoinHandle<'_, Result<M, TrainError>>) -> Result<M, TrainError> {
    rank.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// What all have trained, or the error of one, rather than of one that only heard of it.
fn all<M>(ranks: Vec<Result<M, TrainError>>) -> Result<Vec<M>, TrainError> {
    let (mut models, mut errors) = (Vec::new(), Vec::new());
    for rank in ranks {
        match rank {
            Ok(model) => models.push(model),
            Err(error) => errors.push(error),
        }
    }
    errors.sort_by_key(|error| matches!(error, TrainError::RankLost(_)));
    errors.into_iter().next().map_or(Ok(models), Err)
}

/// How the first rank and the others ended. If one only heard of another one's error, then with
/// this error.
fn cause<T, U>(
    first: Result<T, TrainError>,
    others: Result<U, TrainError>,
) -> Result<(T, U), TrainError> {
    match (first, others) {
        (Ok(first), Ok(others)) => Ok((first, others)),
        (Err(TrainError::RankLost(_)), Err(error)) | (Err(error), _) | (_, Err(error)) => {
            Err(error)
        }
    }
}
