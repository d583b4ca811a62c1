//! What the tensors of a product have to be: the library reads what a plan says, whatever is there.

use burn_backend::DType;
use cubecl::cuda::{CudaDevice, CudaRuntime};

use super::Tensor;
use super::error::Unavailable;
use super::plan::Stored;
use crate::cpu::Contraction;
use crate::kernels::gemm::Problem;

/// The library takes an f32 bias with an f32 result. Some of its kernels read it in 16 bytes.
pub(super) fn takes_bias(problem: &Problem<CudaRuntime>, bias: &Tensor) -> bool {
    let offset = bias.handle.offset_start.unwrap_or(0);
    problem.out == DType::F32 && offset.is_multiple_of(16)
}

pub(super) fn stored(operand: &Tensor, along: Contraction) -> Stored {
    Stored {
        along,
        row_stride: operand.meta.strides()[0],
    }
}

/// Compares every tensor of a problem with its role, down to the bytes of its buffer: the library
/// reads what the plan says.
pub(super) fn check(problem: &Problem<CudaRuntime>) -> Result<(), Unavailable> {
    let Problem { lhs, rhs, out, .. } = problem;
    let device = &lhs.device;
    if lhs.dtype != rhs.dtype {
        return Err(Unavailable::Types {
            lhs: lhs.dtype,
            rhs: rhs.dtype,
            out: *out,
        });
    }
    for (role, operand) in [("left operand", lhs), ("right operand", rhs)] {
        // Its own shape: only rank, layout and extent are asked here.
        let shape = operand.meta.shape();
        let shape = [
            shape.first().copied().unwrap_or(0),
            shape.get(1).copied().unwrap_or(0),
        ];
        matrix(role, device, operand, lhs.dtype, shape)?;
    }
    let [m, n, _] = problem.dims();
    if let Some(alpha) = &problem.alpha {
        vector("alpha", device, alpha, 1)?;
    }
    if let Some(bias) = &problem.bias {
        vector("bias", device, bias, n)?;
    }
    if let Some(sums) = &problem.accumulate {
        matrix("accumulated tensor", device, sums, DType::F32, [m, n])?;
        if !sums.is_contiguous() || *out != DType::F32 {
            return Err(misfit(
                "accumulated tensor",
                format!("a dense f32 [{m}, {n}] for an f32 result"),
                sums,
            ));
        }
    }
    Ok(())
}

/// A matrix whose rows are contiguous, at a distance of their length or more.
pub(super) fn matrix(
    role: &'static str,
    device: &CudaDevice,
    tensor: &Tensor,
    dtype: DType,
    [rows, cols]: [usize; 2],
) -> Result<(), Unavailable> {
    let fits = || {
        let [row_stride, stride] = tensor.meta.strides().as_ref().try_into().ok()?;
        let dense: [usize; 2] = [row_stride, stride];
        let contiguous = (cols == 1 || dense[1] == 1) && (rows == 1 || dense[0] >= cols);
        let elements = rows
            .saturating_sub(1)
            .checked_mul(dense[0])?
            .checked_add(cols)?;
        let bytes = elements.checked_mul(dtype.size())?;
        Some(contiguous && bytes as u64 <= tensor.handle.size_in_used())
    };
    let shape: &[usize] = tensor.meta.shape();
    if tensor.dtype == dtype
        && tensor.device == *device
        && shape == [rows, cols]
        && fits() == Some(true)
    {
        return Ok(());
    }
    let expected = format!("a row-major {dtype:?} [{rows}, {cols}] on {device:?}");
    Err(misfit(role, expected, tensor))
}

/// f32, dense.
pub(super) fn vector(
    role: &'static str,
    device: &CudaDevice,
    tensor: &Tensor,
    len: usize,
) -> Result<(), Unavailable> {
    if tensor.dtype == DType::F32
        && tensor.device == *device
        && tensor.meta.num_elements() == len
        && tensor.is_contiguous()
        && len as u64 * 4 <= tensor.handle.size_in_used()
    {
        return Ok(());
    }
    let expected = format!("a dense f32 [{len}] on {device:?}");
    Err(misfit(role, expected, tensor))
}

pub(super) fn misfit(role: &'static str, expected: String, tensor: &Tensor) -> Unavailable {
    let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
    Unavailable::Tensor {
        role,
        expected,
        found: format!(
            "{:?} {shape:?} with strides {strides:?} on {:?}",
            tensor.dtype, tensor.device
        ),
    }
}
