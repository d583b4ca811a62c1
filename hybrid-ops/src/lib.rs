//! Kernels for the operations of hybrid Mamba-2 models.
//!
//! A model is a composition of tensor operations; that is its specification, and what runs on
//! CPUs. Where the backend has a kernel, an operation is one launch or a few instead of dozens, with
//! its backward written down. The functions of [`ops`] return the result by a kernel, or `None`,
//! and then the caller composes: so a model in any backend's terms stays the reference.
//!
//! Nothing here knows of models, of 4 bits (but for forwarding through the decorator), or of files.

pub mod op;
pub mod engine;
#[cfg(feature = "cubecl")]
pub mod kernels;
pub mod ops;

pub use engine::{HybridEngine, TrainingEngine};
pub use op::{Like, Op, Pass};
