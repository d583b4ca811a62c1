//! What the runtime was asked to launch: each source once, and what could not become one.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::properties::Architecture;

/// A kernel in CUDA C++.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Path of the kernel in Rust, and its name in the source.
    pub name: String,
    /// CUDA C++ with one entry point.
    pub source: String,
}

/// A kernel that CubeCL or the limits of the architecture refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Path of the kernel in Rust.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Everything that was launched on one architecture.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// Number of launches.
    pub launches: usize,
    /// By source, so that a source that many launches share is there once. The name is that of the
    /// first.
    pub kernels: BTreeMap<String, Kernel>,
    /// Kernels without a source.
    pub refused: Vec<Refusal>,
}

/// CubeCL makes its servers by itself, one for each device, so what they see is process-wide.
static RECORDINGS: Mutex<BTreeMap<Architecture, Recording>> = Mutex::new(BTreeMap::new());

fn recordings() -> MutexGuard<'static, BTreeMap<Architecture, Recording>> {
    RECORDINGS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts a launch.
pub(crate) fn launched(architecture: Architecture) {
    recordings().entry(architecture).or_default().launches += 1;
}

/// Keeps a kernel, unless its source is there.
pub(crate) fn compiled(architecture: Architecture, kernel: Kernel) {
    let mut recordings = recordings();
    let kernels = &mut recordings.entry(architecture).or_default().kernels;
    kernels.entry(kernel.source.clone()).or_insert(kernel);
}

/// Keeps a kernel that has no source.
pub(crate) fn refused(architecture: Architecture, refusal: Refusal) {
    let mut recordings = recordings();
    recordings
        .entry(architecture)
        .or_default()
        .refused
        .push(refusal);
}

/// Takes what was launched on `architecture` since the last call.
///
/// Launches are queued: the caller has synchronised the device.
pub fn take(architecture: Architecture) -> Recording {
    recordings().remove(&architecture).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_kept_once_under_its_first_name() {
        let kernel = |name: &str, source: &str| Kernel {
            name: name.to_owned(),
            source: source.to_owned(),
        };
        // No other test records on this architecture.
        let architecture = Architecture::Sm80;
        for (name, source) in [("a", "1"), ("b", "1"), ("c", "2")] {
            launched(architecture);
            compiled(architecture, kernel(name, source));
        }
        let recording = take(architecture);
        let kept: Vec<_> = recording.kernels.into_values().collect();
        assert_eq!(kept, [kernel("a", "1"), kernel("c", "2")]);
        assert_eq!(recording.launches, 3);
        assert_eq!(take(architecture).launches, 0);
    }
}
