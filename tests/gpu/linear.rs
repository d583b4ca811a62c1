//! The decorated linear on a device: with and without fusion, in both orders, against the CPU.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};

use burn::backend::{Autodiff, NdArray};
use burn::module::Param;
use burn::nn::Linear;
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, TensorPrimitive};
use burn_nvfp4::oscillation::{WeightTrace, quantized_weight};
use burn_nvfp4::recipe::{OperandSpec, Policy, Preset, Progress, Recipe, ScaleRenewal, presets};
use burn_nvfp4::renewal::{kept_amaxes, set_kept_amaxes};
use burn_nvfp4::stats::{GemmSample, Samples, set_sampling, take_samples};
use burn_nvfp4::{
    Nvfp4, Nvfp4Engine, layer, micro_batch, set_policy, set_progress, set_seed, set_watch,
    shared_weights, take_non_finite,
};
use tests::golden::{Record, te_nvfp4_directory};

use crate::turns::{Fused, Plain, exclusive};

/// Settings as in a fresh process, but for the recipe.
pub(crate) fn use_recipe<B: Backend>(recipe: Recipe) {
    let device = B::Device::default();
    set_policy::<B>(&device, Policy::uniform(recipe)).unwrap();
    set_progress::<B>(&device, Progress::default());
    set_seed::<B>(&device, 0);
    set_watch::<B>(&device, false);
}

/// Output and gradients of one linear.
#[derive(Clone, PartialEq)]
struct Outcome {
    y: Vec<f32>,
    dx: Vec<f32>,
    dw: Vec<f32>,
    db: Option<Vec<f32>>,
}

fn host<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// Deterministic values with a few outliers.
fn values(len: usize, salt: u64) -> Vec<f32> {
    let mut state = salt.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|i| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let uniform = (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
            if i % 97 == 0 { uniform * 30.0 } else { uniform }
        })
        .collect()
}

fn tensor<B: Backend, const D: usize>(shape: [usize; D], salt: u64) -> Tensor<B, D> {
    let data = TensorData::new(values(shape.iter().product(), salt), shape);
    Tensor::from_data(data, &B::Device::default())
}

fn run<B: AutodiffBackend, const D: usize>(
    x_shape: [usize; D],
    d_output: usize,
    bias: bool,
) -> Outcome {
    let d_input = x_shape[D - 1];
    let module = Linear::<B> {
        weight: Param::from_tensor(tensor([d_input, d_output], 2)),
        bias: bias.then(|| Param::from_tensor(tensor([d_output], 3))),
    };
    let x = tensor::<B, D>(x_shape, 1).require_grad();
    let mut y_shape = x_shape;
    y_shape[D - 1] = d_output;
    let dy = tensor::<B, D>(y_shape, 4);
    let y = module.forward(x.clone());
    let grads = (y.clone() * dy).sum().backward();
    Outcome {
        y: host(y),
        dx: host(x.grad(&grads).unwrap()),
        dw: host(module.weight.val().grad(&grads).unwrap()),
        db: module.bias.map(|b| host(b.val().grad(&grads).unwrap())),
    }
}

/// The largest difference, relative to the largest value.
fn distance(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    let worst = got.iter().zip(expected).map(|(g, e)| (g - e).abs());
    worst.fold(0.0_f32, |m, d| if d.is_nan() { f32::NAN } else { m.max(d) }) / largest
}

/// Presets whose GEMMs are all quantized: what is left to Burn's own matmul is its matter.
fn quantized_presets() -> impl Iterator<Item = &'static Preset> {
    presets::PRESETS.iter().filter(|preset| {
        let Recipe {
            fprop,
            dgrad,
            wgrad,
            ..
        } = preset.recipe;
        [fprop, dgrad, wgrad]
            .iter()
            .all(|gemm| gemm.lhs.is_quantized() && gemm.rhs.is_quantized())
    })
}

