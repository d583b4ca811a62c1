//! A resumed run continues to the same bits.

use std::num::NonZeroU32;

use burn::backend::{Autodiff, NdArray};
use burn_hybrid_ops::TrainingEngine;
use burn_nvfp4::Nvfp4;
use burn_nvfp4::recipe::{Policy, Recipe, ScaleRenewal, presets};
use burn_nvfp4_models::train::log::{self, LogLine};
use burn_nvfp4_models::train::numerics::{Quantized, Unquantized};

use super::*;
use crate::device::exclusive;

/// Every bit that a run leaves behind: its last checkpoint, and its losses, norms and rates.
fn traces(directory: &RunDirectory) -> (RunCheckpoint, Vec<String>) {
    let lines = log::read(&directory.path().join("log.jsonl")).unwrap();
    let numbers = lines.iter().filter_map(|line| {
        if let LogLine::Step {
            step,
            loss,
            learning_rate,
            grad_norm,
            ..
        } = line
        {
            let [loss, rate, norm] = [loss, learning_rate, grad_norm].map(|it| it.to_bits());
            return Some(format!("step {step} {loss:x} {rate:x} {norm:x}"));
        }
        if let LogLine::Validation {
            step,
            forward,
            loss,
            ..
        } = line
        {
            let loss = loss.to_bits();
            return Some(format!("validation {step} {forward:?} {loss:x}"));
        }
        if let LogLine::Oscillation { step, found } = line {
            return Some(format!("window until {step}: {found:?}"));
        }
        None
    });
    (directory.load(None).unwrap(), numbers.collect())
}

/// Twelve steps at once against six, a new start of everything, and six more.
fn check_resume<B: TrainingEngine>(numerics: impl Fn() -> Box<dyn Numerics>) {
    check_watched_resume::<B>(numerics, None);
}

/// The same with watched weights; returns what the last checkpoint carries.
pub(super) fn check_watched_resume<B: TrainingEngine>(
    numerics: impl Fn() -> Box<dyn Numerics>,
    oscillation: Option<&WatchedWeights>,
) -> RunCheckpoint {
    let _device = exclusive();
    let place = Place::new();
    let run = |name: &str| Run {
        total: 12,
        save_every: 6,
        ..place.run(name, shape(2, 32, 2))
    };
    let go_on = Interrupter::new();
    let whole = run("whole");
    let go = |run: &Run<'_>, resume| {
        let numerics = numerics();
        run.go_watching::<B>(numerics, resume, &go_on, oscillation.cloned())
            .unwrap()
    };
    go(&whole, None);

    // The same run, whose state at step 6 alone survives.
    let parts = run("parts");
    go(&parts, None);
    std::fs::remove_dir_all(parts.directory.checkpoint(12)).unwrap();
    let checkpoint = parts.directory.load(None).unwrap();
    assert_eq!(checkpoint.step(), 6);
    let outcome = go(&parts, Some(checkpoint));
    assert_eq!(outcome.step, 12);

    let ((a, a_log), (b, b_log)) = (traces(&whole.directory), traces(&parts.directory));
    let windows = a_log.iter().filter(|line| line.starts_with("window"));
    assert_eq!(a_log.len(), 12 + 2 + 2 + windows.count());
    assert_eq!(a_log, b_log);
    for (kind, a, b) in [
        ("parameter", &a.parameters, &b.parameters),
        ("moment", &a.moments, &b.moments),
        ("carried", &a.carried, &b.carried),
    ] {
        assert!(a.keys().eq(b.keys()) && (!a.is_empty() || kind == "carried"));
        for (name, data) in a {
            assert!(
                data.as_bytes() == b[name].as_bytes(),
                "{kind} {name} differs"
            );
        }
    }
    a
}

#[test]
fn a_resumed_run_in_high_precision_equals_an_uninterrupted_one() {
    check_resume::<Autodiff<NdArray>>(|| Box::new(Unquantized));
}

#[test]
fn a_resumed_run_in_nvfp4_with_stochastic_rounding_equals_an_uninterrupted_one() {
    type B = Nvfp4<Autodiff<NdArray>>;
    check_resume::<B>(|| {
        let policy = Policy::paper(presets::NVIDIA)
            .with_blocks(tiny().n_blocks())
            .unwrap();
        // What another run on the device left behind must not matter.
        burn_nvfp4::set_seed::<B>(&Default::default(), 99);
        Box::new(Quantized::<B>::new(Default::default(), policy, 7).unwrap())
    });
}

#[test]
fn a_run_resumes_between_two_renewals_of_its_tensor_scales() {
    type B = Nvfp4<Autodiff<NdArray>>;
    let numerics = || -> Box<dyn Numerics> {
        let recipe = Recipe {
            scale_renewal: ScaleRenewal::EverySteps(NonZeroU32::new(4).unwrap()),
            ..presets::NVIDIA
        };
        let policy = Policy::paper(recipe).with_blocks(tiny().n_blocks());
        Box::new(Quantized::<B>::new(Default::default(), policy.unwrap(), 7).unwrap())
    };
    let last = check_watched_resume::<B>(numerics, None);
    let kept = last
        .carried
        .keys()
        .filter(|name| name.ends_with(".dgrad.lhs"));
    assert!(kept.count() > 0, "{:?}", last.carried.keys());
}

#[test]
fn an_interrupted_run_saves_its_last_step() {
    let _device = exclusive();
    let place = Place::new();
    let run = Run {
        total: 100,
        save_every: 100,
        ..place.run("run", shape(2, 32, 1))
    };
    /// Asks the run to stop while its third step is under way.
    #[derive(Debug)]
    struct StopAtThree(InterrupterHandle);
    struct InterrupterHandle(Interrupter);
    impl std::fmt::Debug for InterrupterHandle {
        fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            out.write_str("Interrupter")
        }
    }
    impl Numerics for StopAtThree {
        fn begin_step(&self, step: u64, _total: u64) {
            if step == 2 {
                self.0.0.stop(Some("test"));
            }
        }
        fn take_non_finite(&self) -> Option<String> {
            None
        }
        fn in_high_precision(&self, forward: &mut dyn FnMut()) {
            forward();
        }
    }
    let stop = Interrupter::new();
    let numerics = Box::new(StopAtThree(InterrupterHandle(stop.clone())));
    let outcome = run.go::<Autodiff<NdArray>>(numerics, None, &stop).unwrap();
    assert_eq!(outcome.step, 3);
    assert_eq!(run.directory.steps().unwrap(), [3]);
}
