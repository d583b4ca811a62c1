//! What the arithmetic carries from step to step: taken up when a run begins or goes back, followed
//! after an update, and handed to checkpoints.

use burn::tensor::TensorData;
use burn_hybrid_ops::TrainingEngine;

use super::{Loop, Trainable};
use crate::checkpoint::run::{NamedTensors, OF_BACKEND, RunError};
use crate::train::log::LogLine;
use crate::train::oscillation::{TraceSnapshot, Traces};

impl<B: TrainingEngine, M: Trainable<B>> Loop<'_, B, M> {
    /// Takes up what the checkpoint of this position carries.
    pub(super) fn take_up(&mut self, mut carried: NamedTensors) -> Result<(), RunError> {
        let mut problems = Vec::new();
        if let Some(weights) = self.strategy.plan.oscillation.clone() {
            let (model, updates) = (self.learner.model(), self.position.updates);
            match Traces::restore(weights, &model, updates, &mut carried) {
                Ok(traces) => self.traces = Some(traces),
                Err(found) => problems = found,
            }
        }
        let number = |(name, data): (String, TensorData)| {
            let value = data.as_slice::<f32>().ok()?.first().copied()?;
            Some((name.strip_prefix(OF_BACKEND)?.to_owned(), value))
        };
        let (numbers, unknown): (NamedTensors, NamedTensors) = carried
            .into_iter()
            .partition(|(name, _)| name.starts_with(OF_BACKEND));
        let numbers = numbers.into_iter().filter_map(number).collect();
        let refused = self.numerics.take_up(numbers).into_iter();
        let unknown = unknown.into_keys().chain(refused);
        problems.extend(unknown.map(|name| format!("{name}: nothing here carries it")));
        if problems.is_empty() {
            return Ok(());
        }
        let path = self.strategy.directory.checkpoint(self.position.step);
        Err(RunError::Misfit { path, problems })
    }

    /// Follows an update: weights that oscillate are counted and reset at the end of a window.
    pub(super) fn follow_update(&mut self) {
        let Some(traces) = &mut self.traces else {
            return;
        };
        let Some((found, model)) = traces.follow(self.learner.model(), self.position.updates)
        else {
            return;
        };
        if let Some(model) = model {
            self.learner.load_model(model.into_record());
        }
        self.oscillating = Some(found.oscillating);
        let step = self.position.step;
        self.log(&LogLine::Oscillation { step, found });
    }

    /// What a checkpoint of this position carries; reads tensors when it is called.
    pub(super) fn carried(&self) -> impl FnOnce() -> NamedTensors + Send + 'static {
        let traces = self.traces.as_ref().map(Traces::snapshot);
        let numbers = self.numerics.carried();
        move || {
            let mut carried = traces.map_or_else(NamedTensors::new, TraceSnapshot::into_tensors);
            let named = |(name, value)| (format!("{OF_BACKEND}{name}"), TensorData::from([value]));
            carried.extend(numbers.into_iter().map(named));
            carried
        }
    }
}
