//! The op traits of `Nvfp4<B>`, one file each.
//!
//! A file lists signatures; [`forward!`](forward) gives each the body `<B as Ops<B>>::name(..)`.
//! Asynchronous and generic methods, and those with an argument to rebuild, stand after them in
//! full.

/// Implements methods of an op trait by calling the inner backend's.
///
/// After `=> rewrap` the inner backend's result is rebuilt as the decorator's.
macro_rules! forward {
    ($ops:path; $(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?;)*) => {
        $(fn $name($($arg: $ty),*) $(-> $ret)? { <B as $ops>::$name($($arg),*) })*
    };
    ($ops:path => rewrap; $(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) -> $ret:ty;)*) => {
        $(fn $name($($arg: $ty),*) -> $ret { <B as $ops>::$name($($arg),*).rewrap() })*
    };
}
pub(super) use forward;

mod float;
mod int;
mod bool;
mod module;
mod activation;
mod qtensor;
mod transaction;
