//! NVFP4 training for any Burn backend.

pub mod error;
pub mod recipe;
pub mod scope;

pub use error::QuantizeError;
pub use scope::layer;
