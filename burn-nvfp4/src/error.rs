//! What can go wrong when a tensor is quantized or a packed matrix is put together.

/// Why a tensor cannot be quantized as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// The data does not fill the shape.
    #[error("a {rows}x{cols} matrix does not have {len} elements")]
    Shape {
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        cols: usize,
        /// Elements given.
        len: usize,
    },
    /// The shape, rounded up to whole blocks, does not fit the address space.
    #[error("a packed {rows}x{k} matrix does not fit the address space")]
    TooLarge {
        /// Rows asked for.
        rows: usize,
        /// Length of the contraction axis.
        k: usize,
    },
    /// The operand spec asks for no quantization.
    #[error("a high-precision operand has no packed form: use the tensor itself")]
    HighPrecision,
    /// The parts of the operand spec do not go together.
    #[error("no arithmetic is defined for this operand: {reason}")]
    Unsupported {
        /// What does not go together.
        reason: &'static str,
    },
    /// One part of a packed matrix has another length than its shape and format ask for.
    #[error("{part} have length {got}, the shape and format ask for {expected}")]
    PartLength {
        /// Which part: codes, block scales, tensor amaxes.
        part: &'static str,
        /// Length that shape and format ask for.
        expected: usize,
        /// Length given.
        got: usize,
    },
    /// The block scales are of another type than the format stores.
    #[error("the format stores {expected} block scales, got {got}")]
    ScaleType {
        /// What the format stores.
        expected: &'static str,
        /// What was given.
        got: &'static str,
    },
    /// Blocks run along one axis only, so the transpose is another quantization.
    #[error("a matrix with blocks along one axis has no packed transpose: quantize the other axis")]
    NotTransposable,
}
