//! What can go wrong when a tensor is quantized.

/// Why a tensor cannot be quantized as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// The data does not fill the shape.
    #[error("a {rows}x{cols} matrix needs {} elements, got {len}", rows * cols)]
    Shape {
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        cols: usize,
        /// Elements given.
        len: usize,
    },
    /// The operand spec asks for no quantization.
    #[error("a high-precision operand has no packed form: use the tensor itself")]
    HighPrecision,
}
