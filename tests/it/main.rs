//! Tests across crates, in one binary.

mod hybrid;
mod linear;
mod transparency;
