//! GEMMs on operands in device memory.

pub mod scaled_mma;

use burn_backend::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;

use crate::cpu::Contraction;

/// `D [m, n] = alpha * A B^T + bias`, accumulated in f32, rounded once to `out`.
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
    let (rows, cols) = (operand.meta.shape[0], operand.meta.shape[1]);
    match along {
        Contraction::Columns => [rows, cols],
        Contraction::Rows => [cols, rows],
    }
}