/// Samples are read back from the device and measured by the CPU's arithmetic: the same numbers.
#[test]
fn samples_of_a_device_are_those_of_the_cpu() {
    let Some(_turn) = exclusive() else { return };
    fn sampled<B: AutodiffBackend>() -> Samples {
        use_recipe::<B>(presets::QUARTET2);
        let device = B::Device::default();
        take_samples::<B>(&device);
        set_sampling::<B>(&device, NonZeroU64::new(1));
        layer("block", || run::<B, 3>([2, 32, 64], 48, true));
        set_sampling::<B>(&device, None);
        take_samples::<B>(&device)
    }
    let expected = sampled::<Nvfp4<Autodiff<NdArray>>>();
    assert_eq!((expected.operands.len(), expected.gemms.len()), (6, 3));
    for (got, mode) in [
        (sampled::<Nvfp4<Autodiff<Plain>>>(), "plain"),
        (sampled::<Nvfp4<Autodiff<Fused>>>(), "fused"),
    ] {
        assert_eq!(got.operands, expected.operands, "{mode}");
        for (got, expected) in got.gemms.iter().zip(&expected.gemms) {
            let formats = |sample: &GemmSample| {
                let GemmSample { gemm, lhs, rhs, .. } = sample;
                (gemm.clone(), lhs.clone(), rhs.clone())
            };
            assert_eq!(formats(got), formats(expected), "{mode}");
            assert!(!got.routine.contains("host"), "{mode}: {}", got.routine);
        }
    }
}

/// Kills: a kernel whose codes differ, a GEMM that reads the wrong axis, a scale applied twice. The
/// inputs are the same on both sides, so only the order of the sums may differ.
#[test]
fn a_device_gives_the_cpus_results_up_to_the_order_of_sums() {
    let Some(_turn) = exclusive() else { return };
    for preset in quantized_presets() {
        for (shape, d_output) in [([2, 32, 64], 48), ([3, 7, 37], 19), ([1, 64, 96], 160)] {
            use_recipe::<NdArray>(preset.recipe);
            let expected = run::<Nvfp4<Autodiff<NdArray>>, 3>(shape, d_output, true);
            use_recipe::<Plain>(preset.recipe);
            let got = run::<Nvfp4<Autodiff<Plain>>, 3>(shape, d_output, true);
            for (what, got, expected) in [
                ("y", &got.y, &expected.y),
                ("dx", &got.dx, &expected.dx),
                ("dw", &got.dw, &expected.dw),
                (
                    "db",
                    got.db.as_ref().unwrap(),
                    expected.db.as_ref().unwrap(),
                ),
            ] {
                let distance = distance(got, expected);
                assert!(
                    distance <= 2e-6,
                    "{what} under {} for {shape:?} to {d_output}: {distance:e}",
                    preset.name
                );
            }
        }
    }
}

/// Equal bits, or on CUDA equal up to the order of sums: cuBLASLt is asked once per shape and
/// layout, its choice goes by time, and the orders of decorators keep operands in other layouts.
fn is_same(a: &[f32], b: &[f32]) -> bool {
    let by_time = cfg!(all(feature = "cuda", not(feature = "wgpu")));
    a == b || (by_time && distance(a, b) <= 2e-6)
}

#[test]
fn fusion_and_order_of_decorators_change_no_bits() {
    let Some(_turn) = exclusive() else { return };
    for preset in quantized_presets() {
        for bias in [false, true] {
            use_recipe::<Plain>(preset.recipe);
            let plain = run::<Nvfp4<Autodiff<Plain>>, 3>([2, 24, 64], 48, bias);
            let inner = run::<Autodiff<Nvfp4<Plain>>, 3>([2, 24, 64], 48, bias);
            let fused = run::<Nvfp4<Autodiff<Fused>>, 3>([2, 24, 64], 48, bias);
            let inner_fused = run::<Autodiff<Nvfp4<Fused>>, 3>([2, 24, 64], 48, bias);
            for (what, other) in [
                ("autodiff outside", inner),
                ("fusion", fused),
                ("fusion, autodiff outside", inner_fused),
            ] {
                let same = is_same(&plain.y, &other.y);
                assert!(same, "y: {what} under {}", preset.name);
                let same = is_same(&plain.dx, &other.dx);
                assert!(same, "dx: {what} under {}", preset.name);
                let same = is_same(&plain.dw, &other.dw);
                assert!(same, "dw: {what} under {}", preset.name);
            }
        }
    }
}

/// What the trace of a weight looks at, without a copy to the host.
#[test]
fn a_weight_is_multiplied_as_the_same_values_on_every_backend() {
    let Some(_turn) = exclusive() else { return };
    fn values_of<B: Nvfp4Engine>(spec: OperandSpec) -> Vec<f32> {
        let weight = tensor::<B, 2>([64, 48], 5).into_primitive().tensor();
        let values = TensorPrimitive::Float(quantized_weight::<B>(weight, spec));
        host(Tensor::<B, 2>::from_primitive(values))
    }
    for recipe in [
        presets::NVIDIA,
        presets::NVIDIA_1D_WEIGHTS,
        presets::FOUR_OVER_SIX,
        presets::MXFP4,
    ] {
        let spec = recipe.fprop.rhs;
        let expected = values_of::<NdArray>(spec);
        assert!(values_of::<Plain>(spec) == expected, "{spec}");
        assert!(values_of::<Fused>(spec) == expected, "fused, {spec}");
    }
}

