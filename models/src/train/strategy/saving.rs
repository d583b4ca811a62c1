//! Checkpoints of a run in progress: what training waits for, what becomes of the save beside it,
//! and the way back to a checkpoint.

use std::time::Instant;

use burn_hybrid_ops::TrainingEngine;

use super::{Loop, Trainable};
use crate::checkpoint::run::writer::Written;
use crate::checkpoint::run::{
    Best, NamedTensors, Position, RunCheckpoint, RunError, RunState, Versions,
};
use crate::train::TrainError;
use crate::train::exchange::Word;
use crate::train::guard::SpikeAction;
use crate::train::log::{LogLine, RewindLine, SkipReason};
use crate::train::optim::{Records, read_moments, write_moments};
use crate::train::params::{read_parameters, write_parameters};
use crate::train::plan::{Ending, Outcome};
use crate::train::tap::optimizer_record;

impl<B: TrainingEngine, M: Trainable<B>> Loop<'_, B, M> {
    /// Has the state saved as that of `position`, once per step, by the rank that writes; with the
    /// loss of a validation of this state, if there was one.
    pub(super) fn save(&mut self, mut position: Position, validated: Option<f64>) {
        let step = position.step;
        if self.front.is_none() || step <= self.saved {
            return;
        }
        let begin = Instant::now();
        // What became of the save before says which of the others is the best one.
        let before = self.writer.wait();
        self.note(before);
        let this = validated.filter(|loss| loss.is_finite());
        let this = this.map(|loss| Best { step, loss });
        let standing = self.position.best;
        let is_best = |this: &Best| standing.is_none_or(|best| this.loss < best.loss);
        self.best_under_way = this.filter(is_best);
        position.best = self.best_under_way.or(standing);
        let plan = &self.strategy.plan;
        let state = RunState {
            version: RunState::VERSION,
            position,
            versions: Versions::current(),
            identity: plan.identity.clone(),
            config: plan.config.clone(),
        };
        let Some(front) = &self.front else {
            return;
        };
        let model = self.learner.model();
        let records = optimizer_record(&self.learner, &front.store);
        let carried = self.carried();
        let take = move || RunCheckpoint {
            state,
            parameters: read_parameters::<B, M>(&model),
            // Before the first update there are none.
            moments: records.map_or_else(NamedTensors::new, |records| {
                read_moments::<B, M>(&model, &records)
            }),
            carried: carried(),
        };
        self.saved = step;
        let before = self.writer.begin(step, begin, plan.snapshot, take);
        self.waited_seconds += begin.elapsed().as_secs_f64();
        self.note(before);
    }

    /// Waits for the save that is under way, if one is.
    pub(super) fn wait_for_writer(&mut self) {
        let begin = Instant::now();
        let written = self.writer.wait();
        self.waited_seconds += begin.elapsed().as_secs_f64();
        self.note(written);
    }

    /// Hears what became of a save, without waiting for it.
    pub(super) fn poll_writer(&mut self) {
        let written = self.writer.poll();
        self.note(written);
    }

    /// Logs what became of a save, and sounds what went wrong.
    fn note(&mut self, written: Option<Written>) {
        let Some(Written {
            step,
            seconds,
            waited,
            saved,
            rotated,
        }) = written
        else {
            return;
        };
        let failed = |error: &RunError, consequence: &str| {
            self.alarm(&format!("step {step}: {error}; {consequence}"));
            let error = error.to_string();
            self.log(&LogLine::SaveFailed { step, error });
        };
        let unsaved = match saved {
            Ok(bytes) => {
                self.log(&LogLine::Checkpoint {
                    step,
                    bytes,
                    seconds,
                    waited: Some(waited),
                });
                None
            }
            Err(error) => {
                failed(&error, "the run goes on, earlier checkpoints are intact");
                Some(error.to_string())
            }
        };
        if let Err(error) = rotated {
            failed(&error, "the run goes on, an older checkpoint stays");
        }
        let best = self.best_under_way.take();
        // What could not be saved is no reason to remove the best one that stands.
        if unsaved.is_none() {
            self.position.best = best.or(self.position.best);
        }
        self.unsaved = unsaved;
    }

    /// The last act: waits for the writer, and says in the log why the run stops.
    pub(super) fn finish(
        &mut self,
        outcome: Result<Outcome, TrainError>,
    ) -> Result<Outcome, TrainError> {
        self.wait_for_writer();
        let step = self.position.step;
        let stopped = |reason: String| LogLine::Stopped { step, reason };
        match outcome {
            Ok(outcome) => {
                if outcome.ending == Ending::Interrupted {
                    self.log(&stopped("interrupted".to_owned()));
                }
                Ok(Outcome {
                    seconds: self.begin.elapsed().as_secs_f64(),
                    waited_seconds: self.waited_seconds,
                    unsaved: self.unsaved.take(),
                    ..outcome
                })
            }
            Err(error) => {
                self.log(&stopped(error.to_string()));
                Err(error)
            }
        }
    }

    /// Goes back to the newest intact checkpoint from before the row of outliers, and on with the
    /// data after it.
    /// Without one, the step is skipped. Every rank reads the checkpoint itself.
    pub(super) fn rewind(&mut self, [loss, norm]: [f64; 2], limit: f64) -> Result<(), TrainError> {
        self.wait_for_writer();
        // Nobody looks before the rank that writes has written.
        self.exchange.gather(Word::default())?;
        let from = self.position.step;
        let rewinds = self.position.rewinds + 1;
        let spike = self.strategy.plan.guard.spike;
        let at_most = spike.map_or(0, |spike| match spike.action {
            SpikeAction::Rewind { at_most, .. } => at_most,
            SpikeAction::Skip => 0,
        });
        if rewinds > at_most {
            return Err(TrainError::Spikes {
                step: from,
                loss,
                limit,
                rewinds: at_most,
            });
        }
        // One from inside of the row has the outliers' updates in it.
        let is_before_the_row = |state: &RunState| state.position.outliers_in_a_row == 0;
        let directory = &self.strategy.directory;
        let found = match directory.load_newest_intact_where(is_before_the_row) {
            Ok(found) => found,
            Err(RunError::NoCheckpoint { .. }) => {
                self.position.skipped += 1;
                return self.skip(SkipReason::Spike, [loss, norm], None);
            }
            Err(error) => return Err(error.into()),
        };
        for error in &found.damaged {
            self.alarm(&format!("{error}; it is passed over"));
        }
        let (to, data_step) = (found.checkpoint.step(), self.position.data_step);
        // Nobody moves one while another rank looks.
        self.exchange.gather(Word::default())?;
        if self.front.is_some() {
            for aside in self.strategy.directory.recover(to)? {
                let aside = aside.display();
                self.alarm(&format!("a checkpoint of a later step is now {aside}"));
            }
        }
        self.restore(found.checkpoint)?;
        self.due = false;
        self.position.outliers_in_a_row = 0;
        // The batches go on.
        self.position.data_step = data_step;
        self.position.rewinds = rewinds;
        let line = RewindLine {
            from,
            to,
            loss,
            limit,
            rewinds,
        };
        self.alarm(&format!(
            "step {from}: loss {loss}, more than {limit:.4}: back to step {to}, past the data in \
             between; {rewinds} of at most {at_most}"
        ));
        self.log(&LogLine::Rewind(line));
        self.position.log_bytes = self.strategy.log_bytes();
        self.good = self.position.clone();
        Ok(())
    }

    /// Puts the state of a checkpoint in the place of the present one.
    fn restore(&mut self, checkpoint: RunCheckpoint) -> Result<(), RunError> {
        let step = checkpoint.step();
        let misfit = |problems| RunError::Misfit {
            path: self.strategy.directory.checkpoint(step),
            problems,
        };
        let position = checkpoint.state.position;
        // What is there goes before what is read comes: a device that a run fills has no room for
        // both. A checkpoint that does not fit ends the run.
        self.learner.load_optim(Records::<B, M>::default());
        let model = self.learner.model();
        let device = model.devices().into_iter().next().unwrap_or_default();
        let model = write_parameters::<B, M>(model, &checkpoint.parameters, &device);
        self.learner
            .load_model(model.map_err(misfit)?.into_record());
        let model = self.learner.model();
        let updates = usize::try_from(position.updates).unwrap_or(usize::MAX);
        let records = write_moments::<B, M>(&model, checkpoint.moments, updates, &device);
        self.learner.load_optim(records.map_err(misfit)?);
        self.learner.load_scheduler(step);
        self.position = position;
        self.saved = step;
        self.take_up(checkpoint.carried)
    }
}
