//! Which tensors of a directory are quantized, and which share a tensor scale.
//!
//! A candidate is a 2-D float tensor whose name ends in `.weight`. Patterns are globs over the name
//! of the module (the tensor's without `.weight`), in which `*` also matches dots: `lm_head`,
//! `*.out_proj`, `model.layers.3.*`. What is left must divide into blocks of 16.

use std::collections::BTreeMap;

use globset::{Glob, GlobMatcher};
use safetensors::tensor::Dtype;

use super::ServingError;
use crate::checkpoint::files::FileTensor;

/// Modules that stay as they are unless the caller says otherwise: no linears (embeddings, norms
/// with two axes), linears that servers do not read in 4 bits (`lm_head`), and routers of experts,
/// a few numbers that decide much.
pub const DEFAULT_EXCLUDES: [&str; 8] = [
    "lm_head",
    "*embed*",
    "*wte",
    "*wpe",
    "*norm*",
    "*.gate",
    "*router*",
    "*.shared_expert_gate",
];

/// Names of projections that servers run as one GEMM, so that they need one tensor scale.
const FUSED: [&[&str]; 5] = [
    &["q_proj", "k_proj", "v_proj"],
    &["gate_proj", "up_proj"],
    &["w1", "w3"],
    &["query", "key", "value"],
    &["q_a_proj", "kv_a_proj_with_mqa"],
];

/// The patterns of modules that stay as they are.
#[derive(Debug)]
pub struct Selection {
    defaults: Vec<GlobMatcher>,
    /// Each has to match something.
    asked: Vec<(String, GlobMatcher)>,
}

/// Why a tensor stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kept {
    /// Its name does not end in `.weight`, or it does not have two axes.
    NotALinear,
    /// Its elements are no floats of 16 or 32 bits.
    Dtype,
    /// A pattern matches its module.
    Excluded,
    /// Rows do not divide into blocks of 16.
    Ragged,
}

impl Kept {
    /// In a few words.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NotALinear => "no linear weight",
            Self::Dtype => "no float dtype",
            Self::Excluded => "excluded",
            Self::Ragged => "rows do not divide into blocks of 16",
        }
    }
}

impl Selection {
    /// Excludes what the patterns match, and [`DEFAULT_EXCLUDES`] too if `defaults` holds those.
    ///
    /// # Errors
    /// [`ServingError::Pattern`].
    pub fn excluding(defaults: &[&str], asked: &[String]) -> Result<Self, ServingError> {
        let defaults = defaults.iter().map(|pattern| compile(pattern));
        let asked = asked
            .iter()
            .map(|pattern| Ok((pattern.clone(), compile(pattern)?)));
        Ok(Self {
            defaults: defaults.collect::<Result<_, _>>()?,
            asked: asked.collect::<Result<_, ServingError>>()?,
        })
    }

    /// Why a tensor stays as it is; `None` if it is quantized.
    pub fn keeps(&self, key: &str, dtype: Dtype, shape: &[usize]) -> Option<Kept> {
        let module = match (key.strip_suffix(".weight"), shape) {
            (Some(module), [_, _]) => module,
            _ => return Some(Kept::NotALinear),
        };
        if !matches!(dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) {
            return Some(Kept::Dtype);
        }
        let asked = self.asked.iter().map(|(_, glob)| glob);
        if self
            .defaults
            .iter()
            .chain(asked)
            .any(|glob| glob.is_match(module))
        {
            return Some(Kept::Excluded);
        }
        (!shape[1].is_multiple_of(16) || shape[0] == 0 || shape[1] == 0).then_some(Kept::Ragged)
    }

    /// Checks that every pattern that was asked for matches a module.
    ///
    /// # Errors
    /// [`ServingError::Unmatched`].
    pub fn check_matched<'a>(
        &self,
        keys: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<(), ServingError> {
        let modules = keys.filter_map(|key| key.strip_suffix(".weight"));
        for (pattern, glob) in &self.asked {
            if !modules.clone().any(|module| glob.is_match(module)) {
                let pattern = pattern.clone();
                return Err(ServingError::Unmatched { pattern });
            }
        }
        Ok(())
    }
}

