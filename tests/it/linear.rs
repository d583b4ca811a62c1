//! The decorated linear: which bits it gives, in both orders, on every CPU backend.

use burn::backend::autodiff::checkpoint::strategy::BalancedCheckpointing;
use burn::backend::{Autodiff, Flex, NdArray};
use burn::module::Param;
use burn::nn::Linear;
use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::backend::AutodiffBackend;
use burn_nvfp4::recipe::{OperandSpec, Policy, Progress, Recipe, presets};
use burn_nvfp4::{
    Nvfp4, Nvfp4Engine, layer, precision, set_policy, set_progress, set_seed, shared_weights,
};
use tests::golden::{Record, te_nvfp4_directory};

use crate::device::exclusive;

/// Settings as in a fresh process, but for the recipe.
pub(crate) fn use_recipe<B: Backend>(recipe: Recipe) {
    let device = B::Device::default();
    set_policy::<B>(&device, Policy::uniform(recipe)).unwrap();
    set_progress::<B>(&device, Progress::default());
    set_seed::<B>(&device, 0);
}

/// Output and gradients of one linear, as bits.
#[derive(PartialEq)]
struct Outcome {
    y: Vec<u32>,
    dx: Vec<u32>,
    dw: Vec<u32>,
    db: Option<Vec<u32>>,
}

fn bits<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<u32> {
    let data = tensor.into_data().convert::<f32>();
    data.as_slice::<f32>()
        .unwrap()
        .iter()
        .map(|x| x.to_bits())
        .collect()
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
    let len = shape.iter().product();
    Tensor::from_data(
        TensorData::new(values(len, salt), shape),
        &Default::default(),
    )
}

fn linear<B: Backend>([d_input, d_output]: [usize; 2], bias: bool) -> Linear<B> {
    Linear {
        weight: Param::from_tensor(tensor([d_input, d_output], 2)),
        bias: bias.then(|| Param::from_tensor(tensor([d_output], 3))),
    }
}

fn run<B: AutodiffBackend, const D: usize>(
    x_shape: [usize; D],
    d_output: usize,
    bias: bool,
) -> Outcome {
    let d_input = x_shape[D - 1];
    let module = linear::<B>([d_input, d_output], bias);
    let x = tensor::<B, D>(x_shape, 1).require_grad();
    let mut y_shape = x_shape;
    y_shape[D - 1] = d_output;
    let dy = tensor::<B, D>(y_shape, 4);
    let y = module.forward(x.clone());
    let grads = (y.clone() * dy).sum().backward();
    Outcome {
        y: bits(y),
        dx: bits(x.grad(&grads).unwrap()),
        dw: bits(module.weight.val().grad(&grads).unwrap()),
        db: module.bias.map(|b| bits(b.val().grad(&grads).unwrap())),
    }
}

/// Golden `linear`: one layer of TransformerEngine's reference, stochastic rounding off.
///
/// Kills: a GEMM that reads the wrong packing or axis, a tensor scale before the GEMM, a weight
/// quantized along the wrong axis, the Hadamard transform on one operand only.
#[test]
fn the_decorated_linear_is_transformer_engines() {
    let _turn = exclusive();
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
        println!(
            "{}: {} tensors compared",
            golden.name(),
            golden.compared_tensors()
        );
    }
    check::<Nvfp4<Autodiff<NdArray>>>();
    check::<Nvfp4<Autodiff<Flex>>>();
}

#[test]
fn both_orders_give_the_same_bits_under_every_uniform_recipe() {
    let _turn = exclusive();
    for preset in presets::PRESETS {
        use_recipe::<NdArray>(preset.recipe);
        use_recipe::<Flex>(preset.recipe);
        for bias in [false, true] {
            let outer = run::<Nvfp4<Autodiff<NdArray>>, 3>([2, 24, 64], 48, bias);
            let inner = run::<Autodiff<Nvfp4<NdArray>>, 3>([2, 24, 64], 48, bias);
            assert!(outer == inner, "ndarray, {}", preset.name);
            let outer = run::<Nvfp4<Autodiff<Flex>>, 3>([2, 24, 64], 48, bias);
            let inner = run::<Autodiff<Nvfp4<Flex>>, 3>([2, 24, 64], 48, bias);
            assert!(outer == inner, "flex, {}", preset.name);
        }
    }
}

