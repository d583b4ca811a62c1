//! Layouts, transpositions and attributes of every kind of product, without a device.

use super::*;

const PLAIN: Ends = Ends {
    out: DType::F32,
    pointer_mode: cublasLtPointerMode_t::CUBLASLT_POINTER_MODE_HOST,
    epilogue: cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT,
    beta: Beta::Zero,
};

fn stored(along: Contraction, row_stride: usize) -> Stored {
    Stored { along, row_stride }
}

/// Where the library looks for element `(row, k)` of what a layout becomes under its operation.
fn address(layout: Layout, operation: Operation, row: u64, k: u64) -> u64 {
    let (row, col) = match operation {
        Operation::None => (row, k),
        Operation::Transpose => (k, row),
    };
    assert!(row < layout.rows && col < layout.cols, "{layout:?}");
    row + col * layout.ld.cast_unsigned()
}

/// The same address as a row-major tensor has it.
fn expected(stored: Stored, row: u64, k: u64) -> u64 {
    let stride = stored.row_stride as u64;
    match stored.along {
        Contraction::Columns => row * stride + k,
        Contraction::Rows => k * stride + row,
    }
}

#[test]
fn all_orientations_and_paddings_address_the_elements_of_the_operands() {
    let [m, n, k] = [3, 5, 4];
    let (columns, rows) = (Contraction::Columns, Contraction::Rows);
    // The stored width is k, more than k, or the length of the other axis.
    for lhs in [
        stored(columns, k),
        stored(columns, 16),
        stored(rows, m),
        stored(rows, 8),
    ] {
        for rhs in [
            stored(columns, k),
            stored(columns, 32),
            stored(rows, n),
            stored(rows, 8),
        ] {
            let plan = MatmulPlan::dense([m, n, k], DType::BF16, lhs, rhs, PLAIN).unwrap();
            assert_eq!(plan.dims(), [3, 5, 4]);
            for k in 0..4 {
                // Column-major: op(A) is n x k, op(B) is k x m.
                for row in 0..5 {
                    assert_eq!(
                        address(plan.a, plan.transa, row, k),
                        expected(rhs, row, k),
                        "{plan:?}"
                    );
                }
                let transposed = match plan.transb {
                    Operation::None => Operation::Transpose,
                    Operation::Transpose => Operation::None,
                };
                for row in 0..3 {
                    assert_eq!(
                        address(plan.b, transposed, row, k),
                        expected(lhs, row, k),
                        "{plan:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_result_is_row_major() {
    let lhs = stored(Contraction::Columns, 64);
    let plan = MatmulPlan::dense([16, 48, 64], DType::BF16, lhs, lhs, PLAIN).unwrap();
    let d = Layout {
        rows: 48,
        cols: 16,
        ld: 48,
        dtype: cudaDataType_t::CUDA_R_32F,
        batch: Batch::ONE,
    };
    assert_eq!(plan.d, d);
    assert_eq!(
        (plan.transa, plan.transb),
        (Operation::Transpose, Operation::None)
    );
    assert_eq!(plan.scale_mode, None);
}

#[test]
fn products_of_a_batch_are_dense_one_behind_the_other() {
    let [m, n, k] = [3, 5, 4];
    for (lhs, rhs) in [
        (Contraction::Columns, Contraction::Rows),
        (Contraction::Rows, Contraction::Columns),
    ] {
        let width = |along, rows| match along {
            Contraction::Columns => k,
            Contraction::Rows => rows,
        };
        let (lhs, rhs) = (stored(lhs, width(lhs, m)), stored(rhs, width(rhs, n)));
        let one = MatmulPlan::dense([m, n, k], DType::F32, lhs, rhs, PLAIN).unwrap();
        let plan = one.clone().batched(7).unwrap();
        assert_eq!(plan.dims(), one.dims());
        assert_eq!(plan.flops(), 7.0 * one.flops());
        for (layout, stride) in [(plan.a, n * k), (plan.b, m * k), (plan.d, m * n)] {
            let stride = stride as i64;
            assert_eq!(layout.batch, Batch { count: 7, stride });
        }
        // The plan is what an algorithm is kept for.
        assert_ne!(plan, one.batched(8).unwrap());
    }
}

#[test]
fn batches_that_cannot_be_counted_are_errors() {
    let operand = stored(Contraction::Columns, 8);
    let plan = MatmulPlan::dense([8, 8, 8], DType::BF16, operand, operand, PLAIN).unwrap();
    assert!(matches!(
        plan.clone().batched(0),
        Err(Unavailable::Empty { .. })
    ));
    assert_eq!(
        plan.batched(1 << 31).unwrap_err().to_string(),
        "a batch of GEMMs has 2147483648 products, at most 2147483647 can be counted"
    );
}

#[test]
fn f32_operands_are_not_rounded_to_tf32() {
    let operand = stored(Contraction::Columns, 8);
    let plan = MatmulPlan::dense([8, 8, 8], DType::F32, operand, operand, PLAIN).unwrap();
    assert_eq!(plan.compute, cublasComputeType_t::CUBLAS_COMPUTE_32F);
    assert_eq!(plan.a.dtype, cudaDataType_t::CUDA_R_32F);
}

#[test]
fn ends_are_carried_over() {
    let operand = stored(Contraction::Columns, 8);
    let ends = Ends {
        out: DType::F32,
        pointer_mode: cublasLtPointerMode_t::CUBLASLT_POINTER_MODE_DEVICE,
        epilogue: cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
        beta: Beta::One,
    };
    let plan = MatmulPlan::dense([8, 8, 8], DType::F16, operand, operand, ends).unwrap();
    assert_eq!(plan.epilogue, ends.epilogue);
    assert_eq!(plan.pointer_mode, ends.pointer_mode);
    assert_eq!(plan.beta, Beta::One);
    assert_eq!(plan.scale_type, cudaDataType_t::CUDA_R_32F);
}

#[test]
fn types_that_do_not_go_together_are_errors() {
    let operand = stored(Contraction::Columns, 8);
    for (dtype, out) in [
        (DType::BF16, DType::F16),
        (DType::F32, DType::BF16),
        (DType::U8, DType::F32),
        (DType::BF16, DType::I32),
    ] {
        let ends = Ends { out, ..PLAIN };
        let plan = MatmulPlan::dense([8, 8, 8], dtype, operand, operand, ends);
        assert!(
            matches!(plan, Err(Unavailable::Types { .. })),
            "{dtype:?} to {out:?}"
        );
    }
}

#[test]
fn empty_products_are_errors() {
    let operand = stored(Contraction::Columns, 8);
    for dims in [[0, 8, 8], [8, 0, 8], [8, 8, 0]] {
        let plan = MatmulPlan::dense(dims, DType::BF16, operand, operand, PLAIN);
        assert!(matches!(plan, Err(Unavailable::Empty { .. })), "{dims:?}");
    }
}

#[test]
fn nvfp4_is_transposed_by_plain_with_scales_of_16() {
    let device = cublasLtPointerMode_t::CUBLASLT_POINTER_MODE_DEVICE;
    let plan = MatmulPlan::fp4([24, 64, 96], DType::BF16, device).unwrap();
    let e2m1 = |cols| Layout {
        rows: 96,
        cols,
        ld: 96,
        dtype: cudaDataType_t::CUDA_R_4F_E2M1,
        batch: Batch::ONE,
    };
    assert_eq!((plan.a, plan.b), (e2m1(64), e2m1(24)));
    assert_eq!(
        (plan.transa, plan.transb),
        (Operation::Transpose, Operation::None)
    );
    assert_eq!(
        plan.scale_mode,
        Some(cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3)
    );
    assert_eq!(plan.d.dtype, cudaDataType_t::CUDA_R_16BF);
    assert_eq!((plan.d.rows, plan.d.cols, plan.d.ld), (64, 24, 64));
    assert_eq!(plan.compute, cublasComputeType_t::CUBLAS_COMPUTE_32F);
    assert_eq!(plan.pointer_mode, device);
}

#[test]
fn nvfp4_rows_of_other_than_16_bytes_are_errors_that_name_the_requirement() {
    let host = cublasLtPointerMode_t::CUBLASLT_POINTER_MODE_HOST;
    for (dims, out, line) in [
        (
            [8, 64, 48],
            DType::BF16,
            "FP4 GEMMs need the padded contraction length to be a multiple of 32, it is 48",
        ),
        (
            [8, 12, 64],
            DType::BF16,
            "FP4 GEMMs need the number of result columns to be a multiple of 8, it is 12",
        ),
        (
            [8, 6, 64],
            DType::F32,
            "FP4 GEMMs need the number of result columns to be a multiple of 4, it is 6",
        ),
    ] {
        assert_eq!(
            MatmulPlan::fp4(dims, out, host).unwrap_err().to_string(),
            line
        );
    }
    // The number of rows of the left operand is free.
    assert!(MatmulPlan::fp4([1, 64, 64], DType::F32, host).is_ok());
}

#[test]
fn a_single_row_has_a_leading_dimension_of_its_length() {
    let plan = MatmulPlan::dense(
        [1, 8, 16],
        DType::BF16,
        stored(Contraction::Columns, 1),
        stored(Contraction::Columns, 16),
        PLAIN,
    )
    .unwrap();
    assert_eq!(plan.b.ld, 16);
}
