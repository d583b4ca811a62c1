//! it

mod data;
mod train;