/// A weight of 2.49 that crosses the edge at 2.5 in every step, among others that stay.
#[test]
fn a_device_resets_the_weights_that_the_cpu_resets() {
    let Some(_turn) = exclusive() else { return };
    fn after_a_window<B: Nvfp4Engine>() -> Vec<f32> {
        let spec = presets::NVIDIA_1D_WEIGHTS.fprop.rhs;
        let weight = |at: f32| {
            let mut values = vec![6.0_f32; 32 * 16];
            values[40] = at;
            let data = TensorData::new(values, [32, 16]);
            let tensor = Tensor::<B, 2>::from_data(data, &B::Device::default());
            tensor.into_primitive().tensor()
        };
        let mut trace = WeightTrace::<B>::new(weight(2.49), spec);
        for at in [2.51, 2.49, 2.51, 2.49] {
            trace.observe(weight(at), spec);
        }
        assert_eq!(trace.share(8.0), 1.0 / 512.0);
        let reset = TensorPrimitive::Float(trace.reset(weight(2.49), 8.0));
        host(Tensor::<B, 2>::from_primitive(reset))
    }
    let mut expected = vec![6.0_f32; 32 * 16];
    expected[40] = 2.0;
    assert_eq!(after_a_window::<NdArray>(), expected);
    assert_eq!(after_a_window::<Plain>(), expected);
    assert_eq!(after_a_window::<Fused>(), expected);
}

/// Steps under kept amaxes, validation among them: kept and multiplied as on the CPU, with and
/// without fusion.
#[test]
fn a_device_keeps_the_amaxes_of_the_cpu() {
    let Some(_turn) = exclusive() else { return };
    fn steps<B: AutodiffBackend>() -> (Vec<Vec<f32>>, BTreeMap<String, f32>) {
        let recipe = Recipe {
            scale_renewal: ScaleRenewal::EverySteps(NonZeroU32::new(3).unwrap()),
            ..presets::NVIDIA
        };
        use_recipe::<B>(recipe);
        let device = B::Device::default();
        set_kept_amaxes::<B>(&device, BTreeMap::new());
        let mut results = Vec::new();
        for step in 0..5_u8 {
            let step_of = u64::from(step);
            let progress = Progress {
                step: step_of,
                total: 9,
            };
            set_progress::<B>(&device, progress);
            for (index, salt) in [(0, 1), (1, 7)] {
                let grow = 1.0 + f32::from(step);
                let x = tensor::<B, 2>([48, 64], salt) * grow;
                let x = x.detach().require_grad();
                let w = tensor::<B, 2>([64, 32], 2).require_grad();
                let y = micro_batch(index, || {
                    layer("block", || {
                        burn::tensor::module::linear(x.clone(), w.clone(), None)
                    })
                });
                let dy = tensor::<B, 2>([48, 32], salt + 1) * grow;
                let grads = (y.clone() * dy).sum().backward();
                results.extend([host(y), host(x.grad(&grads).unwrap())]);
                results.push(host(w.grad(&grads).unwrap()));
                let forward = layer("block", || {
                    burn::tensor::module::linear(x.inner(), w.inner(), None)
                });
                results.push(host(forward));
            }
        }
        let kept = kept_amaxes::<B>(&device);
        set_kept_amaxes::<B>(&device, BTreeMap::new());
        (results, kept)
    }
    let (expected, mut kept) = steps::<Nvfp4<Autodiff<NdArray>>>();
    for (mode, (results, mut device_kept)) in [
        ("plain", steps::<Nvfp4<Autodiff<Plain>>>()),
        ("fused", steps::<Nvfp4<Autodiff<Fused>>>()),
    ] {
        // A device whose tensor cores read packed weights packs them along either axis.
        for amaxes in [&mut kept, &mut device_kept] {
            amaxes.remove("block.dgrad.rhs");
        }
        assert_eq!(device_kept, kept, "{mode}");
        for (at, (got, expected)) in results.iter().zip(&expected).enumerate() {
            let distance = distance(got, expected);
            assert!(distance <= 2e-6, "{mode}, result {at}: {distance:e}");
        }
    }
}

