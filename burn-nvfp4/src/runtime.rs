//! Per-device settings of the decorator.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use burn_backend::{DeviceId, DeviceOps};

use crate::engine::Nvfp4Engine;

static SEEDS: Mutex<Option<HashMap<DeviceId, u64>>> = Mutex::new(None);

/// Sets the seed of the stochastic rounding on `device`.
pub(crate) fn set_seed<B: Nvfp4Engine>(device: &B::Device, seed: u64) {
    let mut seeds = SEEDS.lock().unwrap_or_else(PoisonError::into_inner);
    seeds.get_or_insert_default().insert(device.id(), seed);
}
