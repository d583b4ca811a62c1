//! Tests across crates, in one binary.

mod linear;
mod transparency;
