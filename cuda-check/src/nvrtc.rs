//! NVRTC: CUDA C++ in, machine code or a complaint out.
//!
//! The options are those of CubeCL's CUDA runtime. An architecture `sm_XX`, instead of
//! `compute_XX`, makes NVRTC run the assembler too, which is where instructions are refused that
//! the architecture does not have.

use std::ffi::{CStr, CString};
use std::path::Path;

use anyhow::{Context, Result, bail};
use cudarc::nvrtc::{result, sys};

use crate::properties::Architecture;

/// NVRTC and the CUDA headers.
#[derive(Clone, Debug)]
pub struct Nvrtc {
    include: Vec<String>,
    version: String,
}

impl Nvrtc {
    /// Looks for the library on the search path of the dynamic loader, and for the headers in
    /// `include`.
    ///
    /// # Errors
    /// If one of them is not there, with what to do about it.
    pub fn find(include: &Path) -> Result<Self> {
        const HINT: &str = "`cargo xtask cuda-check` fetches both";
        // SAFETY: this loads the library and drops it; NVRTC's initialisers have no conditions.
        if !unsafe { sys::is_culib_present() } {
            bail!("no libnvrtc on LD_LIBRARY_PATH; {HINT}");
        }
        if !include.join("cuda_fp16.h").is_file() {
            bail!("no CUDA headers in {}; {HINT}", include.display());
        }
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are valid for writes.
        let status = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
        status.result().context("nvrtcVersion failed")?;
        let folders = [include.to_owned(), include.join("cccl")];
        let option = |folder: &Path| format!("--include-path={}", folder.display());
        Ok(Self {
            include: folders.iter().map(|folder| option(folder)).collect(),
            version: format!("{major}.{minor}"),
        })
    }

    /// Version of the library, e.g. `13.5`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Makes machine code for `architecture` and drops it.
    ///
    /// # Errors
    /// NVRTC's log.
    pub fn assemble(&self, source: &str, architecture: Architecture) -> Result<()> {
        let program = Program::new(source)?;
        let target = format!("--gpu-architecture={architecture}");
        let options: Vec<String> = [target, "-lineinfo".to_owned()]
            .into_iter()
            .chain(self.include.iter().cloned())
            .collect();
        // SAFETY: the program was created and is destroyed by `Program` only.
        match unsafe { result::compile_program(program.handle, &options) } {
            Ok(()) => Ok(()),
            Err(error) => bail!("{}\n{error}", program.log()?),
        }
    }
}

/// The first error of a log in one line, with the source that it points at: warnings come before it
/// and more errors behind it.
pub fn first_error(log: &str) -> String {
    const MAX_SOURCE: usize = 160;
    let mut lines = log.lines().skip_while(|line| {
        let line = line.to_lowercase();
        !line.contains("error") && !line.contains("fatal")
    });
    let error = lines.next().unwrap_or(log).trim();
    match lines.next().filter(|line| line.starts_with("  ")) {
        Some(source) => {
            let source: String = source.trim().chars().take(MAX_SOURCE).collect();
            format!("{error}: `{source}`")
        }
        None => error.to_owned(),
    }
}

/// An NVRTC program that is destroyed when it is dropped.
struct Program {
    handle: sys::nvrtcProgram,
}

impl Program {
    fn new(source: &str) -> Result<Self> {
        let source = CString::new(source).context("the source holds a NUL byte")?;
        // NVRTC copies the source.
        let handle = result::create_program(&source, None).context("nvrtcCreateProgram failed")?;
        Ok(Self { handle })
    }

