//! What is installed: driver, device, library. Looks before it calls, because a function that
//! cudarc does not find is a panic.

use cudarc::cublaslt::sys as lt;
use cudarc::driver::sys as cu;

use super::call::driver;
use super::error::{Unavailable, Version};

/// The first driver with `cuCtxRecordEvent` and `cuCtxWaitEvent`.
const MIN_DRIVER: Version = Version {
    major: 12,
    minor: 5,
};
const MIN_LIBRARY: Version = Version {
    major: 12,
    minor: 0,
};
/// The first library with block-scaled FP4.
const MIN_FP4_LIBRARY: Version = Version {
    major: 12,
    minor: 8,
};

const DRIVER_SYMBOLS: [&str; 17] = [
    "cuInit",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuCtxGetCurrent",
    "cuCtxRecordEvent",
    "cuCtxWaitEvent",
    "cuStreamCreate",
    "cuStreamWaitEvent",
    "cuStreamSynchronize",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventElapsedTime",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemcpyHtoD_v2",
];

const LIBRARY_SYMBOLS: [&str; 13] = [
    "cublasLtCreate",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutSetAttribute",
    "cublasLtMatrixLayoutDestroy",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtGetVersion",
];

/// What cuBLASLt can do on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// CUDA version that the driver supports.
    pub driver: Version,
    /// Version of libcublasLt.
    pub library: Version,
    /// Compute capability of the device.
    pub compute: Version,
}

impl Capabilities {
    /// Says whether block-scaled FP4 GEMMs run.
    ///
    /// # Errors
    /// [`Unavailable::NoFp4`] or [`Unavailable::NoFp4Library`].
    pub const fn fp4(&self) -> Result<(), Unavailable> {
        if !matches!(self.compute.major, 10..=12) {
            return Err(Unavailable::NoFp4 {
                found: self.compute,
            });
        }
        if older(self.library, MIN_FP4_LIBRARY) {
            return Err(Unavailable::NoFp4Library {
                found: self.library,
            });
        }
        Ok(())
    }
}

const fn older(found: Version, needed: Version) -> bool {
    found.major < needed.major || (found.major == needed.major && found.minor < needed.minor)
}

/// Some function; only whether it is there is asked.
type Function = unsafe extern "C" fn();

fn find(
    library: &'static str,
    symbols: &[&'static str],
    has: impl Fn(&str) -> bool,
) -> Result<(), Unavailable> {
    match symbols.iter().find(|symbol| !has(symbol)) {
        None => Ok(()),
        Some(symbol) => Err(Unavailable::NoSymbol { library, symbol }),
    }
}

/// Finds out what is installed, without CubeCL.
pub(super) fn installed(index: usize) -> Result<Capabilities, Unavailable> {
    let driver = driver_version()?;
    let compute = compute_capability(index)?;
    let library = library_version()?;
    Ok(Capabilities {
        driver,
        library,
        compute,
    })
}

fn driver_version() -> Result<Version, Unavailable> {
    // SAFETY: opens a library by name; its initialisers are NVIDIA's.
    if !unsafe { cu::is_culib_present() } {
        return Err(Unavailable::NoDriver);
    }
    // SAFETY: the library is there, so this does not panic; the address is not called.
    let has = |symbol: &str| unsafe { cu::culib().get::<Function>(symbol.as_bytes()).is_ok() };
    find("libcuda", &["cuDriverGetVersion"], has)?;
    let mut number = 0;
    // SAFETY: the function was found and writes one int.
    driver("cuDriverGetVersion", unsafe {
        cu::cuDriverGetVersion(&raw mut number)
    })?;
    let found = Version::of_driver(number.cast_unsigned());
    if older(found, MIN_DRIVER) {
        return Err(Unavailable::DriverTooOld { found });
    }
    find("libcuda", &DRIVER_SYMBOLS, has)?;
    Ok(found)
}

fn compute_capability(index: usize) -> Result<Version, Unavailable> {
    // SAFETY: the functions were found; each writes one int to the address given.
    unsafe {
        driver("cuInit", cu::cuInit(0))?;
        let mut count = 0;
        driver("cuDeviceGetCount", cu::cuDeviceGetCount(&raw mut count))?;
        let count = usize::try_from(count).unwrap_or(0);
        let ordinal = i32::try_from(index).ok().filter(|_| index < count);
        let Some(ordinal) = ordinal else {
            return Err(Unavailable::NoSuchDevice { index, count });
        };
        let mut device = 0;
        driver("cuDeviceGet", cu::cuDeviceGet(&raw mut device, ordinal))?;
        let attribute = |which| {
            let mut value = 0;
            driver(
                "cuDeviceGetAttribute",
                cu::cuDeviceGetAttribute(&raw mut value, which, device),
            )
            .map(|()| value.cast_unsigned())
        };
        use cu::CUdevice_attribute as Attribute;
        Ok(Version {
            major: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            minor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        })
    }
}

fn library_version() -> Result<Version, Unavailable> {
    // SAFETY: opens a library by name; its initialisers are NVIDIA's.
    if !unsafe { lt::is_culib_present() } {
        return Err(Unavailable::NoLibrary);
    }
    // SAFETY: the library is there, so this does not panic; the address is not called.
    let has = |symbol: &str| unsafe { lt::culib().get::<Function>(symbol.as_bytes()).is_ok() };
    find("libcublasLt", &LIBRARY_SYMBOLS, has)?;
    // SAFETY: the function was found.
    let number = unsafe { lt::cublasLtGetVersion() };
    let found = Version::of_library(u32::try_from(number).unwrap_or(u32::MAX));
    if older(found, MIN_LIBRARY) {
        return Err(Unavailable::LibraryTooOld { found });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(compute: (u32, u32), library: (u32, u32)) -> Capabilities {
        let version = |(major, minor)| Version { major, minor };
        Capabilities {
            driver: MIN_DRIVER,
            library: version(library),
            compute: version(compute),
        }
    }

    #[test]
    fn fp4_needs_blackwell_and_a_library_that_knows_it() {
        for compute in [(10, 0), (10, 3), (11, 0), (12, 0), (12, 1)] {
            assert_eq!(on(compute, (12, 8)).fp4(), Ok(()), "{compute:?}");
        }
        let hopper = on((9, 0), (13, 0)).fp4().unwrap_err();
        assert_eq!(
            hopper.to_string(),
            "FP4 GEMMs need compute capability 10.x to 12.x, the device has 9.0"
        );
        let old = on((10, 0), (12, 6)).fp4();
        assert!(matches!(old, Err(Unavailable::NoFp4Library { .. })));
    }

    #[test]
    fn what_is_missing_is_an_error_and_not_a_panic() {
        // With a driver, an index that no machine has; without, the driver itself.
        let error = installed(65_535).unwrap_err();
        assert!(
            matches!(
                error,
                Unavailable::NoDriver
                    | Unavailable::DriverTooOld { .. }
                    | Unavailable::Call { .. }
                    | Unavailable::NoSuchDevice { index: 65_535, .. }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_missing_function_is_named() {
        let error = find("libcuda", &["cuInit", "cuCtxWaitEvent"], |s| s == "cuInit");
        let line = error.unwrap_err().to_string();
        assert!(
            line.starts_with("libcuda has no function cuCtxWaitEvent"),
            "{line}"
        );
    }
}
