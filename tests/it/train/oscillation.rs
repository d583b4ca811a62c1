//! OsciReset in a run: what it changes, what it leaves alone, and that it resumes inside a window.

use burn::backend::{Autodiff, NdArray};
use burn::tensor::{Tensor, TensorPrimitive};
use burn_nvfp4::Nvfp4;
use burn_nvfp4::oscillation::{OsciReset, WindowEnd, quantized_weight};
use burn_nvfp4::recipe::{Policy, presets};
use burn_nvfp4_models::train::log;
use burn_nvfp4_models::train::numerics::Quantized;
use burn_nvfp4_models::train::oscillation::Oscillation;

use super::resume::check_watched_resume;
use super::*;
use crate::device::exclusive;

type B = Nvfp4<Autodiff<NdArray>>;

fn policy() -> Policy {
    Policy::paper(presets::NVIDIA)
        .with_blocks(tiny().n_blocks())
        .unwrap()
}

/// Windows after the updates 5 to 9, 11 to 15, ..; low enough a threshold that some weights reach
/// it in so few steps.
fn watched(at_end: WindowEnd) -> WatchedWeights {
    WatchedWeights {
        schedule: OsciReset {
            start: 4,
            period: 6,
            window: 4,
            threshold: 2.0,
            at_end,
        },
        policy: policy(),
        layers: tiny().linear_names().into_iter().collect(),
        total: 12,
    }
}

fn numerics() -> Box<dyn Numerics> {
    Box::new(Quantized::<B>::new(Default::default(), policy(), 7).unwrap())
}

/// Nine steps: until the end of the first window. What they leave, and what the window found.
fn nine_steps(
    place: &Place,
    oscillation: Option<WatchedWeights>,
) -> (RunCheckpoint, Vec<Oscillation>) {
    let name = oscillation.as_ref().map(|it| it.schedule.at_end);
    let run = Run {
        total: 9,
        save_every: 9,
        ..place.run(&format!("{name:?}"), shape(2, 32, 1))
    };
    run.go_watching::<B>(numerics(), None, &Interrupter::new(), oscillation)
        .unwrap();
    let lines = log::read(&run.directory.log()).unwrap();
    let mut windows = Vec::new();
    for line in lines {
        if let LogLine::Oscillation { step, found } = line {
            assert_eq!(step, 9);
            windows.push(found);
        }
    }
    (run.directory.load(None).unwrap(), windows)
}

#[test]
fn weights_that_oscillate_are_set_to_their_quantized_value_and_nothing_else_changes() {
    let _device = exclusive();
    let place = Place::new();
    let run = |oscillation| nine_steps(&place, oscillation);
    let (plain, nothing) = run(None);
    let (counted, counts) = run(Some(watched(WindowEnd::Count)));
    let (reset, resets) = run(Some(watched(WindowEnd::Reset)));

    assert_eq!(nothing, []);
    let (counts, resets) = (&counts[0], &resets[0]);
    assert_eq!(counts.reset, 0);
    assert_eq!(resets.reset, counts.oscillating);
    assert_eq!(resets.layers, counts.layers);
    assert!(
        0 < resets.reset && resets.reset < resets.watched / 2,
        "{resets:?}"
    );

    let mut changed = 0;
    for (name, plain) in &plain.parameters {
        assert!(
            plain.as_bytes() == counted.parameters[name].as_bytes(),
            "counting changed {name}"
        );
        let layer = name.trim_end_matches(".weight");
        let (before, after) = (
            plain.as_slice::<f32>(),
            reset.parameters[name].as_slice::<f32>(),
        );
        let (before, after) = (before.unwrap(), after.unwrap());
        if !resets.layers.contains_key(layer) {
            assert!(
                before == after,
                "{name} changed, no weight of it oscillates"
            );
            continue;
        }
        let weight = Tensor::<NdArray, 2>::from_data(plain.clone(), &Default::default());
        let spec = presets::NVIDIA.fprop.rhs;
        let codes = quantized_weight::<NdArray>(weight.into_primitive().tensor(), spec);
        let codes = Tensor::<NdArray, 2>::from_primitive(TensorPrimitive::Float(codes));
        let codes = codes.into_data().to_vec::<f32>().unwrap();
        for ((before, after), code) in before.iter().zip(after).zip(codes) {
            if before != after {
                assert_eq!(*after, code, "{name}");
                changed += 1;
            }
        }
    }
    // A weight may lie on its quantized value already.
    assert!(
        0 < changed && changed <= resets.reset,
        "{changed} of {}",
        resets.reset
    );
    for (name, data) in &plain.moments {
        assert!(
            data.as_bytes() == reset.moments[name].as_bytes(),
            "the moment {name} changed"
        );
    }
    assert!(reset.carried.is_empty(), "the window is over");
}

#[test]
fn only_weights_of_layers_that_the_policy_quantizes_are_watched() {
    let last = check_watched_resume::<B>(numerics, Some(&watched(WindowEnd::Reset)));
    // The run ends inside its second window, as the checkpoint between lay inside the first.
    let quantized = |layer: &String| {
        let progress = burn_nvfp4::Progress { step: 0, total: 12 };
        policy()
            .resolve(Some(layer), progress)
            .fprop
            .rhs
            .is_quantized()
    };
    let mut expected = Vec::new();
    for layer in tiny()
        .linear_names()
        .iter()
        .filter(|layer| quantized(layer))
    {
        for path in ["path", "quantized_path"] {
            expected.push(format!("oscillation.{layer}.weight.{path}"));
        }
    }
    expected.sort();
    assert!(!expected.is_empty());
    assert_eq!(last.carried.keys().cloned().collect::<Vec<_>>(), expected);
}

#[test]
fn a_checkpoint_without_its_traces_is_refused() {
    let _device = exclusive();
    let place = Place::new();
    let run = Run {
        total: 6,
        save_every: 6,
        snapshot: Snapshot::Copied,
        ..place.run("run", shape(1, 16, 1))
    };
    let go = |resume, oscillation| {
        run.go_watching::<B>(numerics(), resume, &Interrupter::new(), oscillation)
    };
    go(None, Some(watched(WindowEnd::Reset))).unwrap();
    let mut checkpoint = run.directory.load(None).unwrap();
    let error = go(Some(checkpoint.clone()), None).unwrap_err().to_string();
    assert!(error.contains("nothing here carries it"), "{error}");
    checkpoint.carried.pop_first();
    let error = go(Some(checkpoint), Some(watched(WindowEnd::Reset)));
    let error = error.unwrap_err().to_string();
    assert!(error.contains(".path: missing, "), "{error}");
}
