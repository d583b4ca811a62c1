//! The only place that names a concrete backend.

use burn::backend::{Autodiff, Flex, NdArray};
use burn::tensor::backend::AutodiffBackend;
use burn_nvfp4::Nvfp4;

use crate::train::config::BackendName;
use crate::train::numerics::Quantized;

use super::prepare::Prepared;
use super::{Failure, Success};

/// Refuses a backend that this build does not have.
///
/// # Errors
/// [`Failure::Usage`] that names the feature to build with.
pub fn check_built(backend: BackendName) -> Result<(), Failure> {
    let feature = match backend {
        BackendName::Ndarray | BackendName::Flex => return Ok(()),
        BackendName::Wgpu if cfg!(feature = "wgpu") => return Ok(()),
        BackendName::Cuda if cfg!(feature = "cuda") => return Ok(()),
        BackendName::Wgpu => "wgpu",
        BackendName::Cuda => "cuda",
    };
    Err(Failure::Usage(format!(
        "this build has no {feature} backend; build it with --features {feature}, or take \
         --backend ndarray or flex"
    )))
}

/// Runs on the backend that the configuration names.
///
/// # Errors
/// [`Failure`], one line each.
pub fn dispatch(prepared: Prepared) -> Result<Success, Failure> {
    let backend = prepared.config.precision.backend;
    check_built(backend)?;
    match backend {
        BackendName::Ndarray => run::<Nvfp4<Autodiff<NdArray>>>(prepared),
        BackendName::Flex => run::<Nvfp4<Autodiff<Flex>>>(prepared),
        #[cfg(feature = "wgpu")]
        BackendName::Wgpu => run::<Nvfp4<Autodiff<burn::backend::Wgpu>>>(prepared),
        #[cfg(feature = "cuda")]
        BackendName::Cuda => run::<Nvfp4<Autodiff<burn::backend::Cuda>>>(prepared),
        #[cfg(not(feature = "wgpu"))]
        BackendName::Wgpu => unreachable!("refused by `check_built`"),
        #[cfg(not(feature = "cuda"))]
        BackendName::Cuda => unreachable!("refused by `check_built`"),
    }
}

fn run<B: AutodiffBackend>(prepared: Prepared) -> Result<Success, Failure> {
    let device = B::Device::default();
    let policy = prepared
        .config
        .precision
        .policy(&prepared.model)
        .map_err(Failure::usage)?;
    let seed = prepared.config.seed;
    let numerics = Quantized::<B>::new(device.clone(), policy, seed).map_err(Failure::usage)?;
    prepared.run::<B>(&device, Box::new(numerics))
}
