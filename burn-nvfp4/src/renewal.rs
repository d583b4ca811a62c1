//! Amaxes that are kept from the steps that take them to those that do not (numerics §13).
//!
//! Under [`ScaleRenewal::EverySteps`](crate::recipe::ScaleRenewal) a device keeps, for each layer
//! and operand, the amax of the last step that took one. It stays where it was made, and reading
//! it waits for the device. A run that stops takes all of them along ([`kept_amaxes`]) and puts
//! them back when it goes on ([`set_kept_amaxes`]).

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use burn_backend::Backend;

use crate::runtime;

/// A tensor of the backend that quantizes, f32 `[1]`, or an f32 that was put back.
pub(crate) type Value = Arc<dyn Any + Send + Sync>;

/// Reads a value.
pub(crate) type Read = fn(&(dyn Any + Send + Sync)) -> f32;

/// One amax that is kept.
#[derive(Clone)]
pub(crate) struct KeptAmax {
    /// What steps that renew nothing quantize under.
    pub(crate) value: Value,
    /// What the last step that renews has taken; `None` if the value was put back.
    pub(crate) taken: Option<TakenAmax>,
    /// Reads both.
    pub(crate) read: Read,
}

/// The largest amax that a step has taken so far, of those that can be kept; 0 before the first.
#[derive(Clone)]
pub(crate) struct TakenAmax {
    /// The step.
    pub(crate) step: u64,
    /// The amax.
    pub(crate) largest: Value,
}

/// By layer and operand, as `layers.0.mixer.up_proj.fprop.lhs`.
pub(crate) type KeptAmaxes = BTreeMap<String, KeptAmax>;

/// The amaxes that `device` keeps, by layer and operand.
///
/// Waits until operations that a backend has only recorded so far have run.
pub fn kept_amaxes<B: Backend>(device: &B::Device) -> BTreeMap<String, f32> {
    // A device that cannot be waited for has failed, and whatever reads a result next says how.
    let _ = B::sync(device);
    let kept = runtime::with_kept_amaxes::<B, _>(device, |kept| kept.clone());
    let read = |(name, kept): (String, KeptAmax)| (name, (kept.read)(&*kept.value));
    kept.into_iter().map(read).collect()
}

/// Has `device` keep these amaxes and no others.
pub fn set_kept_amaxes<B: Backend>(device: &B::Device, amaxes: BTreeMap<String, f32>) {
    // What was recorded before still reads the others.
    let _ = B::sync(device);
    let put_back = |(name, amax): (String, f32)| {
        let kept = KeptAmax {
            value: Arc::new(amax),
            taken: None,
            read: |value| value.downcast_ref().copied().unwrap_or(f32::NAN),
        };
        (name, kept)
    };
    let amaxes = amaxes.into_iter().map(put_back).collect();
    runtime::with_kept_amaxes::<B, _>(device, |kept| *kept = amaxes);
}
