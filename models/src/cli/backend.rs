//! The only place that names a concrete backend.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod kernel_cache;
#[cfg(feature = "cuda")]
mod peak;
#[cfg(feature = "wgpu")]
mod wgpu;
pub(crate) mod training;

use burn::backend::{Flex, NdArray};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use burn_hybrid_ops::HybridEngine;
use burn_nvfp4::Nvfp4Engine;

use burn_nvfp4_models::train::config::BackendName;

use super::{Failure, Success, panics};

/// The feature that this build lacks for a backend.
fn missing_feature(backend: BackendName) -> Option<&'static str> {
    match backend {
        BackendName::Ndarray | BackendName::Flex => None,
        BackendName::Wgpu => (!cfg!(feature = "wgpu")).then_some("wgpu"),
        BackendName::Cuda => (!cfg!(feature = "cuda")).then_some("cuda"),
    }
}

/// Refuses a backend that this build does not have, and a device that there is not.
///
/// # Errors
/// [`Failure::Usage`] that names the feature to build with, [`Failure::Error`] for the device.
pub(crate) fn check(backend: BackendName, device: usize) -> Result<(), Failure> {
    if let Some(feature) = missing_feature(backend) {
        return Err(Failure::Usage(format!(
            "this build has no {feature} backend; build it with --features {feature}, or take \
             --backend ndarray or flex"
        )));
    }
    match backend {
        BackendName::Ndarray | BackendName::Flex if device != 0 => Err(Failure::Usage(format!(
            "--device {device}: a CPU backend has only device 0"
        ))),
        #[cfg(feature = "cuda")]
        BackendName::Cuda => cuda::check(device).map_err(Failure::Error),
        #[cfg(not(feature = "cuda"))]
        BackendName::Cuda => Ok(()),
        #[cfg(feature = "wgpu")]
        BackendName::Wgpu => wgpu::check(device).map_err(Failure::Error),
        #[cfg(not(feature = "wgpu"))]
        BackendName::Wgpu => Ok(()),
        BackendName::Ndarray | BackendName::Flex => Ok(()),
    }
}

/// Bytes that are taken of the memory of a CUDA device, by whomever; `None` where nobody tells.
pub(super) fn cuda_memory_in_use(device: usize) -> Option<u64> {
    #[cfg(feature = "cuda")]
    return cuda::memory_in_use(device);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = device;
        None
    }
}

/// TFLOP/s that a device could do in dense bf16 products, by its data sheet; `None` where nobody
/// tells.
pub(super) fn peak_tflops(backend: BackendName, device: usize) -> Option<f64> {
    match backend {
        #[cfg(feature = "cuda")]
        BackendName::Cuda => peak::dense_bf16_tflops(&cuda::name(device)?),
        #[cfg(not(feature = "cuda"))]
        BackendName::Cuda => {
            let _ = device;
            None
        }
        BackendName::Ndarray | BackendName::Flex | BackendName::Wgpu => None,
    }
}

/// What a command does once its backend is known.
pub(super) trait OnBackend {
    /// The dtype of its floats, which the device has to support.
    fn dtype(&self) -> DType {
        DType::F32
    }

    /// Does it on a device of `E`, which can be opened.
    ///
    /// # Errors
    /// [`Failure`], one line each.
    fn run<E: Nvfp4Engine + HybridEngine>(self, device: E::Device) -> Result<Success, Failure>;
}

/// Runs `work` on a device of the named backend.
///
/// # Errors
/// [`Failure`], one line each.
pub(super) fn dispatch(
    backend: BackendName,
    device: usize,
    work: impl OnBackend,
) -> Result<Success, Failure> {
    check(backend, device)?;
    match backend {
        BackendName::Ndarray => run::<NdArray>(work, backend, Default::default()),
        BackendName::Flex => run::<Flex>(work, backend, Default::default()),
        #[cfg(feature = "wgpu")]
        BackendName::Wgpu => {
            kernel_cache::enable("wgpu");
            run::<burn::backend::Wgpu>(work, backend, wgpu::device(device))
        }
        #[cfg(feature = "cuda")]
        BackendName::Cuda => {
            kernel_cache::enable_cuda(device).map_err(Failure::Error)?;
            let device = burn::backend::cuda::CudaDevice::new(device);
            run::<burn::backend::Cuda>(work, backend, device)
        }
        #[cfg(not(feature = "wgpu"))]
        BackendName::Wgpu => unreachable!("refused by `check`"),
        #[cfg(not(feature = "cuda"))]
        BackendName::Cuda => unreachable!("refused by `check`"),
    }
}

fn run<E: Nvfp4Engine + HybridEngine>(
    work: impl OnBackend,
    backend: BackendName,
    device: E::Device,
) -> Result<Success, Failure> {
    ready::<E>(&device, backend, work.dtype())?;
    work.run::<E>(device)
}

/// Opens a device, and refuses a dtype with which it cannot compute.
fn ready<E: Backend>(
    device: &E::Device,
    backend: BackendName,
    dtype: DType,
) -> Result<(), Failure> {
    open::<E>(device, backend)?;
    check_dtype::<E>(device, backend, dtype)
}

/// Refuses a dtype with which a device cannot compute.
///
/// # Errors
/// [`Failure::Error`] with the dtypes of floats that it has.
fn check_dtype<B: Backend>(
    device: &B::Device,
    backend: BackendName,
    dtype: DType,
) -> Result<(), Failure> {
    if B::supports_dtype(device, dtype) {
        return Ok(());
    }
    let name = |dtype: DType| format!("{dtype:?}").to_lowercase();
    let known = [DType::F32, DType::BF16, DType::F16, DType::F64].into_iter();
    let known = known.filter(|&dtype| B::supports_dtype(device, dtype));
    Err(Failure::Error(format!(
        "--backend {}: its device does not compute in {}, only in {}",
        format!("{backend:?}").to_lowercase(),
        name(dtype),
        known.map(name).collect::<Vec<_>>().join(", ")
    )))
}

/// Runs one operation on the device, whose backend answers with a panic if it cannot be opened.
fn open<B: Backend>(device: &B::Device, backend: BackendName) -> Result<(), Failure> {
    let device = std::panic::AssertUnwindSafe(device);
    let sum = panics::attempt(move || Tensor::<B, 1>::ones([4], *device).sum().try_into_data());
    let name = format!("{backend:?}").to_lowercase();
    let failed = |reason| Failure::Error(format!("--backend {name}: no device: {reason}"));
    match sum {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(message) => Err(failed(message)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dtype_that_a_device_does_not_compute_in_is_refused_in_one_line() {
        let device = Default::default();
        let refused = check_dtype::<NdArray>(&device, BackendName::Ndarray, DType::BF16);
        let Err(Failure::Error(line)) = refused else {
            unreachable!("burn-ndarray has no bf16")
        };
        assert_eq!(
            line,
            "--backend ndarray: its device does not compute in bf16, only in f32, f64"
        );
        assert!(check_dtype::<NdArray>(&device, BackendName::Ndarray, DType::F32).is_ok());
        assert!(check_dtype::<Flex>(&Default::default(), BackendName::Flex, DType::BF16).is_ok());
    }
}
