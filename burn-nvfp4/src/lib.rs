//! NVFP4 training for any Burn backend.

pub mod error;
pub mod recipe;

pub use error::QuantizeError;
