//! Checkpoints: [`run`], everything that a training run continues from.

pub mod run;
