//! NVFP4 training for any Burn backend.

pub mod error;
pub mod format;
pub mod recipe;
pub mod rng;
pub mod cpu;

pub use error::QuantizeError;
