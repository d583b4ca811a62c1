//! Kernels that were compiled once are read from a folder in the next run, and algorithms that were
//! chosen once are chosen again.
//!
//! CubeCL files a compiled kernel under its type and comptime arguments, not under what it does or
//! for which GPU: in a program built from other sources, or on another GPU, the same name is
//! another kernel. So each build of the program has a folder for each kind of GPU, named by size
//! and time of the executable. `compilation.cache` in a cubecl.toml goes before it.

use std::path::PathBuf;
use std::sync::Once;
use std::time::UNIX_EPOCH;

use cubecl_runtime::config::cache::CacheConfig;
use cubecl_runtime::config::{CubeClRuntimeConfig, RuntimeConfig};

/// Has CubeCL keep what it compiles for a kind of GPU. Before the first device is opened; a process
/// works on one, and its later runs find the settings made.
pub(super) fn enable(kind: &str) {
    static SETTINGS: Once = Once::new();
    // A second `set` panics.
    SETTINGS.call_once(|| {
        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        if config.compilation.cache.is_none() {
            config.compilation.cache = folder(kind).map(CacheConfig::File);
        }
        CubeClRuntimeConfig::set(config);
    });
}

/// [`enable`] for a CUDA device that was checked. cuBLASLt multiplies by the algorithms that
/// earlier runs chose on such a device, so that two runs add in the same order.
///
/// # Errors
/// One line: the driver does not tell what the device is, or what was chosen cannot be read.
#[cfg(feature = "cuda")]
pub(super) fn enable_cuda(index: usize) -> Result<(), String> {
    let kind = super::cuda::architecture(index)?;
    enable(&kind);
    let Some(folder) = folder(&kind) else {
        return Ok(());
    };
    let name = super::cuda::name(index).unwrap_or(kind);
    let name = name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let path = folder.join(format!("cublaslt-{name}.txt"));
    burn_nvfp4::kernels::gemm::cublaslt::remember(path.clone()).map_err(|error| {
        let path = path.display();
        format!(
            "{path}: cannot read which algorithms were chosen: {error}; remove it to choose anew"
        )
    })
}

/// In the target folder of the checkout, or in the user's cache; `None` if the executable cannot be
/// told from others.
fn folder(kind: &str) -> Option<PathBuf> {
    let executable = std::env::current_exe().ok()?.metadata().ok()?;
    let changed = executable.modified().ok()?;
    let changed = changed.duration_since(UNIX_EPOCH).ok()?.as_nanos();
    let build = format!("{kind}-{:x}-{changed:x}", executable.len());
    Some(
        CacheConfig::default()
            .root()
            .join("nvfp4-kernels")
            .join(build),
    )
}
