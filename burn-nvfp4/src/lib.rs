#![doc = include_str!("../../README.md")]

pub mod error;
pub mod format;
pub mod recipe;
pub mod rng;
pub mod cpu;
pub mod export;
#[cfg(feature = "cubecl")]
pub mod kernels;
mod scope;
mod packed_weights;
mod runtime;
pub mod renewal;
pub mod stats;
pub mod engine;
pub mod oscillation;
pub mod decorator;

pub use decorator::Nvfp4;
pub use engine::Nvfp4Engine;
pub use error::QuantizeError;
pub use packed_weights::{PackedWeight, PackedWeights};
pub use recipe::{Policy, Progress, Recipe, presets};
pub use runtime::{
    LinearPlan, NonFinite, TakenAmaxes, policy, progress, seed, set_packed_weights, set_policy,
    set_progress, set_seed, set_watch, take_non_finite,
};
pub use scope::{current_layer, layer, micro_batch, precision, shared_weights};
