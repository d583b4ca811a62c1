//! What the fused kernels cost on a CUDA device: one table, from one run.
//!
//! Each kernel forward and backward at 8192 tokens in bf16 (parameters, residual stream and
//! optimizer state in f32): time, the bytes that have to move, and their rate as a share of a device
//! copy measured before. Times are wall-clock over many calls between two waits for the device, so
//! they contain whatever the host adds; every figure is the best of three rounds.
//!
//! `cargo bench -p burn-hybrid-ops --features cuda --bench elementwise`
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::time::{Duration, Instant};

use burn::tensor::backend::Backend;
use burn::tensor::ops::ModuleOps;
use burn::tensor::{DType, Distribution, Int, Tensor, TensorData, TensorPrimitive};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use burn_hybrid_ops::kernels::gated_group_norm::Inputs;
use burn_hybrid_ops::kernels::{adamw, conv_silu, gated_group_norm, step_size, sum_of_squares};
use burn_hybrid_ops::{HybridEngine, Op, Pass};
use burn_nvfp4::kernels::launches;
use cubecl::cuda::{CudaDevice, CudaRuntime};

type Plain = CubeBackend<CudaRuntime, f32, i32, u8>;
type Primitive = CubeTensor<CudaRuntime>;

const TOKENS: usize = 8192;
const BATCH: usize = 4;
const TAPS: usize = 4;
const GROUPS: usize = 8;
const HEAD_DIM: usize = 64;

fn wait() {
    Plain::sync(&CudaDevice::default()).expect("the device answers");
}

/// The best of three rounds of `count` calls, per call.
fn time(count: u32, call: &mut dyn FnMut()) -> Duration {
    for _ in 0..3 {
        call();
    }
    let mut round = || {
        wait();
        let start = Instant::now();
        for _ in 0..count {
            call();
        }
        wait();
        start.elapsed() / count
    };
    (0..3).map(|_| round()).min().expect("three rounds")
}

fn random<const D: usize>(shape: [usize; D], dtype: DType) -> Primitive {
    primitive(normal(shape).cast(dtype))
}

fn normal<const D: usize>(shape: [usize; D]) -> Tensor<Plain, D> {
    Tensor::random(
        shape,
        Distribution::Normal(0.0, 1.0),
        &CudaDevice::default(),
    )
}

fn primitive<const D: usize>(tensor: Tensor<Plain, D>) -> Primitive {
    match tensor.into_primitive() {
        TensorPrimitive::Float(tensor) => tensor,
        TensorPrimitive::QFloat(_) => unreachable!("a float tensor"),
    }
}

/// The first channels of rows that are half as long again, as in the output of a projection.
fn slice(shape: [usize; 3]) -> Primitive {
    let [batch, seq, channels] = shape;
    let behind = (channels / 2).next_multiple_of(64);
    let mut tensor = random([batch, seq, channels + behind], DType::BF16);
    tensor.meta.shape_mut()[2] = channels;
    tensor.handle = tensor
        .handle
        .offset_end((behind * DType::BF16.size()) as u64);
    tensor
}

/// Prints lines that say how fast a call is.
struct Table {
    /// Bytes per second of a device copy, counting both directions.
    copy: f64,
}

impl Table {
    fn line(&self, what: &str, channels: usize, bytes: usize, mut call: impl FnMut()) {
        call();
        let before = launches();
        call();
        let launches = launches() - before;
        let took = time(20, &mut call);
        let rate = bytes as f64 / took.as_secs_f64();
        println!(
            "{what:<24} {channels:>6} {:>9.3} ms {:>8.1} MB {:>6.2} TB/s {:>5.2} of copy {launches:>3} \
             launches",
            took.as_secs_f64() * 1e3,
            bytes as f64 / 1e6,
            rate / 1e12,
            rate / self.copy,
        );
    }
}

