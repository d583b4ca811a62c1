//! The Nemotron-H hybrid on Burn, and what trains it in NVFP4.

pub mod durable;
pub mod data;
pub mod checkpoint;
pub mod train;