/// Kills: a shared weight of another micro-batch's factor, orientation or padding.
#[test]
fn sharing_packed_weights_changes_no_bits() {
    let _turn = exclusive();
    fn check<B: AutodiffBackend>() {
        let run = |weight: &Tensor<B, 2>, bias: &Tensor<B, 1>| {
            let mut results = Vec::new();
            for salt in [1, 5, 9] {
                let x = tensor::<B, 3>([2, 24, 40], salt).require_grad();
                let (w, b) = (weight.clone(), Some(bias.clone()));
                let y = burn::tensor::module::linear(x.clone(), w, b);
                let dy = tensor::<B, 3>([2, 24, 56], salt + 1);
                let grads = (y.clone() * dy).sum().backward();
                results.push(bits(y));
                results.push(bits(x.grad(&grads).unwrap()));
                results.push(bits(weight.grad(&grads).unwrap()));
            }
            results
        };
        for preset in presets::PRESETS {
            use_recipe::<B>(preset.recipe);
            let weight = tensor::<B, 2>([40, 56], 2).require_grad();
            let bias = tensor::<B, 1>([56], 3).require_grad();
            let apart = run(&weight, &bias);
            let shared = shared_weights(|| run(&weight, &bias));
            assert!(apart == shared, "{}", preset.name);
        }
    }
    check::<Nvfp4<Autodiff<NdArray>>>();
    check::<Nvfp4<Autodiff<Flex>>>();
}

#[test]
fn recomputing_memory_bound_ops_changes_no_bits() {
    let _turn = exclusive();
    for recipe in [
        presets::NVIDIA,
        presets::ROW_SCALED,
        presets::HIGH_PRECISION,
    ] {
        use_recipe::<NdArray>(recipe);
        let kept = run::<Nvfp4<Autodiff<NdArray>>, 2>([32, 64], 48, true);
        let recomputed =
            run::<Nvfp4<Autodiff<NdArray, BalancedCheckpointing>>, 2>([32, 64], 48, true);
        assert!(kept == recomputed);
    }
}

#[test]
fn ndarray_and_flex_give_the_same_bits_under_every_quantized_recipe() {
    let _turn = exclusive();
    for preset in presets::PRESETS {
        let all = |gemm: burn_nvfp4::recipe::GemmSpec| {
            gemm.lhs != OperandSpec::HighPrecision && gemm.rhs != OperandSpec::HighPrecision
        };
        if !(all(preset.recipe.fprop) && all(preset.recipe.dgrad) && all(preset.recipe.wgrad)) {
            continue; // A high-precision GEMM is each backend's own.
        }
        use_recipe::<NdArray>(preset.recipe);
        use_recipe::<Flex>(preset.recipe);
        let ndarray = run::<Nvfp4<Autodiff<NdArray>>, 2>([48, 64], 32, false);
        let flex = run::<Nvfp4<Autodiff<Flex>>, 2>([48, 64], 32, false);
        for (what, ndarray, flex) in [
            ("y", ndarray.y, flex.y),
            ("dx", ndarray.dx, flex.dx),
            ("dw", ndarray.dw, flex.dw),
        ] {
            assert!(ndarray == flex, "{what} under {}", preset.name);
        }
    }
}

#[test]
fn leading_dims_are_flattened_before_blocking() {
    let _turn = exclusive();
    use_recipe::<NdArray>(presets::NVIDIA);
    // 2 x 24 tokens: blocks of 16 along tokens straddle the two batch items.
    let batched = run::<Nvfp4<Autodiff<NdArray>>, 3>([2, 24, 64], 48, true);
    let flat = run::<Nvfp4<Autodiff<NdArray>>, 2>([48, 64], 48, true);
    assert!(batched.y == flat.y);
    assert!(batched.dx == flat.dx);
    assert!(batched.dw == flat.dw);
}

