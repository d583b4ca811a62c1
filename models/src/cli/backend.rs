//! The only place that names a concrete backend.

use burn::backend::{Autodiff, Flex, NdArray};
use burn::tensor::backend::AutodiffBackend;
use burn_nvfp4::Nvfp4;

use crate::train::config::BackendName;
use crate::train::numerics::Quantized;

use super::prepare::Prepared;
use super::{Failure, Success};

/// Runs on the backend that the configuration names.
///
/// # Errors
/// [`Failure`], one line each.
pub fn dispatch(prepared: Prepared) -> Result<Success, Failure> {
    match prepared.config.precision.backend {
        BackendName::Ndarray => run::<Nvfp4<Autodiff<NdArray>>>(prepared),
        BackendName::Flex => run::<Nvfp4<Autodiff<Flex>>>(prepared),
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
