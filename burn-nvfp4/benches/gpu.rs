//! What quantized linears cost on a CUDA device: one table, from one run.
//!
//! 1. The ceilings of the card: device copy, and the library's bf16 GEMM.
//! 2. Quantizing a bf16 tensor of 8192 x 20480, in bytes that have to move over time.
//! 3. fprop + dgrad + wgrad of `nn::Linear` on `Nvfp4<Autodiff<Cuda>>`, bf16 activations, f32
//!    weights, under NVIDIA's recipe and in high precision; launches, and the first step of a
//!    shape.
//!
//! Times are wall-clock over many steps between two waits for the device, so they contain whatever
//! the host adds. Every figure is the best of three rounds.
//!
//! `cargo bench -p burn-nvfp4 --features cuda --bench gpu`
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::time::{Duration, Instant};

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::module::Param;
use burn::nn::Linear;
use burn::prelude::*;
use burn::tensor::{DType, Distribution, TensorPrimitive};
use burn_cubecl::CubeBackend;
use burn_fusion::Fusion;
use burn_nvfp4::cpu::Contraction;
use burn_nvfp4::kernels::gemm::routine::routines;
use burn_nvfp4::kernels::gemm::{Problem, cublaslt, dense};
use burn_nvfp4::kernels::quantize::{Job, Packing, quantize};
use burn_nvfp4::kernels::{self, dequantize};
use burn_nvfp4::recipe::{OperandSpec, Policy, Recipe, presets};
use burn_nvfp4::rng::{RandomKey, Stream};
use burn_nvfp4::{Nvfp4, Nvfp4Engine, set_policy};
use cubecl::cuda::{CudaDevice, CudaRuntime};

type Plain = CubeBackend<CudaRuntime, f32, i32, u8>;
type Cuda = Fusion<Plain>;

/// `Y = X W` and its gradients, with `dY` given: what a layer inside a model does.
#[derive(Debug)]
struct Incoming;

impl<B: Backend> Backward<B, 1> for Incoming {
    type State = B::FloatTensorPrimitive;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let _ = grads.consume::<B>(&ops.node);
        if let Some(parent) = &ops.parents[0] {
            grads.register::<B>(parent.id, ops.state);
        }
    }
}

