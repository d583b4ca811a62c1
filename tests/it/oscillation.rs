//! OsciReset: which weights it takes for oscillating, and what it does to them.

use burn::backend::{Flex, NdArray};
use burn::prelude::*;
use burn::tensor::TensorPrimitive;
use burn_nvfp4::oscillation::{OsciAction, OsciReset, WeightTrace, WindowEnd, quantized_weight};
use burn_nvfp4::recipe::{OperandSpec, presets};
use burn_nvfp4::{Nvfp4Engine, cpu};

const SPEC: OperandSpec = presets::NVIDIA_1D_WEIGHTS.fprop.rhs;

fn primitive<B: Backend>(values: &[f32], shape: [usize; 2]) -> B::FloatTensorPrimitive {
    let data = TensorData::new(values.to_vec(), shape);
    Tensor::<B, 2>::from_data(data, &B::Device::default())
        .into_primitive()
        .tensor()
}

fn host<B: Backend>(tensor: B::FloatTensorPrimitive) -> Vec<f32> {
    let tensor = Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(tensor));
    tensor.into_data().to_vec().unwrap()
}

/// A weight `[32, 16]`: 6 and 0 fix the scales, the others lie on grid points.
fn weight() -> Vec<f32> {
    (0..32 * 16)
        .map(|i| match i / 16 % 16 {
            0 => 6.0,
            row => [0.5, 1.0, 2.0, 3.0][row % 4],
        })
        .collect()
}

fn check<B: Nvfp4Engine>() {
    let shape = [32, 16];
    let (edge, travels) = (40, 60);
    let mut at = weight();
    // Between 2 and 3, where 2.5 is the edge.
    at[edge] = 2.49;
    let mut trace = WeightTrace::<B>::new(primitive::<B>(&at, shape), SPEC);
    for step in 0..20u8 {
        at[edge] = if step % 2 == 0 { 2.51 } else { 2.49 };
        at[travels] = 1.0 + 0.1 * f32::from(step);
        trace.observe(primitive::<B>(&at, shape), SPEC);
    }
    let ratio = host::<B>(trace.ratio());
    assert!(ratio[edge] > 40.0, "{}", ratio[edge]);
    assert!((0.5..2.0).contains(&ratio[travels]), "{}", ratio[travels]);
    assert_eq!(ratio[0], 0.0, "what does not move does not oscillate");
    assert_eq!(trace.share(8.0), 1.0 / 512.0);

    let mut expected = at.clone();
    expected[edge] = 2.0; // 2.49 rounds there
    assert_eq!(
        host::<B>(trace.reset(primitive::<B>(&at, shape), 8.0)),
        expected
    );
    assert_eq!(host::<B>(trace.reset(primitive::<B>(&at, shape), 1e6)), at);

    // Taken out and put back, a trace goes on as if nothing had been.
    let copy = |t: &B::FloatTensorPrimitive| primitive::<B>(&host::<B>(t.clone()), shape);
    let mut resumed = WeightTrace::<B> {
        last: copy(&trace.last),
        last_quantized: copy(&trace.last_quantized),
        path: copy(&trace.path),
        quantized_path: copy(&trace.quantized_path),
    };
    at[edge] = 2.51;
    trace.observe(primitive::<B>(&at, shape), SPEC);
    resumed.observe(primitive::<B>(&at, shape), SPEC);
    assert_eq!(host::<B>(resumed.ratio()), host::<B>(trace.ratio()));
}

#[test]
fn a_weight_that_flips_is_set_to_the_middle_of_its_bin() {
    check::<NdArray>();
    check::<Flex>();
}

#[test]
fn a_quantized_weight_is_what_fprop_multiplies() {
    let shape = [32, 48];
    let w = crate::quantize::normal(3, 32 * 48);
    for spec in [
        SPEC,
        presets::NVIDIA.fprop.rhs,
        presets::FP8.fprop.rhs,
        presets::MXFP4.fprop.rhs,
    ] {
        let view = cpu::MatrixView::new(&w, 32, 48).unwrap();
        let key = burn_nvfp4::rng::RandomKey {
            seed: 0,
            step: 0,
            micro_batch: 0,
            stream: burn_nvfp4::rng::Stream::Other(0),
        };
        let packed = cpu::quantize(view, cpu::Contraction::Rows, &spec, key).unwrap();
        let (decoded, scale) = (cpu::decode_operand(&packed), packed.tensor_scale());
        let got = host::<NdArray>(quantized_weight::<NdArray>(
            primitive::<NdArray>(&w, shape),
            spec,
        ));
        for (i, got) in got.into_iter().enumerate() {
            let value = decoded[i % 48 * packed.padded_k() + i / 48];
            assert_eq!(
                got,
                value * (scale.amax[0] * (1.0 / scale.q_max)),
                "{spec}, {i}"
            );
        }
    }
    let kept =
        quantized_weight::<NdArray>(primitive::<NdArray>(&w, shape), OperandSpec::HighPrecision);
    assert_eq!(host::<NdArray>(kept), w);
}

#[test]
fn the_schedule_watches_windows() {
    let schedule = OsciReset {
        start: 10,
        period: 5,
        window: 2,
        threshold: 8.0,
        at_end: WindowEnd::Reset,
    };
    let actions: Vec<_> = (9..17).map(|step| schedule.action(step)).collect();
    use OsciAction::{Begin, Observe, Reset, Rest};
    assert_eq!(
        actions,
        [Rest, Begin, Observe, Reset, Rest, Rest, Begin, Observe]
    );
    let windows = [9, 10, 14, 15, 16].map(|step| schedule.window_of(step));
    assert_eq!(windows, [None, Some(10), Some(10), Some(15), Some(15)]);
    assert!(OsciReset::from_step(100).validate().is_ok());
    for wrong in [
        OsciReset {
            window: 0,
            ..schedule
        },
        OsciReset {
            window: 5,
            ..schedule
        },
        OsciReset {
            threshold: f32::NAN,
            ..schedule
        },
    ] {
        assert!(wrong.validate().is_err(), "{wrong:?}");
    }
}
