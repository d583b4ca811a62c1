//! GEMMs by NVIDIA's cuBLASLt, in the order of CubeCL's own kernels.
//!
//! The library is looked for when the program runs; [`probe`] says what is there, without a panic
//! if nothing is. [`gemm()`] multiplies bf16, f16 and f32 operands with f32 sums, [`gemm_fp4`]
//! packed NVFP4 operands on devices that have FP4 tensor cores. Both return as soon as the product
//! is enqueued, except for the first product of a kind, which times a few algorithms ([`chosen`]),
//! unless a file has the choice of an earlier process ([`remember`]).
//!
//! 1. [`plan`]: which product is asked for, as plain data.
//! 2. `submit`: on to the device's own thread, which only the first product of a kind waits for.
//! 3. `library`: the state on that thread, and how a product is ordered there.
//! 4. `call`: the plan as the library's objects.
//!
//! What is enqueued later can fail later. Such a failure is kept and returned by the next call as
//! [`Unavailable::Lost`]; nothing panics on the device's thread.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use burn_backend::{DType, Shape};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::Runtime;
use cubecl::cuda::{CudaDevice, CudaRuntime};
use cubecl_common::device::Device;
use cubecl_common::device_handle::DeviceHandle;
use cudarc::cublaslt::sys::{cublasLtEpilogue_t, cublasLtPointerMode_t};

pub mod error;
pub mod plan;
mod roles;
mod batched;
mod call;
mod probe;
mod record;
mod trial;
mod library;
mod submit;

use super::Problem;
use super::epilogue::{Scale, finish};
use crate::format::Format;
use crate::kernels::swizzle::swizzle_scales;
use crate::kernels::{DeviceScales, PackedTensor};
use plan::{Beta, Ends, MatmulPlan};
use roles::{check, matrix, stored, takes_bias, vector};
use submit::{Buffers, caught, no_answer, submit};

pub use batched::gemm_batched;
pub use error::{Unavailable, Version};
pub use probe::Capabilities;
pub use record::remember;
pub use submit::{chosen, launches, take_failure};
pub use trial::ChosenAlgorithm;

type Server = <CudaRuntime as Runtime>::Server;
type Tensor = CubeTensor<CudaRuntime>;
/// Says whether cuBLASLt can be used on a device, and with what; finds out once per device.
///
/// # Errors
/// [`Unavailable`]: which part is missing or too old, and what would be right.
pub fn probe(device: &CudaDevice) -> Result<Capabilities, Unavailable> {
    static PROBED: RwLock<BTreeMap<usize, Result<Capabilities, Unavailable>>> =
        RwLock::new(BTreeMap::new());
    let known = PROBED.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = known.get(&device.index) {
        return known.clone();
    }
    drop(known);
    // Without the lock: the device's thread may be waiting for it with a product of its own.
    let found = examine(device);
    let mut known = PROBED.write().unwrap_or_else(PoisonError::into_inner);
    known.entry(device.index).or_insert(found).clone()
}

/// Multiplies by cuBLASLt: `alpha * A B^T + C + bias`, accumulated in f32.
///
/// An f32 result takes `alpha`, `C` and the bias in the epilogue of the GEMM. A 16-bit result with
/// a bias is computed in f32 and finished by a second kernel: the library would take a 16-bit bias
/// only. Rows of operands may be further apart than they are long.
///
/// # Errors
/// [`Unavailable`]: the library is missing, the tensors do not fit their roles, the library has no
/// algorithm, or, as [`Unavailable::Lost`], an earlier product was not enqueued. Nothing has been
/// enqueued then.
pub fn gemm(problem: Problem<CudaRuntime>) -> Result<Tensor, Unavailable> {
    probe(&problem.lhs.device)?;
    take_failure()?;
    check(&problem)?;
    let [m, n, k] = problem.dims();
    let (bias, after) = match &problem.bias {
        Some(bias) if takes_bias(&problem, bias) => (problem.bias.clone(), None),
        other => (None, other.clone()),
    };
    let ends = Ends {
        out: if after.is_some() {
            DType::F32
        } else {
            problem.out
        },
        pointer_mode: pointer_mode(problem.alpha.as_ref()),
        epilogue: match bias {
            None => cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT,
            Some(_) => cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
        },
        beta: match problem.accumulate {
            None => Beta::Zero,
            Some(_) => Beta::One,
        },
    };
    let plan = MatmulPlan::dense(
        [m, n, k],
        problem.lhs.dtype,
        stored(&problem.lhs, problem.lhs_along),
        stored(&problem.rhs, problem.rhs_along),
        ends,
    )?;
    let new = || {
        empty_device_contiguous_dtype(
            problem.lhs.client.clone(),
            problem.lhs.device.clone(),
            Shape::new([m, n]),
            ends.out,
        )
    };
    let (c, d) = match problem.accumulate {
        None => (None, new()),
        Some(sums) if sums.handle.can_mut() => (None, sums),
        Some(sums) => (Some(sums), new()),
    };
    let buffers = Buffers {
        a: problem.rhs.handle,
        b: problem.lhs.handle,
        c: c.map_or_else(|| d.handle.clone(), |c| c.handle),
        d: d.handle.clone(),
        alpha: problem.alpha.map(|alpha| alpha.handle),
        bias: bias.map(|bias| bias.handle),
        scales: None,
    };
    submit(&d.device, plan, buffers)?;
    Ok(match after {
        None => d,
        bias => finish(d, Scale::None, bias, problem.out),
    })
}

