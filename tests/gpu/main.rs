//! The claims of `it` that concern a device, on a GPU; each module is named after what it tests.

#[test]
fn a_device_is_there() {}
