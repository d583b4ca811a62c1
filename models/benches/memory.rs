//! What a training step holds in the memory of a CUDA device: two steps of a preset, one line.
//!
//! `cargo bench -p burn-nvfp4-models --features cuda --bench memory -- [small-130m|small-1b|4b]
//! [bf16|nvfp4] [none|blocks] [SEQUENCESxLENGTH] [ACCUMULATE]`
//!
//! What is left out: all of them, 4x2048, 1. A configuration that does not fit ends the process, so
//! large ones are better run one by one.
//!
//! Activations bf16, parameters, gradients and optimizer states f32, vocabulary 32768; `bf16` are
//! linears in high precision, `nvfp4` is NVIDIA's recipe, `lm_head` in high precision in both. The
//! first step warms up (kernels, trials of GEMMs, optimizer states), the second is measured:
//!
//! * `peak`: the most that CubeCL's allocator had in use. It keeps no peak, so a thread reads it
//!   over and over; what lives for less than a read may be missed.
//! * `state`: in use before the step: parameters, moments, the batch.
//! * `forward`: in use at the end of forward of the last micro-batch, beyond `state`. Not there
//!   with recomputation, which has no such moment.
//! * `linears`: what linears keep of that for backward, counted while it lives.
//! * `reserved`: what the allocator has taken from the device.
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use burn::backend::Autodiff;
use burn::backend::cuda::{Cuda, CudaDevice};
use burn::optim::{GradientsAccumulator, GradientsParams, Optimizer};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_nvfp4::engine::MemoryGauge;
use burn_nvfp4::recipe::{Policy, Progress, Recipe, presets};
use burn_nvfp4::stats::kept_bytes;
use burn_nvfp4::{Nvfp4, Nvfp4Engine, shared_weights};
use burn_nvfp4_models::config::HybridConfig;
use burn_nvfp4_models::data::TokenBatch;
use burn_nvfp4_models::hybrid::HybridLm;
use burn_nvfp4_models::hybrid::step_memory::{Recompute, StepMemory};
use burn_nvfp4_models::train::gradients::{clip_factor, global_norm};
use burn_nvfp4_models::train::memory::{StateBytes, kept_by_linears};
use burn_nvfp4_models::train::optim::{GroupedAdamW, OptimizerConfig, scale_at_update};
use burn_nvfp4_models::train::step::{loss_and_gradients, next_token_loss};

type Inner = Autodiff<Cuda>;
type B = Nvfp4<Inner>;

const VOCAB: usize = 32_768;
const MODELS: [&str; 3] = ["small-130m", "small-1b", "4b"];
const RECIPES: [(&str, Recipe); 2] = [
    ("bf16", presets::HIGH_PRECISION),
    ("nvfp4", presets::NVIDIA),
];
const RECOMPUTE: [(&str, Recompute); 2] =
    [("none", Recompute::None), ("blocks", Recompute::Blocks)];

/// One line of the table.
struct Case<'a> {
    preset: &'a str,
    recipe: (&'a str, Recipe),
    recompute: (&'a str, Recompute),
    /// Sequences and tokens of each.
    shape: [usize; 2],
    /// Micro-batches of a step.
    accumulate: usize,
}

/// What is read in a step, in bytes.
#[derive(Default)]
struct Readings {
    peak: u64,
    /// In use before.
    state: u64,
    /// In use at the end of the last forward, if that is a moment.
    forward: Option<u64>,
    /// Kept by linears then.
    linears: usize,
    reserved: u64,
}

/// A thread that reads a gauge until it is told to stop.
struct Peak {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Peak {
    fn watch(gauge: MemoryGauge) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut peak = 0;
            while !stopped.load(Ordering::Relaxed) {
                peak = gauge().map_or(peak, |memory| memory.in_use.max(peak));
                thread::yield_now();
            }
            peak
        });
        Self { stop, thread }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the gauge can be read")
    }
}

fn gauge(device: &CudaDevice) -> MemoryGauge {
    Inner::memory_gauge(device).expect("CubeCL counts its memory")
}

