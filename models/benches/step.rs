//! What a training step costs on a CUDA device: forward, backward, clipping, AdamW.
//!
//! Two models, of the shapes of the PyTorch peer: 32.8 M parameters (hidden 512, 16x64 Mamba heads,
//! FFN 2048, vocabulary 8192) on 16 x 1024 tokens, and 849 M (hidden 2048, 64x64, FFN 8192,
//! vocabulary 32768) on 4 x 2048; 128 states, 8 groups. Both with linears in high precision (bf16
//! GEMMs) and in NVIDIA's recipe; activations bf16, parameters and optimizer f32.
//!
//! Times are wall-clock over whole steps between two waits for the device: the middle of five
//! rounds, the shortest and the longest in brackets. After each the same step on one sequence of 64
//! tokens: as many launches with next to nothing in them, which is what the host takes for a step.
//! While it is the shorter of the two, the device waits for nobody. MFU counts 6 N D operations for
//! N parameters and D tokens against 989 TFLOP/s, the datasheet's dense bf16.
//!
//! `cargo bench -p burn-nvfp4-models --features cuda --bench step -- [small|1b] [bf16|nvfp4]`
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::time::Instant;

use burn::backend::Autodiff;
use burn::backend::cuda::{Cuda, CudaDevice};
use burn::optim::{GradientsParams, Optimizer};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_nvfp4::recipe::{Policy, Progress, Recipe, presets};
use burn_nvfp4::{Nvfp4, kernels};
use burn_nvfp4_models::config::{Bias, HybridConfig};
use burn_nvfp4_models::data::TokenBatch;
use burn_nvfp4_models::hybrid::HybridLm;
use burn_nvfp4_models::train::gradients::{clip_factor, global_norm};
use burn_nvfp4_models::train::optim::{GroupedAdamW, OptimizerConfig, scale_at_update};
use burn_nvfp4_models::train::step::next_token_loss;

type B = Nvfp4<Autodiff<Cuda>>;

/// Dense bf16 of an H100 or H200 by the datasheet.
const PEAK: f64 = 989e12;
const WARM_UP: u64 = 5;
/// Of `Size::steps` steps each: what happens once (a kernel compiled late, memory that a pool takes
/// anew) is one round's.
const ROUNDS: usize = 5;

/// A model and its batch.
struct Size {
    name: &'static str,
    pattern: &'static str,
    d_model: usize,
    d_ffn: usize,
    vocab: usize,
    attention: [usize; 3],
    mamba_heads: usize,
    sequences: usize,
    length: usize,
    /// In a round.
    steps: u64,
}

const SIZES: [Size; 2] = [
    Size {
        name: "small",
        pattern: "M-M-M*-M-M-",
        d_model: 512,
        d_ffn: 2048,
        vocab: 8192,
        attention: [8, 2, 64],
        mamba_heads: 16,
        sequences: 16,
        length: 1024,
        steps: 10,
    },
    Size {
        name: "1b",
        pattern: "M-M-M-M*-M-M-M-M*-M-M-M-",
        d_model: 2048,
        d_ffn: 8192,
        vocab: 32768,
        attention: [16, 4, 128],
        mamba_heads: 64,
        sequences: 4,
        length: 2048,
        steps: 5,
    },
];

const RECIPES: [(&str, Recipe); 2] = [
    ("bf16", presets::HIGH_PRECISION),
    ("nvfp4", presets::NVIDIA),
];

impl Size {
    fn config(&self) -> HybridConfig {
        let base = HybridConfig::preset("small-1b", self.vocab).expect("a preset");
        let [n_attention_heads, n_kv_heads, attention_head_dim] = self.attention;
        let config = HybridConfig {
            pattern: self.pattern.parse().expect("letters of blocks"),
            d_model: self.d_model,
            d_ffn: self.d_ffn,
            n_attention_heads,
            n_kv_heads,
            attention_head_dim,
            n_mamba_heads: self.mamba_heads,
            mamba_head_dim: 64,
            n_groups: 8,
            d_state: 128,
            conv_bias: Bias::Learned,
            ..base
        };
        config.validate().expect("the shapes of the peer");
        config
    }

