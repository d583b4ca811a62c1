//! The order in which block-scaled tensor cores read block scales (numerics §1).
//!
//! Tiles of 128 rows by 4 scales are stored one after the other, 512 bytes each; inside a tile,
//! rows `r`, `r + 32`, `r + 64`, `r + 96` share 16 consecutive bytes. Shapes are padded up to whole
//! tiles with zeros.

use crate::error::QuantizeError;

const TILE_ROWS: usize = 128;
const TILE_COLS: usize = 4;

/// Bytes that a `[rows, cols]` scale matrix takes once swizzled, if they can be counted.
pub fn swizzled_len(rows: usize, cols: usize) -> Option<usize> {
    let padded_rows = rows.checked_next_multiple_of(TILE_ROWS)?;
    padded_rows.checked_mul(cols.checked_next_multiple_of(TILE_COLS)?)
}

/// Position of scale `(row, col)` among swizzled scales with `cols` scales per row.
#[inline]
pub const fn swizzled_index(row: usize, col: usize, cols: usize) -> usize {
    let tile = row / TILE_ROWS * cols.div_ceil(TILE_COLS) + col / TILE_COLS;
    (tile * 32 + row % 32) * 16 + row % TILE_ROWS / 32 * TILE_COLS + col % TILE_COLS
}

/// Reorders row-major `[rows, cols]` scales for the tensor core, zero-padded to whole tiles.
///
/// # Errors
/// [`QuantizeError::Shape`] if `linear` does not have `rows * cols` bytes, and
/// [`QuantizeError::TooLarge`] if the padded shape overflows.
///
/// # Source
/// TE `cast/nvfp4/swizzle.cuh`.
pub fn swizzle(linear: &[u8], rows: usize, cols: usize) -> Result<Vec<u8>, QuantizeError> {
    let len = swizzled_len(rows, cols).ok_or(QuantizeError::TooLarge { rows, k: cols })?;
    if rows.checked_mul(cols) != Some(linear.len()) {
        return Err(QuantizeError::Shape {
            rows,
            cols,
            len: linear.len(),
        });
    }
    let mut swizzled = vec![0; len];
    for row in 0..rows {
        for col in 0..cols {
            swizzled[swizzled_index(row, col, cols)] = linear[row * cols + col];
        }
    }
    Ok(swizzled)
}

/// Takes swizzled scales back to row-major `[rows, cols]`, dropping the padding.
///
/// # Errors
/// [`QuantizeError::PartLength`] if `swizzled` is not as long as the padded shape.
pub fn unswizzle(swizzled: &[u8], rows: usize, cols: usize) -> Result<Vec<u8>, QuantizeError> {
    let expected = swizzled_len(rows, cols).ok_or(QuantizeError::TooLarge { rows, k: cols })?;
    if expected != swizzled.len() {
        let part = "swizzled block scales";
        return Err(QuantizeError::PartLength {
            part,
            expected,
            got: swizzled.len(),
        });
    }
    let mut linear = Vec::with_capacity(rows * cols);
    for row in 0..rows {
        linear.extend((0..cols).map(|col| swizzled[swizzled_index(row, col, cols)]));
    }
    Ok(linear)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_32_apart_are_4_bytes_apart() {
        assert_eq!(swizzled_index(0, 3, 8), 3);
        assert_eq!(swizzled_index(32, 0, 8), 4);
        assert_eq!(swizzled_index(1, 0, 8), 16);
        assert_eq!(swizzled_index(0, 4, 8), 512);
        assert_eq!(swizzled_index(128, 0, 8), 1024);
    }

    #[test]
    fn wrong_lengths_are_errors() {
        assert!(swizzle(&[0; 5], 2, 3).is_err());
        assert!(swizzle(&[], usize::MAX, 2).is_err());
        assert!(unswizzle(&[0; 511], 2, 3).is_err());
        assert!(unswizzle(&[], 2, usize::MAX).is_err());
    }
}
