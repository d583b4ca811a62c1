//! Method signatures in one spelling, so that Burn's and the decorator's can be compared as text.

use quote::{ToTokens, format_ident};
use syn::visit_mut::{self, VisitMut};
use syn::{Attribute, FnArg, Pat, Path, Signature};

/// One trait method: what it is called with, in the spelling of [`Normalise`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Method {
    /// Its name.
    pub(crate) name: String,
    /// The names of its arguments, in order, without leading underscores.
    pub(crate) arguments: Vec<String>,
    /// The whole signature as text.
    pub(crate) signature: String,
    /// The `cfg` attributes on it, as text.
    pub(crate) cfg: Vec<String>,
}

impl Method {
    /// Reads a method from its parsed signature and attributes.
    pub(crate) fn new(signature: &Signature, attributes: &[Attribute]) -> Self {
        let signature = normalised(signature);
        Self {
            name: signature.ident.to_string(),
            arguments: signature.inputs.iter().map(argument_name).collect(),
            signature: text(&signature),
            cfg: attributes
                .iter()
                .filter(|a| a.path().is_ident("cfg"))
                .map(text)
                .collect(),
        }
    }
}

/// The signature in the one spelling: the backend is `Self`, paths are their last segment, and
/// argument names have no leading underscore.
pub(crate) fn normalised(signature: &Signature) -> Signature {
    let mut signature = signature.clone();
    for input in &mut signature.inputs {
        if let FnArg::Typed(argument) = input
            && let Pat::Ident(pattern) = &mut *argument.pat
        {
            let name = pattern.ident.to_string();
            pattern.ident = format_ident!("{}", name.trim_start_matches('_'));
        }
    }
    // `(a, b,)` and `(a, b)` are the same list.
    signature.inputs.pop_punct();
    signature.generics.params.pop_punct();
    if let Some(clause) = &mut signature.generics.where_clause {
        clause.predicates.pop_punct();
    }
    Normalise.visit_signature_mut(&mut signature);
    signature
}

/// Tokens as text, with single spaces.
pub(crate) fn text(tokens: &impl ToTokens) -> String {
    tokens.to_token_stream().to_string()
}

fn argument_name(input: &FnArg) -> String {
    match input {
        FnArg::Typed(argument) => text(&argument.pat),
        FnArg::Receiver(receiver) => text(receiver),
    }
}

/// Spells types alike: `crate::TensorData` and `TensorData`, `FloatTensor<B>` and
/// `FloatTensor<Self>`.
struct Normalise;

impl VisitMut for Normalise {
    fn visit_path_mut(&mut self, path: &mut Path) {
        let of_backend = path.segments[0].ident == "Self" || path.segments[0].ident == "B";
        if of_backend {
            path.segments[0].ident = format_ident!("Self");
        } else if let Some(last) = path.segments.pop() {
            path.leading_colon = None;
            path.segments.clear();
            path.segments.push(last.into_value());
        }
        visit_mut::visit_path_mut(self, path);
    }
}
