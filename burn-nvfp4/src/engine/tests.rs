//! What the engine promises to every backend, and what a node keeps.

use std::cell::RefCell;
use std::collections::BTreeMap;

use burn::backend::NdArray;
use burn_backend::tensor::FloatTensor;
use burn_backend::{DType, Shape, TensorData};

use super::linear::{Kept, Wanted, Weight, backward, fprop};
use super::{Nvfp4Engine, Operand, OperandRequest, host};
use crate::recipe::{Recipe, presets};
use crate::runtime::{LinearPlan, TakenAmaxes};
use crate::scope::precision;

/// A backend with the memory of `NdArray` that knows nothing of it: `NdArray` behind the decorator,
/// opted in with the impl that a user would write, empty but for a count.
pub(super) type Portable = crate::Nvfp4<NdArray>;

thread_local! {
    /// How often each operand was quantized, by GEMM and side.
    static QUANTIZED: RefCell<BTreeMap<&'static str, usize>> = RefCell::default();
}

impl<B: Nvfp4Engine> Nvfp4Engine for crate::Nvfp4<B> {
    fn quantize_operand(x: FloatTensor<Self>, request: &OperandRequest<'_>) -> Operand<Self> {
        if request.spec.is_quantized() {
            QUANTIZED.with_borrow_mut(|count| *count.entry(request.operand).or_default() += 1);
        }
        host::quantize::<Self>(x, request)
    }
}

/// How often [`Portable`] has quantized each operand on this thread since the last call.
pub(super) fn take_quantized() -> BTreeMap<&'static str, usize> {
    QUANTIZED.take()
}

fn plan(recipe: Recipe) -> LinearPlan {
    LinearPlan {
        recipe,
        layer: None,
        seed: 3,
        step: 5,
        micro_batch: 0,
        weight: None,
        sampled: false,
        amaxes: TakenAmaxes::Forgotten,
    }
}

fn tensor<B: Nvfp4Engine>(shape: [usize; 2], phase: f32) -> FloatTensor<B> {
    let wave = (0..shape[0] * shape[1]).map(|i| ((i as f32).mul_add(0.618, phase)).sin().powi(3));
    B::float_from_data(
        TensorData::new(wave.collect::<Vec<f32>>(), shape),
        &Default::default(),
    )
}

/// Output and gradients of one linear, as bits.
fn run<B: Nvfp4Engine>(recipe: Recipe) -> [Vec<u32>; 3] {
    let ([tokens, d_input, d_output], plan) = ([40, 48, 24], plan(recipe));
    let (x, w) = (
        tensor::<B>([tokens, d_input], 0.1),
        tensor::<B>([d_input, d_output], 0.2),
    );
    let all = Wanted::Both;
    let (y, kept) = fprop::<B>(x, Weight::Tensor(w), Some(bias::<B>(d_output)), &plan, all);
    let dy = tensor::<B>([tokens, d_output], 0.3);
    let is = |rows, cols| (Shape::new([rows, cols]), DType::F32);
    let (dx, dw) = backward::<B>(kept, dy, &plan, is(tokens, d_input), is(d_input, d_output));
    let bits = |tensor: FloatTensor<B>| {
        let data = burn_backend::read_sync(B::float_into_data(tensor)).expect("host data");
        data.iter::<f32>().map(f32::to_bits).collect()
    };
    [
        bits(y),
        bits(dx.expect("x is tracked")),
        bits(dw.expect("w is tracked")),
    ]
}

fn bias<B: Nvfp4Engine>(len: usize) -> FloatTensor<B> {
    let values: Vec<f32> = (0..len).map(|i| i as f32 * 0.125).collect();
    B::float_from_data(TensorData::new(values, [len]), &Default::default())
}

#[test]
fn the_portable_defaults_give_the_bits_of_the_engine_in_place() {
    for preset in presets::PRESETS {
        let in_place = run::<NdArray>(preset.recipe);
        // What the recipe leaves in high precision reaches the inner decorator, which has a policy.
        let portable = precision(presets::HIGH_PRECISION, || run::<Portable>(preset.recipe));
        assert!(in_place == portable, "{}", preset.name);
    }
}

/// Bytes that a node keeps for backward.
fn kept_bytes(recipe: Recipe, [tokens, d_input, d_output]: [usize; 3]) -> [usize; 2] {
    let (x, w) = (
        tensor::<NdArray>([tokens, d_input], 0.1),
        tensor::<NdArray>([d_input, d_output], 0.2),
    );
    let all = Wanted::Both;
    let (_, Kept { weight, x, .. }) =
        fprop::<NdArray>(x, Weight::Tensor(w), None, &plan(recipe), all);
    [x, weight].map(|operand| operand.expect("both are kept").bytes())
}

#[test]
fn a_node_keeps_four_and_a_half_bits_of_an_activation_element() {
    let [x, w] = kept_bytes(presets::NVIDIA_1D_WEIGHTS, [256, 128, 64]);
    assert_eq!(x, 256 * 128 / 2 + 256 * 128 / 16 + 4); // codes, block scales, the amax
    assert_eq!(w, 128 * 64 / 2 + 128 * 64 / 16 + 4);
    let [x, w] = kept_bytes(presets::NVIDIA, [256, 128, 64]);
    assert_eq!(x, 256 * 128 / 2 + 256 * 128 / 16 + 4);
    assert_eq!(w, 128 * 64 / 2 + 128 * 64 / 256 + 4); // one scale per 16x16 tile
}

#[test]
fn a_constant_input_keeps_nothing_for_its_own_gradient() {
    let (x, w) = (
        tensor::<NdArray>([32, 48], 0.1),
        tensor::<NdArray>([48, 16], 0.2),
    );
    let only_dw = Wanted::X;
    let (_, kept) = fprop::<NdArray>(x, Weight::Tensor(w), None, &plan(presets::NVIDIA), only_dw);
    assert!(kept.weight.is_none() && kept.x.is_some());
}
