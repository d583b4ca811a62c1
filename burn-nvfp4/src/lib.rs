//! NVFP4 training for any Burn backend.

pub mod error;
pub mod recipe;
mod scope;
pub mod engine;
mod runtime;
pub mod decorator;

pub use decorator::Nvfp4;
pub use error::QuantizeError;
