//! Training: on one device of any backend, or on several through NCCL in builds for that.
//!
//! With the feature `distributed` Burn has autodiff for backends that can all-reduce alone, so such
//! a build trains on CUDA only. Commands that do not train keep every backend.

use burn::backend::Autodiff;
use burn::tensor::DType;
#[cfg(feature = "distributed")]
use burn::tensor::backend::distributed::DistributedBackend;
use burn_hybrid_ops::HybridEngine;
use burn_nvfp4::{Nvfp4, Nvfp4Engine};

use burn_nvfp4_models::train::config::BackendName;
#[cfg(feature = "distributed")]
use burn_nvfp4_models::train::exchange::collective;
use burn_nvfp4_models::train::exchange::{Alone, Exchange};

#[cfg(feature = "distributed")]
use super::cuda;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use super::kernel_cache;
use super::{Failure, Success, ready};

/// A base backend on which this build trains.
#[cfg(not(feature = "distributed"))]
pub(in crate::cli) trait Trains: Nvfp4Engine + HybridEngine {}
#[cfg(not(feature = "distributed"))]
impl<E: Nvfp4Engine + HybridEngine> Trains for E {}

/// A base backend on which this build trains.
#[cfg(feature = "distributed")]
pub(in crate::cli) trait Trains:
    Nvfp4Engine + HybridEngine + DistributedBackend
{
}
#[cfg(feature = "distributed")]
impl<E: Nvfp4Engine + HybridEngine + DistributedBackend> Trains for E {}

/// The backend that trains on a base backend.
pub(in crate::cli) type Training<E> = Nvfp4<Autodiff<E>>;

/// What a command that trains does once its backend is known.
pub(in crate::cli) trait OnTraining {
    /// The dtype of its floats, which the devices have to support.
    fn dtype(&self) -> DType;

    /// Does it on devices of `E`, which can be opened.
    ///
    /// # Errors
    /// [`Failure`], one line each.
    fn run<E: Trains>(self, devices: Vec<E::Device>) -> Result<Success, Failure>;
}

/// Refuses a backend on which this build does not train, and devices that there are not.
///
/// # Errors
/// [`Failure`], one line each.
pub(in crate::cli) fn check(backend: BackendName, devices: &[usize]) -> Result<(), Failure> {
    if cfg!(feature = "distributed") && backend != BackendName::Cuda {
        return Err(Failure::Usage(format!(
            "--backend {}: this build trains on CUDA only: take --backend cuda, or build without \
             --features distributed",
            format!("{backend:?}").to_lowercase()
        )));
    }
    for &device in devices {
        super::check(backend, device)?;
    }
    if devices.len() == 1 {
        return Ok(());
    }
    if !cfg!(feature = "distributed") || backend != BackendName::Cuda {
        return Err(Failure::Usage(format!(
            "--devices {}: this build trains on one device; several train together on --backend \
             cuda, built with --no-default-features --features cuda,distributed",
            devices
                .iter()
                .map(usize::to_string)
                .collect::<Vec<_>>()
                .join(",")
        )));
    }
    #[cfg(feature = "distributed")]
    cuda::check_together(devices).map_err(Failure::Error)?;
    Ok(())
}

/// Runs `work` on devices of the named backend.
///
/// # Errors
/// [`Failure`], one line each.
pub(in crate::cli) fn dispatch(
    backend: BackendName,
    devices: &[usize],
    work: impl OnTraining,
) -> Result<Success, Failure> {
    check(backend, devices)?;
    match backend {
        #[cfg(not(feature = "distributed"))]
        BackendName::Ndarray => {
            run::<burn::backend::NdArray>(work, backend, vec![Default::default()])
        }
        #[cfg(not(feature = "distributed"))]
        BackendName::Flex => run::<burn::backend::Flex>(work, backend, vec![Default::default()]),
        #[cfg(all(feature = "wgpu", not(feature = "distributed")))]
        BackendName::Wgpu => {
            kernel_cache::enable("wgpu");
            let devices = devices.iter().map(|&index| super::wgpu::device(index));
            run::<burn::backend::Wgpu>(work, backend, devices.collect())
        }
        #[cfg(feature = "cuda")]
        BackendName::Cuda => {
            kernel_cache::enable_cuda(devices[0]).map_err(Failure::Error)?;
            let devices = devices.iter().copied();
            let devices = devices.map(burn::backend::cuda::CudaDevice::new).collect();
            run::<burn::backend::Cuda>(work, backend, devices)
        }
        #[cfg(feature = "distributed")]
        BackendName::Ndarray | BackendName::Flex => unreachable!("refused by `check`"),
        #[cfg(any(not(feature = "wgpu"), feature = "distributed"))]
        BackendName::Wgpu => unreachable!("refused by `check`"),
        #[cfg(not(feature = "cuda"))]
        BackendName::Cuda => unreachable!("refused by `check`"),
    }
}

fn run<E: Trains>(
    work: impl OnTraining,
    backend: BackendName,
    devices: Vec<E::Device>,
) -> Result<Success, Failure> {
    for device in &devices {
        ready::<E>(device, backend, work.dtype())?;
    }
    work.run::<E>(devices)
}

/// How the ranks on some devices hear of each other, one end each.
pub(in crate::cli) fn exchanges<E: Trains>(
    devices: &[E::Device],
) -> Vec<Box<dyn Exchange<Training<E>>>> {
    match devices {
        [_] => vec![Box::new(Alone)],
        #[cfg(feature = "distributed")]
        devices => {
            let ends = collective::between(devices.to_vec()).into_iter();
            ends.map(|end| Box::new(end) as _).collect()
        }
        #[cfg(not(feature = "distributed"))]
        _ => unreachable!("refused by `check`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(feature = "distributed"))]
    #[test]
    fn several_devices_are_refused_in_one_line_that_names_the_build() {
        let refused = |backend, devices: &[usize]| match check(backend, devices) {
            Err(Failure::Usage(line)) => line,
            other => unreachable!("{other:?}"),
        };
        assert_eq!(
            refused(BackendName::Ndarray, &[0, 1]),
            "--device 1: a CPU backend has only device 0"
        );
        if !cfg!(feature = "cuda") {
            let line = refused(BackendName::Cuda, &[0, 1]);
            assert!(line.contains("has no cuda backend"), "{line}");
        }
        assert!(check(BackendName::Flex, &[0]).is_ok());
    }

    #[cfg(feature = "distributed")]
    #[test]
    fn a_build_for_several_gpus_refuses_to_train_on_a_cpu_in_one_line() {
        let Err(Failure::Usage(line)) = check(BackendName::Ndarray, &[0]) else {
            unreachable!("burn has no autodiff on this backend in this build")
        };
        assert_eq!(
            line,
            "--backend ndarray: this build trains on CUDA only: take --backend cuda, or build \
             without --features distributed"
        );
    }
}