impl Case<'_> {
    fn policy(&self) -> Policy {
        let policy = Policy::uniform(self.recipe.1);
        let policy = policy.with_override("lm_head", presets::HIGH_PRECISION);
        policy.expect("a pattern")
    }

    fn batch(&self, device: &CudaDevice) -> TokenBatch<B> {
        let [rows, cols] = self.shape;
        let ids = |shift: usize| {
            let ids = (shift..rows * cols + shift).map(|i| (i * 7919) % 65_521 % VOCAB);
            let data = TensorData::new(ids.map(|id| id as i64).collect::<Vec<_>>(), [rows, cols]);
            Tensor::<B, 2, Int>::from_data(data, device)
        };
        TokenBatch {
            inputs: ids(0),
            targets: ids(1),
        }
    }

    /// Gradients of a step, with what is read at the end of the last forward.
    fn gradients(
        &self,
        model: &HybridLm<B>,
        batch: &TokenBatch<B>,
        device: &CudaDevice,
        readings: &mut Readings,
    ) -> GradientsParams {
        let mut sum = GradientsAccumulator::new();
        for _ in 0..self.accumulate {
            let grads = match self.recompute.1 {
                Recompute::Blocks => loss_and_gradients(model, batch.clone()).1,
                Recompute::None => {
                    let loss = next_token_loss(model, batch.clone());
                    B::sync(device).expect("the device answers");
                    readings.forward = gauge(device)().map(|memory| memory.in_use);
                    readings.linears = kept_bytes::<B>(device);
                    GradientsParams::from_grads(loss.backward(), model)
                }
            };
            sum.accumulate(model, grads);
        }
        sum.grads()
    }

    fn measure(&self) {
        let device = CudaDevice::default();
        let config = HybridConfig::preset(self.preset, VOCAB).expect("a preset");
        burn_nvfp4::set_policy::<B>(&device, self.policy()).expect("a policy");
        let model: HybridLm<B> = config.init(&device, 1);
        let memory = StepMemory {
            recompute: self.recompute.1,
            loss_chunk: None,
        };
        let mut model = model.with_activations(DType::BF16).with_step_memory(memory);
        let mut optimizer = GroupedAdamW::new(&OptimizerConfig {
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            clip_norm: Some(1.0),
        });
        let batch = self.batch(&device);
        let mut readings = Readings::default();
        for step in 0..2 {
            let progress = Progress { step, total: 1000 };
            burn_nvfp4::set_progress::<B>(&device, progress);
            B::sync(&device).expect("the device answers");
            let before = gauge(&device)().expect("the device answers");
            readings.state = before.in_use;
            let peak = Peak::watch(gauge(&device));
            let mut passes = || self.gradients(&model, &batch, &device, &mut readings);
            let mut grads = if self.accumulate > 1 {
                shared_weights(passes)
            } else {
                passes()
            };
            let average = 1.0 / self.accumulate as f64;
            let norm = global_norm::<B, _>(&model, &grads, average);
            scale_at_update::<B>(&mut grads, clip_factor(norm, average, Some(1.0)), &device);
            model = optimizer.step(1e-4, model, grads);
            B::sync(&device).expect("the device answers");
            readings.peak = peak.stop();
            let after = gauge(&device)().expect("the device answers");
            readings.reserved = after.reserved;
        }
        self.print(&config, &readings);
        drop((model, optimizer, batch));
        B::sync(&device).expect("the device answers");
        B::memory_cleanup(&device);
    }

    fn print(&self, config: &HybridConfig, readings: &Readings) {
        let [sequences, length] = self.shape;
        let gb = |bytes: u64| format!("{:.2}", bytes as f64 / 1e9);
        let tokens = sequences * length;
        let count = kept_by_linears(config, &self.policy(), tokens, DType::BF16);
        let count = count.expect("a model that fits a device can be counted");
        let StateBytes {
            parameters,
            gradients,
            moments,
        } = StateBytes::of(config);
        let forward = readings.forward.map_or_else(
            || "-".to_owned(),
            |bytes| gb(bytes.saturating_sub(readings.state)),
        );
        println!(
            "{} {} recompute {} {sequences}x{length}x{}: peak {} GB, state {}, forward {forward}, \
             linears {}, reserved {}; by count: linears {} (packed weights {}), parameters {}, \
             gradients {}, moments {}",
            self.preset,
            self.recipe.0,
            self.recompute.0,
            self.accumulate,
            gb(readings.peak),
            gb(readings.state),
            gb(readings.linears as u64),
            gb(readings.reserved),
            gb((count.x + count.weight) as u64),
            gb(count.weight as u64),
            gb(parameters),
            gb(gradients),
            gb(moments),
        );
    }
}

/// The given words among those that are known, or all of these.
fn asked<T: Copy>(known: &[(&'static str, T)], words: &[String]) -> Vec<(&'static str, T)> {
    let named = |word: &str| words.iter().any(|w| w == word);
    let any = known.iter().any(|(name, _)| named(name));
    let known = known.iter().copied();
    known.filter(|(name, _)| !any || named(name)).collect()
}

fn main() {
    let words = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'));
    let words: Vec<String> = words.collect();
    let shape = words.iter().find_map(|word| {
        let (sequences, length) = word.split_once('x')?;
        Some([sequences.parse().ok()?, length.parse().ok()?])
    });
    let accumulate = words.iter().find_map(|word| word.parse().ok());
    for (preset, ()) in asked(&MODELS.map(|name| (name, ())), &words) {
        for recipe in asked(&RECIPES, &words) {
            for recompute in asked(&RECOMPUTE, &words) {
                let case = Case {
                    preset,
                    recipe,
                    recompute,
                    shape: shape.unwrap_or([4, 2048]),
                    accumulate: accumulate.unwrap_or(1),
                };
                case.measure();
            }
        }
    }
}
