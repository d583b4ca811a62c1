//! Blocks against their definitions, in f64 where the definition is to be met to rounding.

use burn::backend::{Autodiff, Flex, NdArray};
use burn::tensor::{DType, Element, Tensor, TensorData};
use burn_hybrid_ops::HybridEngine;
use burn_nvfp4_models::config::HybridConfig;
use burn_nvfp4_models::config::params::{Init, ParamSpec};
use burn_nvfp4_models::hybrid::block::Mixer;
use burn_nvfp4_models::hybrid::init::initial_values;
use burn_nvfp4_models::nn::activation::{silu, softmax, softplus};
use burn_nvfp4_models::nn::loss::cross_entropy;
use burn_nvfp4_models::nn::pass::Pass;
use burn_nvfp4_models::nn::ssd::{SsdInputs, ssd, step};

use super::support::{Numbers, f64_device};

type F64 = NdArray<f64>;

/// Standard normal numbers that depend on the name.
pub(crate) fn random<B: HybridEngine, const D: usize>(
    name: &str,
    shape: [usize; D],
) -> Tensor<B, D> {
    let init = Init::Normal { std: 1.0 };
    let spec = ParamSpec {
        name: name.into(),
        shape: shape.to_vec(),
        init,
    };
    let data = TensorData::new(initial_values(&spec, 0), shape.to_vec());
    Tensor::from_data(
        data,
        (&B::Device::default(), <B::FloatElem as Element>::dtype()),
    )
}

const HEADS: usize = 6;
const WIDTH: usize = 5;
const GROUPS: usize = 3;
const D_STATE: usize = 4;

/// Inputs of a scan over `l` tokens of two sequences; decays from slow to fast.
fn scan_inputs<B: HybridEngine>(l: usize) -> SsdInputs<B> {
    SsdInputs {
        x: random("x", [2, l, HEADS, WIDTH]),
        b: random("b", [2, l, GROUPS, D_STATE]),
        c: random("c", [2, l, GROUPS, D_STATE]),
        dt: softplus(random::<B, 3>("dt", [2, l, HEADS]) * 2.0 - 2.0),
        a: random::<B, 1>("a", [HEADS]).exp().neg(),
        d_skip: random("d", [HEADS]),
    }
}

/// Tokens `from..to` of scan inputs.
fn tokens<B: HybridEngine>(inputs: &SsdInputs<B>, from: usize, to: usize) -> SsdInputs<B> {
    SsdInputs {
        x: inputs.x.clone().narrow(1, from, to - from),
        b: inputs.b.clone().narrow(1, from, to - from),
        c: inputs.c.clone().narrow(1, from, to - from),
        dt: inputs.dt.clone().narrow(1, from, to - from),
        ..inputs.clone()
    }
}

/// The recurrence token by token.
fn by_steps<B: HybridEngine>(
    inputs: &SsdInputs<B>,
    mut state: Tensor<B, 4>,
) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let mut ys = Vec::new();
    for t in 0..inputs.x.dims()[1] {
        let (y, next) = step(tokens(inputs, t, t + 1), state);
        ys.push(y);
        state = next;
    }
    (Tensor::cat(ys, 1), state)
}

#[test]
fn ssd_is_the_step_recurrence_for_any_length_and_chunk() {
    for l in [1, 2, 7, 16, 33] {
        let inputs = scan_inputs::<F64>(l);
        let initial = random("state", [2, HEADS, WIDTH, D_STATE]);
        let (y, last) = by_steps(&inputs, initial.clone());
        let (y, last) = (Numbers::of(y), Numbers::of(last));
        for chunk_len in [1, 2, 5, 8, 16, 33, 100] {
            let (got, state) = ssd(inputs.clone(), chunk_len, Some(initial.clone()));
            let errors = (
                Numbers::of(got).error_to(&y),
                Numbers::of(state).error_to(&last),
            );
            assert!(
                errors.0 < 1e-13 && errors.1 < 1e-13,
                "{l} {chunk_len}: {errors:?}"
            );
        }
    }
}

#[test]
fn ssd_starts_from_zeros_and_continues_from_its_own_state() {
    let inputs = scan_inputs::<F64>(29);
    let (whole, last) = ssd(inputs.clone(), 8, None);
    let (from_zeros, _) = ssd(inputs.clone(), 8, Some(Tensor::zeros_like(&last)));
    assert_eq!(
        Numbers::of(from_zeros).error_to(&Numbers::of(whole.clone())),
        0.0
    );
    for cut in [1, 8, 13, 28] {
        let (head, state) = ssd(tokens(&inputs, 0, cut), 8, None);
        let (tail, state) = ssd(tokens(&inputs, cut, 29), 8, Some(state));
        let joined = Tensor::cat(vec![head, tail], 1);
        assert!(
            Numbers::of(joined).error_to(&Numbers::of(whole.clone())) < 1e-13,
            "{cut}"
        );
        assert!(
            Numbers::of(state).error_to(&Numbers::of(last.clone())) < 1e-13,
            "{cut}"
        );
    }
}

