//! Every CUDA kernel of a training step, assembled by NVRTC, on a machine without a GPU.
//!
//! 1. The binary runs training steps and every quantization ([`specs`]) on a CubeCL runtime that
//!    has no device ([`runtime`]). Launch code runs unchanged, down to CUDA C++; tensors have
//!    shapes but no contents.
//! 2. [`record`] keeps each source once for each architecture.
//! 3. [`assemble`] has NVRTC ([`nvrtc`]) make machine code of each, with the options of CubeCL's
//!    CUDA runtime, and remembers sources that passed ([`passed`]).
//!
//! What a kernel computes is not looked at; the tests on a device do that. The steps are in the
//! binary, because they take longest to compile and the unit tests do not need them.

pub mod properties;
pub mod record;
pub mod runtime;
pub mod specs;
pub mod nvrtc;
pub mod passed;
pub mod assemble;
