//! A policy: (layer name, progress of the run) -> [`Recipe`].
//!
//! For one linear, in this order:
//!
//! 1. a layer in one of the first or last blocks that the policy keeps is in high precision;
//! 2. else the last override whose pattern matches the layer's name gives the recipe;
//! 3. else, and for layers without a name, it is the base recipe;
//! 4. until the warm-up is over, the GEMMs that this quantizes run as its recipe has them;
//! 5. once the late switch is reached, fprop is in high precision, whatever 1 to 4 gave.
//!
//! The block of a layer is the number after `layers.` or `blocks.` in its name. Patterns are globs
//! over the whole name, in which `*` also matches dots: `*.out_proj`, `layers.3.*`,
//! `layers.*.mixer.{q,k,v}_proj`.

use globset::{Glob, GlobMatcher};
use serde::{Deserialize, Serialize};

use super::RecipeError;
use super::spec::{GemmSpec, Recipe};

mod spec;
pub mod presets;
#[cfg(test)]
mod tests;

pub use spec::{Extent, Override, PolicySpec, Progress, WarmUp, WhenUnmatched};

use spec::check_fraction;

/// Chooses the recipe of each linear (see the module's documentation for the order).
///
/// Always well-formed: recipes have an arithmetic, fractions are fractions, patterns are compiled.
/// What depends on the model is asked with [`Policy::validate`] and [`Policy::check_layers`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "PolicySpec", into = "PolicySpec")]
pub struct Policy {
    spec: PolicySpec,
    /// One for each override.
    patterns: Vec<GlobMatcher>,
    /// High-precision blocks at both ends; zero while the depth is unknown.
    ends: Ends,
}

/// Numbers of high-precision blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ends {
    head: usize,
    tail: usize,
    blocks: usize,
}

impl Ends {
    fn contain(self, block: usize) -> bool {
        block < self.head || (self.tail > 0 && block >= self.blocks - self.tail)
    }
}

impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        // Everything else follows from the spec.
        self.spec == other.spec
    }
}

impl Policy {
    /// Checks and compiles what a config says.
    ///
    /// # Errors
    /// A recipe without an arithmetic, those that a warm-up puts together among them, a fraction
    /// outside (0, 1], a pattern that does not parse, more high-precision blocks than blocks.
    pub fn new(spec: PolicySpec) -> Result<Self, RecipeError> {
        spec.base.validate()?;
        for one in &spec.overrides {
            one.recipe.validate()?;
        }
        spec.head.check("head.fraction")?;
        spec.tail.check("tail.fraction")?;
        if let Some(fraction) = spec.high_precision_forward_from {
            check_fraction(fraction, "high_precision_forward_from")?;
        }
        if let Some(warm_up) = &spec.warm_up {
            check_warm_up(warm_up, &spec)?;
        }
        let patterns = spec
            .overrides
            .iter()
            .map(|one| compile(&one.layers))
            .collect::<Result<_, _>>()?;
        let ends = ends(&spec)?;
        Ok(Self {
            spec,
            patterns,
            ends,
        })
    }

    /// The same policy for a model of `blocks` blocks.
    ///
    /// # Errors
    /// [`RecipeError::TooManyBlocks`] if head and tail overlap.
    pub fn with_blocks(self, blocks: usize) -> Result<Self, RecipeError> {
        Self::new(PolicySpec {
            blocks: Some(blocks),
            ..self.spec
        })
    }

    /// The same policy, except that the layers that `pattern` matches run in `recipe`.
    ///
    /// # Errors
    /// A pattern that does not parse, a recipe without an arithmetic.
    pub fn with_override(self, pattern: &str, recipe: Recipe) -> Result<Self, RecipeError> {
        let mut spec = self.spec;
        spec.overrides.push(Override {
            layers: pattern.to_owned(),
            recipe,
            when_unmatched: WhenUnmatched::Error,
        });
        Self::new(spec)
    }

