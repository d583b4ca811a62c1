//! Fuzz targets: every loader of something that comes from outside, with a bound on its memory.
//!
//! A target lays an input out as files ([`bundle`]), loads them, and goes on with what was loaded.
//! It fails if anything panics, if a property of the target does not hold, or if the loaders
//! allocate more than a multiple of the input ([`memory`]): a file that says of itself that it is
//! large is not believed before it is seen to be.
//!
//! `tests/seeds.rs` replays the seeds in `seeds/`, as a part of `cargo test`; `cargo xtask fuzz`
//! runs libFuzzer from them (`tests/libfuzzer.rs`).

pub mod bundle;
pub mod memory;
pub mod targets;
