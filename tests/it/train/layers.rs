//! Statistics of quantization reach the log and the metric of their layer.

use std::num::NonZeroU64;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::backend::{Autodiff, NdArray};
use burn::data::dataloader::Progress;
use burn::train::metric::{Metric, MetricMetadata, Numeric};
use burn_nvfp4::Nvfp4;
use burn_nvfp4::recipe::{Policy, presets};
use burn_nvfp4_models::train::layers::{GemmFigure, LayerMetric, OperandFigure, Statistics};
use burn_nvfp4_models::train::log;
use burn_nvfp4_models::train::numerics::Quantized;
use burn_nvfp4_models::train::output::Figures;

use super::*;
use crate::device::exclusive;

fn operand(layer: &str, operand: &str, sqnr_db: Option<f64>) -> OperandFigure {
    OperandFigure {
        layer: layer.to_owned(),
        operand: operand.to_owned(),
        sqnr_db,
        underflow: 0.25,
        saturation: 0.0,
        zero_scale_blocks: None,
        tensor_amax: None,
        scaled_to_four: None,
        rounding_bias: None,
    }
}

/// Measures something in every second step.
#[derive(Debug, Default)]
struct Sampled {
    step: AtomicU64,
    taken: Mutex<u64>,
}

impl Numerics for Sampled {
    fn begin_step(&self, step: u64, _total: u64) {
        self.step.store(step, Ordering::SeqCst);
    }

    fn take_non_finite(&self) -> Option<String> {
        None
    }

    fn take_statistics(&self) -> Statistics {
        *self.taken.lock().unwrap() += 1;
        match self.step.load(Ordering::SeqCst) {
            step if step % 2 == 0 => Statistics {
                operands: vec![operand("layers.1.mixer.up_proj", "fprop.lhs", None)],
                gemms: Vec::new(),
            },
            _ => Statistics::default(),
        }
    }

    fn in_high_precision(&self, forward: &mut dyn FnMut()) {
        forward();
    }
}

#[test]
fn steps_that_are_sampled_have_a_line_in_the_log() {
    let _device = exclusive();
    let place = Place::new();
    let run = Run {
        total: 5,
        save_every: 5,
        ..place.run("run", shape(1, 16, 1))
    };
    let numerics = Box::new(Sampled::default());
    run.go::<Autodiff<NdArray>>(numerics, None, &Interrupter::new())
        .unwrap();
    let mut sampled = Vec::new();
    for line in log::read(&run.directory.log()).unwrap() {
        if let LogLine::Quantization { step, operands } = line {
            assert_eq!(operands[0].layer, "layers.1.mixer.up_proj");
            sampled.push(step);
        }
    }
    assert_eq!(sampled, [1, 3, 5]);
}

/// The measured operands are those of the model's quantized layers, and measuring changes no loss.
#[test]
fn a_run_measures_its_own_layers_and_trains_the_same() {
    type B = Nvfp4<Autodiff<NdArray>>;
    let _device = exclusive();
    let place = Place::new();
    let trained = |name: &str, every: Option<u64>| -> (Vec<u64>, Vec<_>, Vec<_>) {
        let run = Run {
            total: 3,
            save_every: 3,
            ..place.run(name, shape(2, 16, 1))
        };
        let policy = Policy::uniform(presets::NVIDIA);
        let numerics = Quantized::<B>::new(Default::default(), policy, 7).unwrap();
        let numerics = numerics.with_statistics(every.and_then(NonZeroU64::new));
        run.go::<B>(Box::new(numerics), None, &Interrupter::new())
            .unwrap();
        let (mut losses, mut measured, mut told) = (Vec::new(), Vec::new(), Vec::new());
        for line in log::read(&run.directory.log()).unwrap() {
            if let LogLine::Step { loss, .. } = line {
                losses.push(loss.to_bits());
            } else if let LogLine::Gemms { step, gemms } = line {
                told.push((step, gemms));
            } else if let LogLine::Quantization { step, operands } = line {
                let of_layer = operands
                    .iter()
                    .filter(|o| o.layer == "layers.1.mixer.up_proj");
                let names: Vec<_> = of_layer.map(|o| o.operand.clone()).collect();
                assert!(operands.iter().all(|o| o.zero_scale_blocks.is_some()));
                let is_signal = |o: &OperandFigure| o.sqnr_db.is_none_or(|db| db > 0.0);
                assert!(operands.iter().all(is_signal), "{operands:?}");
                measured.push((step, names));
            }
        }
        (losses, measured, told)
    };
    let (plain, nothing, untold) = trained("plain", None);
    let (losses, measured, told) = trained("measured", Some(2));
    assert_eq!(losses, plain);
    assert_eq!((nothing.len(), untold.len()), (0, 0));
    // Nothing changes over the run, so its GEMMs are told once.
    let [(1, gemms)] = &told[..] else {
        panic!("{told:?}")
    };
    let of_layer = |gemm: &&GemmFigure| gemm.layer == "layers.1.mixer.up_proj";
    let names: Vec<_> = gemms.iter().filter(of_layer).map(|it| &it.gemm).collect();
    assert_eq!(names.len(), 3, "{gemms:?}");
    assert!(
        gemms.iter().any(|gemm| gemm.layer == "lm_head"),
        "{gemms:?}"
    );
    let steps: Vec<_> = measured.iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [1, 3]);
    for (_, operands) in &measured {
        assert!(operands.contains(&"fprop.lhs".to_owned()), "{operands:?}");
        assert!(operands.contains(&"wgrad.rhs".to_owned()), "{operands:?}");
    }
}

#[test]
fn the_metric_of_a_layer_shows_its_worst_operand_and_keeps_it_between_samples() {
    let figures = |operands: Vec<OperandFigure>| Figures {
        loss: 1.0,
        bits_per_byte: 1.0,
        grad_norm: None,
        tokens_per_second: 1.0,
        mfu: None,
        skipped: 0,
        oscillating: None,
        operands: operands.into(),
        seconds_left: 1.0,
    };
    let metadata = MetricMetadata {
        progress: Progress::new(1, 2),
        global_progress: Progress::new(1, 2),
        iteration: None,
        lr: None,
    };
    let mut metric = LayerMetric::new("a");
    let mut show = |operands| metric.update(&figures(operands), &metadata).formatted;
    assert_eq!(show(Vec::new()), "not sampled yet");
    let shown = show(vec![
        operand("a", "fprop.lhs", Some(20.0)),
        operand("a", "wgrad.rhs", Some(17.04)),
        operand("a", "dgrad.lhs", None),
        operand("b", "fprop.lhs", Some(3.0)),
    ]);
    assert_eq!(shown, "17.0 dB (wgrad.rhs, 25.0 % to zero, 0.0 % cut off)");
    assert_eq!(show(Vec::new()), shown);
    assert_eq!(metric.value().current(), 17.04);
}
