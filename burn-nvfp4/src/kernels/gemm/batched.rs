//! Many equal dense GEMMs at once: what is inside of an operation, not a layer.

use burn_backend::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::ops::numeric::add;
use burn_cubecl::tensor::CubeTensor;
use burn_std::{Metadata, strides};

use super::routine::{DenseRoutine, routines};
use crate::cpu::Contraction;

/// `D [batch, m, n] = A B^T + C` for each matrix of a batch, accumulated in f32, rounded once.
#[derive(Clone, Debug)]
pub struct Batched<R: CubeRuntime> {
    /// `A`: `[batch, m, k]`, or `[batch, k, m]` if `lhs_along` is [`Contraction::Rows`]; dense.
    pub lhs: CubeTensor<R>,
    /// Which axis of the matrices of `lhs` is `k`.
    pub lhs_along: Contraction,
    /// `B`: `[batch, n, k]`, or `[batch, k, n]`, of the dtype of `lhs` (bf16, f16 or f32); dense.
    pub rhs: CubeTensor<R>,
    /// Which axis of the matrices of `rhs` is `k`.
    pub rhs_along: Contraction,
    /// `C`: `[batch, m, n]` f32, if the result is; overwritten with it if nobody else holds it.
    pub accumulate: Option<CubeTensor<R>>,
    /// f32 or the dtype of the operands.
    pub out: DType,
}

impl<R: CubeRuntime> Batched<R> {
    /// `[batch, m, n, k]`.
    pub fn dims(&self) -> [usize; 4] {
        let matrix = |operand: &CubeTensor<R>, along| {
            let [_, rows, cols] = operand.meta.shape().dims();
            match along {
                Contraction::Columns => [rows, cols],
                Contraction::Rows => [cols, rows],
            }
        };
        let ([m, k], [n, _]) = (
            matrix(&self.lhs, self.lhs_along),
            matrix(&self.rhs, self.rhs_along),
        );
        [self.lhs.meta.shape()[0], m, n, k]
    }
}

/// Multiplies by the routine of the device.
///
/// # Panics
/// If the operands are not two batches of matrices of one length that can be multiplied, or if an
/// earlier product was lost after it had been handed out.
pub fn batched<R: CubeRuntime>(problem: Batched<R>) -> CubeTensor<R> {
    match routines::<R>(&problem.lhs.device).dense.routine {
        DenseRoutine::CubeK => by_cubek(problem),
        DenseRoutine::CublasLt => by_cublaslt(problem),
    }
}

#[cfg(feature = "cuda")]
fn by_cublaslt<R: CubeRuntime>(problem: Batched<R>) -> CubeTensor<R> {
    use cubecl::cuda::CudaRuntime;

    use super::{ON_CUDA, cublaslt, pass_over, recast};

    // Moved, not cloned: the library adds in place to what nobody else holds.
    let on_cuda: Batched<CudaRuntime> = recast(problem).expect(ON_CUDA);
    match cublaslt::gemm_batched(&on_cuda) {
        Ok(product) => recast(product).expect(ON_CUDA),
        Err(reason) => {
            pass_over(
                &reason,
                "a batch of GEMMs runs on CubeK instead of cuBLASLt",
            );
            by_cubek(recast(on_cuda).expect(ON_CUDA))
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn by_cublaslt<R: CubeRuntime>(problem: Batched<R>) -> CubeTensor<R> {
    by_cubek(problem)
}

/// By Burn's own kernels.
fn by_cubek<R: CubeRuntime>(problem: Batched<R>) -> CubeTensor<R> {
    let [count, m, n, k] = problem.dims();
    let lhs = view(problem.lhs, problem.lhs_along, [count, m, k], [1, 2]);
    let rhs = view(problem.rhs, problem.rhs_along, [count, n, k], [2, 1]);
    let product = matmul(lhs, rhs, None, MatmulStrategy::default(), problem.out)
        .expect("CubeK has a kernel for every shape of dense matrices");
    let product = match problem.accumulate {
        None => product,
        Some(previous) => add(product, previous),
    };
    // A product may come with padded rows.
    into_contiguous(product)
}

/// `[batch, rows, k]` with its last two axes in the order of `axes`: strides instead of copies.
fn view<R: CubeRuntime>(
    operand: CubeTensor<R>,
    along: Contraction,
    dims: [usize; 3],
    axes: [usize; 2],
) -> CubeTensor<R> {
    let [count, rows, k] = dims;
    let strides = match along {
        Contraction::Columns => [rows * k, k, 1],
        Contraction::Rows => [rows * k, 1, rows],
    };
    let [first, second] = axes;
    let meta = Metadata::new(
        Shape::new([count, dims[first], dims[second]]),
        strides![strides[0], strides[first], strides[second]],
    );
    CubeTensor {
        meta: Box::new(meta),
        ..operand
    }
}
