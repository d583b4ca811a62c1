//! The claims of `it` that concern a device, on a GPU; each module is named after what it tests.
//!
//! `cargo test -p tests --features wgpu --test gpu`, or `--features cuda`. A machine without a
//! device says so and passes, unless `NVFP4_REQUIRE_DEVICE` is set.
#![expect(
    clippy::unwrap_used,
    reason = "helper functions of tests count as tests"
)]

mod device;
mod turns;
mod kernels;
mod scaled_mma;
mod epilogue;
mod linear;
mod hybrid;
