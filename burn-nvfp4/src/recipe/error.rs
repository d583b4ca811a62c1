//! What can be wrong with a recipe or a policy.

/// Why a recipe or a policy cannot be used.
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
    /// A recipe that a warm-up puts together and that no arithmetic is defined for.
    #[error("warm_up.recipe where {place} quantizes: {source}")]
    WarmUp {
        /// Whose GEMMs decide which ones the warm-up runs.
        place: String,
        /// What is wrong with what comes out.
        source: Box<RecipeError>,
    },
    /// A preset recipe that does not exist.
    #[error("no recipe is called `{name}`; there are {known}")]
    UnknownRecipe {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A preset policy that does not exist.
    #[error("no policy is called `{name}`; there are {known}")]
    UnknownPolicy {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A layer pattern that cannot be parsed.
    #[error("`{pattern}` is not a layer pattern: {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A layer pattern that no layer of the model matches.
    #[error("the pattern `{pattern}` matches no layer; the model has {layers}")]
    PatternMatchesNothing {
        /// The pattern.
        pattern: String,
        /// Some layer names, to correct the pattern by.
        layers: String,
    },
    /// A fraction that is not one.
    #[error("{place} is {value}, not a fraction above 0 and at most 1")]
    Fraction {
        /// Which fraction, e.g. `tail.fraction`.
        place: &'static str,
        /// What was given; text, because NaN equals nothing.
        value: String,
    },
    /// Numbers of OsciReset that mean nothing.
    #[error("oscillation reset: {reason}")]
    Oscillation {
        /// What would be right.
        reason: &'static str,
    },
    /// More high-precision blocks than blocks.
    #[error("{head} blocks at the start and {tail} at the end make more than {blocks} in all")]
    TooManyBlocks {
        /// High-precision blocks at the start.
        head: usize,
        /// High-precision blocks at the end.
        tail: usize,
        /// Blocks of the model.
        blocks: usize,
    },
    /// High-precision blocks at the end of a model of unknown depth.
    #[error("the policy keeps blocks at the end in high precision: tell it how many there are")]
    UnknownDepth,
    /// A layer of a block that the policy does not know of.
    #[error("the layer `{layer}` lies outside the {blocks} blocks that the policy was made for")]
    LayerOutside {
        /// Name of the layer.
        layer: String,
        /// Blocks of the model, as the policy was told.
        blocks: usize,
    },
}
