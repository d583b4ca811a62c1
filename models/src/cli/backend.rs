//! The only place that names a concrete backend.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod kernel_cache;

use burn::backend::{Autodiff, Flex, NdArray};
use burn::tensor::Tensor;
use burn::tensor::backend::AutodiffBackend;
use burn_nvfp4::{Nvfp4, Nvfp4Engine};

use burn_nvfp4_models::train::config::BackendName;
use burn_nvfp4_models::train::numerics::Quantized;

use super::prepare::Prepared;
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
        BackendName::Ndarray | BackendName::Flex | BackendName::Wgpu => Ok(()),
    }
}

/// Runs on the backend that the configuration names.
///
/// # Errors
/// [`Failure`], one line each.
pub(crate) fn dispatch(prepared: Prepared) -> Result<Success, Failure> {
    let backend = prepared.config.precision.backend;
    check(backend, prepared.device)?;
    match backend {
        BackendName::Ndarray => run::<Autodiff<NdArray>>(prepared, Default::default()),
        BackendName::Flex => run::<Autodiff<Flex>>(prepared, Default::default()),
        #[cfg(feature = "wgpu")]
        BackendName::Wgpu => {
            use burn::backend::wgpu::WgpuDevice;
            kernel_cache::enable("wgpu");
            let device = match prepared.device {
                0 => WgpuDevice::DefaultDevice,
                index => WgpuDevice::DiscreteGpu(index),
            };
            run::<Autodiff<burn::backend::Wgpu>>(prepared, device)
        }
        #[cfg(feature = "cuda")]
        BackendName::Cuda => {
            kernel_cache::enable(&cuda::architecture(prepared.device).map_err(Failure::Error)?);
            let device = burn::backend::cuda::CudaDevice::new(prepared.device);
            run::<Autodiff<burn::backend::Cuda>>(prepared, device)
        }
        #[cfg(not(feature = "wgpu"))]
        BackendName::Wgpu => unreachable!("refused by `check`"),
        #[cfg(not(feature = "cuda"))]
        BackendName::Cuda => unreachable!("refused by `check`"),
    }
}

fn run<E: Nvfp4Engine>(prepared: Prepared, device: E::Device) -> Result<Success, Failure>
where
    Nvfp4<E>: AutodiffBackend<Device = E::Device>,
{
    open::<Nvfp4<E>>(&device, prepared.config.precision.backend)?;
    let policy = prepared
        .config
        .precision
        .policy(&prepared.model)
        .map_err(Failure::usage)?;
    let seed = prepared.config.seed;
    let numerics =
        Quantized::<Nvfp4<E>>::new(device.clone(), policy, seed).map_err(Failure::usage)?;
    prepared.run::<Nvfp4<E>>(&device, &E::support(&device), Box::new(numerics))
}

/// Runs one operation on the device, whose backend answers with a panic if it cannot be opened.
fn open<B: AutodiffBackend>(device: &B::Device, backend: BackendName) -> Result<(), Failure> {
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
