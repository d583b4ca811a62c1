//! One test binary for the workspace; each module is named after what it tests.
#![expect(
    clippy::unwrap_used,
    reason = "helper functions of tests count as tests"
)]

mod device;
mod format;
mod quantize;
mod eden;
mod stats;
mod oscillation;
mod renewal;
mod golden;
mod linear;
mod transparency;
mod hybrid;
mod data;
mod mixture;
mod serving;
mod train;
