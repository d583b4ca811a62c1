//! The claims of `it` that concern a device, on a GPU; each module is named after what it tests.
//!
//! `cargo test -p tests --features wgpu --test gpu`, or `--features cuda`. A machine without a
//! device says so and passes, unless `NVFP4_REQUIRE_DEVICE` is set.
#![expect(
    clippy::unwrap_used,
    reason = "helper functions of tests count as tests"
)]
#![expect(
    clippy::wildcard_enum_match_arm,
    clippy::cast_possible_truncation,
    reason = "a test chooses its dtypes and sizes itself"
)]
#![expect(clippy::print_stdout, reason = "a test that is skipped says why")]

mod device;
mod turns;
mod kernels;
mod scaled_mma;
mod epilogue;
mod linear;
mod ops;
mod hybrid;
mod ssd;
mod activations;
mod conv_silu;
mod norms;
mod loss;
mod embedding;
mod optimizer;
mod serving;
