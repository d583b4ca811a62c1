//! Writes the forwarding impls in the form in which the decorator keeps them.

use std::collections::BTreeMap;

use syn::{FnArg, ReturnType, Signature, TraitItem};

use super::compare::{OVERRIDES, Override};
use super::signature::{normalised, text};
use super::source::{FORWARDED, OpTrait};

/// Widest line that rustfmt allows.
const MAX_WIDTH: usize = 100;

/// Structs that carry the backend as a parameter, so that they must be taken apart and rebuilt.
const WRAPPED: [&str; 10] = [
    "CollectiveTensor",
    "DeformConv2dBackward",
    "MaxPool1dBackward",
    "MaxPool1dWithIndices",
    "MaxPool2dBackward",
    "MaxPool2dWithIndices",
    "QuantizationParametersPrimitive",
    "TensorPrimitive",
    "TensorRef",
    "TransactionPrimitive",
];

/// How a method gets into the decorator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A line in a `forward!` block.
    Plain,
    /// A line in a `forward! { .. => rewrap; .. }` block.
    Rewrap,
    /// A function of its own: overridden, async, generic, unsafe, or with an argument to rebuild.
    ByHand,
}

/// All impls that the decorator needs.
pub(crate) fn implementations(traits: &BTreeMap<String, OpTrait>) -> String {
    FORWARDED
        .iter()
        .filter_map(|name| traits.get(*name))
        .filter(|op_trait| !op_trait.methods.is_empty())
        .map(implementation)
        .collect()
}

fn implementation(op_trait: &OpTrait) -> String {
    let on_self = op_trait.on_inner().replace("<B>", "<Self>");
    let signatures: Vec<Signature> = op_trait
        .declaration
        .items
        .iter()
        .filter_map(|item| match item {
            TraitItem::Fn(method) => Some(normalised(&method.sig)),
            _ => None,
        })
        .collect();
    let mut out = format!("\nimpl<B: Nvfp4Engine> {on_self} for Nvfp4<B> {{\n");
    for (form, suffix) in [(Form::Plain, ""), (Form::Rewrap, " => rewrap")] {
        let of_form: Vec<&Signature> = signatures
            .iter()
            .filter(|s| form_of(op_trait, s) == form)
            .collect();
        if of_form.is_empty() {
            continue;
        }
        out += &format!("    forward! {{ {}{suffix};\n", op_trait.on_inner());
        for signature in of_form {
            out += &wrapped(signature, 8, ";");
        }
        out += "    }\n\n";
    }
    for signature in signatures
        .iter()
        .filter(|s| form_of(op_trait, s) == Form::ByHand)
    {
        out += &wrapped(signature, 4, " {");
        out += &format!("        {}\n    }}\n\n", body(op_trait, signature));
    }
    out.truncate(out.trim_end().len());
    out + "\n}\n"
}

fn form_of(op_trait: &OpTrait, signature: &Signature) -> Form {
    let generic = !signature.generics.params.is_empty() || signature.unsafety.is_some();
    let returned = return_type(signature);
    let rebuilds = |input: &FnArg| match input {
        FnArg::Typed(argument) => is_wrapped(&text(&argument.ty)),
        FnArg::Receiver(_) => false,
    };
    let is_async = returned.starts_with("impl ");
    let replaced = replacement(op_trait, signature).is_some();
    if replaced || generic || is_async || signature.inputs.iter().any(rebuilds) {
        Form::ByHand
    } else if is_wrapped(&returned) {
        Form::Rewrap
    } else {
        Form::Plain
    }
}

fn is_wrapped(ty: &str) -> bool {
    let ty = ty.trim_start_matches("& ");
    WRAPPED
        .iter()
        .any(|name| ty.split(' ').next() == Some(name))
}

fn replacement(op_trait: &OpTrait, signature: &Signature) -> Option<&'static str> {
    let replaces =
        |one: &&Override| one.trait_name == op_trait.name && signature.ident == one.method;
    OVERRIDES.iter().find(replaces).map(|one| one.body)
}

fn body(op_trait: &OpTrait, signature: &Signature) -> String {
    if let Some(replaced) = replacement(op_trait, signature) {
        return replaced.to_owned();
    }
    let arguments = signature.inputs.iter().map(|input| match input {
        FnArg::Typed(argument) => {
            let (name, ty) = (text(&argument.pat), text(&argument.ty));
            let borrow = if ty.starts_with("& ") { "&" } else { "" };
            if is_wrapped(&ty) {
                format!("{borrow}{name}.rewrap()")
            } else {
                name
            }
        }
        FnArg::Receiver(receiver) => text(receiver),
    });
    let arguments = arguments.collect::<Vec<_>>().join(", ");
    let rewrap = if is_wrapped(&return_type(signature)) {
        ".rewrap()"
    } else {
        ""
    };
    let call = format!(
        "<B as {}>::{}({arguments}){rewrap}",
        op_trait.on_inner(),
        signature.ident
    );
    if signature.unsafety.is_some() {
        format!("unsafe {{ {call} }}")
    } else {
        call
    }
}

fn return_type(signature: &Signature) -> String {
    match &signature.output {
        ReturnType::Default => String::new(),
        ReturnType::Type(_, ty) => text(ty),
    }
}

/// The signature on one line if it fits, else one argument per line, as rustfmt would.
fn wrapped(signature: &Signature, indent: usize, end: &str) -> String {
    let pad = " ".repeat(indent);
    let returned = match return_type(signature) {
        none if none.is_empty() => none,
        ty => format!(" -> {}", tidy_type(&ty)),
    };
    let bounds = match &signature.generics.where_clause {
        Some(clause) => format!("\n{pad}{}\n{pad}", tidy_type(&text(clause))),
        None => String::new(),
    };
    let end = if bounds.is_empty() {
        end
    } else {
        end.trim_start()
    };
    let unsafety = if signature.unsafety.is_some() {
        "unsafe "
    } else {
        ""
    };
    let generics = tidy_type(&text(&signature.generics));
    let head = format!("{pad}{unsafety}fn {}{generics}(", signature.ident);
    let arguments: Vec<String> = signature
        .inputs
        .iter()
        .map(|input| tidy_type(&text(input)))
        .collect();
    let line = format!("{head}{}){returned}{bounds}{end}\n", arguments.join(", "));
    if line.trim_end().chars().count() <= MAX_WIDTH {
        return line;
    }
    let mut out = format!("{head}\n");
    for argument in arguments {
        out += &format!("{pad}    {argument},\n");
    }
    out + &format!("{pad}){returned}{bounds}{end}\n")
}

/// Removes the spaces that token printing puts into types.
fn tidy_type(ty: &str) -> String {
    let mut ty = ty.to_owned();
    for (from, to) in [
        (" :: ", "::"),
        (" < ", "<"),
        ("< ", "<"),
        (" >", ">"),
        ("& ", "&"),
        (" :", ":"),
        (" ,", ","),
        (" ;", ";"),
        ("( ", "("),
        (" )", ")"),
    ] {
        ty = ty.replace(from, to);
    }
    ty.replace("Fn (", "Fn(")
        .replace("->", " -> ")
        .replace("  ", " ")
}
