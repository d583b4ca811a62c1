//! Steps that do not update the model: skipped, counted, named; spikes skipped or gone back from.

use std::sync::atomic::{AtomicU64, Ordering};

use burn::backend::{Autodiff, NdArray};
use burn_nvfp4_models::checkpoint::run::differences;
use burn_nvfp4_models::train::guard::{SpikeAction, SpikeGuard};
use burn_nvfp4_models::train::log::{self, SkipReason};
use burn_nvfp4_models::train::plan::Ending;

use super::*;
use crate::device::exclusive;

type B = Autodiff<NdArray>;

/// Says of some steps (counted from 1) that an operand was no number.
#[derive(Debug, Default)]
struct Broken {
    steps: Vec<u64>,
    now: AtomicU64,
}

impl Broken {
    fn at(steps: &[u64]) -> Box<Self> {
        let (steps, now) = (steps.to_vec(), AtomicU64::default());
        Box::new(Self { steps, now })
    }
}

impl Numerics for Broken {
    fn begin_step(&self, step: u64, _total: u64) {
        self.now.store(step + 1, Ordering::SeqCst);
    }

    fn take_non_finite(&self) -> Option<String> {
        let now = self.now.swap(0, Ordering::SeqCst);
        self.steps
            .contains(&now)
            .then(|| "dgrad.lhs of layers.1.mixer.up_proj".to_owned())
    }

    fn in_high_precision(&self, forward: &mut dyn FnMut()) {
        forward();
    }
}

fn guard(non_finite_in_a_row: u64) -> GuardConfig {
    GuardConfig {
        non_finite_in_a_row,
        spike: None,
    }
}

/// Every step that the run stands on: number, bits of the loss, or why it was skipped.
fn steps(run: &Run<'_>) -> Vec<(u64, String)> {
    let lines = log::current(log::read(&run.directory.log()).unwrap());
    let mut steps = Vec::new();
    for line in lines {
        if let LogLine::Step { step, loss, .. } = line {
            steps.push((step, format!("{:x}", loss.to_bits())));
        } else if let LogLine::Skipped(skipped) = line {
            let place = skipped.place.unwrap_or_default();
            steps.push((skipped.step, format!("{:?} {place}", skipped.reason)));
        }
    }
    steps
}

#[test]
fn a_bad_step_is_skipped_and_the_run_goes_on_also_from_a_checkpoint_in_between() {
    let _device = exclusive();
    let place = Place::new();
    let run = |name: &str| Run {
        total: 8,
        save_every: 4,
        guard: guard(3),
        ..place.run(name, shape(2, 32, 1))
    };
    let (whole, parts) = (run("whole"), run("parts"));
    let broken = || Broken::at(&[3, 4, 6]);
    let outcome = whole.go::<B>(broken(), None, &Interrupter::new()).unwrap();
    assert_eq!((outcome.step, outcome.skipped), (8, 3));
    let found = steps(&whole);
    let numbers: Vec<u64> = found.iter().map(|step| step.0).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8]);
    let named = "NonFinite dgrad.lhs of layers.1.mixer.up_proj";
    assert_eq!((found[2].1.as_str(), found[5].1.as_str()), (named, named));

    // The checkpoint of step 4 was taken after two updates, in the middle of a row.
    parts.go::<B>(broken(), None, &Interrupter::new()).unwrap();
    let checkpoint = parts.directory.load(Some(4)).unwrap();
    let position = &checkpoint.state.position;
    let counts = (
        position.updates,
        position.skipped,
        position.non_finite_in_a_row,
    );
    assert_eq!(counts, (2, 2, 2));
    let resumed = parts.go::<B>(broken(), Some(checkpoint), &Interrupter::new());
    assert_eq!(resumed.unwrap().skipped, 3);
    assert_eq!(steps(&parts), found);
    let (a, b) = (whole.directory.load(None), parts.directory.load(None));
    let (a, b) = (a.unwrap(), b.unwrap());
    for (name, data) in a.parameters.iter().chain(&a.moments) {
        let other = b.parameters.get(name).or_else(|| b.moments.get(name));
        assert!(data.as_bytes() == other.unwrap().as_bytes(), "{name}");
    }
}

