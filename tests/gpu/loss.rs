//! Cross-entropy on a device, whose gradient lies where the logits were.

use burn::backend::Autodiff;
use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::backend::AutodiffBackend;
use burn_hybrid_ops::{HybridEngine, ops};
use burn_nvfp4_models::nn::loss::cross_entropy;

use crate::activations::{assert_close, dtypes, exact, reference, values};
use crate::turns::{Fused, Plain, exclusive};

fn targets<B: Backend>(n: usize, vocab: usize) -> Tensor<B, 1, Int> {
    let ids: Vec<i64> = (0..n).map(|i| (i * 7 % vocab) as i64).collect();
    Tensor::from_data(TensorData::new(ids, [n]), &B::Device::default())
}

/// Who else holds the logits when the loss is taken.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Holder {
    Nobody,
    Caller,
}

/// Loss and gradient of the logits, the loss weighed with `weight`.
fn run<B: AutodiffBackend + HybridEngine>(
    logits: &[f32],
    shape: [usize; 2],
    dtype: DType,
    weight: f64,
    holder: Holder,
) -> (Vec<f64>, Vec<f64>) {
    let device = B::Device::default();
    let data = TensorData::new(logits.to_vec(), shape);
    let leaf = Tensor::<B, 2>::from_data(data, (&device, dtype)).require_grad();
    // A projection's output: a leaf would itself hold the memory.
    let output = leaf.clone() * 1.0;
    let held = (holder == Holder::Caller).then(|| output.clone());
    let loss = ops::cross_entropy(output, targets(shape[0], shape[1]));
    let loss = loss.expect("a device has kernels");
    let value = exact(loss.clone());
    let grads = (loss * weight).backward();
    if let Some(held) = held {
        let kept: Vec<f64> = logits.iter().copied().map(f64::from).collect();
        assert_eq!(
            exact(held),
            kept,
            "logits that somebody holds were overwritten"
        );
    }
    (value, exact(leaf.grad(&grads).unwrap()))
}

/// Kills: a maximum of the last vectors only, a one-hot in another row, a mean over the vocabulary,
/// a gradient that ignores the one above it, memory that is taken from its holder.
#[test]
fn cross_entropy_and_its_gradient_are_the_compositions() {
    let Some(_turn) = exclusive() else { return };
    for shape in [[5, 7], [1, 1], [3, 1030], [70, 64], [2, 4100]] {
        for dtype in dtypes() {
            let logits = values(shape[0] * shape[1], 7.0, 1, dtype);
            let input = reference(&logits, shape);
            let expected = cross_entropy(input.clone(), targets(shape[0], shape[1]));
            let grads = expected.clone().backward();
            let expected = exact(expected);
            let slope = exact(input.grad(&grads).unwrap());
            // A power of two, upwards: the gradient is rounded once, however small.
            for weight in [1.0, 4.0] {
                let what = format!("{shape:?}, weight {weight}");
                let run_plain =
                    |holder| run::<Autodiff<Plain>>(&logits, shape, dtype, weight, holder);
                let (loss, dlogits) = run_plain(Holder::Nobody);
                assert_close(&loss, &expected, DType::F32, &format!("loss, {what}"));
                let slope: Vec<f64> = slope.iter().map(|s| s * weight).collect();
                assert_close(&dlogits, &slope, dtype, &format!("dlogits, {what}"));
                let same = (loss, dlogits);
                assert!(same == run_plain(Holder::Caller), "not in place, {what}");
                let fused = |holder| run::<Autodiff<Fused>>(&logits, shape, dtype, weight, holder);
                assert!(same == fused(Holder::Nobody), "with fusion, {what}");
                assert!(same == fused(Holder::Caller), "with fusion, held, {what}");
            }
        }
    }
}

/// Large logits neither overflow nor lose the loss: the maximum is taken off first.
#[test]
fn logits_far_from_zero_give_their_loss() {
    let Some(_turn) = exclusive() else { return };
    let logits = [3e4_f32, 3e4 - 2.0, -3e4, 3e4 - 1.0];
    let (loss, _) = run::<Autodiff<Plain>>(&logits, [1, 4], DType::F32, 1.0, Holder::Nobody);
    let expected = (1.0 + (-2.0_f64).exp() + (-1.0_f64).exp()).ln();
    assert_close(&loss, &[expected], DType::F32, "loss");
}

/// A target outside the vocabulary is an error of the caller's that must not read other memory.
#[test]
fn a_target_outside_the_vocabulary_makes_the_loss_nan() {
    let Some(_turn) = exclusive() else { return };
    for target in [-1_i64, 5] {
        let device = Default::default();
        let logits = Tensor::<Plain, 2>::zeros([2, 5], &device);
        let ids = TensorData::new(vec![0, target], [2]);
        let loss = ops::cross_entropy(logits, Tensor::from_data(ids, &device)).unwrap();
        assert!(exact(loss)[0].is_nan(), "{target}");
    }
}
