//! Recipes: which GEMM of a linear layer runs on which operands.
//!
//! [`spec`] says what a recipe is, [`presets`] names the published ones, and a [`Policy`] chooses
//! one by the layer's name and the progress of the run. All of it is plain data with serde;
//! [`named`] lets a config give a recipe by name.

mod error;
pub mod spec;
pub mod presets;
pub mod named;
pub mod policy;
mod renewal;
mod words;

pub use error::RecipeError;
pub use policy::{Extent, Override, Policy, PolicySpec, Progress, WarmUp, WhenUnmatched};
pub use presets::{PRESETS, Preset};
pub use renewal::ScaleRenewal;
pub use spec::{
    BackwardReads, BlockError, BlockShape, E8m0Rule, ErrorArithmetic, Fp8Scaling, GemmSpec,
    OperandSpec, Recipe, Rounding, ScaleBound, ScaleRule, SignVector, TokenMean, Transform,
};
