//! The claims of `it` that concern a device, on a GPU; each module is named after what it tests.
#![expect(
    clippy::unwrap_used,
    reason = "helper functions of tests count as tests"
)]

mod scaled_mma;

mod device;
mod kernels;
