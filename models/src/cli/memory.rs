//! The most memory that a run held, as far as the system tells.
//!
//! On a CPU backend: the peak of the process's resident memory since the run began, which Linux
//! counts (`VmHWM`) and lets a process set back; `None` elsewhere. On CUDA: what is taken of the
//! device at the end of the run. The pools of the backend never shrink while it runs, so that is
//! the peak; another process on the device is counted with it.

use burn_nvfp4_models::train::config::BackendName;

/// Watches the memory of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    backend: BackendName,
    device: usize,
    /// Whether the peak of the process is that of this run.
    is_set_back: bool,
}

impl Memory {
    /// Begins to watch.
    pub(super) fn watch(backend: BackendName, device: usize) -> Self {
        let is_set_back = match backend {
            BackendName::Ndarray | BackendName::Flex => set_back(),
            BackendName::Wgpu | BackendName::Cuda => false,
        };
        Self {
            backend,
            device,
            is_set_back,
        }
    }

    /// The most bytes so far.
    pub(super) fn peak(&self) -> Option<u64> {
        match self.backend {
            BackendName::Ndarray | BackendName::Flex => self.is_set_back.then(resident_peak)?,
            BackendName::Cuda => super::backend::cuda_memory_in_use(self.device),
            BackendName::Wgpu => None,
        }
    }
}

/// Lets the system count the peak from now on. See proc_pid_clear_refs(5).
fn set_back() -> bool {
    cfg!(target_os = "linux") && std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// The peak that the system counted. See proc_pid_status(5).
fn resident_peak() -> Option<u64> {
    peak_of_status(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn peak_of_status(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_in_bytes_and_unknown_where_it_does_not_stand() {
        let status = "Name:\tnvfp4\nVmPeak:\t  900 kB\nVmHWM:\t  712 kB\nVmRSS:\t  5 kB\n";
        assert_eq!(peak_of_status(status), Some(712 * 1024));
        assert_eq!(peak_of_status("Name:\tnvfp4\n"), None);
        assert_eq!(peak_of_status("VmHWM:\t  many kB\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_that_is_gone_before_a_run_begins_is_not_counted() {
        let size = 1 << 28;
        drop(std::hint::black_box(vec![1_u8; size]));
        let memory = Memory::watch(BackendName::Ndarray, 0);
        let before = memory.peak();
        let held = std::hint::black_box(vec![1_u8; size]);
        let after = memory.peak();
        drop(held);
        // Where the system does not let a process set its peak back, nothing is told.
        let grown = before
            .zip(after)
            .map(|(before, after)| after >= before + (size as u64) / 2);
        assert_ne!(grown, Some(false), "{before:?}, {after:?}");
    }
}
