//! What can be quantized: the element types and the view of a matrix.

use crate::error::QuantizeError;

/// A floating-point element that can be quantized.
pub trait Element: Copy + Send + Sync {
    /// The value in f32; f64 is rounded to nearest, the others are exact.
    fn to_f32(self) -> f32;

    /// True unless the value is NaN or infinite.
    #[inline(always)]
    fn is_finite(self) -> bool {
        self.to_f32().is_finite()
    }
}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for f64 {
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "all arithmetic is f32: rounded once, here"
    )]
    fn to_f32(self) -> f32 {
        self as f32
    }
}

impl Element for half::bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Element for half::f16 {
    // `half` asks the CPU for its features at every element; this form vectorises everywhere.
    #[inline(always)]
    fn to_f32(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = (bits & 0x7FFF) << 13;
        // Exact: moves the exponent bias from 15 to 127, subnormals included.
        let finite = f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23);
        let special = magnitude | 0x7F80_0000;
        let unsigned = if bits & 0x7C00 == 0x7C00 {
            special
        } else {
            finite.to_bits()
        };
        f32::from_bits(unsigned | (bits & 0x8000) << 16)
    }
}

/// A row-major `[rows, cols]` matrix that is looked at, not owned.
#[derive(Clone, Copy, Debug)]
pub struct MatrixView<'a, E> {
    data: &'a [E],
    rows: usize,
    cols: usize,
}

impl<'a, E> MatrixView<'a, E> {
    /// A view of `data` as `[rows, cols]`.
    ///
    /// # Errors
    /// [`QuantizeError::Shape`] if `data` does not have `rows * cols` elements.
    pub fn new(data: &'a [E], rows: usize, cols: usize) -> Result<Self, QuantizeError> {
        if rows.checked_mul(cols) == Some(data.len()) {
            Ok(Self { data, rows, cols })
        } else {
            Err(QuantizeError::Shape {
                rows,
                cols,
                len: data.len(),
            })
        }
    }

    /// The elements, row after row.
    pub const fn data(&self) -> &'a [E] {
        self.data
    }

    /// Rows.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub const fn cols(&self) -> usize {
        self.cols
    }
}

/// Which axis of a view the GEMM sums over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Contraction {
    /// Axis 1: the packed matrix has the rows of the view.
    Columns,
    /// Axis 0: the packed matrix is the transpose of the view.
    Rows,
}

impl Contraction {
    /// The other axis.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Columns => Self::Rows,
            Self::Rows => Self::Columns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_and_bf16_converts_exactly() {
        for bits in 0..=u16::MAX {
            let f16 = half::f16::from_bits(bits);
            if f16.is_nan() {
                assert!(Element::to_f32(f16).is_nan());
            } else {
                assert_eq!(
                    Element::to_f32(f16).to_bits(),
                    f16.to_f32().to_bits(),
                    "{bits:#06x}"
                );
            }
            let bf16 = half::bf16::from_bits(bits);
            if bf16.is_nan() {
                assert!(Element::to_f32(bf16).is_nan());
            } else {
                assert_eq!(Element::to_f32(bf16).to_bits(), bf16.to_f32().to_bits());
            }
        }
    }

    #[test]
    fn a_view_knows_its_shape() {
        assert!(MatrixView::new(&[0.0_f32; 6], 2, 3).is_ok());
        assert!(MatrixView::new(&[0.0_f32; 6], 2, 4).is_err());
        assert!(MatrixView::<f32>::new(&[], usize::MAX, 2).is_err());
    }
}
