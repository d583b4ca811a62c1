//! Which matrix product cuBLASLt is asked for, as plain data.
//!
//! The library is column-major, tensors are row-major. A row-major `[r, c]` is a column-major
//! `c x r`, so the row-major `D = A B^T` is computed as the column-major `D^T = B A^T`: the
//! library's A is the right operand, its B the left one, and its M is `n`.
//!
//! | operand | stored | column-major | operation |
//! |---|---|---|---|
//! | right, along columns | `[n, k]` | `k x n` | transpose |
//! | right, along rows | `[k, n]` | `n x k` | none |
//! | left, along columns | `[m, k]` | `k x m` | none |
//! | left, along rows | `[k, m]` | `m x k` | transpose |
//!
//! Leading dimensions are those of the memory, so an operand padded further along `k` than the
//! other is read up to the shorter one.

use burn_backend::DType;
use cudarc::cublaslt::sys::{
    cublasComputeType_t, cublasLtEpilogue_t, cublasLtMatmulMatrixScale_t, cublasLtPointerMode_t,
    cudaDataType_t,
};

use super::error::Unavailable;
use crate::cpu::Contraction;

/// What is done to a stored matrix before it is multiplied. The values are those of
/// `cublasOperation_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Operation {
    /// `CUBLAS_OP_N`.
    None = 0,
    /// `CUBLAS_OP_T`.
    Transpose = 1,
}

/// What the old contents of the result are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Beta {
    /// They are not read.
    Zero,
    /// The product is added to them.
    One,
}

/// Equal matrices, one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Batch {
    /// Number of matrices.
    pub count: i32,
    /// Distance between the starts of two matrices, in elements.
    pub stride: i64,
}

impl Batch {
    /// A single matrix.
    pub const ONE: Self = Self {
        count: 1,
        stride: 0,
    };
}

/// A column-major matrix, or a batch of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Rows, which are contiguous in memory.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
    /// Distance between columns, in elements.
    pub ld: i64,
    /// Element type.
    pub dtype: cudaDataType_t,
    /// How many, and how far apart.
    pub batch: Batch,
}

/// Everything that decides how the library computes a product, pointers apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MatmulPlan {
    /// Of the library's A, the right operand.
    pub transa: Operation,
    /// Of the library's B, the left operand.
    pub transb: Operation,
    /// Type that is accumulated in.
    pub compute: cublasComputeType_t,
    /// Type of alpha and beta.
    pub scale_type: cudaDataType_t,
    /// The right operand.
    pub a: Layout,
    /// The left operand.
    pub b: Layout,
    /// The result, and what is added to it.
    pub d: Layout,
    /// How the block scales of both operands are stored; `None` if they have none.
    pub scale_mode: Option<cublasLtMatmulMatrixScale_t>,
    /// Bias or not.
    pub epilogue: cublasLtEpilogue_t,
    /// Where alpha and beta lie.
    pub pointer_mode: cublasLtPointerMode_t,
    /// What is added.
    pub beta: Beta,
}

/// How an operand lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Which axis is summed over.
    pub along: Contraction,
    /// Distance between rows, in elements.
    pub row_stride: usize,
}

/// What a plan is made for, beside the operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Type of the result.
    pub out: DType,
    /// Where alpha lies.
    pub pointer_mode: cublasLtPointerMode_t,
    /// Bias or not.
    pub epilogue: cublasLtEpilogue_t,
    /// What is added.
    pub beta: Beta,
}

impl MatmulPlan {
    /// Plans `D [m, n] = alpha * A B^T (+ C) (+ bias)` for dense operands of one type.
    ///
    /// Sums are f32. f32 operands are multiplied as they are: `CUBLAS_COMPUTE_32F` does not round
    /// them to TF32.
    ///
    /// # Errors
    /// [`Unavailable::Types`] or [`Unavailable::Empty`].
    pub fn dense(
        dims: [usize; 3],
        dtype: DType,
        lhs: Stored,
        rhs: Stored,
        ends: Ends,
    ) -> Result<Self, Unavailable> {
        let [m, n, k] = dims;
        let (Some(operands), Some(out)) = (data_type(dtype), data_type(ends.out)) else {
            return Err(types(dtype, ends.out));
        };
        if ends.out != DType::F32 && ends.out != dtype {
            return Err(types(dtype, ends.out));
        }
        let (a, transa) = match rhs.along {
            Contraction::Columns => (layout(k, n, rhs.row_stride, operands), Operation::Transpose),
            Contraction::Rows => (layout(n, k, rhs.row_stride, operands), Operation::None),
        };
        let (b, transb) = match lhs.along {
            Contraction::Columns => (layout(k, m, lhs.row_stride, operands), Operation::None),
            Contraction::Rows => (layout(m, k, lhs.row_stride, operands), Operation::Transpose),
        };
        Self {
            transa,
            transb,
            compute: cublasComputeType_t::CUBLAS_COMPUTE_32F,
            scale_type: cudaDataType_t::CUDA_R_32F,
            a,
            b,
            d: layout(n, m, n, out),
            scale_mode: None,
            epilogue: ends.epilogue,
            pointer_mode: ends.pointer_mode,
            beta: ends.beta,
        }
        .not_empty(dims)
    }

