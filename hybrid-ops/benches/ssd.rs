//! What the scan of Mamba-2 costs on a CUDA device, at the shapes of the models.
//!
//! Times are wall-clock over many calls between two waits for the device, so they contain whatever
//! the host adds. Every figure is the best of three rounds. With `--stages` each stage of forward
//! and backward is repeated by itself, and the cuBLASLt algorithms are listed.
//!
//! `cargo bench -p burn-hybrid-ops --features cuda --bench ssd -- --stages`
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::time::{Duration, Instant};

use burn::prelude::*;
use burn::tensor::{DType, Distribution, TensorPrimitive};
use burn_hybrid_ops::kernels::ssd::{
    SsdInputs, SsdShape, Stages, backward, backward_by, forward, forward_by,
};
use burn_nvfp4::kernels::gemm::cublaslt;
use burn_nvfp4::kernels::{self, CubeBackend, CubeTensor, CudaDevice, CudaRuntime};

type Plain = CubeBackend<CudaRuntime, f32, i32, u8>;

fn wait() {
    Plain::sync(&CudaDevice::default()).expect("the device answers");
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The best of three rounds of `count` calls, per call.
fn time(count: u32, mut call: impl FnMut()) -> Duration {
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

fn tensor<const D: usize>(tensor: Tensor<Plain, D>) -> CubeTensor<CudaRuntime> {
    match tensor.into_primitive() {
        TensorPrimitive::Float(tensor) => tensor,
        TensorPrimitive::QFloat(_) => unreachable!("a float tensor"),
    }
}

fn random<const D: usize>(shape: [usize; D], distribution: Distribution) -> Tensor<Plain, D> {
    Tensor::random(shape, distribution, &CudaDevice::default())
}

/// Repeats every stage, and prints what it took.
struct Timed {
    pass: &'static str,
    total: Duration,
}

impl Stages for Timed {
    fn run<T>(&mut self, name: &'static str, stage: impl Fn() -> T) -> T {
        let took = time(20, || drop(stage()));
        self.total += took;
        println!("    {:<9}{name:<14}{:>8.3} ms", self.pass, ms(took));
        stage()
    }
}

fn scan(shape: &SsdShape, by_stages: bool) {
    let SsdShape {
        batch, seq, heads, ..
    } = *shape;
    let normal = Distribution::Normal(0.0, 1.0);
    let xbc = random([batch, seq, shape.columns()], normal).cast(DType::BF16);
    let dy = random([batch, seq, shape.channels()], normal).cast(DType::BF16);
    let inputs = SsdInputs {
        xbc: tensor(xbc),
        dt: tensor(random([batch, seq, heads], Distribution::Uniform(0.0, 0.1))),
        a_log: tensor(random([heads], Distribution::Uniform(1.0, 16.0)).log()),
        d_skip: tensor(random([heads], normal)),
    };
    let dy = tensor(dy);
    let both = || {
        let made = forward(inputs.clone(), shape);
        backward(inputs.clone(), made.saved, dy.clone(), shape)
    };
    drop(both());
    let before = kernels::launches() + cublaslt::launches();
    drop(both());
    let launches = kernels::launches() + cublaslt::launches() - before;
    let ahead = time(20, || drop(forward(inputs.clone(), shape)));
    let all = time(20, || drop(both()));
    println!(
        "B={batch} S={seq} H={heads} P={} N={} G={}: fwd {:.3} ms, fwd+bwd {:.3} ms, {launches} \
         launches",
        shape.head_dim,
        shape.d_state,
        shape.groups,
        ms(ahead),
        ms(all),
    );
    if by_stages {
        let timed = |pass| Timed {
            pass,
            total: Duration::ZERO,
        };
        let (mut ahead, mut back) = (timed("forward"), timed("backward"));
        let made = forward_by(&mut ahead, inputs.clone(), shape);
        drop(backward_by(&mut back, inputs, made.saved, dy, shape));
        println!(
            "    stages of forward {:.3} ms, of backward {:.3} ms",
            ms(ahead.total),
            ms(back.total)
        );
    }
}

fn main() {
    let by_stages = std::env::args().any(|argument| argument == "--stages");
    for [batch, seq, heads, head_dim, d_state, groups] in [
        [16, 1024, 16, 64, 128, 8],
        [4, 2048, 64, 64, 128, 8],
        [1, 8192, 128, 80, 128, 8],
    ] {
        let shape = SsdShape {
            batch,
            seq,
            heads,
            head_dim,
            groups,
            d_state,
            chunk_len: 256,
        };
        scan(&shape, by_stages);
    }
    if by_stages {
        println!("\nalgorithms that cuBLASLt's trial chose");
        for chosen in cublaslt::chosen() {
            println!("{chosen}");
        }
    }
    cublaslt::take_failure().expect("all products were enqueued");
}
