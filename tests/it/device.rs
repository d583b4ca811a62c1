//! The one CPU device of the process. Its policy, seed and progress are settings, and NdArray and
//! Flex share them, so tests that change them or depend on them take turns.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Waits for the device. A test that failed while it held it leaves nothing that the next one
/// reads.
pub(crate) fn exclusive() -> MutexGuard<'static, ()> {
    static DEVICE: Mutex<()> = Mutex::new(());
    DEVICE.lock().unwrap_or_else(PoisonError::into_inner)
}
