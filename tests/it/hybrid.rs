//! The hybrid model against someone else's numbers, against definitions, and against bad input.

mod support;
mod parity;
