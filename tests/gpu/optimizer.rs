//! One kernel for an AdamW update, and the norm of all gradients.

use burn::backend::NdArray;
use burn::optim::{AdamWConfig, SimpleOptimizer};
use burn::prelude::*;
use burn::tensor::DType;
use burn_hybrid_ops::kernels::{adamw, sum_of_squares};
use burn_nvfp4::kernels::CubeTensor;

use crate::activations::{assert_close, dense, dtypes, exact, host, values};
use crate::device::Runtime;
use crate::turns::exclusive;

type Exact = NdArray<f64>;

const STEPS: i32 = 5;
const LR: f64 = 0.03;

fn state(param: &[f32]) -> adamw::State<Runtime> {
    let device = Default::default();
    let tensor = |values: &[f32]| dense(values, [values.len()], DType::F32, &device);
    let zeros = vec![0.0; param.len()];
    adamw::State {
        param: tensor(param),
        moment_1: tensor(&zeros),
        moment_2: tensor(&zeros),
    }
}

fn parts(state: &adamw::State<Runtime>) -> [Vec<f64>; 3] {
    [&state.param, &state.moment_1, &state.moment_2].map(host)
}

fn numbers(weight_decay: f32, time: i32) -> adamw::AdamW {
    adamw::AdamW {
        lr: LR,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-3,
        weight_decay,
        time,
    }
}

/// Gradients of step `time`, of very different sizes.
fn gradient(len: usize, time: i32, dtype: DType) -> Vec<f32> {
    values(len, 0.5_f32.powi(2 * time), 10 + time as u64, dtype)
}

/// Kills: epsilon within the root, decay of the step instead of the parameter, a bias correction
/// that is one step off, a factor on one moment only.
#[test]
fn steps_are_burns() {
    let Some(_turn) = exclusive() else { return };
    let device = Default::default();
    for len in [1, 37, 4096, 10_002] {
        for dtype in dtypes() {
            for (weight_decay, factor) in [(0.0, None), (0.1, Some(0.37_f32))] {
                let param = values(len, 1.0, 1, DType::F32);
                let burns = AdamWConfig::new()
                    .with_beta_1(0.9)
                    .with_beta_2(0.95)
                    .with_epsilon(1e-3)
                    .with_weight_decay(weight_decay)
                    .build();
                let tensor = |values: &[f32]| {
                    let values: Vec<_> = values.iter().copied().map(f64::from).collect();
                    let data = TensorData::new(values, [len]);
                    Tensor::<Exact, 1>::from_data(data, (&Default::default(), DType::F64))
                };
                let mut expected = (tensor(&param), None);
                let mut got = state(&param);
                let on_device = factor.map(|factor| dense(&[factor], [1], DType::F32, &device));
                for time in 1..=STEPS {
                    let grad = gradient(len, time, dtype);
                    let scaled = tensor(&grad) * f64::from(factor.unwrap_or(1.0));
                    expected = burns.step(LR, expected.0, scaled, expected.1);
                    let grad = dense(&grad, [len], dtype, &device);
                    let numbers = numbers(weight_decay, time);
                    got = adamw::step(got, &grad, &numbers, on_device.as_ref());
                }
                let (param, momentum) = (expected.0, expected.1.unwrap().momentum);
                let expected = [param, momentum.moment_1, momentum.moment_2].map(exact);
                for ((got, expected), what) in parts(&got).iter().zip(&expected).zip([
                    "parameter",
                    "first moment",
                    "second moment",
                ]) {
                    let what = format!("{what}, {len} elements, gradients in {dtype:?}");
                    assert_close(got, expected, DType::F32, &what);
                }
            }
        }
    }
}

/// A state that somebody else holds stays what it was, and the update is the same to the bit.
#[test]
fn an_update_in_place_is_an_update() {
    let Some(_turn) = exclusive() else { return };
    let device = Default::default();
    let param = values(514, 1.0, 1, DType::F32);
    let grad = dense(&gradient(514, 1, DType::F32), [514], DType::F32, &device);
    let in_place = parts(&adamw::step(state(&param), &grad, &numbers(0.1, 1), None));
    let held = state(&param);
    let before = parts(&held);
    let fresh = adamw::step(held.clone(), &grad, &numbers(0.1, 1), None);
    assert!(parts(&fresh) == in_place);
    assert!(parts(&held) == before);
    assert!(before != in_place);
    // One of the three in place, the others not.
    let adamw::State { moment_1, .. } = held.clone();
    let some = adamw::step(held, &grad, &numbers(0.1, 1), None);
    assert!(parts(&some) == in_place);
    assert_eq!(host(&moment_1), before[1]);
}

/// Kills: a tensor of a shared launch that is updated with the gradient of another, or twice, or
/// not at all; a result at the place of another.
#[test]
fn updates_that_share_launches_are_the_same_updates() {
    let Some(_turn) = exclusive() else { return };
    let device = Default::default();
    let factor = dense(&[0.5], [1], DType::F32, &device);
    for factor in [None, Some(&factor)] {
        let mut expected = Vec::new();
        let mut states = Vec::new();
        let mut held = None;
        for dtype in dtypes() {
            for len in [
                1, 64, 37, 4096, 2, 10_002, 68, 72, 76, 80, 84, 88, 92, 1_048_580,
            ] {
                let param = values(len, 1.0, len as u64, DType::F32);
                let grad = dense(&gradient(len, 1, dtype), [len], dtype, &device);
                let alone = adamw::step(state(&param), &grad, &numbers(0.1, 1), factor);
                expected.push(parts(&alone));
                let state = state(&param);
                if len == 4096 {
                    held = Some((parts(&state), state.clone()));
                }
                states.push((state, grad));
            }
        }
        let got = adamw::steps(states, &numbers(0.1, 1), factor);
        assert_eq!(got.len(), expected.len());
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert!(parts(got) == *expected, "state {i}");
        }
        let (before, state) = held.unwrap();
        assert!(parts(&state) == before, "a state that somebody holds");
    }
}

/// Kills: a tensor that writes its partial sums over another's, a tail that is left out.
#[test]
fn the_sum_of_squares_is_that_of_all_gradients_in_one_order() {
    let Some(_turn) = exclusive() else { return };
    let device = Default::default();
    for dtype in dtypes() {
        let lens = [
            1, 7, 4096, 100_001, 0, 64, 3, 200_000, 16, 17, 18, 19, 20, 21, 22, 23, 24,
        ];
        let grads: Vec<_> = lens
            .iter()
            .enumerate()
            .map(|(i, len)| values(*len, 1.0, i as u64, dtype))
            .collect();
        let expected: f64 = grads.iter().flatten().map(|g| f64::from(*g).powi(2)).sum();
        let tensors: Vec<CubeTensor<Runtime>> = grads
            .iter()
            .map(|grad| dense(grad, [grad.len()], dtype, &device))
            .collect();
        let sum = || host(&sum_of_squares::global(&tensors).unwrap());
        let got = sum();
        assert_close(&got, &[expected], DType::F32, "sum of squares");
        assert_eq!(got, sum(), "two runs");
    }
    assert!(sum_of_squares::global::<Runtime>(&[]).is_none());
}
