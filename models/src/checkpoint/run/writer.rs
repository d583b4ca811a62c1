//! Saves checkpoints on a thread, beside training.
//!
//! At most one save is under way, and the state is taken for the next one when it is over: so one
//! copy of the whole state is in the host's memory at a time. What goes wrong is reported and stops
//! nothing: the next save may succeed, and what stands is untouched.

use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::{RunCheckpoint, RunDirectory, RunError};

/// What training waits for when a checkpoint is due, besides the save before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snapshot {
    /// For nothing: the tensors lie in the host's memory already and are shared with the thread
    /// that saves; the next update makes new ones.
    Shared,
    /// For the copy to the host: a device has no room for its tensors twice.
    Copied,
}

/// A thread that saves checkpoints of one run.
#[derive(Debug)]
pub struct CheckpointWriter {
    directory: RunDirectory,
    keep: usize,
    under_way: Option<Save>,
}

/// What became of a save.
#[derive(Debug)]
pub struct Written {
    /// Step of the checkpoint.
    pub step: u64,
    /// Seconds on the thread.
    pub seconds: f64,
    /// Seconds before them in which training waited: for the save before, and for the copy.
    pub waited: f64,
    /// Size in bytes, or why there is none.
    pub saved: Result<u64, RunError>,
    /// Whether older checkpoints could be removed.
    pub rotated: Result<(), RunError>,
}

#[derive(Debug)]
enum Save {
    Running(Begun, JoinHandle<Written>),
    Over(Written),
}

/// What is known of a save when its thread starts.
#[derive(Clone, Copy, Debug)]
struct Begun {
    step: u64,
    waited: f64,
}

impl CheckpointWriter {
    /// A writer into `directory` that leaves the `keep` newest checkpoints and the best one.
    pub fn new(directory: RunDirectory, keep: usize) -> Self {
        Self {
            directory,
            keep,
            under_way: None,
        }
    }

    /// Begins to save the checkpoint of a step, which `take` hands out: on the thread, or here if
    /// it is to be copied. Waits for the save before it, and returns what became of that. Training
    /// waits `since` then.
    pub fn begin(
        &mut self,
        step: u64,
        since: Instant,
        snapshot: Snapshot,
        take: impl FnOnce() -> RunCheckpoint + Send + 'static,
    ) -> Option<Written> {
        let before = self.wait();
        match snapshot {
            Snapshot::Shared => self.start(step, since, take),
            Snapshot::Copied => {
                let checkpoint = take();
                self.start(step, since, || checkpoint);
            }
        }
        before
    }

    /// Starts the thread of a save for which training waits `since` then.
    fn start(
        &mut self,
        step: u64,
        since: Instant,
        take: impl FnOnce() -> RunCheckpoint + Send + 'static,
    ) {
        let keep = self.keep;
        let directory = self.directory.clone();
        let waited = since.elapsed().as_secs_f64();
        let thread = thread::Builder::new().name("checkpoint".to_owned());
        let spawned = thread.spawn(move || {
            let begin = Instant::now();
            let checkpoint = take();
            let saved = directory.save(&checkpoint);
            let rotated = match &saved {
                Ok(_) => directory.rotate(&checkpoint.state, keep),
                Err(_) => Ok(()),
            };
            Written {
                step,
                seconds: begin.elapsed().as_secs_f64(),
                waited,
                saved,
                rotated,
            }
        });
        let begun = Begun { step, waited };
        self.under_way = Some(match spawned {
            Ok(thread) => Save::Running(begun, thread),
            Err(error) => Save::Over(self.failed(begun, error)),
        });
    }

    /// What became of the last save, if it is over and was not asked about before.
    pub fn poll(&mut self) -> Option<Written> {
        match &self.under_way {
            Some(Save::Running(_, thread)) if !thread.is_finished() => None,
            Some(_) => self.wait(),
            None => None,
        }
    }

    /// Waits for the save that is under way, if one is.
    pub fn wait(&mut self) -> Option<Written> {
        match self.under_way.take()? {
            Save::Over(written) => Some(written),
            Save::Running(begun, thread) => Some(thread.join().unwrap_or_else(|_| {
                self.failed(
                    begun,
                    std::io::Error::other("the thread that saves panicked"),
                )
            })),
        }
    }

    fn failed(&self, Begun { step, waited }: Begun, error: std::io::Error) -> Written {
        let path = self.directory.checkpoint(step);
        Written {
            step,
            seconds: 0.0,
            waited,
            saved: Err(RunError::io(path, "write the checkpoint")(error)),
            rotated: Ok(()),
        }
    }
}

impl Drop for CheckpointWriter {
    fn drop(&mut self) {
        // A process that ends would end the thread in the middle of a file.
        self.wait();
    }
}