    fn batch(&self, [rows, cols]: [usize; 2], device: &CudaDevice) -> TokenBatch<B> {
        let ids = |shift: usize| {
            let ids = (shift..rows * cols + shift).map(|i| (i * 7919) % 65_521 % self.vocab);
            let data = TensorData::new(ids.map(|id| id as i64).collect::<Vec<_>>(), [rows, cols]);
            Tensor::<B, 2, Int>::from_data(data, device)
        };
        TokenBatch {
            inputs: ids(0),
            targets: ids(1),
        }
    }
}

fn measure(size: &Size, (name, recipe): (&str, Recipe)) {
    let device = CudaDevice::default();
    let config = size.config();
    burn_nvfp4::set_policy::<B>(
        &device,
        Policy::uniform(recipe)
            .with_override("lm_head", presets::HIGH_PRECISION)
            .expect("a pattern"),
    )
    .expect("a policy");
    let model: HybridLm<B> = config.init(&device, 1);
    let mut model = model.with_activations(DType::BF16);
    let mut optimizer = GroupedAdamW::new(&OptimizerConfig {
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        clip_norm: Some(1.0),
    });
    let mut step = |number: u64, batch: &TokenBatch<B>| {
        let progress = Progress {
            step: number,
            total: 1000,
        };
        burn_nvfp4::set_progress::<B>(&device, progress);
        let loss = next_token_loss(&model, batch.clone());
        let mut grads = GradientsParams::from_grads(loss.backward(), &model);
        let norm = global_norm::<B, _>(&model, &grads, 1.0);
        scale_at_update::<B>(&mut grads, clip_factor(norm, 1.0, Some(1.0)), &device);
        model = optimizer.step(1e-4, model.clone(), grads);
        (norm, loss)
    };
    let batch = size.batch([size.sequences, size.length], &device);
    let begin = Instant::now();
    step(0, &batch);
    B::sync(&device).expect("the device answers");
    println!("  first step {:.2} s", begin.elapsed().as_secs_f64());
    let mut time = |batch: &TokenBatch<B>| {
        let mut number = 1;
        let mut last = None;
        let mut steps = |count: u64| {
            let (begin, launches) = (Instant::now(), kernels::launches());
            for _ in 0..count {
                last = Some(step(number, batch));
                number += 1;
            }
            B::sync(&device).expect("the device answers");
            let milliseconds = begin.elapsed().as_secs_f64() * 1e3 / count as f64;
            (milliseconds, (kernels::launches() - launches) / count)
        };
        steps(WARM_UP);
        let mut rounds = [(); ROUNDS].map(|()| steps(size.steps));
        rounds.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        (rounds, last.expect("at least one step"))
    };
    let (rounds, (norm, loss)) = time(&batch);
    let (host, _) = time(&size.batch([1, 64], &device));
    let (step_ms, launches) = rounds[ROUNDS / 2];
    let ranges = [rounds, host].map(|rounds| {
        let [shortest, .., longest] = rounds.map(|(milliseconds, _)| milliseconds);
        format!("[{shortest:.2} to {longest:.2}]")
    });
    let loss = loss.into_data().iter::<f64>().next().unwrap_or(f64::NAN);
    let tokens = (size.sequences * size.length) as f64;
    let parameters = config.num_params() as f64;
    let seconds = step_ms / 1e3;
    let mfu = 6.0 * parameters * tokens / seconds / PEAK;
    println!(
        "{:<6} {name:<6} {:>6.1} M  {step_ms:>8.2} ms/step {}  {:>9.0} tokens/s  MFU {:>5.1} %  \
         own kernels {launches} a step  host {:.2} ms {}  loss {loss:.4} norm {norm:.4}",
        size.name,
        parameters / 1e6,
        ranges[0],
        tokens / seconds,
        mfu * 100.0,
        host[ROUNDS / 2].0,
        ranges[1],
    );
}

fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    let asked = |names: &[&str], name: &str| {
        let any = names.iter().any(|n| wanted.iter().any(|w| w == n));
        !any || wanted.iter().any(|w| w == name)
    };
    for size in SIZES
        .iter()
        .filter(|size| asked(&["small", "1b"], size.name))
    {
        for recipe in RECIPES
            .iter()
            .filter(|(name, _)| asked(&["bf16", "nvfp4"], name))
        {
            measure(size, *recipe);
        }
    }
}
