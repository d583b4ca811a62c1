//! The comparison: every method of every op trait is forwarded, and nothing else is.

use std::collections::BTreeMap;

use super::decorator::{Body, DecoratorFile, FORWARD_MACRO, Forward, Implementation};
use super::signature::Method;
use super::source::{FORWARDED, OpTrait, unhandled_supertraits};

/// A method whose body is not a forward, and what stands there instead.
pub(crate) struct Override {
    /// The trait.
    pub(crate) trait_name: &'static str,
    /// The method.
    pub(crate) method: &'static str,
    /// The whole body.
    pub(crate) body: &'static str,
}

/// The only methods in which the decorator does something.
///
/// The four linear ops are the GEMMs of a linear layer; `name` tells the backends apart; `seed`
/// also seeds the stochastic rounding.
pub(crate) const OVERRIDES: [Override; 6] = [
    Override {
        trait_name: "Backend",
        method: "name",
        body: r#"format!("nvfp4<{}>", B::name(device))"#,
    },
    Override {
        trait_name: "Backend",
        method: "seed",
        body: "crate::runtime::set_seed::<B>(device, seed); B::seed(device, seed);",
    },
    Override {
        trait_name: "ModuleOps",
        method: "linear",
        body: "linear::fprop::<B>(x, weight, bias)",
    },
    Override {
        trait_name: "ModuleOps",
        method: "linear_x_backward",
        body: "linear::dgrad::<B>(weight, output_grad)",
    },
    Override {
        trait_name: "ModuleOps",
        method: "linear_weight_backward",
        body: "linear::wgrad::<B>(x, output_grad)",
    },
    Override {
        trait_name: "ModuleOps",
        method: "linear_bias_backward",
        body: "linear::bias_grad::<B>(output_grad)",
    },
];

/// What a clean comparison covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Coverage {
    /// Traits compared.
    pub(crate) traits: usize,
    /// Methods forwarded as they are.
    pub(crate) forwarded: usize,
    /// Methods overridden.
    pub(crate) overridden: usize,
}

/// Compares the decorator with Burn's traits.
///
/// # Errors
/// One line for each method that is missing, unknown, implemented twice or not a plain forward.
pub(crate) fn compare(
    traits: &BTreeMap<String, OpTrait>,
    files: &[DecoratorFile],
    overrides: &[Override],
) -> Result<Coverage, Vec<String>> {
    let mut problems = unhandled_supertraits(traits);
    problems.extend(macro_problems(files));
    let mut coverage = Coverage {
        traits: 0,
        forwarded: 0,
        overridden: 0,
    };
    for name in FORWARDED {
        let Some(op_trait) = traits.get(name) else {
            continue;
        };
        let of_trait: Vec<&Implementation> = files
            .iter()
            .flat_map(|file| &file.implementations)
            .filter(|implementation| implementation.trait_name == name)
            .collect();
        let [implementation] = of_trait.as_slice() else {
            problems.push(format!(
                "{name}: {} impls for Nvfp4<B>, expected one",
                of_trait.len()
            ));
            continue;
        };
        coverage.traits += 1;
        for method in &op_trait.methods {
            let replaced = overrides
                .iter()
                .find(|one| one.trait_name == name && one.method == method.name.as_str());
            let problem = method_problem(op_trait, method, implementation, replaced);
            problems.extend(problem.map(|what| format!("{name}::{}: {what}", method.name)));
            match replaced {
                Some(_) => coverage.overridden += 1,
                None => coverage.forwarded += 1,
            }
        }
        problems.extend(unknown_methods(op_trait, implementation));
    }
    problems.extend(stale_overrides(traits, overrides));
    if problems.is_empty() {
        Ok(coverage)
    } else {
        Err(problems)
    }
}

/// What is wrong with the decorator's version of one method.
fn method_problem(
    op_trait: &OpTrait,
    method: &Method,
    implementation: &Implementation,
    replaced: Option<&Override>,
) -> Option<String> {
    let of_name: Vec<&Forward> = implementation
        .methods
        .iter()
        .filter(|f| f.method.name == method.name)
        .collect();
    let [forward] = of_name.as_slice() else {
        return Some(match of_name.len() {
            0 => "not forwarded".to_owned(),
            times => format!("forwarded {times} times"),
        });
    };
    let found = &forward.method;
    if found.signature != method.signature {
        return Some(format!(
            "signature differs\n    burn-backend: {}\n    decorator:    {}",
            method.signature, found.signature
        ));
    }
    if found.cfg != method.cfg {
        return Some(format!("`cfg` differs: {:?} in burn-backend", method.cfg));
    }
    match replaced {
        None => forward_problem(op_trait, method, &forward.body),
        Some(replaced) => override_problem(replaced, &forward.body),
    }
}

fn forward_problem(op_trait: &OpTrait, method: &Method, body: &Body) -> Option<String> {
    let (on, name, arguments) = match body {
        Body::Call {
            on,
            name,
            arguments,
        } => (on, name, arguments),
        Body::Other(text) => return Some(format!("not a plain forward: {text}")),
    };
    let expected = op_trait.on_inner();
    if let Some(on) = on
        && without_spaces(on) != expected
    {
        return Some(format!("forwards to the trait {on}, not to {expected}"));
    }
    if *name != method.name {
        return Some(format!("forwards to {name}"));
    }
    if *arguments != method.arguments {
        let (passed, expected) = (arguments.join(", "), method.arguments.join(", "));
        return Some(format!("passes ({passed}) where ({expected}) is expected"));
    }
    None
}

fn override_problem(replaced: &Override, body: &Body) -> Option<String> {
    let found = match body {
        Body::Other(text) => without_spaces(text),
        Body::Call { .. } => return Some("is forwarded, but stands in the overrides".to_owned()),
    };
    let expected = without_spaces(replaced.body);
    (found != expected).then(|| format!("is overridden by {found}, expected {expected}"))
}

fn unknown_methods<'a>(
    op_trait: &'a OpTrait,
    implementation: &'a Implementation,
) -> impl Iterator<Item = String> + 'a {
    let known = |name: &str| op_trait.methods.iter().any(|method| method.name == name);
    implementation
        .methods
        .iter()
        .filter(move |forward| !known(&forward.method.name))
        .map(|forward| {
            format!(
                "{}::{}: unknown to Burn",
                op_trait.name, forward.method.name
            )
        })
}

fn stale_overrides(traits: &BTreeMap<String, OpTrait>, overrides: &[Override]) -> Vec<String> {
    let exists = |one: &Override| {
        traits
            .get(one.trait_name)
            .is_some_and(|t| t.methods.iter().any(|m| m.name == one.method))
    };
    overrides
        .iter()
        .filter(|one| !exists(one))
        .map(|one| {
            format!(
                "{}::{}: overridden, but unknown to Burn",
                one.trait_name, one.method
            )
        })
        .collect()
}

fn macro_problems(files: &[DecoratorFile]) -> Vec<String> {
    let definitions: Vec<&String> = files.iter().flat_map(|file| &file.forward_macros).collect();
    match definitions.as_slice() {
        [one] if without_spaces(one) == without_spaces(FORWARD_MACRO) => Vec::new(),
        [one] => vec![format!("the macro `forward!` does not only forward: {one}")],
        several => vec![format!(
            "{} definitions of `forward!`, expected one",
            several.len()
        )],
    }
}

fn without_spaces(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}