fn mixer(table: &Table, channels: usize) {
    let elements = TOKENS * channels;
    let shape = [BATCH, TOKENS / BATCH, channels];
    let (x, z) = (slice(shape), slice(shape));
    let (dx, dense) = (slice(shape), random(shape, DType::BF16));
    let weight = random([channels, 1, TAPS], DType::F32);
    let bias = random([channels], DType::F32);
    table.line("conv_silu", channels, 4 * elements, || {
        drop(conv_silu::forward(&x, &weight, Some(&bias)));
    });
    table.line("conv_silu backward", channels, 6 * elements, || {
        drop(conv_silu::backward(&x, &weight, Some(&bias), &dense, &dx));
    });

    let inputs = Inputs {
        y: &dense,
        z: &z,
        weight: &bias,
        n_groups: GROUPS,
        eps: 1e-5,
    };
    let (out, rstd) = gated_group_norm::forward(&inputs, DType::BF16);
    table.line("gated_group_norm", channels, 6 * elements, || {
        drop(gated_group_norm::forward(&inputs, DType::BF16));
    });
    table.line("gated_group_norm backward", channels, 10 * elements, || {
        drop(gated_group_norm::backward(&inputs, &rstd, &out, &dx));
    });

    let heads = channels / HEAD_DIM;
    let (dt, into) = (
        slice([BATCH, TOKENS / BATCH, heads]),
        slice([BATCH, TOKENS / BATCH, heads]),
    );
    let grad = random([BATCH, TOKENS / BATCH, heads], DType::F32);
    let bias = random([heads], DType::F32);
    let limits = step_size::Limits {
        min: 0.0,
        max: None,
    };
    table.line("step_size", heads, 6 * TOKENS * heads, || {
        drop(step_size::forward(&dt, &bias, limits));
    });
    table.line("step_size backward", heads, 8 * TOKENS * heads, || {
        drop(step_size::backward(&dt, &bias, limits, &grad, &into));
    });
}

/// The operations of a block that are nodes of their own.
fn operations(table: &Table, channels: usize) {
    let elements = TOKENS * channels;
    let x = random([TOKENS, channels], DType::BF16);
    let run = |op: &Op, pass, inputs| Plain::launch(op, pass, inputs, vec![]);
    let relu = Op::SquaredRelu;
    table.line("squared_relu", channels, 4 * elements, || {
        drop(run(&relu, Pass::Forward, vec![x.clone()]));
    });
    table.line("squared_relu backward", channels, 6 * elements, || {
        drop(run(&relu, Pass::Backward, vec![x.clone(), x.clone()]));
    });

    let norm = Op::RmsNorm {
        eps: 1e-5,
        output: DType::BF16,
    };
    let residual = random([TOKENS, channels], DType::F32);
    let weight = random([channels], DType::F32);
    let inputs = vec![residual, weight];
    let rstd = run(&norm, Pass::Forward, inputs.clone())
        .pop()
        .expect("a norm keeps its scales");
    table.line("rms_norm", channels, 6 * elements, || {
        drop(run(&norm, Pass::Forward, inputs.clone()));
    });
    let mut given = inputs.clone();
    given.extend([rstd, x.clone()]);
    table.line("rms_norm backward", channels, 10 * elements, || {
        drop(run(&norm, Pass::Backward, given.clone()));
    });
}

