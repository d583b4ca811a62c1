//! Operations with kernels of their own, result and gradients, against the definition in f64.

use burn::backend::{Autodiff, NdArray};
use burn::tensor::activation::{relu, softmax};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Bool, Tensor, TensorData};
use burn_hybrid_ops::op::AttentionShape;
use burn_hybrid_ops::{TrainingEngine, ops};
use burn_nvfp4::Nvfp4;

use crate::turns::{Fused, Plain, exclusive};

type Reference = Autodiff<NdArray<f64>>;

/// Numbers in (-1, 1), others for another seed.
fn numbers(shape: [usize; 3], seed: u64) -> TensorData {
    let number = |i: usize| {
        let mixed = (i as u64 ^ seed << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(number).collect();
    TensorData::new(values, shape)
}

/// Result and gradients of an operation on numbers, for a gradient of the result that is none of
/// them.
fn run<B: AutodiffBackend, const N: usize>(
    shapes: [[usize; 3]; N],
    operation: impl Fn([Tensor<B, 3>; N]) -> Tensor<B, 3>,
) -> Vec<Vec<f64>> {
    let device = B::Device::default();
    let mut seed = 0;
    let inputs = shapes.map(|shape| {
        seed += 1;
        let data = numbers(shape, seed).convert::<B::FloatElem>();
        Tensor::<B, 3>::from_data(data, &device).require_grad()
    });
    let y = operation(inputs.clone());
    let weights = numbers(y.dims(), 99).convert::<B::FloatElem>();
    let grads = (y.clone() * Tensor::from_data(weights, &device))
        .sum()
        .backward();
    let values = |data: TensorData| data.iter::<f64>().collect::<Vec<_>>();
    let gradients = inputs
        .iter()
        .map(|x| values(x.grad(&grads).unwrap().into_data()));
    std::iter::once(values(y.into_data()))
        .chain(gradients)
        .collect()
}

/// Largest difference over the largest value, of each tensor.
fn errors(got: &[Vec<f64>], expected: &[Vec<f64>]) -> Vec<f64> {
    let error = |(a, b): (&Vec<f64>, &Vec<f64>)| {
        assert_eq!(a.len(), b.len());
        let largest = b.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs());
        worst.fold(0.0, f64::max) / largest
    };
    got.iter().zip(expected).map(error).collect()
}

/// Sums of up to some thousand terms in f32, or in TF32 inside of CUDA's products.
const LIMIT: f64 = if cfg!(feature = "cuda") { 3e-3 } else { 1e-5 };

fn check<const N: usize>(
    name: &str,
    shapes: [[usize; 3]; N],
    expected: impl Fn([Tensor<Reference, 3>; N]) -> Tensor<Reference, 3>,
    on_plain: impl Fn([Tensor<Nvfp4<Autodiff<Plain>>, 3>; N]) -> Tensor<Nvfp4<Autodiff<Plain>>, 3>,
    on_fused: impl Fn([Tensor<Autodiff<Nvfp4<Fused>>, 3>; N]) -> Tensor<Autodiff<Nvfp4<Fused>>, 3>,
) {
    let expected = run(shapes, expected);
    for (backend, got) in [
        ("plain", run(shapes, on_plain)),
        ("fused", run(shapes, on_fused)),
    ] {
        let errors = errors(&got, &expected);
        assert!(
            errors.iter().all(|error| *error < LIMIT),
            "{name}, {backend}: errors of result and gradients {errors:?}"
        );
    }
}

#[test]
fn squared_relu_is_its_definition() {
    let Some(_turn) = exclusive() else { return };
    fn kernel<B: TrainingEngine>([x]: [Tensor<B, 3>; 1]) -> Tensor<B, 3> {
        ops::squared_relu(&x).expect("a kernel")
    }
    for shape in [[2, 3, 64], [1, 5, 7]] {
        let definition = |[x]: [Tensor<Reference, 3>; 1]| relu(x).powi_scalar(2);
        check("squared_relu", [shape], definition, kernel, kernel);
    }
}

#[test]
fn attention_is_its_definition_over_blocks_and_shared_heads() {
    let Some(_turn) = exclusive() else { return };
    fn kernel<B: TrainingEngine>(
        [q, k, v]: [Tensor<B, 3>; 3],
        shape: AttentionShape,
    ) -> Tensor<B, 3> {
        ops::causal_attention(&q, &k, &v, shape).expect("a kernel")
    }
    // 700 tokens are more than a block of queries, 5 fewer than a cube has units.
    for (batch, seq, [n_heads, n_kv_heads, head_dim]) in
        [(2, 5, [4, 2, 8]), (1, 700, [2, 1, 16]), (2, 130, [3, 3, 6])]
    {
        let shape = AttentionShape {
            n_heads,
            n_kv_heads,
            head_dim,
        };
        let of = |heads: usize| [batch, seq, heads * head_dim];
        let definition = |[q, k, v]: [Tensor<Reference, 3>; 3]| {
            let split = |x: Tensor<Reference, 3>, heads: usize| {
                let x = x.reshape([batch, seq, heads, head_dim]).swap_dims(1, 2);
                let shared = n_heads / heads;
                x.reshape([batch, heads, 1, seq, head_dim])
                    .repeat_dim(2, shared)
                    .reshape([batch, n_heads, seq, head_dim])
            };
            let (q, k, v) = (
                split(q, n_heads),
                split(k, n_kv_heads),
                split(v, n_kv_heads),
            );
            let scores = q.matmul(k.transpose()) / (head_dim as f64).sqrt();
            let later = Tensor::<Reference, 2, Bool>::tril_mask([seq, seq], 0, &scores.device());
            let later = later
                .reshape([1, 1, seq, seq])
                .expand([batch, n_heads, seq, seq]);
            let y = softmax(scores.mask_fill(later, -1e30), 3).matmul(v);
            y.swap_dims(1, 2).reshape(of(n_heads))
        };
        check(
            &format!("attention of {seq} tokens"),
            [of(n_heads), of(n_kv_heads), of(n_kv_heads)],
            definition,
            |inputs| kernel(inputs, shape),
            |inputs| kernel(inputs, shape),
        );
    }
}
