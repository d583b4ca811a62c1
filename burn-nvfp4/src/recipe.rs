//! Recipes (temporary).
mod error;
pub mod spec;
pub mod presets;
pub mod policy;
pub use error::RecipeError;
pub use policy::{Policy, Progress};
pub use presets::{PRESETS, Preset};
pub use spec::{
    BlockError, BlockShape, E8m0Rule, ErrorArithmetic, Fp8Scaling, GemmSpec, OperandSpec, Recipe,
    Rounding, ScaleBound, ScaleRule, SignVector, Transform,
};