    /// The same policy, except that fprop is in high precision from this fraction of the run on.
    ///
    /// Most of the loss that NVFP4 costs comes back, for the last 18 % of a run at 6 % of the
    /// compute (arXiv:2509.25149v1, figure 7).
    ///
    /// # Errors
    /// [`RecipeError::Fraction`] outside (0, 1].
    pub fn with_high_precision_forward_from(self, fraction: f64) -> Result<Self, RecipeError> {
        Self::new(PolicySpec {
            high_precision_forward_from: Some(fraction),
            ..self.spec
        })
    }

    /// The same policy, except that until this fraction of the run, GEMMs that are quantized run as
    /// `recipe` has them.
    ///
    /// For a start in FP8: 4 bits from the first step on meet weights of which none is trained and
    /// gradients at their largest.
    ///
    /// # Errors
    /// [`RecipeError::Fraction`] outside (0, 1]; a recipe without an arithmetic;
    /// [`RecipeError::WarmUp`] where it has none for the GEMMs that are quantized.
    pub fn with_warm_up(self, recipe: Recipe, until: f64) -> Result<Self, RecipeError> {
        Self::new(PolicySpec {
            warm_up: Some(WarmUp { until, recipe }),
            ..self.spec
        })
    }

    /// What the policy says, as data.
    pub fn spec(&self) -> &PolicySpec {
        &self.spec
    }

    /// Checks that the policy can answer for every block.
    ///
    /// # Errors
    /// [`RecipeError::UnknownDepth`] if that takes the number of blocks, and nobody has told it.
    pub fn validate(&self) -> Result<(), RecipeError> {
        let needs_depth =
            !self.spec.tail.is_none() || matches!(self.spec.head, Extent::Fraction(_));
        match self.spec.blocks {
            None if needs_depth => Err(RecipeError::UnknownDepth),
            None | Some(_) => Ok(()),
        }
    }

    /// Checks the policy against the names of all linear layers of a model.
    ///
    /// # Errors
    /// A pattern that matches none of them; a layer in a block that the policy does not know of;
    /// and what [`Policy::validate`] finds.
    pub fn check_layers<S: AsRef<str>>(&self, layers: &[S]) -> Result<(), RecipeError> {
        self.validate()?;
        for (one, pattern) in self.spec.overrides.iter().zip(&self.patterns) {
            let matches = layers.iter().any(|layer| pattern.is_match(layer.as_ref()));
            if !matches && one.when_unmatched == WhenUnmatched::Error {
                return Err(RecipeError::PatternMatchesNothing {
                    pattern: one.layers.clone(),
                    layers: examples(layers),
                });
            }
        }
        let Some(blocks) = self.spec.blocks else {
            return Ok(());
        };
        let outside = |layer: &&S| block_of(layer.as_ref()).is_some_and(|block| block >= blocks);
        match layers.iter().find(outside) {
            Some(layer) => Err(RecipeError::LayerOutside {
                layer: layer.as_ref().to_owned(),
                blocks,
            }),
            None => Ok(()),
        }
    }

    /// The recipe of the linear `layer` at `progress`.
    pub fn resolve(&self, layer: Option<&str>, progress: Progress) -> Recipe {
        let own = layer.map_or(self.spec.base, |layer| self.recipe_of(layer));
        let recipe = match &self.spec.warm_up {
            Some(warm_up) if progress.is_before(warm_up.until) => warmed_up(own, warm_up.recipe),
            Some(_) | None => own,
        };
        match self.spec.high_precision_forward_from {
            Some(fraction) if progress.has_reached(fraction) => Recipe {
                fprop: GemmSpec::HIGH_PRECISION,
                ..recipe
            },
            Some(_) | None => recipe,
        }
    }

    /// The blocks whose linears all stay in high precision.
    pub fn high_precision_blocks(&self) -> Vec<usize> {
        (0..self.ends.blocks.max(self.ends.head))
            .filter(|&b| self.ends.contain(b))
            .collect()
    }

    fn recipe_of(&self, layer: &str) -> Recipe {
        if block_of(layer).is_some_and(|block| self.ends.contain(block)) {
            return super::presets::HIGH_PRECISION;
        }
        let overrides = self.spec.overrides.iter().zip(&self.patterns);
        let matching = overrides.rev().find(|(_, pattern)| pattern.is_match(layer));
        matching.map_or(self.spec.base, |(one, _)| one.recipe)
    }
}

