//! What the tests of the workspace share: golden files and tolerances.

pub mod golden;
pub mod serving;
pub mod tolerance;
