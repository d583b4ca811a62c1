//! The portable engine: `cpu` on host memory.

use std::sync::Arc;

use burn_backend::tensor::FloatTensor;
use burn_backend::{DType, Shape, TensorData};
use half::{bf16, f16};

use super::{Lifetime, Nvfp4Engine, Operand, OperandRequest, Output, Reading};
use crate::cpu::{self, Contraction, DecodedMatrix, Element, MatrixView};
use crate::format::{PackedMatrix, TensorScale};
use crate::recipe::OperandSpec;
use crate::runtime::{self, NonFinite};
use crate::stats::OperandStatistics;

/// A float matrix in host memory.
#[derive(Clone, Copy, Debug)]
pub struct HostMatrix<'a> {
    /// The elements, dense.
    pub data: HostSlice<'a>,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Which index runs fastest.
    pub order: MemoryOrder,
}

/// Elements by dtype.
#[derive(Clone, Copy, Debug)]
pub enum HostSlice<'a> {
    /// f32.
    F32(&'a [f32]),
    /// f64; rounded to f32 before anything else.
    F64(&'a [f64]),
    /// bf16.
    Bf16(&'a [bf16]),
    /// f16.
    F16(&'a [f16]),
}

/// Which index of a matrix runs fastest in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryOrder {
    /// Columns: C order.
    RowMajor,
    /// Rows: Fortran order, what a transposed view is.
    ColumnMajor,
}

/// Runs one generic function on whichever element type a [`HostSlice`] holds.
macro_rules! on_slice {
    ($slice:expr, $data:ident => $body:expr) => {
        match $slice {
            HostSlice::F32($data) => $body,
            HostSlice::F64($data) => $body,
            HostSlice::Bf16($data) => $body,
            HostSlice::F16($data) => $body,
        }
    };
}

impl<'a> HostMatrix<'a> {
    /// Views dense row-major data as `[leading dims flattened, last dim]`.
    pub fn row_major(data: HostSlice<'a>, shape: &Shape) -> Self {
        let (rows, cols) = flat_dims(shape);
        Self {
            data,
            rows,
            cols,
            order: MemoryOrder::RowMajor,
        }
    }

    fn quantize(self, request: &OperandRequest<'_>, amax: Option<f32>) -> PackedMatrix {
        let (spec, key) = (&request.spec, request.key);
        on_slice!(self.data, data => {
            let (view, along) = self.view(data, request.along);
            match amax {
                None => cpu::quantize(view, along, spec, key),
                Some(amax) => cpu::quantize_with_amax(view, along, spec, amax, key),
            }
        })
        .expect("the spec is a quantized one and the view fills its shape")
    }

    fn quantize_decoded(
        self,
        request: &OperandRequest<'_>,
        amax: Option<f32>,
    ) -> (Vec<f32>, TensorScale) {
        let (spec, key) = (&request.spec, request.key);
        on_slice!(self.data, data => {
            let (view, along) = self.view(data, request.along);
            match amax {
                None => cpu::quantize_operand(view, along, spec, key),
                Some(amax) => cpu::quantize_operand_with_amax(view, along, spec, amax, key),
            }
        })
        .expect("the spec is a quantized one and the view fills its shape")
    }

    /// The data as a row-major view, and the axis of that view which `along` means.
    fn view<E: Element>(
        &self,
        data: &'a [E],
        along: Contraction,
    ) -> (MatrixView<'a, E>, Contraction) {
        let (rows, cols, along) = match self.order {
            MemoryOrder::RowMajor => (self.rows, self.cols, along),
            MemoryOrder::ColumnMajor => (self.cols, self.rows, along.other()),
        };
        let view = MatrixView::new(data, rows, cols).expect("dense data fills its shape");
        (view, along)
    }

    /// What quantizing it would do, under an amax if one is given.
    pub(super) fn statistics(
        self,
        request: &OperandRequest<'_>,
        amax: Option<f32>,
    ) -> OperandStatistics {
        let (spec, key) = (&request.spec, request.key);
        on_slice!(self.data, data => {
            let (view, along) = self.view(data, request.along);
            match amax {
                None => OperandStatistics::measure(view, along, spec, key),
                Some(amax) => OperandStatistics::measure_with_amax(view, along, spec, amax, key),
            }
        })
        .expect("the spec is a quantized one and the view fills its shape")
    }

    /// The first element.
    pub(super) fn first(self) -> f32 {
        on_slice!(self.data, data => data.first().map_or(f32::NAN, |x| x.to_f32()))
    }

    /// Share of the elements that are at least `bound`.
    pub(crate) fn share_from(self, bound: f32) -> f64 {
        let values = self.to_f32();
        let from = values.iter().filter(|value| **value >= bound).count();
        from as f64 / values.len().max(1) as f64
    }

    /// The matrix without its mean over tokens, row-major, and that mean.
    pub(super) fn split_token_mean(self) -> (Vec<f32>, Vec<f32>) {
        on_slice!(self.data, data => {
            let (view, over) = self.view(data, Contraction::Rows);
            let mean = cpu::token_mean(view, over);
            (cpu::without_mean(view, over, &mean), mean)
        })
    }

    fn to_f32(self) -> Vec<f32> {
        on_slice!(self.data, data => data.iter().map(|x| x.to_f32()).collect())
    }

    fn is_finite(self) -> bool {
        on_slice!(self.data, data => data.iter().all(|x| x.is_finite()))
    }

    /// Rows and length along `along`, with their distances in memory.
    fn strides(&self, along: Contraction) -> [(usize, usize); 2] {
        let (row_step, col_step) = match self.order {
            MemoryOrder::RowMajor => (self.cols, 1),
            MemoryOrder::ColumnMajor => (1, self.rows),
        };
        match along {
            Contraction::Columns => [(self.rows, row_step), (self.cols, col_step)],
            Contraction::Rows => [(self.cols, col_step), (self.rows, row_step)],
        }
    }
}

/// `[leading dims flattened, last dim]`.
pub(super) fn flat_dims(shape: &Shape) -> (usize, usize) {
    let cols = shape[shape.num_dims() - 1];
    let rows = (0..shape.num_dims() - 1).map(|dim| shape[dim]).product();
    (rows, cols)
}

/// Hands data that was read from a device to `read`.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enum is Burn's; whatever else it gets is no float dtype"
)]
pub(super) fn with_data<R>(
    data: &TensorData,
    shape: &Shape,
    read: impl FnOnce(HostMatrix<'_>) -> R,
) -> R {
    const DENSE: &str = "tensor data is dense and of its own dtype";
    let slice = match data.dtype {
        DType::F64 => HostSlice::F64(data.as_slice().expect(DENSE)),
        DType::BF16 => HostSlice::Bf16(data.as_slice().expect(DENSE)),
        DType::F16 => HostSlice::F16(data.as_slice().expect(DENSE)),
        DType::F32 | DType::Flex32 => HostSlice::F32(data.as_slice().expect(DENSE)),
        other => unreachable!("{other:?} is not a float dtype"),
    };
    read(HostMatrix::row_major(slice, shape))
}

/// [`Nvfp4Engine::quantize_operand`] on the host.
pub(super) fn quantize<B: Nvfp4Engine>(
    x: FloatTensor<B>,
    request: &OperandRequest<'_>,
) -> Operand<B> {
    quantize_under(x, request, None)
}

/// [`quantize`] under an amax, f32 `[1]`, if one is given.
pub(super) fn quantize_under<B: Nvfp4Engine>(
    x: FloatTensor<B>,
    request: &OperandRequest<'_>,
    amax: Option<FloatTensor<B>>,
) -> Operand<B> {
    if request.spec == OperandSpec::HighPrecision {
        return Operand::HighPrecision {
            tensor: x,
            along: request.along,
        };
    }
    let device = B::float_device(&x);
    let watched = runtime::is_watched::<B>(&device);
    let amax = amax.map(|amax| B::read_matrix(amax, |amax| amax.first()));
    B::read_matrix(x, |matrix| {
        if watched && !matrix.is_finite() {
            let (layer, operand) = (request.layer.to_owned(), request.operand);
            runtime::report_non_finite::<B>(&device, NonFinite { layer, operand });
        }
        match request.lifetime {
            Lifetime::Kept | Lifetime::NowAndKept => Operand::Packed {
                matrix: Arc::new(matrix.quantize(request, amax)),
                reading: Reading::AsPacked,
            },
            Lifetime::OneGemm => {
                let (values, scale) = matrix.quantize_decoded(request, amax);
                let [(rows, _), _] = matrix.strides(request.along);
                let k = values.len().checked_div(rows).unwrap_or(0);
                Operand::Decoded(Arc::new(DecodedMatrix {
                    values,
                    rows,
                    k,
                    row_stride: k,
                    k_stride: 1,
                    scale,
                }))
            }
        }
    })
}

/// [`Nvfp4Engine::gemm`] on the host.
pub(super) fn gemm<B: Nvfp4Engine>(
    lhs: &Operand<B>,
    rhs: &Operand<B>,
    bias: Option<FloatTensor<B>>,
    output: Output<'_, B>,
) -> FloatTensor<B> {
    let (lhs, rhs) = (decode(lhs), decode(rhs));
    let bias = bias.map(|bias| B::read_matrix(bias, |matrix| matrix.to_f32()));
    let values = cpu::gemm_decoded(&lhs, &rhs, bias.as_deref());
    B::from_values(values, output.shape, output.dtype, output.device)
}

/// The values of [`Nvfp4Engine::dequantize_operand`].
pub(super) fn dequantize<B: Nvfp4Engine>(
    operand: &Operand<B>,
    along: Contraction,
    shape: &Shape,
) -> Vec<f32> {
    let (rows, cols) = flat_dims(shape);
    let matrix = decode(operand);
    let DecodedMatrix { values, scale, .. } = &*matrix;
    let factors: Vec<f32> = scale.amax.iter().map(|a| a * (1.0 / scale.q_max)).collect();
    let mut out = Vec::with_capacity(rows * cols);
    for row in 0..rows {
        for col in 0..cols {
            let (r, k) = match along {
                Contraction::Columns => (row, col),
                Contraction::Rows => (col, row),
            };
            let value = values[r * matrix.row_stride + k * matrix.k_stride];
            let factor = match factors.as_slice() {
                [tensor] => *tensor,
                rows => rows[r],
            };
            out.push(value * factor);
        }
    }
    out
}

/// [`Nvfp4Engine::multiply_row`] on the host. Not a GEMM of one row: in which order that sums
/// depends on how the operand lies.
pub(super) fn multiply_row<B: Nvfp4Engine>(
    row: FloatTensor<B>,
    rhs: &Operand<B>,
    bias: Option<FloatTensor<B>>,
) -> Vec<f32> {
    let row = B::read_matrix(row, |matrix| matrix.to_f32());
    let rhs = decode(rhs);
    let mut sums = vec![0.0_f32; rhs.rows];
    let value = |n: usize, k: usize| rhs.values[n * rhs.row_stride + k * rhs.k_stride];
    // The same sums either way; what is read are neighbours.
    if rhs.k_stride == 1 {
        for (n, sum) in sums.iter_mut().enumerate() {
            let products = row.iter().enumerate().map(|(k, x)| x * value(n, k));
            *sum = products.fold(0.0, |sum, product| sum + product);
        }
    } else {
        for (k, x) in row.iter().enumerate() {
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum += x * value(n, k);
            }
        }
    }
    cpu::gemm_alpha(&TensorScale::unit(), &rhs.scale).apply(&mut sums, rhs.rows);
    if let Some(bias) = bias {
        let bias = B::read_matrix(bias, |matrix| matrix.to_f32());
        for (sum, bias) in sums.iter_mut().zip(bias) {
            *sum += bias;
        }
    }
    sums
}

