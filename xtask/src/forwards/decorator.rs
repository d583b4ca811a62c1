//! The op traits as the decorator implements them, read from its source.
//!
//! A method counts as forwarded if it stands in a `forward!` block, or if its body is one call of
//! `<B as Trait>::name` with plain arguments. Rewrapping (`.rewrap()`), borrowing and an `unsafe`
//! block around them change no value and are looked through; anything else makes the body
//! [`Body::Other`], which only the table of overrides can allow.

use syn::parse::{Parse, ParseStream};
use syn::{
    Attribute, Block, Expr, ImplItem, Item, ItemImpl, ItemMacro, Macro, Path, Signature, Stmt,
    Token, Type,
};

use super::signature::{Method, text};

/// The macro's only definition. Another one could forward to anything.
pub(crate) const FORWARD_MACRO: &str = "
    ($ops:path; $(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?;)*) => {
        $(fn $name($($arg: $ty),*) $(-> $ret)? { <B as $ops>::$name($($arg),*) })*
    };
    ($ops:path => rewrap; $(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) -> $ret:ty;)*) => {
        $(fn $name($($arg: $ty),*) -> $ret { <B as $ops>::$name($($arg),*).rewrap() })*
    };
";

/// `impl Trait for Nvfp4<B>`.
#[derive(Clone, Debug)]
pub(crate) struct Implementation {
    /// The trait's name.
    pub(crate) trait_name: String,
    /// Its methods, in source order.
    pub(crate) methods: Vec<Forward>,
}

/// One method of the decorator.
#[derive(Clone, Debug)]
pub(crate) struct Forward {
    /// What it is called with.
    pub(crate) method: Method,
    /// What it does.
    pub(crate) body: Body,
}

/// What the body of a method does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// `<B as on>::name(arguments)`.
    Call {
        /// The trait with its parameter, or `None` for the short `B::name(..)`.
        on: Option<String>,
        /// The method called.
        name: String,
        /// The names of the arguments passed, in order.
        arguments: Vec<String>,
    },
    /// Anything else, as text.
    Other(String),
}

/// What one source file of the decorator contributes.
#[derive(Clone, Debug, Default)]
pub(crate) struct DecoratorFile {
    /// Implementations for `Nvfp4<B>`.
    pub(crate) implementations: Vec<Implementation>,
    /// Definitions of a macro named `forward`, as text.
    pub(crate) forward_macros: Vec<String>,
}

/// Reads one file of the decorator.
pub(crate) fn read(source: &str) -> syn::Result<DecoratorFile> {
    let mut found = DecoratorFile::default();
    for item in syn::parse_file(source)?.items {
        match item {
            Item::Impl(block) => found.implementations.extend(implementation(&block)?),
            Item::Macro(ItemMacro {
                ident: Some(name),
                mac,
                ..
            }) if name == "forward" => {
                found.forward_macros.push(mac.tokens.to_string());
            }
            _ => {}
        }
    }
    Ok(found)
}

/// The body of a hand-written method as the table of overrides spells it.
pub(crate) fn body_text(block: &Block) -> String {
    block.stmts.iter().map(text).collect::<Vec<_>>().join(" ")
}

fn implementation(block: &ItemImpl) -> syn::Result<Option<Implementation>> {
    let Some((_, path, _)) = &block.trait_ else {
        return Ok(None);
    };
    let of_decorator = match &*block.self_ty {
        Type::Path(of) => of
            .path
            .segments
            .last()
            .is_some_and(|last| last.ident == "Nvfp4"),
        _ => false,
    };
    let Some(name) = path.segments.last().filter(|_| of_decorator) else {
        return Ok(None);
    };
    let mut methods = Vec::new();
    for item in &block.items {
        match item {
            ImplItem::Fn(method) => methods.push(Forward {
                method: Method::new(&method.sig, &method.attrs),
                body: body_of(&method.block),
            }),
            ImplItem::Macro(call) if call.mac.path.is_ident("forward") => {
                methods.extend(forward_block(&call.mac, &call.attrs)?);
            }
            _ => {}
        }
    }
    Ok(Some(Implementation {
        trait_name: name.ident.to_string(),
        methods,
    }))
}

/// What the macro makes of one `forward!` block with `attributes` on it.
fn forward_block(call: &Macro, attributes: &[Attribute]) -> syn::Result<Vec<Forward>> {
    let block: ForwardBlock = call.parse_body()?;
    let on = text(&block.on);
    let forward = |signature: &Signature| {
        let method = Method::new(signature, attributes);
        // The macro passes the arguments as they are named in the signature.
        let body = Body::Call {
            on: Some(on.clone()),
            name: method.name.clone(),
            arguments: method.arguments.clone(),
        };
        Forward { method, body }
    };
    Ok(block.signatures.iter().map(forward).collect())
}

/// The input of `forward!`: the trait, perhaps `=> rewrap`, and signatures.
struct ForwardBlock {
    on: Path,
    signatures: Vec<Signature>,
}

impl Parse for ForwardBlock {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let on = input.parse()?;
        if input.peek(Token![=>]) {
            input.parse::<Token![=>]>()?;
            input.parse::<syn::Ident>()?;
        }
        input.parse::<Token![;]>()?;
        let mut signatures = Vec::new();
        while !input.is_empty() {
            signatures.push(input.parse()?);
            input.parse::<Token![;]>()?;
        }
        Ok(Self { on, signatures })
    }
}

fn body_of(block: &Block) -> Body {
    match block.stmts.as_slice() {
        // `B::seed(..);` and `B::seed(..)` do the same where nothing is returned.
        [Stmt::Expr(expression, _)] => {
            call_of(expression).unwrap_or_else(|| Body::Other(body_text(block)))
        }
        _ => Body::Other(body_text(block)),
    }
}

/// The forwarding call inside `expression`, if that is all there is.
fn call_of(expression: &Expr) -> Option<Body> {
    match expression {
        Expr::Unsafe(inner) => match inner.block.stmts.as_slice() {
            [Stmt::Expr(expression, None)] => call_of(expression),
            _ => None,
        },
        Expr::MethodCall(call) if call.method == "rewrap" => call_of(&call.receiver),
        Expr::Call(call) => {
            let Expr::Path(function) = &*call.func else {
                return None;
            };
            let segments = &function.path.segments;
            let name = segments.last()?.ident.to_string();
            let on = match &function.qself {
                Some(of) if text(&of.ty) == "B" && of.position == 1 && segments.len() == 2 => {
                    Some(text(segments.first()?))
                }
                None if segments.len() == 2 && segments[0].ident == "B" => None,
                _ => return None,
            };
            let arguments = call
                .args
                .iter()
                .map(argument_of)
                .collect::<Option<Vec<_>>>()?;
            Some(Body::Call {
                on,
                name,
                arguments,
            })
        }
        _ => None,
    }
}

/// The variable that an argument passes on.
fn argument_of(expression: &Expr) -> Option<String> {
    match expression {
        Expr::Path(variable) => variable.path.get_ident().map(ToString::to_string),
        Expr::Reference(inner) => argument_of(&inner.expr),
        Expr::MethodCall(call) if call.method == "rewrap" => argument_of(&call.receiver),
        _ => None,
    }
}
