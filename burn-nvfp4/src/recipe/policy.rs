//! temporary
#![allow(missing_docs)]
use super::*;
#[derive(Clone, Copy, Debug)]
pub struct Progress { pub step: u64, pub total: u64 }
#[derive(Clone, Debug)]
pub struct Policy { base: Recipe, over: Vec<(globset::GlobMatcher, Recipe)> }
impl Policy {
    pub fn uniform(base: Recipe) -> Self { Self { base, over: vec![] } }
    pub fn with_override(mut self, p: &str, r: Recipe) -> Result<Self, RecipeError> { self.over.push((globset::Glob::new(p).unwrap().compile_matcher(), r)); Ok(self) }
    pub fn validate(&self) -> Result<(), RecipeError> { self.base.validate() }
    pub fn resolve(&self, layer: Option<&str>, _p: Progress) -> Recipe { self.over.iter().find(|(g, _)| layer.is_some_and(|l| g.is_match(l))).map_or(self.base, |o| o.1) }
}
