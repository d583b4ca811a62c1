//! Tensor scales that are renewed every so many steps: what is kept, who keeps it, and what it does
//! to values and random bits.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};

use burn::backend::{Autodiff, Flex, NdArray};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_nvfp4::cpu::{
    Contraction, MatrixView, decode_operand, gemm, gemm_alpha, quantize_with_amax, tensor_amax,
};
use burn_nvfp4::recipe::{Progress, Recipe, ScaleRenewal, presets};
use burn_nvfp4::renewal::{kept_amaxes, set_kept_amaxes};
use burn_nvfp4::rng::{RandomKey, Stream};
use burn_nvfp4::stats::{set_sampling, take_samples};
use burn_nvfp4::{Nvfp4, layer, micro_batch, set_progress};

use crate::device::exclusive;
use crate::linear::use_recipe;
use crate::quantize::normal;

type B = Nvfp4<Autodiff<NdArray>>;

const TOKENS: usize = 32;
const D_INPUT: usize = 48;
const D_OUTPUT: usize = 64;

fn every(steps: u32) -> ScaleRenewal {
    ScaleRenewal::EverySteps(NonZeroU32::new(steps).unwrap())
}

fn renewed(recipe: Recipe, steps: u32) -> Recipe {
    Recipe {
        scale_renewal: every(steps),
        ..recipe
    }
}

/// A device that follows `recipe` and keeps nothing.
fn fresh(recipe: Recipe) {
    use_recipe::<NdArray>(recipe);
    set_kept_amaxes::<NdArray>(&Default::default(), BTreeMap::new());
}

fn begin_step(step: u64) {
    set_progress::<NdArray>(&Default::default(), Progress { step, total: 100 });
}

fn x_values(scale: f32) -> Vec<f32> {
    let values = normal(1, TOKENS * D_INPUT);
    values.iter().map(|value| value * scale).collect()
}

fn tensor<B: Backend>(values: Vec<f32>, shape: [usize; 2]) -> Tensor<B, 2> {
    Tensor::from_data(TensorData::new(values, shape), &Default::default())
}

