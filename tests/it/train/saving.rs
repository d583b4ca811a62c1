//! What a save that fails leaves of the others.

use std::path::PathBuf;

use burn::backend::{Autodiff, NdArray};
use burn_nvfp4_models::train::log::{self, Forward};

use super::*;
use crate::device::exclusive;

/// Puts a file where the checkpoint of a step is to be written, before that step.
#[derive(Debug)]
struct InTheWay {
    step: u64,
    file: PathBuf,
}

impl Numerics for InTheWay {
    fn begin_step(&self, step: u64, _total: u64) {
        if step + 1 == self.step {
            std::fs::write(&self.file, b"").unwrap();
        }
    }

    fn take_non_finite(&self) -> Option<String> {
        None
    }

    fn in_high_precision(&self, forward: &mut dyn FnMut()) {
        forward();
    }
}

/// Steps with a validation, and its loss.
fn validations(run: &Run<'_>) -> Vec<(u64, f64)> {
    let lines = log::read(&run.directory.log()).unwrap();
    let losses = lines.into_iter().filter_map(|line| {
        let LogLine::Validation {
            step,
            forward: Forward::Recipe,
            loss,
            ..
        } = line
        else {
            return None;
        };
        Some((step, loss))
    });
    losses.collect()
}

/// Kills: a checkpoint that was never written as the best one, so that the best of those that were
/// goes.
#[test]
fn the_best_checkpoint_is_one_that_could_be_saved() {
    let _device = exclusive();
    let place = Place::new();
    // So fast that the loss goes up and down.
    let run = |name: String, peak, snapshot| Run {
        total: 36,
        keep: 1,
        peak,
        snapshot,
        ..place.run(&name, shape(2, 32, 1))
    };
    let go = |run: &Run<'_>, step, file| {
        let numerics = Box::new(InTheWay { step, file });
        let outcome = run.go::<Autodiff<NdArray>>(numerics, None, &Interrupter::new());
        outcome.unwrap();
        validations(run)
    };
    let by_loss = |one: &&(u64, f64), other: &&(u64, f64)| one.1.total_cmp(&other.1);
    // Losses of which the lowest is not the last, nor is the lowest of the others.
    let fitting = |peak: f64| {
        let losses = go(
            &run(format!("{peak}"), peak, Snapshot::Shared),
            0,
            PathBuf::new(),
        );
        let last = losses.last()?.0;
        let lowest = losses.iter().min_by(by_loss)?.0;
        let others = losses.iter().filter(|it| it.0 != lowest);
        let best = others.min_by(by_loss)?.0;
        (lowest != last && best != last).then_some((peak, losses, [lowest, best, last]))
    };
    let found = [0.3, 0.25, 0.35, 0.2, 0.4, 0.15]
        .into_iter()
        .find_map(fitting);
    let (peak, losses, [lowest, best, last]) = found.expect("one of six rates fits");
    for snapshot in [Snapshot::Shared, Snapshot::Copied] {
        let run = run(format!("{snapshot:?}"), peak, snapshot);
        let file = format!("step-{lowest:08}.part");
        let file = run.directory.checkpoints().join(file);
        assert_eq!(go(&run, lowest, file), losses);
        let lines = log::read(&run.directory.log()).unwrap();
        let failed =
            |line: &LogLine| matches!(line, LogLine::SaveFailed { step, .. } if *step == lowest);
        assert!(lines.iter().any(failed));
        assert_eq!(run.directory.steps().unwrap(), [best, last]);
    }
}