/// A scalar whose gradient with respect to `y` is `dy`, without a pass over either.
fn with_gradient<B: Nvfp4Engine, C: CheckpointStrategy>(
    y: Tensor<Nvfp4<Autodiff<B, C>>, 2>,
    dy: Tensor<Nvfp4<B>, 2>,
) -> Tensor<Nvfp4<Autodiff<B, C>>, 1> {
    let (TensorPrimitive::Float(y), TensorPrimitive::Float(dy)) =
        (y.into_primitive(), dy.into_primitive())
    else {
        unreachable!("both are float tensors")
    };
    let device = B::float_device(&dy);
    let scalar = B::float_zeros([1].into(), &device, DType::F32.into());
    let out = match Incoming.prepare::<C>([y.node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(dy, scalar),
        OpsKind::UnTracked(prep) => prep.finish(scalar),
    };
    Tensor::from_primitive(TensorPrimitive::Float(out))
}

/// The best of three rounds of `count` calls, per call.
fn time(count: u32, sync: impl Fn(), mut call: impl FnMut()) -> Duration {
    for _ in 0..3 {
        call();
    }
    let round = |call: &mut dyn FnMut()| {
        sync();
        let start = Instant::now();
        for _ in 0..count {
            call();
        }
        sync();
        start.elapsed() / count
    };
    (0..3)
        .map(|_| round(&mut call))
        .min()
        .expect("three rounds")
}

fn wait() {
    Plain::sync(&CudaDevice::default()).expect("the device answers");
}

fn wait_for_fusion() {
    Cuda::sync(&CudaDevice::default()).expect("the device answers");
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn random<B: Backend>(shape: [usize; 2], scale: f64) -> Tensor<B, 2> {
    let device = B::Device::default();
    Tensor::random(shape, Distribution::Normal(0.0, scale), &device)
}

/// Bytes per second of a device-to-device copy, counting both directions.
fn copy_bandwidth(x: &burn_cubecl::tensor::CubeTensor<CudaRuntime>, bytes: usize) -> f64 {
    let copy = time(20, wait, || drop(x.copy()));
    2.0 * bytes as f64 / copy.as_secs_f64()
}

const KEY: RandomKey = RandomKey {
    seed: 1,
    step: 2,
    micro_batch: 0,
    stream: Stream::Wgrad,
};

fn quantization() {
    let [rows, cols] = [8192, 20480];
    let x = random::<Plain>([rows, cols], 1.0).cast(DType::BF16);
    let TensorPrimitive::Float(x) = x.into_primitive() else {
        unreachable!("a float tensor")
    };
    let elements = rows * cols;
    let copy = copy_bandwidth(&x, 2 * elements);
    println!(
        "device copy                                          {:>8.2} TB/s",
        copy / 1e12
    );

    let nvidia = presets::NVIDIA;
    let row16 = nvidia.fprop.lhs;
    let job = |spec: OperandSpec, along, packed, decoded| Job {
        spec,
        along,
        key: KEY,
        packing: if packed {
            Packing::EitherAxis
        } else {
            Packing::None
        },
        decoded,
    };
    let bf16 = Some(DType::BF16);
    let packed_bytes = elements / 2 + elements / 16;
    let (columns, rows) = (Contraction::Columns, Contraction::Rows);
    // MXFP4 to nearest has no tensor amax: its one pass is the quantize pass alone.
    let mx = OperandSpec::Mxfp4 {
        scale: burn_nvfp4::recipe::E8m0Rule::RoundUp,
        rounding: burn_nvfp4::recipe::Rounding::NearestEven,
        transform: burn_nvfp4::recipe::Transform::None,
    };
    let dy = [
        job(nvidia.dgrad.lhs, columns, false, bf16),
        job(nvidia.wgrad.rhs, rows, false, bf16),
    ];
    let x_jobs = [
        job(nvidia.fprop.lhs, columns, false, bf16),
        job(nvidia.wgrad.lhs, rows, true, None),
    ];
    for (what, jobs, moved) in [
        (
            "NVFP4 1x16 packed",
            vec![job(row16, columns, true, None)],
            2 * elements + packed_bytes,
        ),
        (
            "NVFP4 16x16 packed",
            vec![job(nvidia.fprop.rhs, columns, true, None)],
            2 * elements + packed_bytes,
        ),
        (
            "MXFP4 packed (one pass)",
            vec![job(mx, columns, true, None)],
            2 * elements + elements / 2 + elements / 32,
        ),
        (
            "NVFP4 1x16 decoded",
            vec![job(row16, columns, false, bf16)],
            4 * elements,
        ),
        (
            "X: rows decoded, columns RHT packed",
            x_jobs.to_vec(),
            4 * elements + packed_bytes,
        ),
        (
            "dY: rows SR, columns RHT SR decoded",
            dy.to_vec(),
            6 * elements,
        ),
    ] {
        let before = kernels::launches();
        quantize(&x, &jobs, None);
        let launches = kernels::launches() - before;
        let took = time(20, wait, || drop(quantize(&x, &jobs, None)));
        let rate = moved as f64 / took.as_secs_f64();
        println!(
            "{what:<40} {:>8.3} ms {:>8.2} TB/s {:>6.2} of copy {launches:>3} launches",
            ms(took),
            rate / 1e12,
            rate / copy,
        );
    }
    let mut packed = quantize(&x, &[job(row16, columns, true, None)], None);
    let packed = packed
        .pop()
        .and_then(|q| q.packed)
        .expect("packed was asked for");
    let decode = time(20, wait, || drop(dequantize::decode(&packed, DType::BF16)));
    let moved = packed_bytes + 2 * elements;
    println!(
        "{:<40} {:>8.3} ms {:>8.2} TB/s {:>6.2} of copy",
        "decode to bf16",
        ms(decode),
        moved as f64 / decode.as_secs_f64() / 1e12,
        moved as f64 / decode.as_secs_f64() / copy,
    );
}

/// TFLOP/s of the dense routine at one shape.
fn gemm(m: usize, n: usize, k: usize) {
    let tensor = |rows, cols| {
        let t = random::<Plain>([rows, cols], 1.0).cast(DType::BF16);
        match t.into_primitive() {
            TensorPrimitive::Float(t) => t,
            TensorPrimitive::QFloat(_) => unreachable!("a float tensor"),
        }
    };
    let problem = Problem {
        lhs: tensor(m, k),
        lhs_along: Contraction::Columns,
        rhs: tensor(n, k),
        rhs_along: Contraction::Columns,
        alpha: None,
        bias: None,
        accumulate: None,
        out: DType::BF16,
    };
    let took = time(10, wait, || drop(dense(problem.clone())));
    let flops = 2.0 * (m * n * k) as f64 / took.as_secs_f64();
    println!(
        "GEMM bf16 {m} x {n} x {k:<20} {:>8.3} ms {:>8.0} TFLOP/s",
        ms(took),
        flops / 1e12
    );
}

fn linear(recipe: Recipe, name: &str, [d_input, d_output]: [usize; 2]) {
    type B = Nvfp4<Autodiff<Cuda>>;
    const TOKENS: usize = 8192;
    let device = CudaDevice::default();
    set_policy::<Cuda>(&device, Policy::uniform(recipe)).expect("a preset");
    let layer = Linear::<B> {
        weight: Param::from_tensor(random([d_input, d_output], 0.02)),
        bias: None,
    };
    let x = random::<B>([TOKENS, d_input], 1.0).cast(DType::BF16);
    let dy = random::<Nvfp4<Cuda>>([TOKENS, d_output], 1e-3).cast(DType::BF16);
    let step = || {
        let x = x.clone().detach().require_grad();
        let y = layer.forward(x.clone());
        let grads = with_gradient(y, dy.clone()).backward();
        (x.grad(&grads), layer.weight.grad(&grads))
    };
    wait_for_fusion();
    let start = Instant::now();
    let first = step();
    wait_for_fusion();
    let first_step = start.elapsed();
    drop(first);
    let before = kernels::launches() + cublaslt::launches();
    let counted = step();
    wait_for_fusion();
    let launches = kernels::launches() + cublaslt::launches() - before;
    drop(counted);
    let took = time(10, wait_for_fusion, || drop(step()));
    let flops = 6.0 * (TOKENS * d_input * d_output) as f64 / took.as_secs_f64();
    println!(
        "{name:<16} {d_input:>5} to {d_output:<5} {:>10.3} ms {:>6.0} TFLOP/s {launches:>4} \
         launches, first step {:>7.2} s",
        ms(took),
        flops / 1e12,
        first_step.as_secs_f64(),
    );
}

fn main() {
    let device = CudaDevice::default();
    println!("routines: {:?}", routines::<CudaRuntime>(&device));
    println!("\nceilings and quantization, bf16 8192 x 20480");
    quantization();
    println!("\ndense GEMM, TN");
    for [m, n, k] in [[8192, 8192, 8192], [8192, 20480, 5120], [8192, 5120, 20480]] {
        gemm(m, n, k);
    }
    println!("\nfprop + dgrad + wgrad of nn::Linear, 8192 tokens, bf16 activations, f32 weights");
    for shape in [[5120, 20480], [20480, 5120], [2048, 6144]] {
        linear(presets::HIGH_PRECISION, "high precision", shape);
        linear(presets::NVIDIA, "nvidia", shape);
    }
    println!("\nalgorithms that cuBLASLt's trial chose");
    for chosen in cublaslt::chosen() {
        println!("{chosen:?}");
    }
}
