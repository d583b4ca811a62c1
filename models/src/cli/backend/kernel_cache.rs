//! Kernels that were compiled once are read from a folder in the next run.
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