#[test]
fn odd_dims_equal_the_same_layer_padded_with_zeros() {
    let _turn = exclusive();
    type B = Nvfp4<Autodiff<NdArray>>;
    for recipe in [
        presets::NVIDIA_NO_SR,
        presets::NVIDIA_1D_WEIGHTS,
        presets::MXFP4,
        presets::FP8,
    ] {
        use_recipe::<NdArray>(without_stochastic(recipe));
        let ([t, i, o], [tp, ip, op]) = ([21, 37, 19], [128, 128, 128]);
        let (x, w, dy) = (
            tensor::<B, 2>([t, i], 1),
            tensor::<B, 2>([i, o], 2),
            tensor::<B, 2>([t, o], 4),
        );
        let pad = |x: Tensor<B, 2>, rows: usize, cols: usize| {
            let [r, c] = x.dims();
            Tensor::zeros([rows, cols], &x.device()).slice_assign([0..r, 0..c], x)
        };
        let grads = |x: Tensor<B, 2>, w: Tensor<B, 2>, dy: Tensor<B, 2>| {
            let (x, w) = (x.require_grad(), w.require_grad());
            let y = burn::tensor::module::linear(x.clone(), w.clone(), None);
            let grads = (y.clone() * dy).sum().backward();
            (y.inner(), x.grad(&grads).unwrap(), w.grad(&grads).unwrap())
        };
        let (y, dx, dw) = grads(x.clone(), w.clone(), dy.clone());
        let (yp, dxp, dwp) = grads(pad(x, tp, ip), pad(w, ip, op), pad(dy, tp, op));
        for (name, odd, padded) in [
            ("y", y, yp.slice([0..t, 0..o])),
            ("dx", dx, dxp.slice([0..t, 0..i])),
            ("dw", dw, dwp.slice([0..i, 0..o])),
        ] {
            // Same codes and scales; a longer contraction may only sum in another order.
            let largest: f32 = odd.clone().abs().max().into_scalar();
            let error: f32 = (odd - padded).abs().max().into_scalar();
            assert!(error <= 1e-6 * largest, "{name}: {error} of {largest}");
        }
    }
}

/// The recipe with every rounding to nearest: padding moves elements to other random bytes.
fn without_stochastic(mut recipe: Recipe) -> Recipe {
    for gemm in [&mut recipe.fprop, &mut recipe.dgrad, &mut recipe.wgrad] {
        for operand in [&mut gemm.lhs, &mut gemm.rhs] {
            *operand = operand.with_rounding(burn_nvfp4::recipe::Rounding::NearestEven);
        }
    }
    recipe
}

#[test]
fn a_high_precision_scope_gives_the_bits_of_the_plain_backend() {
    let _turn = exclusive();
    use_recipe::<NdArray>(presets::NVIDIA);
    let plain = run::<Autodiff<NdArray>, 2>([32, 64], 48, true);
    let scoped = precision(presets::HIGH_PRECISION, || {
        run::<Nvfp4<Autodiff<NdArray>>, 2>([32, 64], 48, true)
    });
    assert!(plain == scoped);
    assert!(plain != run::<Nvfp4<Autodiff<NdArray>>, 2>([32, 64], 48, true));
}

#[test]
fn backward_uses_the_recipe_that_held_in_forward() {
    let _turn = exclusive();
    type B = Nvfp4<Autodiff<NdArray>>;
    let gradient = |between: fn()| {
        use_recipe::<NdArray>(presets::NVIDIA);
        set_progress::<NdArray>(&Default::default(), Progress { step: 3, total: 10 });
        let module = linear::<B>([64, 48], false);
        let y = layer("named", || module.forward(tensor::<B, 2>([32, 64], 1)));
        between();
        let grads = (y * tensor([32, 48], 4)).sum().backward();
        bits(module.weight.val().grad(&grads).unwrap())
    };
    let undisturbed = gradient(|| ());
    let disturbed = gradient(|| {
        use_recipe::<NdArray>(presets::HIGH_PRECISION);
        set_progress::<NdArray>(&Default::default(), Progress { step: 4, total: 10 });
        B::seed(&Default::default(), 99);
    });
    assert!(undisturbed == disturbed);
}

#[test]
fn a_policy_reaches_layers_by_name() {
    let _turn = exclusive();
    type B = Nvfp4<NdArray>;
    let device = Default::default();
    let policy = Policy::uniform(presets::NVIDIA)
        .with_override("*.head", presets::HIGH_PRECISION)
        .unwrap();
    set_policy::<NdArray>(&device, policy).unwrap();
    let forward = |name: &str| {
        layer("model", || {
            layer(name, || {
                bits(linear::<B>([64, 48], true).forward(tensor::<B, 2>([32, 64], 1)))
            })
        })
    };
    let plain = bits(linear::<NdArray>([64, 48], true).forward(tensor::<NdArray, 2>([32, 64], 1)));
    assert!(forward("head") == plain);
    assert!(forward("body") != plain);
}