/// Above the diagonal the exponents reach +400 here: unmasked, `exp` overflows, and backward has
/// `inf * 0`.
#[test]
fn fast_decays_leave_values_and_gradients_finite() {
    type B = Autodiff<NdArray<f32>>;
    let mut inputs = scan_inputs::<B>(64);
    inputs.dt = Tensor::full([2, 64, HEADS], 0.5, &Default::default()).require_grad();
    inputs.a = Tensor::full([HEADS], -16.0, &Default::default()).require_grad();
    inputs.x = inputs.x.require_grad();
    let (y, state) = ssd(inputs.clone(), 64, None);
    let grads = (y.clone().powi_scalar(2).sum() + state.sum()).backward();
    let finite = |n: Numbers| n.values.iter().all(|v| v.is_finite());
    assert!(finite(Numbers::of(y)));
    assert!(finite(Numbers::of(inputs.dt.grad(&grads).unwrap())));
    assert!(finite(Numbers::of(inputs.a.grad(&grads).unwrap())));
    assert!(finite(Numbers::of(inputs.x.grad(&grads).unwrap())));
}

/// A long stretch of fast decay must not blur a slow one after it: a cumulative sum over the whole
/// sequence would, by one rounding of 6e4 (0.004).
#[test]
fn slow_decay_after_fast_decay_keeps_its_precision() {
    let (l, fast) = (1024, 896);
    let mut inputs = scan_inputs::<NdArray<f32>>(l);
    let device = Default::default();
    let dt = |n, value: f32| Tensor::<NdArray<f32>, 3>::full([2, n, HEADS], value, &device);
    inputs.dt = Tensor::cat(vec![dt(fast, 70.0), dt(l - fast, 1e-3)], 1);
    inputs.a = Tensor::full([HEADS], -1.0, &device);
    let zeros = Tensor::zeros([2, HEADS, WIDTH, D_STATE], &device);
    let (want, _) = by_steps(&inputs, zeros);
    let (got, _) = ssd(inputs, 16, None);
    let tail = |y: Tensor<NdArray<f32>, 4>| Numbers::of(y.narrow(1, fast, l - fast));
    let error = tail(got).error_to(&tail(want));
    assert!(error < 1e-5, "{error}");
}

#[test]
fn a_mamba_block_continues_where_it_stopped() {
    let config = HybridConfig::preset("tiny-1m", 64).unwrap();
    let model = config.init::<F64>(&f64_device(), 3);
    let Mixer::Mamba(mamba) = &model.layers[0].mixer else {
        panic!("starts with a mamba block")
    };
    let u = random::<F64, 3>("u", [2, 41, config.d_model]);
    let mut pass = Pass::new(DType::F64);
    let (whole, last) = mamba.extend(u.clone(), None, &mut pass);
    for cut in [1, 2, 3, 32, 40] {
        let (head, state) = mamba.extend(u.clone().narrow(1, 0, cut), None, &mut pass);
        let rest = u.clone().narrow(1, cut, 41 - cut);
        let (tail, state) = mamba.extend(rest, Some(state), &mut pass);
        let joined = Numbers::of(Tensor::cat(vec![head, tail], 1));
        assert!(
            joined.error_to(&Numbers::of(whole.clone())) < 1e-12,
            "{cut}"
        );
        let window = Numbers::of(state.window).error_to(&Numbers::of(last.window.clone()));
        let ssm = Numbers::of(state.ssm).error_to(&Numbers::of(last.ssm.clone()));
        assert!(window < 1e-12 && ssm < 1e-12, "{cut}");
    }
}

#[test]
fn activations_meet_their_definitions_also_far_out() {
    let xs = [
        -1e4_f64, -100.0, -20.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 20.0, 100.0, 1e4,
    ];
    let device = f64_device();
    let x = || {
        Tensor::<F64, 1>::from_data(
            TensorData::new(xs.to_vec(), [xs.len()]),
            (&device, DType::F64),
        )
    };
    for (i, &v) in xs.iter().enumerate() {
        let close = |got: f64, want: f64, scale: f64| (got - want).abs() <= 1e-15 * scale;
        let got = Numbers::of(silu(x())).values[i];
        assert!(
            close(got, v / (1.0 + (-v).exp()), v.abs().max(1e-300)),
            "silu({v}) = {got}"
        );
        let got = Numbers::of(softplus(x())).values[i];
        let want = if v > 30.0 {
            v + (-v).exp()
        } else {
            v.exp().ln_1p()
        };
        assert!(
            close(got, want, want.max(1e-300) * 4.0),
            "softplus({v}) = {got}"
        );
    }
    let rows = Numbers::of(softmax(random::<Flex, 2>("s", [3, 50]) * 100.0));
    for row in rows.values.chunks(50) {
        assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-6);
    }
}

#[test]
fn cross_entropy_is_its_definition() {
    let logits = random::<F64, 2>("logits", [7, 11]) * 30.0;
    let targets = [0i64, 10, 3, 3, 5, 9, 1];
    let ids = Tensor::from_data(TensorData::new(targets.to_vec(), [7]), &Default::default());
    let got = Numbers::of(cross_entropy(logits.clone(), ids)).values[0];
    let values = Numbers::of(logits).values;
    let want = values.chunks(11).zip(targets).map(|(row, target)| {
        let max = row.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = row.iter().map(|v| (v - max).exp()).sum();
        sum.ln() + max - row[usize::try_from(target).unwrap()]
    });
    let want = want.sum::<f64>() / 7.0;
    assert!((got / want - 1.0).abs() < 1e-14, "{got} {want}");
}