/// Tokens as in a text: the `n`th most frequent of `vocab` about `1/n` as often as the first.
fn text(vocab: usize) -> Tensor<Plain, 1, Int> {
    let id = |i: usize| {
        let mixed = (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 11;
        let uniform = mixed as f64 / (1u64 << 53) as f64;
        // Whole numbers of `0..vocab`.
        ((vocab as f64).powf(uniform) - 1.0).floor()
    };
    let ids = TensorData::new((0..TOKENS).map(id).collect::<Vec<_>>(), [TOKENS]);
    Tensor::from_data(ids.convert::<i32>(), &CudaDevice::default())
}

fn embedding(table: &Table, channels: usize) {
    const VOCAB: usize = 32_768;
    let tokens = text(VOCAB);
    let ids = tokens.clone().into_primitive();
    let op = Op::Embedding {
        tokens: TOKENS,
        token_dtype: ids.dtype,
        output: DType::BF16,
    };
    let weight = random([VOCAB, channels], DType::F32);
    let elements = TOKENS * channels;
    table.line("embedding", channels, 6 * elements, || {
        let inputs = vec![weight.clone()];
        drop(Plain::launch(&op, Pass::Forward, inputs, vec![ids.clone()]));
    });
    // The gradient of the whole table is written, most of it as zeros.
    let bytes = 2 * elements + 4 * VOCAB * channels;
    let dy = random([TOKENS, channels], DType::BF16);
    let given = [weight.clone(), ids, dy];
    table.line("embedding backward", channels, bytes, || {
        drop(Plain::launch(&op, Pass::Backward, given.to_vec(), vec![]));
    });
    let dy = random([1, TOKENS, channels], DType::F32);
    let ids = tokens.reshape([1, TOKENS]).into_primitive();
    let bytes = 4 * elements + 4 * VOCAB * channels;
    table.line("the same by burn, f32", channels, bytes, || {
        let (weight, dy, ids) = (weight.clone(), dy.clone(), ids.clone());
        drop(Plain::embedding_backward(weight, dy, ids));
    });
}

fn loss(table: &Table, vocab: usize) {
    let ids = Tensor::<Plain, 1, Int>::arange(0..TOKENS as i64, &CudaDevice::default());
    let ids = ids.remainder_scalar(vocab as i64).into_primitive();
    let elements = TOKENS * vocab;
    let mut logits = Some(random([TOKENS, vocab], DType::BF16));
    let mut forward = || {
        let given = logits.take().expect("the last call has put them back");
        let made = Plain::launch(
            &Op::CrossEntropy,
            Pass::Forward,
            vec![given],
            vec![ids.clone()],
        );
        logits = made.into_iter().nth(1);
    };
    // Read, read again, written.
    table.line("cross_entropy in place", vocab, 6 * elements, &mut forward);
    let one = primitive(Tensor::<Plain, 1>::ones([1], &CudaDevice::default()));
    let mut slopes = logits.take();
    table.line("cross_entropy backward, 1", vocab, 0, || {
        let given = slopes.take().expect("the last call has put them back");
        let inputs = vec![given, one.clone()];
        slopes = Plain::launch(&Op::CrossEntropy, Pass::Backward, inputs, vec![]).pop();
    });
}

fn optimizer(table: &Table, channels: usize) {
    let elements = TOKENS * channels;
    let tensor = || random([TOKENS, channels], DType::F32);
    let mut state = Some(adamw::State {
        param: tensor(),
        moment_1: tensor(),
        moment_2: primitive(normal([TOKENS, channels]).square()),
    });
    let numbers = adamw::AdamW {
        lr: 1e-4,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        time: 10,
    };
    let grad = tensor();
    table.line("adamw", channels, 28 * elements, || {
        let given = state.take().expect("the last call has put it back");
        state = Some(adamw::step(given, &grad, &numbers, None));
    });
    let grads = [grad];
    table.line("sum_of_squares", channels, 4 * elements, || {
        drop(sum_of_squares::global(&grads));
    });
}

fn main() {
    let x = random([TOKENS, 32_768], DType::BF16);
    let copied = time(20, &mut || drop(x.copy()));
    let table = Table {
        copy: 4.0 * (TOKENS * 32_768) as f64 / copied.as_secs_f64(),
    };
    drop(x);
    println!("device copy {:.2} TB/s; {TOKENS} tokens", table.copy / 1e12);
    for channels in [512, 2048] {
        embedding(&table, channels);
    }
    for channels in [2048, 4096, 6144, 32_768] {
        mixer(&table, channels);
        operations(&table, channels);
        loss(&table, channels);
        optimizer(&table, channels);
    }
}
