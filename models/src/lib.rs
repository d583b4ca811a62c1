//! The Nemotron-H hybrid on Burn, and what trains it in NVFP4.

pub mod durable;
mod json;
pub mod config;
pub mod data;
pub mod nn;
pub mod hybrid;
pub mod checkpoint;
pub mod serving;
pub mod generate;
pub mod eval;
pub mod train;
pub mod study;