#[test]
fn random_bits_are_a_function_of_seed_and_step() {
    let _turn = exclusive();
    type B = Nvfp4<Autodiff<NdArray>>;
    use_recipe::<NdArray>(presets::NVIDIA);
    let device = Default::default();
    let run_with = |seed, step| {
        B::seed(&device, seed);
        set_progress::<NdArray>(&device, Progress { step, total: 10 });
        run::<B, 2>([32, 64], 48, false)
    };
    let first = run_with(1, 0);
    assert!(first == run_with(1, 0));
    let (other_seed, other_step) = (run_with(2, 0), run_with(1, 1));
    assert!(first.y == other_seed.y, "forward rounds to nearest");
    assert!(first.dx != other_seed.dx);
    assert!(first.dw != other_seed.dw);
    assert!(first.dx != other_step.dx);
    assert!(first.dw != other_step.dw);
}

#[test]
fn each_input_gets_a_gradient_of_its_own_dtype() {
    let _turn = exclusive();
    type B = Nvfp4<Autodiff<Flex>>;
    for recipe in [presets::NVIDIA, presets::HIGH_PRECISION] {
        use_recipe::<Flex>(recipe);
        let module = linear::<B>([64, 48], true);
        let x = tensor::<B, 2>([32, 64], 1)
            .cast(DType::BF16)
            .detach()
            .require_grad();
        let y = module.forward(x.clone());
        assert_eq!(y.dtype(), DType::BF16);
        let grads = (y * tensor::<B, 2>([32, 48], 4).cast(DType::BF16))
            .sum()
            .backward();
        assert_eq!(x.grad(&grads).unwrap().dtype(), DType::BF16);
        assert_eq!(
            module.weight.val().grad(&grads).unwrap().dtype(),
            DType::F32
        );
        assert_eq!(
            module.bias.unwrap().val().grad(&grads).unwrap().dtype(),
            DType::F32
        );
    }
}

#[test]
fn a_frozen_weight_and_a_constant_input_are_no_special_case() {
    let _turn = exclusive();
    type B = Nvfp4<Autodiff<NdArray>>;
    use_recipe::<NdArray>(presets::NVIDIA);
    let both = run::<B, 2>([32, 64], 48, false);
    let (w, dy) = (tensor::<B, 2>([64, 48], 2), tensor::<B, 2>([32, 48], 4));
    let x = tensor::<B, 2>([32, 64], 1).require_grad();
    let y = burn::tensor::module::linear(x.clone(), w.clone(), None);
    let grads = (y * dy.clone()).sum().backward();
    assert!(bits(x.grad(&grads).unwrap()) == both.dx);
    let (x, w) = (tensor::<B, 2>([32, 64], 1), w.require_grad());
    let y = burn::tensor::module::linear(x, w.clone(), None);
    let grads = (y * dy).sum().backward();
    assert!(bits(w.grad(&grads).unwrap()) == both.dw);
}

#[test]
fn transposed_and_sliced_inputs_are_read_as_what_they_are() {
    let _turn = exclusive();
    fn check<B: Nvfp4Engine>() {
        use_recipe::<B>(presets::NVIDIA);
        let (x, w) = (
            tensor::<Nvfp4<B>, 2>([80, 96], 1),
            tensor::<Nvfp4<B>, 2>([64, 48], 2),
        );
        let of = |x: Tensor<_, 2>, w: Tensor<_, 2>| bits(burn::tensor::module::linear(x, w, None));
        let copy =
            |view: Tensor<Nvfp4<B>, 2>| Tensor::from_data(view.into_data(), &B::Device::default());

        let sliced = x.clone().slice([16..80, 3..67]);
        let turned = sliced.clone().transpose();
        for view in [sliced, turned, x.slice([0..64, 0..64]).transpose()] {
            assert!(of(view.clone(), w.clone()) == of(copy(view), w.clone()));
        }
        let transposed = copy(w.clone().transpose()).transpose();
        let x = tensor::<Nvfp4<B>, 2>([32, 64], 3);
        assert!(of(x.clone(), transposed) == of(x, w));
    }
    check::<NdArray>();
    check::<Flex>();
}
