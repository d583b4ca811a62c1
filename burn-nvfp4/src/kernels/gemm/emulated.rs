//! Dense GEMMs by CubeK, Burn's own kernels: every runtime has them.

use burn_backend::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::ops::numeric::add;
use burn_cubecl::tensor::CubeTensor;
use burn_std::{Metadata, strides};

use super::{Problem, Scale, epilogue};
use crate::cpu::Contraction;

/// Runs a problem on CubeK, and a pass for scale and bias after it.
pub fn gemm<R: CubeRuntime>(problem: Problem<R>) -> CubeTensor<R> {
    let [_, _, k] = problem.dims();
    let Problem {
        lhs,
        lhs_along,
        rhs,
        rhs_along,
        alpha,
        bias,
        accumulate,
        out,
    } = problem;
    let lhs = view(lhs, lhs_along, k, Side::Lhs);
    let rhs = view(rhs, rhs_along, k, Side::Rhs);
    // Nothing to do after it: the GEMM rounds to the result's dtype itself.
    let plain = alpha.is_none() && bias.is_none() && accumulate.is_none();
    let dtype = if plain { out } else { DType::F32 };
    let sums = matmul(lhs, rhs, None, MatmulStrategy::default(), dtype)
        .expect("CubeK has a kernel for every shape of dense matrices");
    if plain {
        return sums;
    }
    let scale = alpha.map_or(Scale::None, Scale::Tensor);
    match accumulate {
        None => epilogue::finish(sums, scale, bias, out),
        Some(previous) => add(epilogue::finish(sums, scale, bias, DType::F32), previous),
    }
}

/// Which operand of a product a view is made for.
enum Side {
    /// `[m, k]`.
    Lhs,
    /// `[k, n]`.
    Rhs,
}

/// The first `k` elements of every row, as the product wants them; strides instead of copies.
fn view<R: CubeRuntime>(
    operand: CubeTensor<R>,
    along: Contraction,
    k: usize,
    side: Side,
) -> CubeTensor<R> {
    let [stored_rows, stored_cols] = [operand.meta.shape()[0], operand.meta.shape()[1]];
    let (rows, row_stride, k_stride, stored_k) = match along {
        Contraction::Columns => (stored_rows, stored_cols, 1, stored_cols),
        Contraction::Rows => (stored_cols, 1, stored_cols, stored_rows),
    };
    let (shape, strides) = match side {
        Side::Lhs => ([rows, k], strides![row_stride, k_stride]),
        Side::Rhs => ([k, rows], strides![k_stride, row_stride]),
    };
    let view = CubeTensor {
        meta: Box::new(Metadata::new(Shape::new(shape), strides)),
        ..operand
    };
    if k == stored_k {
        view
    } else {
        into_contiguous(view)
    }
}