/// Checks the recipe of a warm-up, alone and for the GEMMs of every recipe that it stands in for.
fn check_warm_up(warm_up: &WarmUp, spec: &PolicySpec) -> Result<(), RecipeError> {
    warm_up.recipe.validate()?;
    check_fraction(warm_up.until, "warm_up.until")?;
    let others = spec.overrides.iter();
    let others = others.map(|one| (format!("the override of `{}`", one.layers), one.recipe));
    for (place, own) in std::iter::once(("base".to_owned(), spec.base)).chain(others) {
        let checked = warmed_up(own, warm_up.recipe).validate();
        checked.map_err(|error| RecipeError::WarmUp {
            place,
            source: Box::new(error),
        })?;
    }
    Ok(())
}

/// `start`, but for the GEMMs that `own` leaves in high precision.
fn warmed_up(own: Recipe, start: Recipe) -> Recipe {
    // Nothing is left of it, and what it says of operands is about none.
    if !own.is_quantized() {
        return own;
    }
    let gemm = |own: GemmSpec, start| if own.is_quantized() { start } else { own };
    Recipe {
        fprop: gemm(own.fprop, start.fprop),
        dgrad: gemm(own.dgrad, start.dgrad),
        wgrad: gemm(own.wgrad, start.wgrad),
        ..start
    }
}

impl TryFrom<PolicySpec> for Policy {
    type Error = RecipeError;

    fn try_from(spec: PolicySpec) -> Result<Self, RecipeError> {
        Self::new(spec)
    }
}

impl From<Policy> for PolicySpec {
    fn from(policy: Policy) -> Self {
        policy.spec
    }
}

fn ends(spec: &PolicySpec) -> Result<Ends, RecipeError> {
    let Some(blocks) = spec.blocks else {
        // Without a depth, a head in blocks can be told all the same.
        return Ok(match spec.head {
            Extent::Blocks(head) => Ends {
                head,
                tail: 0,
                blocks: 0,
            },
            Extent::Fraction(_) => Ends::default(),
        });
    };
    let (head, tail) = (spec.head.resolve(blocks, 0), spec.tail.resolve(blocks, 1));
    match head.checked_add(tail) {
        Some(kept) if kept <= blocks => Ok(Ends { head, tail, blocks }),
        Some(_) | None => Err(RecipeError::TooManyBlocks { head, tail, blocks }),
    }
}

/// Bytes of a layer pattern, at most: names of layers are shorter, and what a pattern is compiled
/// to takes some hundred times its length.
const LONGEST_PATTERN: usize = 128;

fn compile(pattern: &str) -> Result<GlobMatcher, RecipeError> {
    if pattern.len() > LONGEST_PATTERN {
        let begin: String = pattern.chars().take(24).collect();
        return Err(RecipeError::Pattern {
            pattern: format!("{begin}.."),
            reason: format!(
                "it has {} bytes, at most {LONGEST_PATTERN} are taken",
                pattern.len()
            ),
        });
    }
    let glob = Glob::new(pattern).map_err(|error| RecipeError::Pattern {
        pattern: pattern.to_owned(),
        reason: error.kind().to_string(),
    })?;
    Ok(glob.compile_matcher())
}

/// The number after `layers.` or `blocks.` in a layer's name.
fn block_of(layer: &str) -> Option<usize> {
    let mut segments = layer.split('.');
    segments.find(|segment| matches!(*segment, "layers" | "blocks"))?;
    segments.next()?.parse().ok()
}

/// Some layer names for a message.
fn examples<S: AsRef<str>>(layers: &[S]) -> String {
    const SHOWN: usize = 4;
    let shown: Vec<_> = layers
        .iter()
        .take(SHOWN)
        .map(|l| format!("`{}`", l.as_ref()))
        .collect();
    match layers.len() {
        0 => "no named layers".to_owned(),
        count if count <= SHOWN => shown.join(", "),
        count => format!("{} and {} more", shown.join(", "), count - SHOWN),
    }
}
