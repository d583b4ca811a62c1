//! The checker against the real decorator, and against mutants of it.

use std::collections::BTreeMap;
use std::fs;

use super::compare::{Coverage, OVERRIDES, compare};
use super::decorator::{DecoratorFile, read};
use super::source::{OpTrait, read_traits};
use super::{DECORATOR, burn_backend};
use crate::workspace;

/// Burn's traits and the decorator's source, as they are in this checkout.
struct Sources {
    traits: BTreeMap<String, OpTrait>,
    files: Vec<(String, String)>,
}

impl Sources {
    fn read() -> Self {
        let folder = workspace::root().unwrap().join(DECORATOR);
        let files = walkdir::WalkDir::new(folder)
            .into_iter()
            .map(Result::unwrap)
            .filter(|entry| entry.path().extension().is_some_and(|e| e == "rs"))
            .map(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                (name, fs::read_to_string(entry.path()).unwrap())
            });
        Self {
            traits: read_traits(&burn_backend().unwrap()).unwrap(),
            files: files.collect(),
        }
    }

    /// The decorator with `from` replaced by `to` once, in the file `name`.
    fn mutant(&self, name: &str, from: &str, to: &str) -> Vec<DecoratorFile> {
        let mut mutated = 0;
        let files = self.files.iter().map(|(file, text)| {
            if file == name {
                assert!(text.contains(from), "{name} has no `{from}`");
                mutated += 1;
                read(&text.replacen(from, to, 1)).unwrap()
            } else {
                read(text).unwrap()
            }
        });
        let files = files.collect();
        assert_eq!(mutated, 1, "no file {name}");
        files
    }

    fn problems(&self, files: &[DecoratorFile]) -> Vec<String> {
        compare(&self.traits, files, &OVERRIDES)
            .err()
            .unwrap_or_default()
    }
}

#[test]
fn the_decorator_forwards_every_method() {
    let sources = Sources::read();
    let files: Vec<_> = sources
        .files
        .iter()
        .map(|(_, text)| read(text).unwrap())
        .collect();
    let coverage = compare(&sources.traits, &files, &OVERRIDES).unwrap();
    // burn-backend 0.21.0 declares 428 methods in `Backend` and its supertraits, 15 in
    // `AutodiffBackend`, 9 in `DistributedBackend`.
    let expected = Coverage {
        traits: 11,
        forwarded: 428 + 15 + 9 - 6,
        overridden: 6,
    };
    assert_eq!(coverage, expected);
}

#[test]
fn every_mutant_is_caught_by_name() {
    let sources = Sources::read();
    let cases = [
        // A defaulted method is lost.
        (
            "activation.rs",
            "        fn softmin(tensor: FloatTensor<Self>, dim: usize) -> FloatTensor<Self>;\n",
            "",
            "ActivationOps::softmin: not forwarded",
        ),
        // Two arguments of one type change places in a signature.
        (
            "float.rs",
            "fn float_sub(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>)",
            "fn float_sub(rhs: FloatTensor<Self>, lhs: FloatTensor<Self>)",
            "FloatTensorOps::float_sub: signature differs",
        ),
        // Two arguments change places in a hand-written call.
        (
            "qtensor.rs",
            "q_matmul(lhs.rewrap(), rhs.rewrap())",
            "q_matmul(rhs.rewrap(), lhs.rewrap())",
            "QTensorOps::q_matmul: passes (rhs, lhs) where (lhs, rhs) is expected",
        ),
        // Another method of the same type is called.
        (
            "float.rs",
            "<B as FloatTensorOps<B>>::float_into_data(tensor)",
            "<B as FloatTensorOps<B>>::float_into_bytes(tensor)",
            "FloatTensorOps::float_into_data: forwards to float_into_bytes",
        ),
        // A method does something of its own.
        (
            "transaction.rs",
            "<B as TransactionOps<B>>::tr_execute(transaction.rewrap())",
            "async { Default::default() }",
            "TransactionOps::tr_execute: not a plain forward",
        ),
        // A linear op slips past the decorator.
        (
            "module.rs",
            "linear::wgrad::<B>(x, output_grad)",
            "<B as ModuleOps<B>>::linear_weight_backward(x, output_grad)",
            "ModuleOps::linear_weight_backward: is forwarded, but stands in the overrides",
        ),
        // The operands of an override change places.
        (
            "module.rs",
            "linear::dgrad::<B>(weight, output_grad)",
            "linear::dgrad::<B>(output_grad, weight)",
            "ModuleOps::linear_x_backward: is overridden by",
        ),
        // Seeding forgets the stochastic rounding.
        (
            "backend.rs",
            "crate::runtime::set_seed::<B>(device, seed);",
            "",
            "Backend::seed: is forwarded, but stands in the overrides",
        ),
        // A block forwards to another trait.
        (
            "activation.rs",
            "forward! { ActivationOps<B>;",
            "forward! { ModuleOps<B>;",
            "ActivationOps::relu: forwards to the trait ModuleOps",
        ),
        // The macro drops an argument.
        (
            "forward.rs",
            "<B as $ops>::$name($($arg),*) })*",
            "<B as $ops>::$name() })*",
            "the macro `forward!` does not only forward",
        ),
        // A method loses its feature gate.
        (
            "backend.rs",
            "#[cfg(feature = \"distributed\")]\n    forward!",
            "forward!",
            "AutodiffBackend::is_distributed: `cfg` differs",
        ),
    ];
    for (file, from, to, expected) in cases {
        let problems = sources.problems(&sources.mutant(file, from, to));
        let caught = problems.iter().any(|problem| problem.starts_with(expected));
        assert!(
            caught,
            "{file}: `{from}` -> `{to}` is reported as {problems:?}"
        );
    }
}

#[test]
fn a_method_unknown_to_burn_is_reported() {
    let sources = Sources::read();
    let added = "fn relu(tensor: FloatTensor<Self>) -> FloatTensor<Self>;\n        fn swish();";
    let files = sources.mutant(
        "activation.rs",
        "fn relu(tensor: FloatTensor<Self>) -> FloatTensor<Self>;",
        added,
    );
    assert_eq!(
        sources.problems(&files),
        ["ActivationOps::swish: unknown to Burn"]
    );
}

#[test]
fn a_new_supertrait_of_backend_is_reported() {
    let mut sources = Sources::read();
    let files: Vec<_> = sources
        .files
        .iter()
        .map(|(_, text)| read(text).unwrap())
        .collect();
    let backend = sources.traits.get_mut("Backend").unwrap();
    backend.supertraits.push("SparseTensorOps".to_owned());
    assert_eq!(
        sources.problems(&files),
        ["Backend has a new supertrait: SparseTensorOps"]
    );
}

#[test]
fn a_method_that_burn_renames_is_missing_and_its_override_stale() {
    let mut sources = Sources::read();
    let files: Vec<_> = sources
        .files
        .iter()
        .map(|(_, text)| read(text).unwrap())
        .collect();
    let module = sources.traits.get_mut("ModuleOps").unwrap();
    let linear = module
        .methods
        .iter_mut()
        .find(|method| method.name == "linear")
        .unwrap();
    linear.name = "affine".to_owned();
    let problems = sources.problems(&files);
    assert_eq!(
        problems,
        [
            "ModuleOps::affine: not forwarded",
            "ModuleOps::linear: unknown to Burn",
            "ModuleOps::linear: overridden, but unknown to Burn",
        ]
    );
}