/// Forward and backward of three micro-batches through one weight.
fn micro_batches<B: AutodiffBackend>(weight: &Tensor<B, 2>) -> Vec<Vec<f32>> {
    let mut results = Vec::new();
    for salt in [1, 5, 9] {
        let x = tensor::<B, 3>([2, 24, 40], salt).require_grad();
        let bias = Some(tensor::<B, 1>([56], 3));
        let y = burn::tensor::module::linear(x.clone(), weight.clone(), bias);
        let dy = tensor::<B, 3>([2, 24, 56], salt + 1);
        let grads = (y.clone() * dy).sum().backward();
        results.push(host(y));
        results.push(host(x.grad(&grads).unwrap()));
        results.push(host(weight.grad(&grads).unwrap()));
    }
    results
}

/// Kills: a factor after the GEMM that belongs to another micro-batch's X. How often a weight is
/// quantized is counted in the library's own tests: here other tests launch kernels meanwhile.
#[test]
fn sharing_packed_weights_changes_no_results_on_a_device() {
    let Some(_turn) = exclusive() else { return };
    fn check<B: AutodiffBackend>(mode: &str) {
        for preset in quantized_presets() {
            use_recipe::<B>(preset.recipe);
            let weight = tensor::<B, 2>([40, 56], 2).require_grad();
            let apart = micro_batches(&weight);
            let shared = shared_weights(|| micro_batches(&weight));
            for (apart, shared) in apart.iter().zip(&shared) {
                // A weight that needs two packings is decoded in the orientation of each.
                let distance = distance(shared, apart);
                assert!(distance <= 2e-6, "{mode}, {}: {distance:e}", preset.name);
                let same = preset.recipe != presets::NVIDIA || is_same(shared, apart);
                assert!(same, "{mode}, {}", preset.name);
            }
        }
    }
    check::<Nvfp4<Autodiff<Plain>>>("plain");
    check::<Nvfp4<Autodiff<Fused>>>("fused");
}

#[test]
fn the_gauge_of_a_device_sees_a_tensor_come_and_go() {
    let Some(_turn) = exclusive() else { return };
    fn check<B: Nvfp4Engine>() {
        let device = B::Device::default();
        let gauge = B::memory_gauge(&device).unwrap();
        let in_use = || {
            B::sync(&device).unwrap();
            gauge().unwrap().in_use
        };
        let before = in_use();
        let x = Tensor::<Nvfp4<B>, 1>::from_data(TensorData::zeros::<f32, _>([1 << 18]), &device);
        let with = in_use();
        assert!(with >= before + (1 << 20), "{before} {with}");
        drop(x);
        B::sync(&device).unwrap();
        let read_elsewhere = std::thread::spawn(gauge).join().unwrap();
        assert!(read_elsewhere.unwrap().in_use < with);
    }
    check::<Plain>();
    check::<Fused>();
}

/// Golden `linear`: one layer of TransformerEngine's reference, stochastic rounding off.
#[test]
fn the_decorated_linear_is_transformer_engines_on_a_device() {
    let Some(_turn) = exclusive() else { return };
    fn check<B: AutodiffBackend>() {
        use_recipe::<B>(presets::NVIDIA_NO_SR);
        let file = te_nvfp4_directory().join("linear.safetensors");
        let mut golden = Record::open(&file).unwrap();
        let cases = golden.cases_with("fprop.y_f64");
        assert!(!cases.is_empty(), "{} has no cases", file.display());
        for case in cases {
            let mut matrix = |name: &str| {
                let golden = golden.input(&format!("{case}.{name}"));
                let (rows, cols) = golden.matrix_shape();
                let values: Vec<f32> = golden.bf16().into_iter().map(f32::from).collect();
                let data = TensorData::new(values, [rows, cols]);
                Tensor::<B, 2>::from_data(data, &B::Device::default())
            };
            let (x, dy) = (matrix("x").require_grad(), matrix("dy"));
            // TransformerEngine stores W as [d_output, d_input].
            let w = matrix("w").transpose().detach().require_grad();
            let y = burn::tensor::module::linear(x.clone(), w.clone(), None);
            let grads = (y.clone() * dy).sum().backward();
            let dx = x.grad(&grads).unwrap();
            let dw = w.grad(&grads).unwrap().transpose();
            for (gemm, got) in [("fprop", y.inner()), ("dgrad", dx), ("wgrad", dw)] {
                let got: Vec<f64> = got.into_data().iter::<f64>().collect();
                golden.compare_close(&format!("{case}.{gemm}.y_f64"), &got, 1e-6, 0.0);
            }
        }
        assert!(golden.failures().is_empty(), "{:?}", golden.failures());
    }
    check::<Nvfp4<Autodiff<Plain>>>();
    check::<Nvfp4<Autodiff<Fused>>>();
}

