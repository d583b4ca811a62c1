//! The hybrid model against someone else's numbers, against definitions, and against bad input.

#![expect(
    clippy::wildcard_enum_match_arm,
    clippy::cast_possible_truncation,
    reason = "a test that expects one variant or a small whole number fails on any other"
)]

pub(crate) mod support;
mod parity;
mod config;
mod params;
mod blocks;
mod gradients;
mod checkpoint;
mod generate;
