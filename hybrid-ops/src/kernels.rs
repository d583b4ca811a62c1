//! The operations as CubeCL kernels: one source for CUDA, Vulkan, Metal and WGSL.
//!
//! One file per operation, on tensors of CubeCL backends; the composition that a kernel has to agree
//! with is the model's. Sums are f32 whatever the tensors hold, and every result is rounded once.

mod elementwise;
mod view;
mod sums;
mod gate;
mod attention;
mod squared_relu;
pub mod ssd;
pub mod conv_silu;
pub mod step_size;
mod norm;
mod rms_norm;
pub mod gated_group_norm;
mod mamba2_mixer;
mod embedding;
mod cross_entropy;
pub mod adamw;
pub mod sum_of_squares;
mod outputs;

use burn_backend::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;

pub(crate) use outputs::outputs;

use crate::op::{Like, Op, Pass};

/// True if there are kernels of `op` for float inputs like these.
///
/// Tensors without elements have none: some devices cannot launch or bind nothing.
pub(crate) fn supports<R: CubeRuntime>(op: &Op, inputs: &[Like], device: &R::Device) -> bool {
    let client = R::client(device);
    let is_known = |dtype: &DType| {
        let known = matches!(dtype, DType::F32 | DType::BF16 | DType::F16);
        known && burn_nvfp4::kernels::stores::<R>(&client, *dtype)
    };
    let can_load = |(shape, dtype): &Like| shape.num_elements() > 0 && is_known(dtype);
    inputs.iter().all(can_load)
        && match op {
            Op::SquaredRelu | Op::CrossEntropy | Op::CausalAttention(_) => true,
            Op::RmsNorm { output, .. } => is_known(output),
            Op::Embedding { tokens, output, .. } => *tokens > 0 && is_known(output),
            Op::Mamba2Mixer(shape) => mamba2_mixer::takes(*shape, inputs),
        }
}

/// Runs one pass of an operation.
///
/// # Panics
/// If the tensors are not those of the operation.
pub(crate) fn launch<R: CubeRuntime>(
    op: &Op,
    pass: Pass,
    inputs: Vec<CubeTensor<R>>,
    ints: Vec<CubeTensor<R>>,
) -> Vec<CubeTensor<R>> {
    match (op, pass) {
        (Op::SquaredRelu, Pass::Forward) => squared_relu::forward(exactly(op, inputs)),
        (Op::SquaredRelu, Pass::Backward) => squared_relu::backward(exactly(op, inputs)),
        (Op::RmsNorm { eps, output }, Pass::Forward) => {
            rms_norm::forward(exactly(op, inputs), *eps, *output)
        }
        (Op::RmsNorm { eps, .. }, Pass::Backward) => rms_norm::backward(exactly(op, inputs), *eps),
        (Op::Embedding { output, .. }, Pass::Forward) => {
            embedding::forward(exactly(op, inputs), exactly(op, ints), *output)
        }
        (Op::Embedding { .. }, Pass::Backward) => embedding::backward(exactly(op, inputs)),
        (Op::CrossEntropy, Pass::Forward) => {
            cross_entropy::forward(exactly(op, inputs), exactly(op, ints))
        }
        (Op::CrossEntropy, Pass::Backward) => cross_entropy::backward(exactly(op, inputs)),
        (Op::CausalAttention(shape), Pass::Forward) => {
            attention::forward(exactly(op, inputs), *shape)
        }
        (Op::CausalAttention(shape), Pass::Backward) => {
            attention::backward(exactly(op, inputs), *shape)
        }
        (Op::Mamba2Mixer(shape), Pass::Forward) => mamba2_mixer::forward(inputs, *shape),
        (Op::Mamba2Mixer(shape), Pass::Backward) => mamba2_mixer::backward(inputs, *shape),
    }
}

/// The tensors of an operation that takes `N` of them.
fn exactly<R: CubeRuntime, const N: usize>(
    op: &Op,
    tensors: Vec<CubeTensor<R>>,
) -> [CubeTensor<R>; N] {
    let count = tensors.len();
    tensors
        .try_into()
        .unwrap_or_else(|_| panic!("{op:?} takes {N} tensors, not {count}"))
}
