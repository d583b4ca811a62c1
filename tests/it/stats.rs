//! Samples of a run: what they say, and that they change nothing.

use std::num::NonZeroU64;

use burn::backend::{Autodiff, NdArray};
use burn::prelude::*;
use burn_nvfp4::cpu::{Contraction, MatrixView, dequantize, quantize};
use burn_nvfp4::format::scale::Nvfp4Scaling;
use burn_nvfp4::format::{BlockScales, e2m1, packing};
use burn_nvfp4::recipe::{OperandSpec, Progress, Recipe, presets};
use burn_nvfp4::rng::{RandomKey, Stream};
use burn_nvfp4::stats::{OperandStatistics, Samples, set_sampling, take_samples};
use burn_nvfp4::{Nvfp4, layer, set_progress};

use crate::device::exclusive;
use crate::linear::use_recipe;
use crate::quantize::normal;

type B = Nvfp4<Autodiff<NdArray>>;

const KEY: RandomKey = RandomKey {
    seed: 4,
    step: 2,
    micro_batch: 0,
    stream: Stream::Wgrad,
};

fn sample_every(steps: u64) {
    set_sampling::<NdArray>(&Default::default(), NonZeroU64::new(steps));
}

/// Forward and backward of one linear, `times` in the same step; all bits of it.
fn step(recipe: Recipe, step: u64, times: usize) -> Vec<f32> {
    use_recipe::<NdArray>(recipe);
    let device = Default::default();
    set_progress::<NdArray>(&device, Progress { step, total: 10 });
    let mut bits = Vec::new();
    for seed in 0..times {
        let seed = u32::try_from(seed).unwrap();
        let tensor = |salt: u32, rows: usize, cols: usize| {
            let values = normal(seed * 8 + salt, rows * cols);
            Tensor::<B, 2>::from_data(TensorData::new(values, [rows, cols]), &device)
        };
        let x = tensor(1, 64, 48).require_grad();
        let w = tensor(2, 48, 32).require_grad();
        let y = layer("up_proj", || {
            burn::tensor::module::linear(x.clone(), w.clone(), None)
        });
        let grads = (y.clone() * tensor(3, 64, 32)).sum().backward();
        let host = |t: Tensor<Nvfp4<NdArray>, 2>| t.into_data().to_vec::<f32>().unwrap();
        bits.extend(host(y.inner()));
        bits.extend(host(x.grad(&grads).unwrap()));
        bits.extend(host(w.grad(&grads).unwrap()));
    }
    bits
}

fn taken() -> Samples {
    take_samples::<NdArray>(&Default::default())
}

#[test]
fn a_sampled_step_names_every_operand_and_every_gemm_once() {
    let _turn = exclusive();
    sample_every(2);
    taken();
    step(presets::NVIDIA_1D_WEIGHTS, 4, 2);
    let samples = taken();
    let operands: Vec<_> = samples
        .operands
        .iter()
        .map(|s| s.operand.as_ref())
        .collect();
    let expected = [
        "fprop.lhs",
        "wgrad.lhs",
        "fprop.rhs",
        "dgrad.rhs",
        "dgrad.lhs",
        "wgrad.rhs",
    ];
    assert_eq!(operands, expected);
    for sample in &samples.operands {
        assert_eq!((sample.step, sample.layer.as_deref()), (4, Some("up_proj")));
    }
    assert_eq!(
        samples.operands[5].format,
        "NVFP4 1x16, Hadamard, stochastic"
    );
    let gemms = samples
        .gemms
        .iter()
        .map(|s| (s.gemm.as_ref(), s.lhs.as_str(), s.rhs.as_str()));
    let expected = [
        ("fprop", "NVFP4 1x16", "NVFP4 1x16"),
        ("dgrad", "NVFP4 1x16, stochastic", "NVFP4 1x16"),
        (
            "wgrad",
            "NVFP4 1x16, Hadamard",
            "NVFP4 1x16, Hadamard, stochastic",
        ),
    ];
    assert_eq!(gemms.collect::<Vec<_>>(), expected);
    assert!(samples.gemms[0].routine.contains("host"));
    assert_eq!(taken(), Samples::default(), "taken once");
    // A step between two samples, and no sampling at all.
    step(presets::NVIDIA, 5, 1);
    set_sampling::<NdArray>(&Default::default(), None);
    step(presets::NVIDIA, 6, 1);
    assert_eq!(taken(), Samples::default());
}

#[test]
fn what_stays_in_high_precision_is_in_the_table_of_gemms() {
    let _turn = exclusive();
    sample_every(1);
    taken();
    step(presets::ROW_SCALED, 0, 1);
    let samples = taken();
    let gemms: Vec<_> = samples
        .gemms
        .iter()
        .map(|s| (s.lhs.as_str(), s.rhs.as_str()))
        .collect();
    let own = ("f32", "f32");
    assert_eq!(gemms, [("NVFP4 1x16, row scales", "NVFP4 1x16"), own, own]);
    assert_eq!(samples.gemms[1].routine, "Burn's own op");
    assert_eq!(samples.operands.len(), 2);
    sample_every(1);
    step(presets::HIGH_PRECISION, 0, 1);
    set_sampling::<NdArray>(&Default::default(), None);
    let samples = taken();
    assert!(samples.operands.is_empty());
    let ran = samples
        .gemms
        .iter()
        .map(|s| (s.gemm.as_ref(), s.routine.as_ref()));
    let own = "Burn's own op";
    assert_eq!(
        ran.collect::<Vec<_>>(),
        [("fprop", own), ("dgrad", own), ("wgrad", own)]
    );
}

