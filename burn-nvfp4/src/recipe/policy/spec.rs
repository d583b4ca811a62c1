//! A policy as configs spell it: plain data, in the words of the configs.

use serde::{Deserialize, Serialize};

use super::super::spec::Recipe;
use super::super::{RecipeError, named};

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Optimizer steps done.
    pub step: u64,
    /// Optimizer steps of the whole run; 0 if there is no end to it, as in inference.
    pub total: u64,
}

impl Progress {
    /// True until the given fraction of the run; false in a run without an end, which trains
    /// nothing.
    pub(super) fn is_before(self, fraction: f64) -> bool {
        self.total > 0 && !self.has_reached(fraction)
    }

    /// True from the given fraction of the run on.
    pub(super) fn has_reached(self, fraction: f64) -> bool {
        // A quotient of integers is rounded once, like the literal that names the fraction, so step
        // 82 of 100 has reached 0.82.
        self.total > 0 && self.step as f64 / self.total as f64 >= fraction
    }
}

/// A number of blocks at one end of a model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extent {
    /// So many.
    Blocks(usize),
    /// So many of all, rounded to the nearest number.
    Fraction(f64),
}

impl Extent {
    /// No block.
    pub const NONE: Self = Self::Blocks(0);

    pub(super) fn is_none(&self) -> bool {
        *self == Self::NONE
    }

    pub(super) fn check(self, place: &'static str) -> Result<(), RecipeError> {
        match self {
            Self::Blocks(_) => Ok(()),
            Self::Fraction(fraction) => check_fraction(fraction, place),
        }
    }

    /// The number of blocks out of `blocks`, but at least `at_least` of a fraction.
    pub(super) fn resolve(self, blocks: usize, at_least: usize) -> usize {
        match self {
            Self::Blocks(count) => count,
            Self::Fraction(fraction) => {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "at most `blocks`: the fraction is checked to be in (0, 1]"
                )]
                let count = (fraction * blocks as f64).round() as usize;
                count.max(at_least)
            }
        }
    }
}

impl Default for Extent {
    fn default() -> Self {
        Self::NONE
    }
}

/// What a pattern that matches no layer of the model means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenUnmatched {
    /// A mistake: [`Policy::check_layers`](super::Policy::check_layers) reports it.
    #[default]
    Error,
    /// Nothing: the pattern is for models that have such layers.
    Ignore,
}

/// Another recipe for the layers that a pattern matches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// Glob over layer names.
    pub layers: String,
    /// What these layers run in.
    #[serde(with = "named")]
    pub recipe: Recipe,
    /// Whether the pattern may match nothing.
    #[serde(default, skip_serializing_if = "is_default")]
    pub when_unmatched: WhenUnmatched,
}

/// Another recipe for the first part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmUp {
    /// The fraction of the run that it lasts.
    pub until: f64,
    /// What runs until then: the GEMMs that are quantized afterwards, as this recipe has them.
    #[serde(with = "named")]
    pub recipe: Recipe,
}

/// A policy as configs spell it.
///
/// [`Policy`](super::Policy) is the checked form, in which patterns are compiled; it serializes as
/// this.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicySpec {
    /// The recipe of layers that nothing else is said about.
    #[serde(with = "named")]
    pub base: Recipe,
    /// Number of blocks of the model; needed for the two extents, unless they are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<usize>,
    /// Blocks at the start that stay in high precision; a fraction may round to none.
    #[serde(default, skip_serializing_if = "Extent::is_none")]
    pub head: Extent,
    /// Blocks at the end that stay in high precision; a fraction is at least one block.
    #[serde(default, skip_serializing_if = "Extent::is_none")]
    pub tail: Extent,
    /// What quantized GEMMs start in, if not in their own formats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<WarmUp>,
    /// The fraction of the run from which fprop is in high precision, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high_precision_forward_from: Option<f64>,
    /// Recipes by layer; the last match decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<Override>,
}

/// Checks that `fraction` is in (0, 1].
pub(super) fn check_fraction(fraction: f64, place: &'static str) -> Result<(), RecipeError> {
    // NaN is in no range.
    if fraction > 0.0 && fraction <= 1.0 {
        Ok(())
    } else {
        Err(RecipeError::Fraction {
            place,
            value: fraction.to_string(),
        })
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