#[test]
fn too_many_bad_steps_in_a_row_stop_the_run_with_the_last_good_state() {
    let _device = exclusive();
    let place = Place::new();
    let run = |name: &str| Run {
        total: 100,
        save_every: 100,
        guard: guard(3),
        ..place.run(name, shape(2, 32, 1))
    };
    let stopped = run("stopped");
    let error = stopped
        .go::<B>(Broken::at(&[4, 6, 7, 8]), None, &Interrupter::new())
        .unwrap_err()
        .to_string();
    for words in [
        "step 8: training stopped after 3 steps",
        "dgrad.lhs",
        "that of step 5",
    ] {
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(stopped.directory.steps().unwrap(), [5]);
    let good = stopped.directory.load(None).unwrap();
    let position = &good.state.position;
    assert_eq!((position.updates, position.non_finite_in_a_row), (4, 0));
    // It is the state of a run that was saved there.
    let save_at_5 = Run {
        save_every: 5,
        ..run("saved")
    };
    let broken = Broken::at(&[4, 6, 7, 8]);
    let error = save_at_5.go::<B>(broken, None, &Interrupter::new());
    assert!(error.is_err());
    let same = save_at_5.directory.load(Some(5)).unwrap();
    for (name, data) in &good.parameters {
        let same = same.parameters[name].as_bytes();
        assert!(data.as_bytes() == same, "{name}");
    }
    let position = |it: &RunCheckpoint| {
        let mut position = it.state.position.clone();
        position.log_bytes = 0;
        json!(position)
    };
    let differences = differences(&position(&good), &position(&same));
    assert_eq!(differences, [""; 0]);
}

/// Lines that a model soon knows, and now and then a stretch of letters that occur nowhere else.
pub(super) fn tokens_with_surprises(dir: &Path) -> Arc<TokenFile> {
    let path = dir.join("text.txt");
    let part = |i: u64| match i % 16 {
        15 => "QWERTYUIOPASDFGHJKLZXCVBNM".repeat(2) + "\n",
        _ => format!("{} times {} is {}\n", i % 13, i % 7, (i % 13) * (i % 7)),
    };
    std::fs::write(&path, (0..800).map(part).collect::<String>()).unwrap();
    let corpus = Corpus::at(&path).unwrap();
    Arc::new(TokenFile::prepare(&corpus, &Tokenizer::Bytes, dir).unwrap())
}

/// A guard that is quick to call a loss an outlier.
fn nervous(action: SpikeAction) -> GuardConfig {
    let spike = SpikeGuard {
        window: 4,
        sigmas: 3.0,
        action,
    };
    GuardConfig {
        non_finite_in_a_row: 1,
        spike: Some(spike),
    }
}

#[test]
fn an_outlier_is_skipped_and_a_resumed_run_judges_alike() {
    let _device = exclusive();
    let place = Place::of(tokens_with_surprises);
    let run = |name: &str| Run {
        total: 24,
        save_every: 12,
        guard: nervous(SpikeAction::Skip),
        ..place.run(name, shape(1, 16, 1))
    };
    let (whole, parts) = (run("whole"), run("parts"));
    let outcome = whole.go::<B>(Broken::at(&[]), None, &Interrupter::new());
    assert!(outcome.unwrap().skipped > 0);
    let found = steps(&whole);
    let spikes = found.iter().filter(|step| step.1.starts_with("Spike"));
    assert!(spikes.count() > 0, "{found:?}");
    parts
        .go::<B>(Broken::at(&[]), None, &Interrupter::new())
        .unwrap();
    let checkpoint = parts.directory.load(Some(12)).unwrap();
    parts
        .go::<B>(Broken::at(&[]), Some(checkpoint), &Interrupter::new())
        .unwrap();
    assert_eq!(steps(&parts), found);
}

#[test]
fn a_rewind_goes_back_to_the_checkpoint_and_on_with_other_data() {
    let _device = exclusive();
    let place = Place::of(tokens_with_surprises);
    let run = |name: &str, at_most| Run {
        total: 24,
        save_every: 2,
        guard: nervous(SpikeAction::Rewind {
            in_a_row: 1,
            at_most,
        }),
        snapshot: Snapshot::Copied,
        ..place.run(name, shape(1, 16, 1))
    };
    let back = run("back", 1000);
    let outcome = back.go::<B>(Broken::at(&[]), None, &Interrupter::new());
    assert!(matches!(outcome.unwrap().ending, Ending::Finished(_)));
    let lines = log::read(&back.directory.log()).unwrap();
    let mut rewinds = 0;
    for line in &lines {
        if let LogLine::Rewind(rewind) = line {
            assert!(rewind.to < rewind.from && rewind.loss > rewind.limit);
            rewinds += 1;
        }
    }
    assert!(rewinds > 0, "the guard never went back");
    let position = back.directory.load(None).unwrap().state.position;
    assert_eq!(position.rewinds, rewinds);
    assert!(position.data_step > position.step, "{position:?}");
    // What the run stands on has each step once, in order.
    let numbers: Vec<u64> = steps(&back).iter().map(|step| step.0).collect();
    assert_eq!(numbers, (1..=24).collect::<Vec<_>>());
    // A resumed run goes through the same rewinds.
    let checkpoint = back.directory.load(Some(10)).unwrap();
    let before = steps(&back);
    back.go::<B>(Broken::at(&[]), Some(checkpoint), &Interrupter::new())
        .unwrap();
    assert_eq!(steps(&back), before);

    let error = run("stopped", 0).go::<B>(Broken::at(&[]), None, &Interrupter::new());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("after 0 returns to a checkpoint"), "{error}");
    assert!(!lines.iter().any(|line| matches!(
        line,
        LogLine::Skipped(skipped) if skipped.reason == SkipReason::NonFinite
    )));
}

/// Kills: a checkpoint from inside of a row of outliers, with their updates in it, as the place to
/// go back to; and a row that goes on behind it.
#[test]
fn a_rewind_goes_back_to_before_the_row() {
    let _device = exclusive();
    let place = Place::of(tokens_with_surprises);
    let run = Run {
        total: 60,
        save_every: 1,
        keep: 100,
        guard: nervous(SpikeAction::Rewind {
            in_a_row: 2,
            at_most: 1000,
        }),
        ..place.run("back", shape(1, 16, 1))
    };
    let outcome = run.go::<B>(Broken::at(&[]), None, &Interrupter::new());
    assert!(matches!(outcome.unwrap().ending, Ending::Finished(_)));
    let mut rewinds = 0;
    for line in log::read(&run.directory.log()).unwrap() {
        if let LogLine::Rewind(rewind) = line {
            assert!(rewind.to + 2 <= rewind.from, "{rewind:?}");
            rewinds += 1;
        }
    }
    assert!(rewinds > 0, "the guard never went back");
    for step in run.directory.steps().unwrap() {
        let position = run.directory.load(Some(step)).unwrap().state.position;
        assert!(position.outliers_in_a_row == 0 || step == 60, "{step}");
    }
}
