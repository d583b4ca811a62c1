//! NVFP4 training for any Burn backend.

pub mod error;
pub mod recipe;
mod scope;
mod runtime;
pub mod engine;
pub mod decorator;

pub use decorator::Nvfp4;
pub use error::QuantizeError;
pub use scope::{current_layer, layer, precision};