#[test]
fn samples_change_no_bit() {
    let _turn = exclusive();
    for preset in presets::PRESETS {
        set_sampling::<NdArray>(&Default::default(), None);
        let without = step(preset.recipe, 3, 1);
        sample_every(3);
        let with = step(preset.recipe, 3, 1);
        set_sampling::<NdArray>(&Default::default(), None);
        let text = serde_json::to_string(&taken()).unwrap();
        assert!(serde_json::from_str::<Samples>(&text).is_ok(), "{text}");
        assert!(with == without, "{}", preset.name);
    }
}

fn measured(x: &[f32], shape: [usize; 2], spec: OperandSpec) -> OperandStatistics {
    let view = MatrixView::new(x, shape[0], shape[1]).unwrap();
    OperandStatistics::measure(view, Contraction::Columns, &spec, KEY).unwrap()
}

#[test]
fn errors_of_normal_numbers_are_those_of_the_table() {
    let x = normal(1, 512 * 1024);
    let of = |spec| measured(&x, [512, 1024], spec);
    // numerics §10, in dB.
    for (spec, error) in [
        (presets::NVIDIA.fprop.lhs, 9.0485e-3_f64),
        (presets::NVIDIA.fprop.rhs, 1.2398e-2),
        (presets::NVIDIA.wgrad.lhs, 9.0507e-3),
        (presets::NVIDIA.dgrad.lhs, 1.8858e-2),
        (presets::FOUR_OVER_SIX_1D.fprop.lhs, 7.5655e-3),
        (presets::QUARTET2.dgrad.lhs, 9.74e-3),
        (presets::MXFP8.fprop.lhs, 7.1008e-4),
    ] {
        let expected = -10.0 * error.log10();
        let got = of(spec).sqnr_db.unwrap();
        assert!(
            (got - expected).abs() < 0.05,
            "{spec}: {got} instead of {expected}"
        );
    }
    // Saturation shrinks what stochastic rounding would keep; EDEN's correction makes up for it.
    let stochastic = of(presets::NVIDIA.dgrad.lhs).rounding_bias.unwrap();
    let eden = of(presets::QUARTET2.dgrad.lhs).rounding_bias.unwrap();
    println!("bias of stochastic rounding {stochastic:.2e}, of MS-EDEN {eden:.2e}");
    assert!((-0.01..-0.001).contains(&stochastic), "{stochastic}");
    assert!(eden.abs() < 0.0003, "{eden}");
    assert_eq!(of(presets::NVIDIA.fprop.lhs).rounding_bias, None);
}

/// The same counts, one element and one block at a time.
#[test]
fn counts_are_those_of_a_search() {
    let (rows, cols) = (6, 80);
    let mut x = normal(3, rows * cols);
    x[7] = 0.0;
    for value in &mut x[160..176] {
        *value *= 1e-7; // the block's scale becomes 0
    }
    for value in &mut x[240..256] {
        *value = 0.0; // a block of zeros is no underflow
    }
    let spec = presets::FOUR_OVER_SIX_1D.fprop.lhs;
    let got = measured(&x, [rows, cols], spec);
    let view = MatrixView::new(&x, rows, cols).unwrap();
    let packed = quantize(view, Contraction::Columns, &spec, KEY).unwrap();
    let (values, codes) = (dequantize(&packed), packing::unpack(packed.codes()));
    let count = |f: &dyn Fn(usize) -> bool| (0..x.len()).filter(|&i| f(i)).count() as f64;
    let nonzero = count(&|i| x[i] != 0.0);
    let underflow = count(&|i| x[i] != 0.0 && values[i] == 0.0);
    assert!(underflow >= 16.0);
    assert_eq!(got.underflow, underflow / nonzero);
    let cut =
        |i: usize| e2m1::decode(codes[i]).abs() == 6.0 && x[i].abs() > 1.000_001 * values[i].abs();
    assert_eq!(got.saturation, count(&cut) / x.len() as f64);
    let BlockScales::E4m3(scales) = packed.block_scales() else {
        panic!("NVFP4 has E4M3 scales")
    };
    let amax = packed.tensor_scale().amax[0];
    assert_eq!(got.tensor_amax, amax);
    let scaling = Nvfp4Scaling::new(amax, packed.tensor_scale().q_max);
    let (mut zero, mut four) = (0.0, 0.0);
    for (block, &scale) in x.chunks(16).zip(scales) {
        let block_amax = block.iter().fold(0.0_f32, |amax, x| amax.max(x.abs()));
        zero += f64::from(u8::from(scale == 0 && block_amax > 0.0));
        let (to_six, to_four) = scaling.block_scales_six_and_four(block_amax);
        four += f64::from(u8::from(scale == to_four && to_four != to_six));
    }
    assert_eq!(zero, 1.0);
    assert!(four > 0.0 && four < scales.len() as f64);
    assert_eq!(got.zero_scale_blocks, zero / scales.len() as f64);
    assert_eq!(got.scaled_to_four, Some(four / scales.len() as f64));
}
