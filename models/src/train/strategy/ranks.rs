//! The ranks of a run: one device each, the first on the caller's thread, the others on their own.
//!
//! burn-train's own strategy for several devices sums gradients in every backward pass, so once per
//! micro-batch; here the loop sums what it has accumulated, once per step.

use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Instant;

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

/// A rank with what it trains and reads.
pub(in crate::train) struct Worker<B: TrainingEngine, M: Trainable<B>> {
    pub(in crate::train) rank: Rank<B>,
    pub(in crate::train) learner: Learner<Components<B, M>>,
    /// Its share of every step.
    pub(in crate::train) batches: TrainBatches<B>,
}

/// All ranks of a run, as burn-train takes them. It hands over the learner of the first.
pub(in crate::train) struct Team<B: TrainingEngine, M: Trainable<B>> {
    strategy: Arc<StepStrategy>,
    first: Mutex<Option<(Rank<B>, TrainBatches<B>)>>,
    others: Mutex<Vec<Worker<B, M>>>,
    /// What the others have trained.
    models: Mutex<Vec<M>>,
}

impl<B: TrainingEngine, M: Trainable<B>> Team<B, M> {
    pub(in crate::train) fn new(
        strategy: Arc<StepStrategy>,
        first: (Rank<B>, TrainBatches<B>),
        others: Vec<Worker<B, M>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            strategy,
            first: Mutex::new(Some(first)),
            others: Mutex::new(others),
            models: Mutex::default(),
        })
    }

    /// The models of all ranks but the first; empty before and after a run that failed.
    pub(in crate::train) fn take_models(&self) -> Vec<M> {
        take(&self.models)
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
        let (rank, batches) = take(&self.first).expect("a strategy is used once");
        let others = take(&self.others);
        let front = Front {
            valid,
            events: components.event_processor,
            store: components.event_store,
        };
        let first = Worker {
            rank,
            learner,
            batches,
        };
        let (outcome, front, learner) = thread::scope(|scope| {
            let others: Vec<_> = others
                .into_iter()
                .map(|worker| self.strategy.spawn(scope, worker))
                .collect();
            let (mut run, batches) = self.strategy.begin(first, Some(front));
            let ended = run.run(&batches, || components.interrupter.should_stop());
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
    /// A rank at the first of its steps, with its share of the data.
    fn begin<B: TrainingEngine, M: Trainable<B>>(
        &self,
        worker: Worker<B, M>,
        front: Option<Front<B, M>>,
    ) -> (Loop<'_, B, M>, TrainBatches<B>) {
        let Rank {
            numerics, exchange, ..
        } = worker.rank;
        let run = Loop {
            strategy: self,
            learner: worker.learner,
            numerics,
            exchange,
            front,
            position: self.plan.position.clone(),
            good: self.plan.position.clone(),
            writer: CheckpointWriter::new(self.directory.clone(), self.plan.keep),
            saved: self.plan.position.step,
            unsaved: None,
            begin: Instant::now(),
            training_seconds: 0.0,
            waited_seconds: 0.0,
            taken: 0,
        };
        (run, worker.batches)
    }

    /// Runs a rank that does not write, on a thread of its own.
    fn spawn<'scope, B: TrainingEngine, M: Trainable<B>>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        worker: Worker<B, M>,
    ) -> ScopedJoinHandle<'scope, Result<M, TrainError>> {
        let rank = worker.rank.exchange.rank();
        let thread = thread::Builder::new().name(format!("rank {rank}"));
        let spawned = thread.stack_size(STACK).spawn_scoped(scope, move || {
            let (mut run, batches) = self.begin(worker, None);
            run.run(&batches, || false)?;
            Ok(run.learner.model())
        });
        spawned.unwrap_or_else(|error| panic!("no thread for rank {rank}: {error}"))
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
