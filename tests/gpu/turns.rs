//! The decorated backends of the device, and whose turn it is: policy, seed and progress are
//! settings of the one device, so tests that change them take turns.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::device::{Base, device};

/// Without fusion.
pub(crate) type Plain = Base;

/// With fusion: what Burn's own names mean in these builds.
#[cfg(all(feature = "cuda", not(feature = "wgpu")))]
pub(crate) type Fused = burn::backend::Cuda;
#[cfg(feature = "wgpu")]
pub(crate) type Fused = burn::backend::Wgpu;

/// Waits for the device; `None` if there is none.
pub(crate) fn exclusive() -> Option<MutexGuard<'static, ()>> {
    static DEVICE: Mutex<()> = Mutex::new(());
    device()?;
    Some(DEVICE.lock().unwrap_or_else(PoisonError::into_inner))
}
