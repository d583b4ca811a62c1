//! What linears keep for backward, on a backend and by count.

use burn::backend::{Autodiff, Flex};
use burn::tensor::DType;
use burn_nvfp4::recipe::{Policy, Recipe, presets};
use burn_nvfp4::stats::{KeptBytes, kept_bytes};
use burn_nvfp4::{Nvfp4, shared_weights};
use burn_nvfp4_models::train::memory::kept_by_linears;
use burn_nvfp4_models::train::step::next_token_loss;

use super::*;
use crate::device::exclusive;

type B = Nvfp4<Autodiff<Flex>>;

/// Dims are whole blocks, and `lm_head`, which is not packed, is a small part.
fn wide() -> HybridConfig {
    let config = HybridConfig {
        pattern: "M-M-M-*-".parse().unwrap(),
        d_model: 64,
        d_ffn: 1024,
        n_mamba_heads: 16,
        ..tiny()
    };
    config.validate().unwrap();
    config
}

fn policy(recipe: Recipe) -> Policy {
    let policy = Policy::uniform(recipe);
    policy
        .with_override("lm_head", presets::HIGH_PRECISION)
        .unwrap()
}

/// Bytes that nodes keep behind the forward of some micro-batches, and behind their backward.
fn kept(recipe: Recipe, micro_batches: u64) -> [usize; 2] {
    let device = Default::default();
    let dir = tempfile::tempdir().unwrap();
    burn_nvfp4::set_policy::<B>(&device, policy(recipe)).unwrap();
    let (file, shape) = (tokens(dir.path()), shape(8, 64, 1));
    let batches = TrainBatches::<B>::new(file, shape, 0, 0, device).unwrap();
    let model: HybridLm<B> = wide().init(&device, 3);
    let model = model.with_activations(DType::BF16);
    let before = kept_bytes::<B>(&device);
    let losses: Vec<_> = (0..micro_batches)
        .map(|step| next_token_loss(&model, batches.at(step, 0)))
        .collect();
    let kept = kept_bytes::<B>(&device) - before;
    for loss in losses {
        let _ = loss.backward();
    }
    [kept, kept_bytes::<B>(&device) - before]
}

/// What they keep by count, of one micro-batch.
fn count(recipe: Recipe) -> KeptBytes {
    kept_by_linears(&wide(), &policy(recipe), 8 * 64, DType::BF16).unwrap()
}

#[test]
fn nodes_keep_what_is_counted_until_backward() {
    let _device = exclusive();
    for recipe in [presets::NVIDIA, presets::HIGH_PRECISION, presets::AVERIS] {
        let KeptBytes { x, weight } = count(recipe);
        assert_eq!(kept(recipe, 1), [x + weight, 0]);
    }
}

#[test]
fn activations_of_a_real_model_take_less_than_three_tenths_of_bf16() {
    let _device = exclusive();
    let [bf16, _] = kept(presets::HIGH_PRECISION, 1);
    let [nvfp4, _] = kept(presets::NVIDIA, 1);
    // 512 tokens are few beside the weights, of which bf16 keeps nothing.
    let ratio = (nvfp4 - count(presets::NVIDIA).weight) as f64 / bf16 as f64;
    assert!(0.28 < ratio && ratio < 0.30, "{ratio}");
}

#[test]
fn micro_batches_that_share_packed_weights_keep_them_once() {
    let _device = exclusive();
    let KeptBytes { x, weight } = count(presets::NVIDIA);
    assert_eq!(kept(presets::NVIDIA, 3), [3 * (x + weight), 0]);
    let before = kept_bytes::<B>(&Default::default());
    let shared = shared_weights(|| kept(presets::NVIDIA, 3));
    assert_eq!(shared, [3 * x + weight, weight]);
    assert_eq!(kept_bytes::<B>(&Default::default()), before);
}
