//! Gets the optimizer's state out of burn-train's `Learner`.
//!
//! The learner keeps its optimizer private; the only way out is burn's `LearningCheckpointer`,
//! which hands records to `Checkpointer`s on threads and panics when one fails. So the
//! checkpointers here do nothing but pass the optimizer's record on; [`crate::checkpoint::run`]
//! writes it, and reports what goes wrong.

use std::sync::{Arc, Mutex, PoisonError};

use burn::record::Record;
use burn::tensor::backend::Backend;
use burn::train::checkpoint::{
    AsyncCheckpointer, Checkpointer, CheckpointerError, CheckpointingAction, CheckpointingStrategy,
};
use burn::train::metric::store::EventStoreClient;
use burn::train::{Learner, LearnerOptimizerRecord, LearningCheckpointer, LearningComponentsTypes};

/// Where the optimizer's record lands.
type Slot<R> = Arc<Mutex<Option<R>>>;

/// The current state of the learner's optimizer.
pub(crate) fn optimizer_record<LC: LearningComponentsTypes>(
    learner: &Learner<LC>,
    store: &EventStoreClient,
) -> Option<LearnerOptimizerRecord<LC>>
where
    LearnerOptimizerRecord<LC>: 'static,
{
    let slot: Slot<LearnerOptimizerRecord<LC>> = Arc::default();
    let mut tap = LearningCheckpointer::<LC>::new(
        AsyncCheckpointer::new(Discard),
        AsyncCheckpointer::new(Keep(slot.clone())),
        AsyncCheckpointer::new(Discard),
        Box::new(Always),
    );
    tap.checkpoint(learner, 0, store);
    // Dropping joins the checkpointers' threads: after this the slot is filled.
    drop(tap);
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Saves whenever it is asked.
struct Always;

impl CheckpointingStrategy for Always {
    fn checkpointing(&mut self, _: usize, _: &EventStoreClient) -> Vec<CheckpointingAction> {
        vec![CheckpointingAction::Save]
    }
}

struct Discard;

impl<R: Record<B>, B: Backend> Checkpointer<R, B> for Discard {
    fn save(&self, _epoch: usize, _record: R) -> Result<(), CheckpointerError> {
        Ok(())
    }

    fn delete(&self, _epoch: usize) -> Result<(), CheckpointerError> {
        Ok(())
    }

    fn restore(&self, _epoch: usize, _device: &B::Device) -> Result<R, CheckpointerError> {
        Err(CheckpointerError::Unknown(
            "nothing is kept here".to_owned(),
        ))
    }
}

struct Keep<R>(Slot<R>);

impl<R: Record<B>, B: Backend> Checkpointer<R, B> for Keep<R> {
    fn save(&self, _epoch: usize, record: R) -> Result<(), CheckpointerError> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(record);
        Ok(())
    }

    fn delete(&self, _epoch: usize) -> Result<(), CheckpointerError> {
        Ok(())
    }

    fn restore(&self, _epoch: usize, _device: &B::Device) -> Result<R, CheckpointerError> {
        Err(CheckpointerError::Unknown(
            "nothing is restored here".to_owned(),
        ))
    }
}