    /// Plans `D [m, n] = alpha * A B^T` for NVFP4 operands packed along `k`, padding included.
    ///
    /// # Errors
    /// [`Unavailable::Fp4Alignment`] unless 16 bytes divide the rows of both operands, 32 elements,
    /// and those of the result; [`Unavailable::Types`] and [`Unavailable::Empty`].
    ///
    /// # Source
    /// cuBLAS 13 documentation, `cublasLtMatmul()`, table of block-scaled FP4 kernels.
    pub fn fp4(
        dims: [usize; 3],
        out: DType,
        pointer_mode: cublasLtPointerMode_t,
    ) -> Result<Self, Unavailable> {
        let [m, n, k] = dims;
        let Some(out_type) = data_type(out) else {
            return Err(types(DType::U32, out));
        };
        let row = 16 / out.size();
        for (what, found, multiple) in [
            ("the padded contraction length", k, 32),
            ("the number of result columns", n, row),
        ] {
            if found % multiple != 0 {
                return Err(Unavailable::Fp4Alignment {
                    what,
                    found,
                    multiple,
                });
            }
        }
        Self {
            transa: Operation::Transpose,
            transb: Operation::None,
            compute: cublasComputeType_t::CUBLAS_COMPUTE_32F,
            scale_type: cudaDataType_t::CUDA_R_32F,
            a: layout(k, n, k, cudaDataType_t::CUDA_R_4F_E2M1),
            b: layout(k, m, k, cudaDataType_t::CUDA_R_4F_E2M1),
            d: layout(n, m, n, out_type),
            scale_mode: Some(cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3),
            epilogue: cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT,
            pointer_mode,
            beta: Beta::Zero,
        }
        .not_empty(dims)
    }

    /// Makes the plan one for `count` products of dense matrices, each behind the one before it.
    ///
    /// # Errors
    /// [`Unavailable::Empty`] without a product, [`Unavailable::Batch`] with more than the library
    /// counts.
    pub fn batched(self, count: usize) -> Result<Self, Unavailable> {
        let [m, n, k] = self.dims();
        let len = |len: u64| usize::try_from(len).unwrap_or(usize::MAX);
        if count == 0 {
            return Err(Unavailable::Empty {
                m: len(m),
                n: len(n),
                k: len(k),
            });
        }
        let products = i32::try_from(count).map_err(|_| Unavailable::Batch { found: count })?;
        let repeated = |layout: Layout| Layout {
            batch: Batch {
                count: products,
                stride: layout.ld * layout.cols.cast_signed(),
            },
            ..layout
        };
        Ok(Self {
            a: repeated(self.a),
            b: repeated(self.b),
            d: repeated(self.d),
            ..self
        })
    }

    /// `[m, n, k]` of each product, as the caller counts them.
    pub const fn dims(&self) -> [u64; 3] {
        let k = match self.transa {
            Operation::None => self.a.cols,
            Operation::Transpose => self.a.rows,
        };
        [self.d.cols, self.d.rows, k]
    }

    /// Multiplications and additions.
    pub fn flops(&self) -> f64 {
        #[expect(
            clippy::cast_precision_loss,
            reason = "a rate is shown with three digits"
        )]
        let [m, n, k] = self.dims().map(|len| len as f64);
        2.0 * m * n * k * f64::from(self.d.batch.count)
    }

    fn not_empty(self, [m, n, k]: [usize; 3]) -> Result<Self, Unavailable> {
        if m == 0 || n == 0 || k == 0 {
            return Err(Unavailable::Empty { m, n, k });
        }
        Ok(self)
    }
}

fn layout(rows: usize, cols: usize, ld: usize, dtype: cudaDataType_t) -> Layout {
    // The library wants at least the rows, also of a matrix of one column, whose stride means
    // nothing.
    let ld = if cols == 1 { rows } else { ld };
    Layout {
        rows: rows as u64,
        cols: cols as u64,
        ld: ld.cast_signed() as i64,
        dtype,
        batch: Batch::ONE,
    }
}

fn types(operands: DType, out: DType) -> Unavailable {
    Unavailable::Types {
        lhs: operands,
        rhs: operands,
        out,
    }
}

fn data_type(dtype: DType) -> Option<cudaDataType_t> {
    if dtype == DType::F32 {
        Some(cudaDataType_t::CUDA_R_32F)
    } else if dtype == DType::BF16 {
        Some(cudaDataType_t::CUDA_R_16BF)
    } else if dtype == DType::F16 {
        Some(cudaDataType_t::CUDA_R_16F)
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
