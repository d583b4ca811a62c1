//! Published policies: which layers of a model stay out of a recipe.
//!
//! All keep `lm_head` in high precision. A policy takes the recipe of everything else as an
//! argument, so that the same layers can be compared in another format.

use super::super::presets::{HIGH_PRECISION, MXFP8};
use super::super::{Recipe, RecipeError};
use super::{Extent, Override, Policy, PolicySpec, WhenUnmatched};

/// A policy with a name.
#[derive(Clone, Copy, Debug)]
pub struct PolicyPreset {
    /// How configs and the command line call it.
    pub name: &'static str,
    /// Makes the policy around a base recipe.
    pub build: fn(Recipe) -> Policy,
    /// What it does, in one line.
    pub summary: &'static str,
    /// Where it is published.
    pub source: &'static str,
}

/// Every preset policy.
pub const POLICIES: &[PolicyPreset] = &[
    PolicyPreset {
        name: "uniform",
        build: Policy::uniform,
        summary: "every linear but lm_head in the recipe",
        source: "the plain case",
    },
    PolicyPreset {
        name: "paper",
        build: Policy::paper,
        summary: "the first 3 % and the last 13 % of the blocks in high precision",
        source: "arXiv:2509.25149v1 §4.1: the first 2 and the last 8 of 62 blocks",
    },
    PolicyPreset {
        name: "nemotron3",
        build: Policy::nemotron3,
        summary: "the last 15 % of the blocks and attention projections in high precision, \
                  Mamba's out_proj in MXFP8",
        source: "the Nemotron 3 Super report; Megatron-Bridge's te_quant.cfg",
    },
];

impl Policy {
    /// Every linear in `recipe`, except `lm_head`.
    ///
    /// # Panics
    /// If `recipe` has no arithmetic ([`Recipe::validate`]).
    pub fn uniform(recipe: Recipe) -> Self {
        preset(Extent::NONE, Extent::NONE, recipe, &[])
    }

    /// The first 3 % and the last 13 % of the blocks in high precision, at least one at the end.
    ///
    /// Of the 62 blocks of NVIDIA's 12B run these are its first 2 and last 8.
    ///
    /// # Panics
    /// If `recipe` has no arithmetic ([`Recipe::validate`]).
    pub fn paper(recipe: Recipe) -> Self {
        preset(Extent::Fraction(0.03), Extent::Fraction(0.13), recipe, &[])
    }

    /// The last 15 % of the blocks and all attention projections in high precision, Mamba's
    /// `out_proj`, whose operands underflow most, in MXFP8.
    ///
    /// # Panics
    /// If `recipe` has no arithmetic ([`Recipe::validate`]).
    pub fn nemotron3(recipe: Recipe) -> Self {
        let layers = [
            ("layers.*.mixer.{q,k,v,o}_proj", HIGH_PRECISION),
            ("layers.*.mixer.out_proj", MXFP8),
        ];
        preset(Extent::NONE, Extent::Fraction(0.15), recipe, &layers)
    }

    /// Makes the preset policy called `name` around `recipe`.
    ///
    /// # Errors
    /// [`RecipeError::UnknownPolicy`] lists the names there are; a recipe without an arithmetic.
    pub fn by_name(name: &str, recipe: Recipe) -> Result<Self, RecipeError> {
        recipe.validate()?;
        match POLICIES.iter().find(|policy| policy.name == name) {
            Some(policy) => Ok((policy.build)(recipe)),
            None => {
                let known: Vec<_> = POLICIES.iter().map(|policy| policy.name).collect();
                let known = known.join(", ");
                Err(RecipeError::UnknownPolicy {
                    name: name.to_owned(),
                    known,
                })
            }
        }
    }
}

/// The shape of all preset policies.
fn preset(head: Extent, tail: Extent, base: Recipe, layers: &[(&str, Recipe)]) -> Policy {
    let lm_head = ("lm_head", HIGH_PRECISION);
    let overrides = std::iter::once(&lm_head)
        .chain(layers)
        .map(|&(pattern, recipe)| Override {
            layers: pattern.to_owned(),
            recipe,
            // A model may have no attention, or call its output layer otherwise.
            when_unmatched: WhenUnmatched::Ignore,
        });
    let spec = PolicySpec {
        base,
        blocks: None,
        head,
        tail,
        warm_up: None,
        high_precision_forward_from: None,
        overrides: overrides.collect(),
    };
    match Policy::new(spec) {
        Ok(policy) => policy,
        Err(error) => panic!("{error}"),
    }
}
