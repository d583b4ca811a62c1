//! The claims of `it` that concern a device, on a GPU; each module is named after what it tests.

mod device;
mod kernels;
