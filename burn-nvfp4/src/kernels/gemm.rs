//! GEMMs on operands in device memory.
//!
//! [`routine`] says which routine runs where; [`dense`], [`batched()`] and [`fp4`] run it. All of
//! them accumulate in f32, apply tensor scales after the sums, add the bias in f32 and round once.

pub mod epilogue;
pub mod emulated;
pub mod batched;
pub mod scaled_mma;
#[cfg(feature = "cuda")]
pub mod cublaslt;
pub mod routine;

use burn_backend::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;

pub use batched::{Batched, batched};
pub use epilogue::Scale;
use routine::{DenseRoutine, Fp4Routine, routines};

use super::PackedTensor;
use super::dequantize::decode;
use crate::cpu::Contraction;

/// `D [m, n] = alpha * A B^T + C + bias`, accumulated in f32, rounded once to `out`.
#[derive(Clone, Debug)]
pub struct Problem<R: CubeRuntime> {
    /// `A`: `[m, k]`, or `[k, m]` if `lhs_along` is [`Contraction::Rows`]; row-major and dense.
    pub lhs: CubeTensor<R>,
    /// Which axis of `lhs` is `k`.
    pub lhs_along: Contraction,
    /// `B`: `[n, k]`, or `[k, n]`, of the dtype of `lhs` (bf16, f16 or f32).
    pub rhs: CubeTensor<R>,
    /// Which axis of `rhs` is `k`.
    pub rhs_along: Contraction,
    /// f32 `[1]`, on the device.
    pub alpha: Option<CubeTensor<R>>,
    /// f32 `[n]`.
    pub bias: Option<CubeTensor<R>>,
    /// `C`: f32 `[m, n]`; overwritten with the result if nobody else holds it.
    pub accumulate: Option<CubeTensor<R>>,
    /// f32 or the dtype of the operands.
    pub out: DType,
}

impl<R: CubeRuntime> Problem<R> {
    /// `[m, n, k]`. One operand may be padded further along `k` than the other; what is beyond the
    /// shorter one multiplies zeros.
    pub fn dims(&self) -> [usize; 3] {
        let ([m, lhs_k], [n, rhs_k]) = (
            rows_and_k(&self.lhs, self.lhs_along),
            rows_and_k(&self.rhs, self.rhs_along),
        );
        [m, n, lhs_k.min(rhs_k)]
    }
}

fn rows_and_k<R: CubeRuntime>(operand: &CubeTensor<R>, along: Contraction) -> [usize; 2] {
    let (rows, cols) = (operand.meta.shape()[0], operand.meta.shape()[1]);
    match along {
        Contraction::Columns => [rows, cols],
        Contraction::Rows => [cols, rows],
    }
}

/// Runs a dense problem by the routine of its device.
pub fn dense<R: CubeRuntime>(problem: Problem<R>) -> CubeTensor<R> {
    match routines::<R>(&problem.lhs.device).dense.routine {
        DenseRoutine::CubeK => emulated::gemm(problem),
        DenseRoutine::CublasLt => by_cublaslt(problem),
    }
}

/// `[m, n] = alpha * A B^T + bias` of packed NVFP4 operands, by the routine of their device.
///
/// Where the routine does not take the shape (tensor cores have alignment rules), the operands are
/// decoded and multiplied densely: the same sums in another order.
pub fn fp4<R: CubeRuntime>(
    lhs: &PackedTensor<R>,
    rhs: &PackedTensor<R>,
    alpha: Option<CubeTensor<R>>,
    bias: Option<CubeTensor<R>>,
    out: DType,
) -> CubeTensor<R> {
    let (scale, offset) = (alpha.as_ref(), bias.as_ref());
    let done = match routines::<R>(&lhs.codes.device).fp4.routine {
        Fp4Routine::CublasLt => fp4_by_cublaslt(lhs, rhs, scale, offset, out),
        Fp4Routine::ScaledMma => {
            scaled_mma::gemm(lhs, rhs, scale, offset, out, scaled_mma::Mma::Native).ok()
        }
        Fp4Routine::Emulated => None,
    };
    done.unwrap_or_else(|| {
        let dtype = if super::stores::<R>(&lhs.codes.client, DType::BF16) {
            DType::BF16
        } else {
            DType::F32
        };
        let (lhs, rhs) = (decode(lhs, dtype), decode(rhs, dtype));
        dense(Problem {
            lhs: lhs.values,
            lhs_along: lhs.along,
            rhs: rhs.values,
            rhs_along: rhs.along,
            alpha,
            bias,
            accumulate: None,
            out,
        })
    })
}

/// The value, if `T` is `U`: from a runtime that is known to be CUDA to its type and back.
#[cfg(feature = "cuda")]
fn recast<T: 'static, U: 'static>(value: T) -> Option<U> {
    let mut value = Some(value);
    let value: &mut dyn std::any::Any = &mut value;
    value.downcast_mut::<Option<U>>().and_then(Option::take)
}

#[cfg(feature = "cuda")]
const ON_CUDA: &str = "cuBLASLt is chosen for CUDA tensors only";

/// Says why a product is another routine's.
///
/// # Panics
/// If an earlier product was lost after it had been handed out: no other routine mends that.
#[cfg(feature = "cuda")]
fn pass_over(reason: &cublaslt::Unavailable, instead: &str) {
    let is_lost = matches!(reason, cublaslt::Unavailable::Lost { .. });
    assert!(!is_lost, "{reason}");
    log::warn!("{instead}: {reason}");
}

#[cfg(feature = "cuda")]
fn by_cublaslt<R: CubeRuntime>(problem: Problem<R>) -> CubeTensor<R> {
    use cubecl::cuda::CudaRuntime;

    let on_cuda: Problem<CudaRuntime> = recast(problem.clone()).expect(ON_CUDA);
    match cublaslt::gemm(on_cuda) {
        Ok(product) => recast(product).expect(ON_CUDA),
        Err(reason) => {
            pass_over(&reason, "a GEMM runs on CubeK instead of cuBLASLt");
            emulated::gemm(problem)
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn by_cublaslt<R: CubeRuntime>(problem: Problem<R>) -> CubeTensor<R> {
    emulated::gemm(problem)
}

#[cfg(feature = "cuda")]
fn fp4_by_cublaslt<R: CubeRuntime>(
    lhs: &PackedTensor<R>,
    rhs: &PackedTensor<R>,
    alpha: Option<&CubeTensor<R>>,
    bias: Option<&CubeTensor<R>>,
    out: DType,
) -> Option<CubeTensor<R>> {
    use cubecl::cuda::CudaRuntime;

    type Packed = PackedTensor<CudaRuntime>;
    let packed = |side: &PackedTensor<R>| recast::<_, Packed>(side.clone()).expect(ON_CUDA);
    let tensor = |t: &CubeTensor<R>| recast(t.clone()).expect(ON_CUDA);
    match cublaslt::gemm_fp4(
        &packed(lhs),
        &packed(rhs),
        alpha.map(tensor),
        bias.map(tensor),
        out,
    ) {
        Ok(product) => recast(product),
        Err(reason) => {
            pass_over(&reason, "an NVFP4 GEMM is emulated");
            None
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn fp4_by_cublaslt<R: CubeRuntime>(
    _lhs: &PackedTensor<R>,
    _rhs: &PackedTensor<R>,
    _alpha: Option<&CubeTensor<R>>,
    _bias: Option<&CubeTensor<R>>,
    _out: DType,
) -> Option<CubeTensor<R>> {
    None
}
