//! What sampling a run's operands costs on a CPU: one linear of 512 x 512 on 1024 tokens, forward
//! and backward on NdArray, under several recipes.
//!
//! The best of five rounds of ten steps, without samples and with every operand measured in every
//! step; the last column is what every hundredth step would add.
//!
//! `cargo bench -p burn-nvfp4 --bench samples`
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::num::NonZeroU64;
use std::time::Instant;

use burn::backend::{Autodiff, NdArray};
use burn::prelude::*;
use burn::tensor::Distribution;
use burn_nvfp4::recipe::Progress;
use burn_nvfp4::stats::{set_sampling, take_samples};
use burn_nvfp4::{Nvfp4, Policy, layer, presets, set_policy, set_progress};

type B = Nvfp4<Autodiff<NdArray>>;

const RECIPES: [&str; 5] = [
    "high_precision",
    "nvidia",
    "four_over_six_1d",
    "quartet2",
    "averis",
];
const ROUNDS: usize = 5;
const STEPS: u64 = 10;

/// Milliseconds of a step, the best of the rounds.
fn milliseconds() -> f64 {
    let device = Default::default();
    let normal =
        |shape: [usize; 2]| Tensor::<B, 2>::random(shape, Distribution::Normal(0.0, 1.0), &device);
    let (x, w, dy) = (normal([1024, 512]), normal([512, 512]), normal([1024, 512]));
    let round = || {
        let start = Instant::now();
        for step in 0..STEPS {
            set_progress::<B>(&device, Progress { step, total: 1000 });
            let (x, w) = (x.clone().require_grad(), w.clone().require_grad());
            let y = layer("up_proj", || burn::tensor::module::linear(x, w, None));
            drop((y * dy.clone()).sum().backward());
        }
        start.elapsed().as_secs_f64() * 1e3 / STEPS as f64
    };
    (0..ROUNDS).map(|_| round()).fold(f64::MAX, f64::min)
}

fn main() {
    let device = Default::default();
    for name in RECIPES {
        let recipe = presets::by_name(name).expect("a preset").recipe;
        set_policy::<B>(&device, Policy::uniform(recipe)).expect("a policy");
        set_sampling::<B>(&device, None);
        let without = milliseconds();
        set_sampling::<B>(&device, Some(NonZeroU64::MIN));
        let with = milliseconds();
        take_samples::<B>(&device);
        let hundredth = (with - without) / without;
        println!(
            "{name:<18} {without:7.2} ms, sampled {with:7.2} ms: 1 in 100 adds {hundredth:.2} %"
        );
    }
}
