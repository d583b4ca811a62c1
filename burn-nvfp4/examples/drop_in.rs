//! Trains Burn's own transformer encoder in NVFP4 by changing one type.
//!
//! The model, the optimizer and the loop know nothing of this crate: `train` is generic over the
//! backend. The task is to predict each token of a fixed random walk from those before it.
//!
//! `cargo run --release -p burn-nvfp4 --example drop_in`

use burn::backend::{Autodiff, NdArray};
use burn::nn::attention::generate_autoregressive_mask;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::transformer::{
    TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput,
};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn_nvfp4::Nvfp4;

const VOCAB: usize = 64;
const D_MODEL: usize = 64;
const SEQ: usize = 64;
const STEPS: usize = 60;

/// A model that was written for any backend.
#[derive(Module, Debug)]
struct Model<B: Backend> {
    embedding: Embedding<B>,
    encoder: TransformerEncoder<B>,
    head: Linear<B>,
}

impl<B: Backend> Model<B> {
    fn new(device: &B::Device) -> Self {
        Self {
            embedding: EmbeddingConfig::new(VOCAB, D_MODEL).init(device),
            encoder: TransformerEncoderConfig::new(D_MODEL, 4 * D_MODEL, 4, 2)
                .with_dropout(0.0)
                .init(device),
            head: LinearConfig::new(D_MODEL, VOCAB).init(device),
        }
    }

    /// Logits `[seq, vocab]` of one sequence `[1, seq]`.
    fn forward(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        let [batch, seq] = ids.dims();
        let mask = generate_autoregressive_mask(batch, seq, &ids.device());
        let input = TransformerEncoderInput::new(self.embedding.forward(ids)).mask_attn(mask);
        self.head
            .forward(self.encoder.forward(input))
            .reshape([batch * seq, VOCAB])
    }
}

/// Trains on one fixed sequence; returns the first and the last loss.
fn train<B: AutodiffBackend>() -> (f32, f32) {
    let device = B::Device::default();
    B::seed(&device, 7);
    let mut model = Model::<B>::new(&device);
    let mut optimizer = AdamWConfig::new().init();
    // A walk of irregular steps: 0, 1, 4, 9, .. modulo the vocabulary.
    let walk: Vec<i32> = (0..)
        .take(SEQ + 1)
        .map(|i: i32| (i * i + 3 * i) % 64)
        .collect();
    let inputs = Tensor::<B, 1, Int>::from_ints(&walk[..SEQ], &device).unsqueeze();
    let targets = Tensor::<B, 1, Int>::from_ints(&walk[1..], &device);
    let loss_fn = CrossEntropyLossConfig::new().init(&device);
    let (mut first, mut last) = (None, 0.0);
    for _ in 0..STEPS {
        let loss = loss_fn.forward(model.forward(inputs.clone()), targets.clone());
        last = loss.clone().into_scalar().elem();
        first.get_or_insert(last);
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(3e-3, model, grads);
    }
    (first.unwrap_or(last), last)
}

#[expect(clippy::print_stdout, reason = "an example shows what it did")]
fn main() {
    let (first, last) = train::<Autodiff<NdArray>>();
    println!("Autodiff<NdArray>         loss {first:.3} -> {last:.4}");
    let (first, last) = train::<Nvfp4<Autodiff<NdArray>>>();
    println!("Nvfp4<Autodiff<NdArray>>  loss {first:.3} -> {last:.4}");
}
