//! [`Nvfp4<B>`](Nvfp4): a Burn backend whose linear layers run on quantized operands.
//!
//! The decorator has the inner backend's primitives, so an argument passes through unchanged, and
//! every op but six is a call of the inner backend's op of the same name. `linear` decides what
//! becomes of the four ops of a linear layer; `Backend::name` and `Backend::seed` are the other
//! two. `cargo xtask forwards --check` proves that nothing else differs, defaulted methods
//! included.

mod rewrap;
pub(crate) mod linear;
mod backend;
mod forward;
#[cfg(feature = "distributed")]
mod distributed;

pub use backend::Nvfp4;
