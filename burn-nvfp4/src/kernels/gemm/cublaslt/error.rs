//! Why a GEMM cannot go to cuBLASLt.

use burn_backend::DType;

/// Why cuBLASLt does not take a GEMM: what is missing, what was found, what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// The driver's library was not found.
    #[error("the NVIDIA driver (libcuda) was not found; driver 12.5 or newer is needed")]
    NoDriver,
    /// The driver cannot order a foreign stream with all streams of a context.
    #[error("the NVIDIA driver supports CUDA {found}; 12.5 or newer is needed")]
    DriverTooOld {
        /// CUDA version that the driver supports.
        found: Version,
    },
    /// The library was not found.
    #[error("libcublasLt was not found on the library path; version 12.0 or newer is needed")]
    NoLibrary,
    /// The library is older than the calls made here.
    #[error("libcublasLt has version {found}; 12.0 or newer is needed")]
    LibraryTooOld {
        /// Version of the library.
        found: Version,
    },
    /// A function is missing in a library whose version has it.
    #[error("{library} has no function {symbol}; is another library of that name on the path?")]
    NoSymbol {
        /// Which library.
        library: &'static str,
        /// Which function.
        symbol: &'static str,
    },
    /// The device index does not exist.
    #[error("there is no CUDA device {index}; {count} were found, counted from 0")]
    NoSuchDevice {
        /// Index asked for.
        index: usize,
        /// Number of devices.
        count: usize,
    },
    /// No room for the workspace or a trial's output.
    #[error("out of device memory: {bytes} bytes for {what} were refused")]
    OutOfMemory {
        /// What the memory was for.
        what: &'static str,
        /// How much was asked for.
        bytes: usize,
    },
    /// The library offers no algorithm for the problem.
    #[error("libcublasLt offers no algorithm for the {m}x{n}x{k} GEMM on {operands} to {out}")]
    NoAlgorithm {
        /// Rows of the left operand.
        m: u64,
        /// Rows of the right operand.
        n: u64,
        /// Length of the contraction axis.
        k: u64,
        /// Type of the operands, as the library names it.
        operands: String,
        /// Type of the result, as the library names it.
        out: String,
    },
    /// The device has no FP4 tensor cores.
    #[error("FP4 GEMMs need compute capability 10.x to 12.x, the device has {found}")]
    NoFp4 {
        /// Compute capability of the device.
        found: Version,
    },
    /// The library does not know FP4.
    #[error("FP4 GEMMs need libcublasLt 12.8 or newer, found {found}")]
    NoFp4Library {
        /// Version of the library.
        found: Version,
    },
    /// The operand is not NVFP4 with one-byte scales.
    #[error("an FP4 GEMM takes two NVFP4 operands, got {lhs} and {rhs}")]
    NotNvfp4 {
        /// Format of the left operand.
        lhs: String,
        /// Format of the right operand.
        rhs: String,
    },
    /// A length that the FP4 kernels do not take.
    #[error("FP4 GEMMs need {what} to be a multiple of {multiple}, it is {found}")]
    Fp4Alignment {
        /// Which length.
        what: &'static str,
        /// Length given.
        found: usize,
        /// What it has to be a multiple of.
        multiple: usize,
    },
    /// The operands of an FP4 GEMM are not padded to the same length.
    #[error("the operands of an FP4 GEMM have {lhs} and {rhs} elements along the contraction axis")]
    Fp4Contraction {
        /// Padded length of the left operand.
        lhs: usize,
        /// Padded length of the right operand.
        rhs: usize,
    },
    /// A combination of types that is not computed here.
    #[error("no GEMM from {lhs:?} and {rhs:?} to {out:?}: two bf16, f16 or f32 to f32 or the same")]
    Types {
        /// Type of the left operand.
        lhs: DType,
        /// Type of the right operand.
        rhs: DType,
        /// Type of the result.
        out: DType,
    },
    /// A tensor does not have the shape, type or layout that its role asks for.
    #[error("the {role} of the GEMM is {found}, expected {expected}")]
    Tensor {
        /// Role of the tensor.
        role: &'static str,
        /// What it has to be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Nothing to multiply.
    #[error("the {m}x{n}x{k} GEMM is empty")]
    Empty {
        /// Rows of the left operand.
        m: usize,
        /// Rows of the right operand.
        n: usize,
        /// Length of the contraction axis.
        k: usize,
    },
    /// More products than the library counts.
    #[error(
        "a batch of GEMMs has {found} products, at most {} can be counted",
        i32::MAX
    )]
    Batch {
        /// Number of products.
        found: usize,
    },
    /// A call that should not fail did, before anything was enqueued.
    #[error("{call} failed: {status}")]
    Call {
        /// Which function.
        call: &'static str,
        /// What it answered.
        status: String,
    },
    /// An earlier GEMM was not enqueued, after its result had been handed out.
    #[error("an earlier GEMM was lost, its result holds garbage: {message}")]
    Lost {
        /// The first failure.
        message: String,
    },
}

/// A version or compute capability: major, minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version {
    /// Before the dot.
    pub major: u32,
    /// Behind the dot.
    pub minor: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Version {
    /// Reads what `cuDriverGetVersion` answers: 1000 times the major plus 10 times the minor.
    pub(super) const fn of_driver(number: u32) -> Self {
        Self {
            major: number / 1000,
            minor: number % 1000 / 10,
        }
    }

    /// Reads what `cublasLtGetVersion` answers: 10000 times the major plus 100 times the minor plus
    /// the patch.
    pub(super) const fn of_library(number: u32) -> Self {
        Self {
            major: number / 10_000,
            minor: number % 10_000 / 100,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_nvidia_counts_them() {
        for (number, version) in [(12_050, "12.5"), (13_000, "13.0"), (12_080, "12.8")] {
            assert_eq!(Version::of_driver(number).to_string(), version);
        }
        for (number, version) in [(120_803, "12.8"), (130_000, "13.0"), (111_103, "11.11")] {
            assert_eq!(Version::of_library(number).to_string(), version);
        }
    }

    #[test]
    fn errors_are_one_line() {
        for error in [
            Unavailable::DriverTooOld {
                found: Version::of_driver(12_020),
            },
            Unavailable::NoFp4 {
                found: Version { major: 9, minor: 0 },
            },
        ] {
            let line = error.to_string();
            assert!(
                !line.contains('\n') && line.contains(char::is_numeric),
                "{line}"
            );
        }
    }
}