fn compile(pattern: &str) -> Result<GlobMatcher, ServingError> {
    let glob = Glob::new(pattern).map_err(|source| ServingError::Pattern {
        pattern: pattern.to_owned(),
        source,
    })?;
    Ok(glob.compile_matcher())
}

/// Puts tensors that share a tensor scale together; the others are groups of one. In the order of
/// their first member.
pub(super) fn fused_groups<'a>(tensors: Vec<FileTensor<'a>>) -> Vec<Vec<FileTensor<'a>>> {
    let mut groups: Vec<Vec<FileTensor<'_>>> = Vec::new();
    let mut places = BTreeMap::new();
    for tensor in tensors {
        let place = fused_name(&tensor.key).map(|name| *places.entry(name).or_insert(groups.len()));
        match place {
            Some(place) if place < groups.len() => groups[place].push(tensor),
            Some(_) | None => groups.push(vec![tensor]),
        }
    }
    groups
}

/// A name that the members of a fused group share.
pub(super) fn fused_name(key: &str) -> Option<(String, usize)> {
    let module = key.strip_suffix(".weight")?;
    let (parent, name) = module.rsplit_once('.')?;
    let group = FUSED.iter().position(|group| group.contains(&name))?;
    Some((parent.to_owned(), group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linears_are_quantized_and_everything_else_is_kept() {
        let asked = ["*.out_proj".to_owned()];
        let selection = Selection::excluding(&DEFAULT_EXCLUDES, &asked).unwrap();
        let keeps = |key, shape: &[usize]| selection.keeps(key, Dtype::BF16, shape);
        assert_eq!(
            keeps("backbone.layers.0.mixer.in_proj.weight", &[8, 32]),
            None
        );
        assert_eq!(keeps("model.layers.0.mlp.gate_proj.weight", &[8, 32]), None);
        for excluded in [
            "lm_head.weight",
            "backbone.embeddings.weight",
            "model.embed_tokens.weight",
            "backbone.layers.1.mixer.gate.weight",
            "backbone.layers.0.mixer.out_proj.weight",
        ] {
            assert_eq!(
                keeps(excluded, &[8, 32]),
                Some(Kept::Excluded),
                "{excluded}"
            );
        }
        assert_eq!(keeps("a.in_proj.bias", &[8]), Some(Kept::NotALinear));
        assert_eq!(
            keeps("a.conv1d.weight", &[8, 1, 16]),
            Some(Kept::NotALinear)
        );
        assert_eq!(keeps("a.in_proj.weight", &[8, 24]), Some(Kept::Ragged));
        assert_eq!(keeps("a.in_proj.weight", &[0, 16]), Some(Kept::Ragged));
        let dtype = selection.keeps("a.in_proj.weight", Dtype::I8, &[8, 32]);
        assert_eq!(dtype, Some(Kept::Dtype));
    }

    #[test]
    fn a_pattern_that_matches_nothing_is_an_error() {
        let keys = ["a.in_proj.weight", "a.norm.bias"];
        let check = |pattern: &str| {
            let selection = Selection::excluding(&[], &[pattern.to_owned()]).unwrap();
            selection.check_matched(keys.into_iter())
        };
        assert!(check("*.in_proj").is_ok());
        assert!(check("*.inproj").is_err());
        assert!(Selection::excluding(&[], &["[".to_owned()]).is_err());
    }

    #[test]
    fn fused_projections_share_a_name_only_with_their_siblings() {
        let name = |key| fused_name(key);
        assert_eq!(name("a.1.q_proj.weight"), name("a.1.v_proj.weight"));
        assert_ne!(name("a.1.q_proj.weight"), name("a.2.q_proj.weight"));
        assert_ne!(name("a.1.q_proj.weight"), name("a.1.gate_proj.weight"));
        assert_eq!(name("a.1.o_proj.weight"), None);
    }
}
