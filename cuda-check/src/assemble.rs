//! Assembles what was recorded, on several threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::Result;

use crate::nvrtc::Nvrtc;
use crate::passed::Passed;
use crate::properties::Architecture;
use crate::record::{Kernel, Recording};

/// What became of one kernel.
#[derive(Clone, Debug)]
pub struct Outcome<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// What NVRTC made of it.
    pub verdict: Verdict,
}

/// What NVRTC made of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Machine code.
    Assembled,
    /// Nothing now: the same source was assembled in an earlier run.
    PassedBefore,
    /// A complaint.
    Failed(String),
}

/// Assembles every kernel of `recording` for `architecture`; outcomes in the order of the sources.
///
/// # Errors
/// If the folder of earlier results cannot be written.
pub fn assemble<'a>(
    nvrtc: &Nvrtc,
    passed: &Passed,
    architecture: Architecture,
    recording: &'a Recording,
    threads: usize,
) -> Result<Vec<Outcome<'a>>> {
    let kernels: Vec<_> = recording.kernels.values().collect();
    let next = AtomicUsize::new(0);
    let verdicts = Mutex::new(vec![Verdict::PassedBefore; kernels.len()]);
    let work = || -> Result<()> {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(kernel) = kernels.get(index) else {
                return Ok(());
            };
            if passed.contains(&kernel.source, architecture) {
                continue;
            }
            let verdict = match nvrtc.assemble(&kernel.source, architecture) {
                Ok(()) => {
                    passed.insert(&kernel.source, architecture)?;
                    Verdict::Assembled
                }
                Err(log) => Verdict::Failed(format!("{log:#}")),
            };
            verdicts.lock().expect("no thread panics with it")[index] = verdict;
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut results = workers
            .into_iter()
            .map(|worker| worker.join().expect("assembling does not panic"));
        results.try_for_each(|result| result)
    })?;
    let verdicts = verdicts.into_inner().expect("no thread panicked with it");
    let outcomes = kernels.into_iter().zip(verdicts);
    Ok(outcomes
        .map(|(kernel, verdict)| Outcome { kernel, verdict })
        .collect())
}