fn host<B: Backend>(tensor: Tensor<B, 2>) -> Vec<u32> {
    let values = tensor.into_data().to_vec::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

/// Forward and backward of one layer on activations and gradients of some size: `y`, `dx`, `dw`.
fn pass<B: AutodiffBackend>(scale: f32) -> [Vec<u32>; 3] {
    let x = tensor::<B>(x_values(scale), [TOKENS, D_INPUT]).require_grad();
    let w = tensor::<B>(normal(2, D_INPUT * D_OUTPUT), [D_INPUT, D_OUTPUT]).require_grad();
    let dy = normal(3, TOKENS * D_OUTPUT)
        .iter()
        .map(|dy| dy * scale)
        .collect();
    let y = layer("up_proj", || {
        burn::tensor::module::linear(x.clone(), w.clone(), None)
    });
    let grads = (y.clone() * tensor(dy, [TOKENS, D_OUTPUT]))
        .sum()
        .backward();
    let [dx, dw] = [x, w].map(|it| host(it.grad(&grads).unwrap()));
    [host(y.inner()), dx, dw]
}

/// The forward of that layer where no backward follows.
fn forward(scale: f32) -> Vec<u32> {
    let x = tensor::<Nvfp4<NdArray>>(x_values(scale), [TOKENS, D_INPUT]);
    let w = tensor(normal(2, D_INPUT * D_OUTPUT), [D_INPUT, D_OUTPUT]);
    host(layer("up_proj", || {
        burn::tensor::module::linear(x, w, None)
    }))
}

fn kept() -> BTreeMap<String, f32> {
    kept_amaxes::<NdArray>(&Default::default())
}

fn kept_x() -> f32 {
    kept()["up_proj.fprop.lhs"]
}

#[test]
fn renewal_in_every_step_gives_the_bits_without_it() {
    let _turn = exclusive();
    for recipe in [presets::NVIDIA, presets::FOUR_OVER_SIX, presets::AVERIS] {
        let run = |recipe| {
            fresh(recipe);
            let mut bits = Vec::new();
            for step in 0..3 {
                begin_step(step);
                for (index, scale) in [(0, 1.0), (1, 4.0)] {
                    bits.push(micro_batch(index, || pass::<B>(scale)));
                }
            }
            bits
        };
        assert!(run(recipe) == run(renewed(recipe, 1)));
    }
}

#[test]
fn an_operand_is_under_the_amax_of_the_last_renewal() {
    let _turn = exclusive();
    fresh(renewed(presets::NVIDIA, 4));
    begin_step(0);
    pass::<B>(1.0);
    let amax = tensor_amax(&x_values(1.0));
    assert_eq!(kept_x(), amax);
    let names: Vec<_> = kept().into_keys().collect();
    let operands = [
        "dgrad.lhs",
        "fprop.lhs",
        "fprop.rhs",
        "wgrad.lhs",
        "wgrad.rhs",
    ];
    assert_eq!(names, operands.map(|operand| format!("up_proj.{operand}")));

    // The arithmetic of the specification, with the amax of step 0.
    begin_step(3);
    let [y, ..] = pass::<B>(3.0);
    let key = RandomKey {
        seed: 0,
        step: 3,
        micro_batch: 0,
        stream: Stream::Other(0),
    };
    let x = x_values(3.0);
    let w = normal(2, D_INPUT * D_OUTPUT);
    let lhs = MatrixView::new(&x, TOKENS, D_INPUT).unwrap();
    let rhs = MatrixView::new(&w, D_INPUT, D_OUTPUT).unwrap();
    let spec = presets::NVIDIA.fprop;
    let lhs = quantize_with_amax(lhs, Contraction::Columns, &spec.lhs, amax, key).unwrap();
    let rhs_amax = tensor_amax(&w);
    let rhs = quantize_with_amax(rhs, Contraction::Rows, &spec.rhs, rhs_amax, key).unwrap();
    let alpha = gemm_alpha(lhs.tensor_scale(), rhs.tensor_scale());
    let (a, b) = (decode_operand(&lhs), decode_operand(&rhs));
    let expected = gemm(&a, &b, TOKENS, D_OUTPUT, D_INPUT, &alpha);
    let distance = |(y, expected): (&u32, &f32)| (f32::from_bits(*y) - expected).abs();
    let worst = y.iter().zip(&expected).map(distance).fold(0.0, f32::max);
    assert!(worst <= 1e-5 * tensor_amax(&expected), "{worst}");
    assert_eq!(kept_x(), amax, "a step in between renews nothing");

    begin_step(4);
    pass::<B>(3.0);
    assert_eq!(kept_x(), tensor_amax(&x_values(3.0)));
}

#[test]
fn what_is_cut_off_is_counted_and_nothing_is_before_an_operand_grows() {
    let _turn = exclusive();
    let device = Default::default();
    fresh(renewed(presets::NVIDIA, 4));
    take_samples::<NdArray>(&device);
    set_sampling::<NdArray>(&device, NonZeroU64::new(1));
    for (step, scale) in [(0, 1.0), (1, 1.0), (2, 8.0)] {
        begin_step(step);
        pass::<B>(scale);
    }
    set_sampling::<NdArray>(&device, None);
    let of_x = take_samples::<NdArray>(&device).operands.into_iter();
    let of_x: Vec<_> = of_x
        .filter(|sample| sample.operand == "fprop.lhs")
        .collect();
    let amaxes: Vec<_> = of_x.iter().map(|it| it.statistics.tensor_amax).collect();
    assert_eq!(amaxes, [tensor_amax(&x_values(1.0)); 3]);
    let cut_off: Vec<_> = of_x.iter().map(|it| it.statistics.saturation).collect();
    assert_eq!(cut_off[0], cut_off[1]);
    assert!(cut_off[2] > cut_off[1] + 0.01, "{cut_off:?}");
}

/// Forward and backward of three layers that read the same activation: `dx`, then `y` and `dw` of
/// each.
fn pass_of_three(scale: f32) -> Vec<Vec<u32>> {
    let x = tensor::<B>(x_values(scale), [TOKENS, D_INPUT]).require_grad();
    let dy = tensor::<B>(normal(3, TOKENS * D_OUTPUT), [TOKENS, D_OUTPUT]);
    let linears = [("q_proj", 2), ("k_proj", 4), ("v_proj", 5)].map(|(name, seed)| {
        let w = tensor::<B>(normal(seed, D_INPUT * D_OUTPUT), [D_INPUT, D_OUTPUT]);
        let w = w.require_grad();
        let y = layer(name, || {
            burn::tensor::module::linear(x.clone(), w.clone(), None)
        });
        (y, w)
    });
    let losses = linears.iter().map(|(y, _)| (y.clone() * dy.clone()).sum());
    let grads = losses.reduce(|a, b| a + b).unwrap().backward();
    let mut bits = vec![host(x.grad(&grads).unwrap())];
    for (y, w) in linears {
        bits.push(host(w.grad(&grads).unwrap()));
        bits.push(host(y.inner()));
    }
    bits
}

/// A sampled step had each of the three make `X` of wgrad for itself, under an amax of its own that
/// steps without samples do not renew.
#[test]
fn samples_of_layers_that_share_an_activation_change_no_bit() {
    let _turn = exclusive();
    let device = Default::default();
    let run = |sampled: Option<NonZeroU64>| {
        fresh(presets::NVIDIA_RENEWED_16);
        take_samples::<NdArray>(&device);
        set_sampling::<NdArray>(&device, sampled);
        // With every ninth: the first and the last step are sampled, the renewal of 16 is not.
        let bits = [(0, 1.0), (16, 4.0), (17, 4.0), (18, 4.0)].map(|(step, scale)| {
            begin_step(step);
            pass_of_three(scale)
        });
        set_sampling::<NdArray>(&device, None);
        let samples = take_samples::<NdArray>(&device).operands;
        assert_eq!(samples.is_empty(), sampled.is_none());
        (bits, kept())
    };
    assert!(run(NonZeroU64::new(9)) == run(None));
}

#[test]
fn the_largest_micro_batch_of_a_step_is_kept() {
    let _turn = exclusive();
    fresh(renewed(presets::NVIDIA, 4));
    begin_step(4);
    for scale in [1.0, 5.0, 2.0] {
        pass::<B>(scale);
    }
    assert_eq!(kept_x(), tensor_amax(&x_values(5.0)));
    begin_step(8);
    pass::<B>(2.0);
    assert_eq!(kept_x(), tensor_amax(&x_values(2.0)));
}

/// Behind a first micro-batch of zeros or of infinities, what was kept before was taken for an amax
/// of this step, and stayed if it was larger.
#[test]
fn a_micro_batch_that_says_nothing_leaves_the_step_to_the_others() {
    let _turn = exclusive();
    for nothing in [0.0, f32::INFINITY] {
        // The first pair follows a kept amax, the second follows none, which stands for 1.
        for (before, then) in [(Some(5.0), 2.0), (None, 0.01)] {
            fresh(renewed(presets::NVIDIA, 4));
            if let Some(scale) = before {
                begin_step(0);
                pass::<B>(scale);
            }
            begin_step(4);
            for scale in [nothing, then, nothing, then / 2.0] {
                pass::<B>(scale);
            }
            let amax = tensor_amax(&x_values(then));
            assert_eq!(kept_x(), amax, "{nothing} after {before:?}");
        }
    }
}

#[test]
fn an_amax_of_zero_or_infinity_is_not_kept() {
    let _turn = exclusive();
    fresh(renewed(presets::NVIDIA, 4));
    begin_step(0);
    pass::<B>(0.0);
    assert_eq!(kept_x(), 1.0);
    begin_step(4);
    pass::<B>(2.0);
    let amax = kept_x();
    assert_eq!(amax, tensor_amax(&x_values(2.0)));
    for (step, nothing) in [(8, 0.0), (12, f32::INFINITY)] {
        begin_step(step);
        pass::<B>(nothing);
        assert_eq!(kept_x(), amax);
    }
}

#[test]
fn a_forward_without_backward_reads_what_is_kept_and_keeps_nothing() {
    let _turn = exclusive();
    fresh(renewed(presets::NVIDIA, 4));
    begin_step(0);
    let own = forward(3.0);
    assert_eq!(kept(), BTreeMap::new());
    pass::<B>(1.0);
    let before = kept();
    begin_step(1);
    assert!(forward(3.0) == pass::<B>(3.0)[0]);
    assert!(forward(3.0) != own);
    begin_step(4);
    assert!(
        forward(3.0) == own,
        "a step that renews takes the amax of what it reads"
    );
    assert_eq!(kept(), before);
}

#[test]
fn an_operand_that_nothing_is_kept_of_takes_its_own_amax() {
    let _turn = exclusive();
    fresh(presets::NVIDIA);
    begin_step(2);
    let own = pass::<B>(1.0);
    fresh(renewed(presets::NVIDIA, 4));
    begin_step(2);
    assert!(pass::<B>(1.0) == own);
    assert_eq!(kept_x(), tensor_amax(&x_values(1.0)));
    // So does every linear without a name, whose neighbours nobody could tell apart, and the order
    // of decorators in which a linear does not know whether backward follows.
    fresh(renewed(presets::NVIDIA, 4));
    begin_step(2);
    pass::<Autodiff<Nvfp4<NdArray>>>(1.0);
    assert_eq!(kept(), BTreeMap::new());
}

#[test]
fn micro_batches_under_one_amax_draw_other_bits_and_the_same_ones_again() {
    let _turn = exclusive();
    fresh(renewed(presets::NVIDIA, 4));
    let pass = |index| micro_batch(index, || pass::<B>(1.0));
    begin_step(0);
    pass(0);
    begin_step(1);
    let [y, first, _] = pass(0);
    let [other_y, second, _] = pass(1);
    assert!(y == other_y && first != second);
    begin_step(1);
    assert!(pass(0)[1] == first && pass(1)[1] == second);
}

#[test]
fn what_is_put_back_gives_the_same_bits_on_any_backend() {
    let _turn = exclusive();
    fresh(renewed(presets::NVIDIA, 4));
    begin_step(0);
    pass::<B>(1.0);
    let amaxes = kept();
    begin_step(2);
    let expected = pass::<B>(3.0);
    fresh(renewed(presets::NVIDIA, 4));
    begin_step(2);
    assert!(pass::<B>(3.0) != expected);
    set_kept_amaxes::<NdArray>(&Default::default(), amaxes.clone());
    assert!(pass::<B>(3.0) == expected);
    assert_eq!(kept(), amaxes);

    // On another backend they are put into other tensors.
    let device = Default::default();
    use_recipe::<Flex>(renewed(presets::NVIDIA, 4));
    set_progress::<Flex>(
        &device,
        Progress {
            step: 2,
            total: 100,
        },
    );
    set_kept_amaxes::<Flex>(&device, amaxes.clone());
    assert!(pass::<Nvfp4<Autodiff<Flex>>>(3.0) == expected);
    assert_eq!(kept_amaxes::<Flex>(&device), amaxes);
    set_kept_amaxes::<Flex>(&device, BTreeMap::new());
    use_recipe::<Flex>(presets::NVIDIA);
}

#[test]
fn scales_that_cannot_be_kept_are_refused() {
    for (recipe, message) in [
        (
            presets::QUARTET2,
            "dgrad.lhs: EDEN and row scales follow each tensor",
        ),
        (
            presets::ROW_SCALED,
            "fprop.lhs: EDEN and row scales follow each tensor",
        ),
        (
            presets::MXFP8,
            "scale_renewal: no operand has a tensor scale",
        ),
        (
            presets::HIGH_PRECISION,
            "scale_renewal: no operand has a tensor scale",
        ),
    ] {
        let error = renewed(recipe, 4).validate().unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }
    assert_eq!(renewed(presets::NVIDIA, 16), presets::NVIDIA_RENEWED_16);
}