/// The f32 values of an operand, whatever form it is in.
fn decode<B: Nvfp4Engine>(operand: &Operand<B>) -> Arc<DecodedMatrix> {
    match operand {
        Operand::Decoded(matrix) => matrix.clone(),
        Operand::Packed { matrix, reading } => {
            let values = cpu::decode_operand(matrix);
            let scale = matrix.tensor_scale().clone();
            // Padding along k is +0 and may be left out, save behind a Hadamard transform, where it
            // holds values; such an operand is never read transposed.
            let (rows, k, row_stride, k_stride) = match reading {
                Reading::AsPacked => (matrix.rows(), matrix.padded_k(), matrix.padded_k(), 1),
                Reading::Transposed => (matrix.k(), matrix.rows(), 1, matrix.padded_k()),
            };
            Arc::new(DecodedMatrix {
                values,
                rows,
                k,
                row_stride,
                k_stride,
                scale,
            })
        }
        Operand::Device(_) => unreachable!("the portable engine makes no operand in device memory"),
        Operand::HighPrecision { tensor, along } => {
            Arc::new(B::read_matrix(tensor.clone(), |matrix| {
                let [(rows, row_stride), (k, k_stride)] = matrix.strides(*along);
                DecodedMatrix {
                    values: matrix.to_f32(),
                    rows,
                    k,
                    row_stride,
                    k_stride,
                    scale: TensorScale::unit(),
                }
            }))
        }
    }
}
