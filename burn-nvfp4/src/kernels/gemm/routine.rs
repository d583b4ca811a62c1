//! Which routine multiplies on which hardware, and why: the one place that decides.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use burn_backend::{DeviceId, DeviceOps};
use burn_cubecl::CubeRuntime;

use super::scaled_mma;

/// What multiplies packed NVFP4 operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fp4Routine {
    /// cuBLASLt's block-scaled FP4 GEMM.
    CublasLt,
    /// The own kernel on `mma.m16n8k64` with block scales.
    ScaledMma,
    /// A dense GEMM of code times block scale: the same sums, up to their order.
    Emulated,
}

/// What multiplies dense operands: bf16, f16 or f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenseRoutine {
    /// cuBLASLt, accumulating in f32.
    CublasLt,
    /// CubeK, which is what Burn's own `matmul` runs on.
    CubeK,
}

/// A routine and the reason for it, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen<T> {
    /// What runs.
    pub routine: T,
    /// Why, and why not what is faster.
    pub reason: String,
}

/// The routines of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routines {
    /// For NVFP4 operands with one scale per tensor; every other format is emulated.
    pub fp4: Chosen<Fp4Routine>,
    /// For dense operands.
    pub dense: Chosen<DenseRoutine>,
}

/// What the choice depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hardware {
    /// CubeCL's name of the runtime.
    pub runtime: String,
    /// The compute capability if cuBLASLt can be called, else why it cannot.
    pub cublaslt: Result<(u32, u32), String>,
    /// Why the own FP4 kernel cannot run here, if it cannot.
    pub scaled_mma: Result<(), String>,
}

impl Routines {
    /// Chooses for some hardware.
    pub fn choose(hardware: &Hardware) -> Self {
        let fp4 = match (&hardware.cublaslt, &hardware.scaled_mma) {
            (Ok((major @ (10 | 12), minor)), _) => Chosen {
                routine: Fp4Routine::CublasLt,
                reason: format!("cuBLASLt on FP4 tensor cores, compute capability {major}.{minor}"),
            },
            (_, Ok(())) => Chosen {
                routine: Fp4Routine::ScaledMma,
                reason: "own kernel on block-scaled mma".to_owned(),
            },
            (Ok((major, minor)), Err(_)) => Chosen {
                routine: Fp4Routine::Emulated,
                reason: format!(
                    "emulated: compute capability {major}.{minor} has no FP4 tensor cores, \
                     10.x and 12.x have"
                ),
            },
            (Err(_), Err(mma)) => Chosen {
                routine: Fp4Routine::Emulated,
                reason: format!("emulated: {mma}"),
            },
        };
        let dense = match &hardware.cublaslt {
            Ok(_) => Chosen {
                routine: DenseRoutine::CublasLt,
                reason: "cuBLASLt".to_owned(),
            },
            Err(missing) => Chosen {
                routine: DenseRoutine::CubeK,
                reason: format!("CubeK on {}: {missing}", hardware.runtime),
            },
        };
        Self { fp4, dense }
    }
}

type Table = HashMap<(TypeId, DeviceId), Arc<Routines>>;

static CHOSEN: LazyLock<Mutex<Table>> = LazyLock::new(Mutex::default);

/// The routines of `device`; looked for once, and a routine that is missing is logged once.
pub fn routines<R: CubeRuntime>(device: &R::Device) -> Arc<Routines> {
    let mut chosen = CHOSEN.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (TypeId::of::<R>(), device.id());
    let found = chosen
        .entry(key)
        .or_insert_with(|| Arc::new(Routines::choose(&look_at::<R>(device))));
    found.clone()
}

fn look_at<R: CubeRuntime>(device: &R::Device) -> Hardware {
    let client = R::client(device);
    Hardware {
        runtime: R::name(&client).to_owned(),
        cublaslt: cublaslt::<R>(device),
        scaled_mma: scaled_mma::supported(&client),
    }
}

#[cfg(feature = "cuda")]
fn cublaslt<R: CubeRuntime>(device: &R::Device) -> Result<(u32, u32), String> {
    let Some(device) = (device as &dyn Any).downcast_ref::<cubecl::cuda::CudaDevice>() else {
        return Err("cuBLASLt is for CUDA devices".to_owned());
    };
    if TypeId::of::<R>() != TypeId::of::<cubecl::cuda::CudaRuntime>() {
        return Err("cuBLASLt is for CUDA devices".to_owned());
    }
    match super::cublaslt::probe(device) {
        Ok(found) => Ok((found.compute.major, found.compute.minor)),
        Err(missing) => {
            log::warn!("cuBLASLt cannot be used, GEMMs run on CubeK instead: {missing}");
            Err(missing.to_string())
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn cublaslt<R: CubeRuntime>(device: &R::Device) -> Result<(u32, u32), String> {
    let _: &dyn Any = device;
    Err("this build has no cuBLASLt (feature `cuda`)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(cublaslt: Result<(u32, u32), &str>, scaled_mma: Result<(), &str>) -> Routines {
        Routines::choose(&Hardware {
            runtime: "cuda".to_owned(),
            cublaslt: cublaslt.map_err(str::to_owned),
            scaled_mma: scaled_mma.map_err(str::to_owned),
        })
    }

    #[test]
    fn each_chip_gets_the_fastest_routine_that_it_has() {
        use DenseRoutine as Dense;
        use Fp4Routine as Fp4;
        let none = Err("no block-scaled mma");
        let missing = Err("libcublasLt is missing");
        for (cublaslt, scaled_mma, fp4, dense) in [
            (Ok((9, 0)), none, Fp4::Emulated, Dense::CublasLt),
            (Ok((10, 0)), none, Fp4::CublasLt, Dense::CublasLt),
            (Ok((12, 0)), Ok(()), Fp4::CublasLt, Dense::CublasLt),
            (missing, Ok(()), Fp4::ScaledMma, Dense::CubeK),
            (missing, none, Fp4::Emulated, Dense::CubeK),
        ] {
            let routines = on(cublaslt, scaled_mma);
            assert_eq!(
                (routines.fp4.routine, routines.dense.routine),
                (fp4, dense),
                "{routines:?}"
            );
        }
    }

    #[test]
    fn the_reason_says_what_is_missing() {
        let routines = on(Err("libcublasLt is missing"), Err("no block-scaled mma"));
        assert!(routines.dense.reason.contains("libcublasLt is missing"));
        assert!(routines.fp4.reason.contains("no block-scaled mma"));
        let hopper = on(Ok((9, 0)), Err("no block-scaled mma"));
        assert!(hopper.fp4.reason.contains("9.0"), "{hopper:?}");
    }
}