/// Kills: a view that is read as what lies in memory; a dense copy of a transposed one beside a
/// quantized operand, taken for the matrix that it is a view of.
#[test]
fn transposed_and_sliced_inputs_are_read_as_what_they_are_on_a_device() {
    let Some(_turn) = exclusive() else { return };
    fn check<B: Nvfp4Engine>(recipe: Recipe) {
        use_recipe::<B>(recipe);
        let (x, w) = (
            tensor::<Nvfp4<B>, 2>([80, 96], 1),
            tensor::<Nvfp4<B>, 2>([64, 48], 2),
        );
        let of = |x: Tensor<_, 2>, w: Tensor<_, 2>| host(burn::tensor::module::linear(x, w, None));
        let copy =
            |view: Tensor<Nvfp4<B>, 2>| Tensor::from_data(view.into_data(), &B::Device::default());
        let sliced = x.clone().slice([16..80, 3..67]);
        let turned = sliced.clone().transpose();
        let weight = x.clone().slice([16..64, 3..67]).transpose();
        for view in [sliced, turned, x.slice([0..64, 0..64]).transpose()] {
            assert!(of(view.clone(), w.clone()) == of(copy(view), w.clone()));
        }
        let transposed = copy(w.clone().transpose()).transpose();
        let x = tensor::<Nvfp4<B>, 2>([32, 64], 3);
        assert!(of(x.clone(), transposed) == of(x.clone(), w));
        assert!(of(x.clone(), weight.clone()) == of(x, copy(weight)));
    }
    let [mut weight_alone, mut activation_alone] = [presets::NVIDIA; 2];
    weight_alone.fprop.lhs = OperandSpec::HighPrecision;
    activation_alone.fprop.rhs = OperandSpec::HighPrecision;
    for recipe in [presets::NVIDIA, weight_alone, activation_alone] {
        check::<Plain>(recipe);
        check::<Fused>(recipe);
    }
}

#[test]
fn backward_on_a_device_uses_the_plan_of_its_forward() {
    let Some(_turn) = exclusive() else { return };
    fn check<B: AutodiffBackend>() {
        let gradient = |between: fn()| {
            use_recipe::<B>(presets::NVIDIA);
            let x = tensor::<B, 2>([32, 64], 1);
            let w = tensor::<B, 2>([64, 48], 2).require_grad();
            let y = layer("named", || burn::tensor::module::linear(x, w.clone(), None));
            between();
            let grads = (y * tensor([32, 48], 4)).sum().backward();
            host(w.grad(&grads).unwrap())
        };
        let undisturbed = gradient(|| ());
        let disturbed = gradient(|| {
            use_recipe::<B>(presets::HIGH_PRECISION);
            set_seed::<B>(&B::Device::default(), 99);
        });
        assert!(undisturbed == disturbed);
        let seeded = gradient(|| ());
        assert!(undisturbed == seeded, "the same step replays the same bits");
    }
    check::<Nvfp4<Autodiff<Plain>>>();
    check::<Nvfp4<Autodiff<Fused>>>();
}

#[test]
fn a_frozen_weight_and_a_constant_input_are_no_special_case_on_a_device() {
    let Some(_turn) = exclusive() else { return };
    fn check<B: AutodiffBackend>() {
        use_recipe::<B>(presets::NVIDIA);
        let both = run::<B, 2>([32, 64], 48, false);
        let (w, dy) = (tensor::<B, 2>([64, 48], 2), tensor::<B, 2>([32, 48], 4));
        let x = tensor::<B, 2>([32, 64], 1).require_grad();
        let y = burn::tensor::module::linear(x.clone(), w.clone(), None);
        let grads = (y * dy.clone()).sum().backward();
        assert!(host(x.grad(&grads).unwrap()) == both.dx);
        let (x, w) = (tensor::<B, 2>([32, 64], 1), w.require_grad());
        let y = burn::tensor::module::linear(x, w.clone(), None);
        let grads = (y * dy).sum().backward();
        assert!(host(w.grad(&grads).unwrap()) == both.dw);
    }
    check::<Nvfp4<Autodiff<Plain>>>();
    check::<Nvfp4<Autodiff<Fused>>>();
}

