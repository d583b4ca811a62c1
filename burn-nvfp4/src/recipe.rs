//! Recipes: which GEMM of a linear layer runs on which operands ([`spec`]).

pub mod spec;

pub use spec::{
    BlockError, BlockShape, E8m0Rule, ErrorArithmetic, Fp8Scaling, GemmSpec, OperandSpec, Recipe,
    Rounding, ScaleBound, ScaleRule, SignVector, Transform,
};

/// What is wrong with a recipe or a policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// A combination that no arithmetic is defined for.
    #[error("{place}: {reason}")]
    Unsupported {
        /// GEMM and operand, e.g. `wgrad.lhs`.
        place: String,
        /// What does not go together.
        reason: &'static str,
    },
}
