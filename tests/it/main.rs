//! it

mod hybrid;
