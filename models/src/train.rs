//! Pretraining.

pub mod schedule;
pub mod params;
pub mod gradients;
pub mod optim;
pub mod output;
pub mod metrics;
pub mod renderer;
pub mod tap;
pub mod log;
