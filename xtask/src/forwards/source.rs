//! The op traits as Burn declares them, read from the source of the pinned burn-backend.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use syn::{Item, ItemTrait, TraitItem, TypeParamBound};
use walkdir::WalkDir;

use super::signature::Method;

/// The traits that the decorator implements, in the order of burn-backend's `Backend`.
pub(crate) const FORWARDED: [&str; 11] = [
    "BackendTypes",
    "Backend",
    "FloatTensorOps",
    "BoolTensorOps",
    "IntTensorOps",
    "ModuleOps",
    "ActivationOps",
    "QTensorOps",
    "TransactionOps",
    "AutodiffBackend",
    "DistributedBackend",
];

/// Supertraits of `Backend` that carry no tensor op.
const MARKERS: [&str; 6] = ["Clone", "Default", "Sized", "Send", "Sync", "Debug"];

/// One trait as declared by Burn.
#[derive(Clone, Debug)]
pub(crate) struct OpTrait {
    /// Its name.
    pub(crate) name: String,
    /// True for `FloatTensorOps<B>`, false for `Backend`.
    pub(crate) has_parameter: bool,
    /// The names of its supertraits, without lifetimes.
    pub(crate) supertraits: Vec<String>,
    /// Its methods, required and defaulted, in source order.
    pub(crate) methods: Vec<Method>,
    /// The declaration itself, for printing.
    pub(crate) declaration: ItemTrait,
}

impl OpTrait {
    /// Reads a trait from its parsed declaration.
    pub(crate) fn new(declaration: ItemTrait) -> Self {
        let methods = declaration.items.iter().filter_map(|item| match item {
            TraitItem::Fn(method) => Some(Method::new(&method.sig, &method.attrs)),
            _ => None,
        });
        let supertraits = declaration
            .supertraits
            .iter()
            .filter_map(|bound| match bound {
                TypeParamBound::Trait(bound) => {
                    bound.path.segments.last().map(|s| s.ident.to_string())
                }
                _ => None,
            });
        Self {
            name: declaration.ident.to_string(),
            has_parameter: !declaration.generics.params.is_empty(),
            supertraits: supertraits.collect(),
            methods: methods.collect(),
            declaration,
        }
    }

    /// How the trait is written as a bound on `B`: `FloatTensorOps<B>`, `Backend`.
    pub(crate) fn on_inner(&self) -> String {
        if self.has_parameter {
            format!("{}<B>", self.name)
        } else {
            self.name.clone()
        }
    }
}

/// Every public trait of the crate whose sources lie in `folder`, by name.
pub(crate) fn read_traits(folder: &Path) -> Result<BTreeMap<String, OpTrait>> {
    let mut traits = BTreeMap::new();
    for entry in WalkDir::new(folder).sort_by_file_name() {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        if entry
            .path()
            .extension()
            .is_none_or(|extension| extension != "rs")
        {
            continue;
        }
        let text = fs::read_to_string(entry.path())
            .with_context(|| format!("cannot read {}", entry.path().display()))?;
        let file = syn::parse_file(&text)
            .with_context(|| format!("cannot parse {}", entry.path().display()))?;
        for item in file.items {
            if let Item::Trait(declaration) = item {
                let op_trait = OpTrait::new(declaration);
                traits.insert(op_trait.name.clone(), op_trait);
            }
        }
    }
    Ok(traits)
}

/// Supertraits that Burn has added: each needs a file in `decorator/forward/`.
pub(crate) fn unhandled_supertraits(traits: &BTreeMap<String, OpTrait>) -> Vec<String> {
    let mut problems = Vec::new();
    for name in FORWARDED {
        let Some(op_trait) = traits.get(name) else {
            problems.push(format!("burn-backend no longer declares the trait {name}"));
            continue;
        };
        for supertrait in &op_trait.supertraits {
            let known =
                FORWARDED.contains(&supertrait.as_str()) || MARKERS.contains(&supertrait.as_str());
            if !known {
                problems.push(format!("{name} has a new supertrait: {supertrait}"));
            }
        }
    }
    problems
}
