//! Models.

pub mod config;
pub mod nn;
pub mod hybrid;
pub mod checkpoint;
