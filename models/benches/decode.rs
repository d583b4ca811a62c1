//! Time of one more token, behind a short text and behind a long one.
//!
//! `cargo bench -p burn-nvfp4-models --bench decode`. A model without attention has to take the
//! same time at both positions; with attention, the difference is what reading the keys and values
//! costs. The position grows by one per sample.
//!
//! 1 M parameters: `tiny-1m` without and with its attention block.

use burn::backend::{Flex, NdArray};
use burn_hybrid_ops::HybridEngine;
use burn_nvfp4_models::config::HybridConfig;
use burn_nvfp4_models::generate::{Generation, Sampling};
use divan::Bencher;

const SAMPLES: u32 = 100;
const POSITIONS: [usize; 2] = [100, 10_000];

#[divan::bench(types = [NdArray, Flex], args = POSITIONS, sample_count = SAMPLES, sample_size = 1)]
fn mamba_only<B: HybridEngine>(bencher: Bencher<'_, '_>, position: usize) {
    next_token::<B>(bencher, "M-M-M-M-", position);
}

#[divan::bench(types = [NdArray, Flex], args = POSITIONS, sample_count = SAMPLES, sample_size = 1)]
fn hybrid<B: HybridEngine>(bencher: Bencher<'_, '_>, position: usize) {
    next_token::<B>(bencher, "M-M-M*-M-", position);
}

/// Reads a prompt of `position` tokens, then measures one token after the other.
fn next_token<B: HybridEngine>(bencher: Bencher<'_, '_>, pattern: &str, position: usize) {
    let device = B::Device::default();
    let mut config = HybridConfig::preset("tiny-1m", 256).expect("a preset");
    config.pattern = pattern.parse().expect("letters of blocks");
    let model = config.init::<B>(&device, 1);
    let prompt: Vec<u32> = (0..256).cycle().take(position).collect();
    let generation = Generation::start(&model, &[prompt], Sampling::GREEDY, &device);
    let mut generation = generation.expect("a prompt of bytes");
    // The first token comes with the prompt.
    generation.next();
    bencher.bench_local(|| generation.next());
}

fn main() {
    divan::main();
}
