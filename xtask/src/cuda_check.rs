//! `cargo xtask cuda-check`: assembles every CUDA kernel with NVRTC, on machines without a GPU.
//!
//! 1. NVRTC and the CUDA headers come from NVIDIA's Python wheels, pinned, into a cache folder
//!    outside of the repository: `$XDG_CACHE_HOME/burn-nvfp4/nvrtc-<version>`, 175 MB.
//! 2. The package `cuda-check` is tested and run with that folder on the loader's path. What it
//!    assembled once it does not assemble again; the list lies in the same folder.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Version of NVRTC, which names the cache folder.
const VERSION: &str = "13.5.37";

/// NVRTC, the CUDA headers in two parts, and the C++ library that some of those include.
const WHEELS: [&str; 4] = [
    "nvidia-cuda-nvrtc==13.5.37",
    "nvidia-cuda-runtime==13.5.37",
    "nvidia-cuda-crt==13.5.37",
    "nvidia-cuda-cccl==13.3.5.0.6",
];

/// Where the wheels lay their files, inside of the cache folder.
const TOOLKIT: &str = "nvidia/cu13";

/// The package together with the device tests and their feature, as CI names them for those: cargo
/// unites the features of the packages that are named, and so builds Burn and CubeCL once for both.
const PACKAGES: [&str; 6] = [
    "-p",
    "cuda-check",
    "-p",
    "tests",
    "--features",
    "tests/wgpu",
];

/// Fetches NVRTC if it is not there, tests `cuda-check`, runs it, and returns the line to print.
pub(crate) fn check() -> Result<String> {
    let cache = nvrtc_folder()?;
    if !cache.is_dir() {
        fetch(&cache)?;
    }
    let toolkit = Toolkit::new(&cache)?;
    toolkit.cargo(&["test", "--lib"])?;
    toolkit.cargo(&["build", "--bin", "cuda-check"])?;
    // Not `cargo run`, which takes one package and so another set of features.
    let target = workspace::target_folder()?;
    let mut command = Command::new(target.join("debug/cuda-check"));
    command
        .arg("--include")
        .arg(&toolkit.include)
        .arg("--passed")
        .arg(cache.join("passed"))
        .arg("--failed")
        .arg(cache.join("failed"));
    toolkit.run(&mut command)?;
    Ok(format!("every kernel was assembled by NVRTC {VERSION}"))
}

/// NVRTC as it lies in the cache folder.
struct Toolkit {
    include: PathBuf,
    library_path: OsString,
}

impl Toolkit {
    fn new(cache: &Path) -> Result<Self> {
        let toolkit = cache.join(TOOLKIT);
        let mut paths = vec![toolkit.join("lib")];
        paths.extend(env::split_paths(
            &env::var_os("LD_LIBRARY_PATH").unwrap_or_default(),
        ));
        Ok(Self {
            include: toolkit.join("include"),
            library_path: env::join_paths(paths)?,
        })
    }

    fn cargo(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(workspace::cargo());
        command
            .arg(arguments[0])
            .args(["--locked"])
            .args(PACKAGES)
            .args(&arguments[1..]);
        self.run(&mut command)
    }

    fn run(&self, command: &mut Command) -> Result<()> {
        let program = Path::new(command.get_program());
        let program = program.file_name().unwrap_or_default().to_owned();
        let status = command
            .current_dir(workspace::root()?)
            .env("LD_LIBRARY_PATH", &self.library_path)
            .env("NVFP4_CUDA_INCLUDE", &self.include)
            .env("NVFP4_REQUIRE_NVRTC", "1")
            // CubeCL compiles kernels on a thread of its own, deeper than 2 MiB in a debug build.
            .env("RUST_MIN_STACK", "33554432")
            .status()
            .with_context(|| format!("cannot start {}", program.display()))?;
        if !status.success() {
            bail!("{} failed ({status})", program.display());
        }
        Ok(())
    }
}

/// Where NVRTC is kept.
fn nvrtc_folder() -> Result<PathBuf> {
    Ok(workspace::cache_folder()?.join(format!("nvrtc-{VERSION}")))
}

/// Downloads and unpacks the wheels; the folder is there only when it is whole.
#[expect(clippy::print_stdout, reason = "a command line tool reports on stdout")]
fn fetch(cache: &Path) -> Result<()> {
    let parent = cache.parent().context("the cache folder has a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let aside = parent.join(format!("nvrtc-{VERSION}.{}", process::id()));
    println!("fetching {} into {}", WHEELS.join(", "), cache.display());
    let fetched = fetch_into(&aside);
    let placed = fetched.and_then(|()| {
        fs::rename(&aside, cache).with_context(|| format!("cannot make {}", cache.display()))
    });
    if placed.is_err() {
        // The error that is on its way says more than one about the rest of a download.
        let _ = fs::remove_dir_all(&aside);
    }
    placed
}

fn fetch_into(folder: &Path) -> Result<()> {
    let wheels = folder.join("wheels");
    fs::create_dir_all(&wheels).with_context(|| format!("cannot make {}", wheels.display()))?;
    let pip = ["-m", "pip"];
    let has_pip = python(&pip, &["--version"]).stdout(Stdio::null()).status();
    if !has_pip.is_ok_and(|status| status.success()) {
        bail!("python3 with pip is needed to fetch NVRTC (apt-get install python3-pip)");
    }
    let download = python(
        &pip,
        &["download", "--quiet", "--disable-pip-version-check"],
    )
    .args(["--no-deps", "--only-binary", ":all:", "--dest"])
    .arg(&wheels)
    .args(WHEELS)
    .status()?;
    if !download.success() {
        bail!("pip could not download NVRTC; cuda-check needs the network once");
    }
    for wheel in fs::read_dir(&wheels)? {
        let unpacked = python(&["-m", "zipfile"], &["-e"])
            .arg(wheel?.path())
            .arg(folder)
            .status()?;
        if !unpacked.success() {
            bail!("a wheel of NVRTC could not be unpacked");
        }
    }
    fs::remove_dir_all(&wheels)?;
    Ok(())
}

fn python(module: &[&str], arguments: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.args(module).args(arguments);
    command
}
