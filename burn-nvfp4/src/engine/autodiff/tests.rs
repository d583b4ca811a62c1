//! How often nodes have their operands quantized.

use std::collections::BTreeMap;

use burn::backend::Autodiff;
use burn::tensor::{Tensor, TensorData, module};

use super::super::tests::{Portable, take_quantized};
use crate::recipe::{Recipe, presets};
use crate::scope::{micro_batch, precision, shared_weights};

type B = crate::Nvfp4<Autodiff<Portable>>;

fn tensor(shape: [usize; 2], phase: f32) -> Tensor<B, 2> {
    let wave = (0..shape[0] * shape[1]).map(|i| ((i as f32).mul_add(0.618, phase)).sin());
    let data = TensorData::new(wave.collect::<Vec<_>>(), shape);
    Tensor::from_data(data, &Default::default())
}

/// Forward and backward of four micro-batches through one weight: every result as bits.
fn micro_batches(weight: &Tensor<B, 2>) -> Vec<u32> {
    let mut bits = Vec::new();
    for phase in [0.1, 0.2, 0.3, 0.4] {
        let x = tensor([32, 48], phase).require_grad();
        let y = module::linear(x.clone(), weight.clone(), None);
        let grads = (y.clone() * tensor([32, 16], phase)).sum().backward();
        let results = [
            y.inner(),
            x.grad(&grads).expect("x is tracked"),
            weight.grad(&grads).expect("the weight is tracked"),
        ];
        let values = results.map(|t| t.into_data().to_vec::<f32>().expect("f32"));
        bits.extend(values.into_iter().flatten().map(f32::to_bits));
    }
    bits
}

fn count(counts: &BTreeMap<&'static str, usize>, operand: &str) -> usize {
    counts.get(operand).copied().unwrap_or(0)
}

#[test]
fn four_micro_batches_quantize_a_weight_once_and_get_the_same_bits() {
    let with = |recipe: Recipe| {
        precision(recipe, || {
            let weight = tensor([48, 16], 0.5).require_grad();
            take_quantized();
            let apart = (micro_batches(&weight), take_quantized());
            let shared = (shared_weights(|| micro_batches(&weight)), take_quantized());
            assert!(apart.0 == shared.0);
            (apart.1, shared.1)
        })
    };
    let (apart, shared) = with(presets::NVIDIA);
    assert_eq!(
        (count(&apart, "fprop.rhs"), count(&shared, "fprop.rhs")),
        (4, 1)
    );
    assert_eq!(
        (count(&apart, "dgrad.rhs"), count(&shared, "dgrad.rhs")),
        (0, 0)
    );
    // Blocks along the contraction axis: a packing for either GEMM.
    let (apart, shared) = with(presets::NVIDIA_1D_WEIGHTS);
    for operand in ["fprop.rhs", "dgrad.rhs"] {
        assert_eq!((count(&apart, operand), count(&shared, operand)), (4, 1));
    }
    for operand in ["fprop.lhs", "wgrad.lhs", "dgrad.lhs", "wgrad.rhs"] {
        assert_eq!((count(&apart, operand), count(&shared, operand)), (4, 4));
    }
}

#[test]
fn a_weight_that_has_changed_or_is_computed_is_not_taken_for_another() {
    precision(presets::NVIDIA, || {
        shared_weights(|| {
            let (first, second) = (tensor([48, 16], 0.5), tensor([48, 16], 0.7));
            let run = |weight: &Tensor<B, 2>| micro_batches(&weight.clone().require_grad());
            let [a, b] = [&first, &second].map(run);
            assert!(a != b);
            take_quantized();
            let doubled = first.clone().require_grad() * 2.0;
            let x = tensor([32, 48], 0.1);
            let twice = || module::linear(x.clone(), doubled.clone(), None).into_data();
            assert_eq!(twice(), twice());
            assert_eq!(count(&take_quantized(), "fprop.rhs"), 2);
        });
    });
}

#[test]
fn three_linears_of_one_activation_keep_it_once() {
    precision(presets::NVIDIA, || {
        let x = tensor([32, 48], 0.1).require_grad();
        let weights = [0.2, 0.3, 0.4].map(|phase| tensor([48, 16], phase).require_grad());
        take_quantized();
        let linear = |w: &Tensor<B, 2>| module::linear(x.clone(), w.clone(), None);
        let [q, k, v] = [0, 1, 2].map(|i| linear(&weights[i]));
        let counts = take_quantized();
        assert_eq!(
            (count(&counts, "fprop.lhs"), count(&counts, "wgrad.lhs")),
            (3, 1)
        );
        let dy = tensor([32, 16], 0.6);
        let together = ((q + k + v) * dy.clone()).sum().backward();
        for weight in &weights {
            let alone = (linear(weight) * dy.clone()).sum().backward();
            // What the linear before has kept is gone with its node.
            assert_eq!(count(&take_quantized(), "wgrad.lhs"), 1);
            let grads =
                [&together, &alone].map(|grads| weight.grad(grads).expect("tracked").into_data());
            assert_eq!(grads[0], grads[1]);
        }
    });
}

/// What is kept of an activation may have been rounded stochastically, and micro-batches have
/// random bits of their own.
#[test]
fn micro_batches_do_not_share_an_activation() {
    precision(presets::NVIDIA, || {
        let x = tensor([32, 48], 0.1).require_grad();
        let weight = tensor([48, 16], 0.2).require_grad();
        take_quantized();
        let linear = |index| micro_batch(index, || module::linear(x.clone(), weight.clone(), None));
        let _kept = [linear(0), linear(0), linear(1)];
        assert_eq!(count(&take_quantized(), "wgrad.lhs"), 2);
    });
}