/// Multiplies two NVFP4 operands on FP4 tensor cores: `alpha * A B^T + bias`, where values are
/// code x block scale, accumulated in f32.
///
/// `alpha` (f32 `[1]`) carries the product of the tensor scales; with row scales, leave it out, ask
/// for f32 and [`finish`]. The bias (f32 `[n]`) is added by a second kernel, since the library
/// would take a 16-bit one only. The block scales are swizzled by a kernel per operand.
///
/// # Errors
/// As [`gemm()`], and [`Unavailable::NoFp4`], [`Unavailable::NoFp4Library`],
/// [`Unavailable::NotNvfp4`], [`Unavailable::Fp4Contraction`], [`Unavailable::Fp4Alignment`]: the
/// padded `k` has to be a multiple of 32, and `n` of 8 for 16-bit and of 4 for f32 results.
pub fn gemm_fp4(
    lhs: &PackedTensor<CudaRuntime>,
    rhs: &PackedTensor<CudaRuntime>,
    alpha: Option<Tensor>,
    bias: Option<Tensor>,
    out: DType,
) -> Result<Tensor, Unavailable> {
    let device = &lhs.codes.device;
    probe(device)?.fp4()?;
    take_failure()?;
    let (m, n, k) = (lhs.rows, rhs.rows, lhs.padded_k);
    if k != rhs.padded_k {
        return Err(Unavailable::Fp4Contraction {
            lhs: k,
            rhs: rhs.padded_k,
        });
    }
    for (role, operand) in [("left operand", lhs), ("right operand", rhs)] {
        let shape = [operand.rows, k / 8];
        matrix(role, device, &operand.codes, DType::U32, shape)?;
    }
    if let Some(alpha) = &alpha {
        vector("alpha", device, alpha, 1)?;
    }
    if let Some(bias) = &bias {
        vector("bias", device, bias, n)?;
    }
    let sums = match bias {
        None => out,
        Some(_) => DType::F32,
    };
    let plan = MatmulPlan::fp4([m, n, k], sums, pointer_mode(alpha.as_ref()))?;
    let not_nvfp4 = || Unavailable::NotNvfp4 {
        lhs: format!("{:?}", lhs.format),
        rhs: format!("{:?}", rhs.format),
    };
    let swizzled = |operand: &PackedTensor<CudaRuntime>| match (operand.format, &operand.scales) {
        (Format::Nvfp4 { .. }, DeviceScales::Bytes(_)) => {
            swizzle_scales(operand).ok_or_else(not_nvfp4)
        }
        (
            Format::Nvfp4 { .. } | Format::Mxfp4 | Format::Mxfp8 | Format::Fp8 { .. },
            DeviceScales::None | DeviceScales::Bytes(_) | DeviceScales::F32(_),
        ) => Err(not_nvfp4()),
    };
    let scales = [swizzled(rhs)?.handle, swizzled(lhs)?.handle];
    let d = empty_device_contiguous_dtype(
        lhs.codes.client.clone(),
        device.clone(),
        Shape::new([m, n]),
        sums,
    );
    let buffers = Buffers {
        a: rhs.codes.handle.clone(),
        b: lhs.codes.handle.clone(),
        c: d.handle.clone(),
        d: d.handle.clone(),
        alpha: alpha.map(|alpha| alpha.handle),
        bias: None,
        scales: Some(scales),
    };
    submit(device, plan, buffers)?;
    Ok(match bias {
        None => d,
        bias => finish(d, Scale::None, bias, out),
    })
}

fn examine(device: &CudaDevice) -> Result<Capabilities, Unavailable> {
    let capabilities = probe::installed(device.index)?;
    // Starts CubeCL's server if it was not there; it makes its context current on its thread.
    DeviceHandle::<Server>::new(device.to_id())
        .submit_blocking(|_server| caught(library::open))
        .unwrap_or_else(|_| Err(no_answer()))?;
    Ok(capabilities)
}

const fn pointer_mode(alpha: Option<&Tensor>) -> cublasLtPointerMode_t {
    match alpha {
        None => cublasLtPointerMode_t::CUBLASLT_POINTER_MODE_HOST,
        Some(_) => cublasLtPointerMode_t::CUBLASLT_POINTER_MODE_DEVICE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_the_library_says_so_in_one_line() {
        // With a driver and the library this holds as well: no machine has that many devices.
        let error = probe(&CudaDevice::new(60_000)).unwrap_err();
        assert!(!error.to_string().contains('\n'), "{error}");
        assert_eq!(probe(&CudaDevice::new(60_000)).unwrap_err(), error);
    }
}