#[test]
fn the_first_operand_that_is_not_finite_is_named() {
    let Some(_turn) = exclusive() else { return };
    fn check<B: Nvfp4Engine>() {
        use_recipe::<B>(presets::NVIDIA);
        let device = B::Device::default();
        set_watch::<B>(&device, true);
        let w = tensor::<Nvfp4<B>, 2>([64, 48], 2);
        let through = |name: &str, x: Tensor<Nvfp4<B>, 2>| {
            layer(name, || burn::tensor::module::linear(x, w.clone(), None))
        };
        let good = tensor::<Nvfp4<B>, 2>([32, 64], 1);
        through("first", good.clone());
        assert_eq!(take_non_finite::<B>(&device), None);
        for bad in [f32::NAN, f32::INFINITY] {
            through("first", good.clone());
            through("second", good.clone().slice_fill([3..4, 5..6], bad));
            through("third", good.clone().slice_fill([0..1, 0..1], f32::NAN));
            let found = take_non_finite::<B>(&device).unwrap();
            assert_eq!(
                (found.layer.as_str(), found.operand),
                ("second", "fprop.lhs")
            );
            assert_eq!(take_non_finite::<B>(&device), None, "told once");
        }
        set_watch::<B>(&device, false);
    }
    check::<Plain>();
    check::<Fused>();
}

#[test]
fn nothing_breaks_on_no_tokens() {
    let Some(_turn) = exclusive() else { return };
    fn check<B: AutodiffBackend>() {
        use_recipe::<B>(presets::NVIDIA);
        let device = B::Device::default();
        let x = Tensor::<B, 2>::from_data(TensorData::new(Vec::<f32>::new(), [0, 64]), &device);
        let y = burn::tensor::module::linear(x, tensor([64, 48], 2), None);
        assert_eq!(y.dims(), [0, 48]);
    }
    check::<Nvfp4<Autodiff<Plain>>>();
    check::<Nvfp4<Autodiff<Fused>>>();
}

/// bf16 activations over f32 master weights, where the device has bf16.
#[test]
fn each_input_gets_a_gradient_of_its_own_dtype_on_a_device() {
    let Some(_turn) = exclusive() else { return };
    if !Plain::supports_dtype(&Default::default(), DType::BF16) {
        println!("skipped: the device has no bf16");
        return;
    }
    fn check<B: AutodiffBackend>() -> [Vec<f32>; 4] {
        let module = Linear::<B> {
            weight: Param::from_tensor(tensor([64, 48], 2)),
            bias: Some(Param::from_tensor(tensor([48], 3))),
        };
        let x = tensor::<B, 2>([32, 64], 1);
        let x = x.cast(DType::BF16).detach().require_grad();
        let y = module.forward(x.clone());
        assert_eq!(y.dtype(), DType::BF16);
        let dy = tensor::<B, 2>([32, 48], 4).cast(DType::BF16);
        let grads = (y.clone() * dy).sum().backward();
        let dx = x.grad(&grads).unwrap();
        assert_eq!(dx.dtype(), DType::BF16);
        let dw = module.weight.val().grad(&grads).unwrap();
        let db = module.bias.unwrap().val().grad(&grads).unwrap();
        assert_eq!((dw.dtype(), db.dtype()), (DType::F32, DType::F32));
        [host(y), host(dx), host(dw), host(db)]
    }
    for recipe in [presets::NVIDIA, presets::HIGH_PRECISION] {
        use_recipe::<Plain>(recipe);
        use_recipe::<burn::backend::Flex>(recipe);
        let expected = check::<Nvfp4<Autodiff<burn::backend::Flex>>>();
        let plain = check::<Nvfp4<Autodiff<Plain>>>();
        let fused = check::<Nvfp4<Autodiff<Fused>>>();
        for (i, what) in ["y", "dx", "dw", "db"].into_iter().enumerate() {
            // One unit of bf16 where another order of sums crosses a rounding boundary.
            let distance = distance(&plain[i], &expected[i]);
            assert!(distance <= 1.0 / 128.0, "{what}: {distance}");
            assert!(plain[i] == fused[i], "{what}");
        }
    }
}
