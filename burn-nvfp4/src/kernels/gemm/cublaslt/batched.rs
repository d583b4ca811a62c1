//! Many equal products in one call.

use burn_backend::Shape;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use cubecl::cuda::{CudaDevice, CudaRuntime};
use cudarc::cublaslt::sys::{cublasLtEpilogue_t, cublasLtPointerMode_t};

use super::error::Unavailable;
use super::plan::{Beta, Ends, MatmulPlan, Stored};
use super::roles::misfit;
use super::submit::{Buffers, submit, take_failure};
use super::{Tensor, probe};
use crate::cpu::Contraction;
use crate::kernels::gemm::batched::Batched;

/// Multiplies the matrices of two dense batches pairwise, accumulated in f32; adds in place to what
/// only the problem holds.
///
/// # Errors
/// As [`gemm()`](super::gemm()), and [`Unavailable::Batch`].
pub fn gemm_batched(problem: &Batched<CudaRuntime>) -> Result<Tensor, Unavailable> {
    probe(&problem.lhs.device)?;
    take_failure()?;
    let [count, m, n, k] = check(problem)?;
    let ends = Ends {
        out: problem.out,
        pointer_mode: cublasLtPointerMode_t::CUBLASLT_POINTER_MODE_HOST,
        epilogue: cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT,
        beta: match problem.accumulate {
            None => Beta::Zero,
            Some(_) => Beta::One,
        },
    };
    let stored = |along, rows| Stored {
        along,
        row_stride: match along {
            Contraction::Columns => k,
            Contraction::Rows => rows,
        },
    };
    let (lhs, rhs) = (stored(problem.lhs_along, m), stored(problem.rhs_along, n));
    let plan = MatmulPlan::dense([m, n, k], problem.lhs.dtype, lhs, rhs, ends)?.batched(count)?;
    let new = || {
        empty_device_contiguous_dtype(
            problem.lhs.client.clone(),
            problem.lhs.device.clone(),
            Shape::new([count, m, n]),
            ends.out,
        )
    };
    let (c, d) = match &problem.accumulate {
        None => (None, new()),
        Some(sums) if sums.handle.can_mut() => (None, sums.clone()),
        Some(sums) => (Some(sums.handle.clone()), new()),
    };
    let buffers = Buffers {
        a: problem.rhs.handle.clone(),
        b: problem.lhs.handle.clone(),
        c: c.unwrap_or_else(|| d.handle.clone()),
        d: d.handle.clone(),
        alpha: None,
        bias: None,
        scales: None,
    };
    submit(&d.device, plan, buffers)?;
    Ok(d)
}

/// `[batch, m, n, k]`, if every tensor suits its role, down to the bytes of its buffer.
fn check(problem: &Batched<CudaRuntime>) -> Result<[usize; 4], Unavailable> {
    let Batched {
        lhs,
        rhs,
        accumulate,
        out,
        ..
    } = problem;
    if lhs.dtype != rhs.dtype {
        return Err(Unavailable::Types {
            lhs: lhs.dtype,
            rhs: rhs.dtype,
            out: *out,
        });
    }
    let device = &lhs.device;
    if lhs.meta.shape().num_dims() != 3 {
        return Err(misfit("left operand", "a batch of matrices".into(), lhs));
    }
    let [count, m, n, k] = problem.dims();
    let shape = |along, rows| match along {
        Contraction::Columns => [count, rows, k],
        Contraction::Rows => [count, k, rows],
    };
    dense("left operand", device, lhs, shape(problem.lhs_along, m))?;
    dense("right operand", device, rhs, shape(problem.rhs_along, n))?;
    if let Some(sums) = accumulate {
        if sums.dtype != *out {
            let expected = format!("of the dtype of the result, {out:?}");
            return Err(misfit("accumulated tensor", expected, sums));
        }
        dense("accumulated tensor", device, sums, [count, m, n])?;
    }
    Ok([count, m, n, k])
}

fn dense(
    role: &'static str,
    device: &CudaDevice,
    tensor: &Tensor,
    shape: [usize; 3],
) -> Result<(), Unavailable> {
    let found: &[usize] = tensor.meta.shape();
    let bytes = tensor.meta.num_elements() * tensor.dtype.size();
    if found == shape
        && tensor.device == *device
        && tensor.is_contiguous()
        && bytes as u64 <= tensor.handle.size_in_used()
    {
        return Ok(());
    }
    let expected = format!("a dense {shape:?} on {device:?}");
    Err(misfit(role, expected, tensor))
}
