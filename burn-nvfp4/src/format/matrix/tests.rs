//! Tests of [`PackedMatrix`](super::PackedMatrix).

use super::*;

const TILE: Format = Format::Nvfp4 {
    block: BlockShape::Tile16x16,
};
const ROW: Format = Format::Nvfp4 {
    block: BlockShape::Row16,
};

fn tensor(amax: f32) -> TensorScale {
    TensorScale {
        amax: vec![amax],
        q_max: 2688.0,
    }
}

#[test]
fn parts_that_do_not_fit_are_named() {
    let scales = |n| BlockScales::E4m3(vec![0; n]);
    let parts =
        |codes, scales| PackedMatrix::from_parts((3, 20), ROW, vec![0; codes], scales, tensor(1.0));
    assert!(parts(48, scales(6)).is_ok());
    let error = parts(47, scales(6)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "codes have length 47, the shape and format ask for 48"
    );
    assert!(
        parts(48, scales(5))
            .unwrap_err()
            .to_string()
            .starts_with("block scales")
    );
    assert!(matches!(
        parts(48, BlockScales::None),
        Err(QuantizeError::ScaleType { .. })
    ));
    let huge = (usize::MAX, 20);
    let error = PackedMatrix::from_parts(huge, ROW, vec![], scales(0), tensor(1.0));
    assert!(matches!(error, Err(QuantizeError::TooLarge { .. })));
}

#[test]
fn a_tile_matrix_transposes_and_back() {
    let (rows, k) = (19, 40);
    let mut codes = vec![0u8; rows * 48];
    for row in 0..rows {
        for col in 0..k {
            codes[row * 48 + col] = u8::try_from((row * 7 + col) % 16).unwrap();
        }
    }
    let scales = BlockScales::E4m3((1..=6).collect());
    let matrix =
        PackedMatrix::from_parts((rows, k), TILE, packing::pack(&codes), scales, tensor(2.0))
            .unwrap();
    let transposed = matrix.transpose().unwrap();
    assert_eq!(
        (transposed.rows(), transposed.k(), transposed.padded_k()),
        (40, 19, 32)
    );
    assert_eq!(
        transposed.block_scales(),
        &BlockScales::E4m3(vec![1, 4, 2, 5, 3, 6])
    );
    let transposed_codes = packing::unpack(transposed.codes());
    assert_eq!(transposed_codes[39 * 32 + 18], codes[18 * 48 + 39]);
    assert_eq!(transposed.transpose().unwrap(), matrix);
}

#[test]
fn tile_scales_expand_to_rows() {
    let scales = BlockScales::E4m3(vec![1, 2, 3, 4]);
    let codes = vec![0; 17 * 16];
    let matrix = PackedMatrix::from_parts((17, 32), TILE, codes, scales, tensor(1.0)).unwrap();
    let rows = matrix.row_block_scales();
    assert_eq!(rows.len(), 34);
    assert_eq!(&rows[..2], [1, 2]);
    assert_eq!(&rows[32..], [3, 4]);
    assert_eq!(matrix.bytes(), 17 * 16 + 4 + 4);
}

#[test]
fn a_row_blocked_matrix_has_no_transpose() {
    let scales = BlockScales::E4m3(vec![0]);
    let matrix = PackedMatrix::from_parts((1, 16), ROW, vec![0; 8], scales, tensor(1.0)).unwrap();
    assert_eq!(matrix.transpose(), Err(QuantizeError::NotTransposable));
}
