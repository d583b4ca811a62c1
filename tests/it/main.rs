//! One test binary for the workspace; each module is named after what it tests.

mod format;
mod quantize;
mod golden;
