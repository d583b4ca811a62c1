//! What the decorator costs: one training step of a transformer block, with and without it.
//!
//! d_model 512, 8 heads, d_ff 2048, 1024 tokens (4 x 256), AdamW. The two backends take turns in
//! one process, so that the ratio survives a busy machine; the best of the rounds is printed.
//!
//! `cargo bench -p burn-nvfp4 --bench overhead`
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::time::{Duration, Instant};

use burn::backend::{Autodiff, Flex, NdArray};
use burn::nn::transformer::{
    TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput,
};
use burn::optim::{AdamW, AdamWConfig, GradientsParams, Optimizer, adaptor::OptimizerAdaptor};
use burn::prelude::*;
use burn::tensor::Distribution;
use burn::tensor::backend::AutodiffBackend;
use burn_nvfp4::{Nvfp4, Policy, presets};

const BATCH: usize = 4;
const SEQ: usize = 256;
const D_MODEL: usize = 512;
const D_FF: usize = 2048;
const ROUNDS: usize = 15;

/// One block with its optimizer.
struct Training<B: AutodiffBackend> {
    block: Option<TransformerEncoder<B>>,
    optimizer: OptimizerAdaptor<AdamW, TransformerEncoder<B>, B>,
    input: Tensor<B, 3>,
}

impl<B: AutodiffBackend> Training<B> {
    fn new() -> Self {
        let device = B::Device::default();
        B::seed(&device, 1);
        let block = TransformerEncoderConfig::new(D_MODEL, D_FF, 8, 1)
            .with_dropout(0.0)
            .init::<B>(&device);
        let input = Tensor::random(
            [BATCH, SEQ, D_MODEL],
            Distribution::Normal(0.0, 1.0),
            &device,
        );
        Self {
            block: Some(block),
            optimizer: AdamWConfig::new().init(),
            input,
        }
    }

    fn step(&mut self) -> Duration {
        let start = Instant::now();
        let block = self.block.take().expect("a step puts the block back");
        let output = block.forward(TransformerEncoderInput::new(self.input.clone()));
        let grads = GradientsParams::from_grads(output.square().mean().backward(), &block);
        self.block = Some(self.optimizer.step(1e-4, block, grads));
        start.elapsed()
    }
}

/// Prints the step times of `Plain` and `Decorated` and their ratio.
fn compare<Plain: AutodiffBackend, Decorated: AutodiffBackend>(name: &str, recipe: &str) {
    let (mut plain, mut decorated) = (Training::<Plain>::new(), Training::<Decorated>::new());
    let mut best = [Duration::MAX; 2];
    for _ in 0..ROUNDS {
        best[0] = best[0].min(plain.step());
        best[1] = best[1].min(decorated.step());
    }
    let ratio = best[1].as_secs_f64() / best[0].as_secs_f64();
    println!(
        "{name:<10} {recipe:<15} {:>9.1?} {:>9.1?} {ratio:>6.2}",
        best[0], best[1]
    );
}

fn main() {
    println!("one step, d 512, 1024 tokens, best of {ROUNDS}");
    println!(
        "{:<10} {:<15} {:>9} {:>9} {:>6}",
        "backend", "recipe", "plain", "nvfp4", "ratio"
    );
    for preset in [
        presets::NVIDIA,
        presets::NVIDIA_NO_SR,
        presets::HIGH_PRECISION,
    ] {
        let name = presets::PRESETS
            .iter()
            .find(|known| known.recipe == preset)
            .map_or("?", |known| known.name);
        let device = Default::default();
        burn_nvfp4::set_policy::<NdArray>(&device, Policy::uniform(preset)).expect("a preset");
        compare::<Autodiff<NdArray>, Nvfp4<Autodiff<NdArray>>>("ndarray", name);
        let device = Default::default();
        burn_nvfp4::set_policy::<Flex>(&device, Policy::uniform(preset)).expect("a preset");
        compare::<Autodiff<Flex>, Nvfp4<Autodiff<Flex>>>("flex", name);
    }
}
