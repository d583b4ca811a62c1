//! The executable specification and the CPU path: plain slices in, packed matrices out.
//!
//! What the formulas of [`format`](crate::format) mean for a matrix: [`quantize`] walks an operand
//! in strips, [`dequantize`] and [`decode_operand`] go back, [`gemm`] multiplies. Works on slices;
//! knows neither tensors nor backends. Bits do not depend on the number of threads or the vector
//! unit: floats are only ever compared, multiplied and divided element by element, maxima are
//! exact, and the one sum before rounding, the Hadamard transform, has a fixed order.

mod element;
mod amax;
mod hadamard;
mod strip;
mod elements;
mod block_scale;
mod four_over_six;
mod eden;
mod plan;
mod quantize;
mod dequantize;
mod gemm;
mod mean;

pub use amax::tensor_amax;
pub use dequantize::{decode_operand, dequantize, dequantize_into};
pub use element::{Contraction, Element, MatrixView};
pub use gemm::{Alpha, DecodedMatrix, gemm, gemm_alpha, gemm_decoded, gemm_f64};
pub use hadamard::{hadamard, random_hadamard};
pub use mean::{token_mean, without_mean};
pub use quantize::{quantize, quantize_operand, quantize_operand_with_amax, quantize_with_amax};