    /// What NVRTC said.
    fn log(&self) -> Result<String> {
        // SAFETY: the program is alive as long as `self`.
        let log =
            unsafe { result::get_program_log(self.handle) }.context("nvrtcGetProgramLog failed")?;
        // SAFETY: NVRTC ends its log with a NUL byte, inside of the buffer it asked for.
        let text = unsafe { CStr::from_ptr(log.as_ptr()) };
        Ok(text.to_string_lossy().trim().to_owned())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed here only. There is nothing to do about a failure.
        let _ = unsafe { result::destroy_program(self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assemble::{Verdict, assemble};
    use crate::passed::Passed;
    use crate::record::{Kernel, Recording};

    /// NVRTC as `cargo xtask cuda-check` provides it. Without, a test says that it was skipped,
    /// unless `NVFP4_REQUIRE_NVRTC` is set.
    fn nvrtc() -> Option<Nvrtc> {
        let include = std::env::var_os("NVFP4_CUDA_INCLUDE").unwrap_or_default();
        match Nvrtc::find(Path::new(&include)) {
            Ok(nvrtc) => Some(nvrtc),
            Err(error) if std::env::var_os("NVFP4_REQUIRE_NVRTC").is_some() => {
                panic!("NVFP4_REQUIRE_NVRTC is set: {error}")
            }
            Err(error) => {
                eprintln!("skipped: {error}");
                None
            }
        }
    }

    #[test]
    fn the_first_error_is_found_behind_warnings() {
        let log = "k(1): warning #177-D: never referenced\n  int a;\n      ^\n\n\
                   k(2): error: must be an lvalue\n    f(1.0);\n      ^\n\nk(3): error: no\n";
        assert_eq!(
            first_error(log),
            "k(2): error: must be an lvalue: `f(1.0);`"
        );
        let ptxas = "ptxas fatal   : Unresolved extern\nNVRTC_ERROR_COMPILATION";
        assert_eq!(first_error(ptxas), "ptxas fatal   : Unresolved extern");
    }

    fn recording(sources: &[(&str, &str)]) -> Recording {
        let kernel = |&(name, source): &(&str, &str)| Kernel {
            name: name.to_owned(),
            source: source.to_owned(),
        };
        let kernels = sources.iter().map(kernel);
        Recording {
            kernels: kernels.map(|k| (k.source.clone(), k)).collect(),
            ..Recording::default()
        }
    }

    #[test]
    fn a_kernel_with_an_error_is_named_and_others_pass() {
        let Some(nvrtc) = nvrtc() else { return };
        let good = "extern \"C\" __global__ void good(float *x) { x[0] = 1.0f; }";
        let bad = "extern \"C\" __global__ void bad(float *x) { x[0] = undeclared; }";
        let recording = recording(&[("good_kernel", good), ("bad_kernel", bad)]);
        let folder = tempfile::tempdir().unwrap();
        let passed = Passed::open(folder.path(), nvrtc.version()).unwrap();
        for from_cache in [false, true] {
            let outcomes = assemble(&nvrtc, &passed, Architecture::Sm90a, &recording, 2).unwrap();
            assert_eq!(outcomes.len(), 2);
            for outcome in outcomes {
                match outcome.verdict {
                    Verdict::Failed(log) => {
                        assert_eq!(outcome.kernel.name, "bad_kernel");
                        assert!(log.contains("undeclared"), "{log}");
                    }
                    Verdict::Assembled => assert!(!from_cache, "{}", outcome.kernel.name),
                    Verdict::PassedBefore => assert!(from_cache, "{}", outcome.kernel.name),
                }
            }
        }
    }

    #[test]
    fn an_instruction_that_the_architecture_lacks_is_refused() {
        let Some(nvrtc) = nvrtc() else { return };
        let source = "extern \"C\" __global__ void k(unsigned *x) {\n\
             unsigned e;\n\
             asm volatile(\"{ .reg .pred p; elect.sync _|p, 0xffffffff; \
             selp.u32 %0, 1, 0, p; }\" : \"=r\"(e));\n\
             x[0] = e; }";
        assert!(nvrtc.assemble(source, Architecture::Sm90a).is_ok());
        let error = nvrtc.assemble(source, Architecture::Sm80).unwrap_err();
        assert!(error.to_string().contains("elect"), "{error}");
    }
}
