//! What the code around the kernels asks of tensors and devices.

use std::sync::atomic::{AtomicU64, Ordering};

use burn_backend::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_std::{Metadata, strides};
use cubecl::client::ComputeClient;
use cubecl::ir::features::TypeUsage;

use super::source::Source;
use crate::cpu::Contraction;
use crate::format::Format;
use crate::format::scale::{FP8_Q_MAX, NVFP4_Q_MAX, NVFP4_Q_MAX_256};
use crate::recipe::{OperandSpec, ScaleBound, ScaleRule};

static LAUNCHES: AtomicU64 = AtomicU64::new(0);

/// Kernels of ours launched so far, in the process: what small shapes are bound by. GEMMs are
/// counted by their routines.
pub fn launches() -> u64 {
    LAUNCHES.load(Ordering::Relaxed)
}

/// Counts one kernel; whoever launches one calls it.
pub fn count_launch() {
    LAUNCHES.fetch_add(1, Ordering::Relaxed);
}

/// True if tensors of a dtype can lie in buffers of the device.
pub fn stores<R: CubeRuntime>(client: &ComputeClient<R>, dtype: DType) -> bool {
    let usage = client.properties().type_usage(dtype.into());
    usage.is_superset(TypeUsage::Buffer | TypeUsage::Conversion)
}

/// The tensor as a dense row-major matrix, leading dims flattened, and the axis of it that is
/// `along` of the tensor. A transposed matrix is taken as it lies.
pub fn as_matrix<R: CubeRuntime>(
    tensor: &CubeTensor<R>,
    along: Contraction,
) -> (CubeTensor<R>, Contraction) {
    let source = Source::new(tensor);
    let along = source.along(along);
    let shape = Shape::new([source.rows, source.cols]);
    let stride = source.stride();
    let mut tensor = source.tensor;
    if stride != source.cols {
        // As it lies: a dense copy of a transposed view would be another matrix.
        *tensor.meta = Metadata::new(shape.clone(), strides![stride, 1]);
        tensor = into_contiguous(tensor);
    }
    let CubeTensor {
        client,
        handle,
        device,
        dtype,
        ..
    } = tensor;
    let matrix = CubeTensor::new_contiguous(client, device, shape, handle, dtype);
    (matrix, along)
}

/// One f32 1 on the device of another tensor.
pub fn one<R: CubeRuntime>(like: &CubeTensor<R>) -> CubeTensor<R> {
    let handle = like.client.create_from_slice(&1.0_f32.to_ne_bytes());
    let (client, device) = (like.client.clone(), like.device.clone());
    CubeTensor::new_contiguous(client, device, Shape::new([1]), handle, DType::F32)
}

/// Shapes and dtypes of the parts of a packed operand.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedParts {
    /// Length of the contraction axis ([`OperandSpec::packed_k`]).
    pub k: usize,
    /// `k` rounded up to whole blocks.
    pub padded_k: usize,
    /// The format of codes and scales.
    pub format: Format,
    /// What the amax is mapped to.
    pub q_max: f32,
    /// Shape of the code words.
    pub codes: Shape,
    /// Shape and dtype of the block scales, if the format has blocks.
    pub scales: Option<(Shape, DType)>,
    /// Shape of the amax.
    pub amax: Shape,
}

/// Shape of the block scales of a `[rows, padded_k]` operand.
pub(crate) fn scale_shape(format: Format, rows: usize, padded_k: usize) -> Shape {
    let block = format.block_dims();
    Shape::new([rows.div_ceil(block.rows), padded_k / block.k.max(1)])
}

/// What [`quantize`](super::quantize::quantize) makes of a `[rows, k]` operand.
///
/// # Panics
/// If the spec is high precision, or the matrix is too large to be counted.
pub fn packed_parts<R: CubeRuntime>(
    client: &ComputeClient<R>,
    spec: &OperandSpec,
    rows: usize,
    k: usize,
) -> PackedParts {
    let (format, q_max, amaxes) = match *spec {
        OperandSpec::HighPrecision => panic!("a high-precision operand is not packed"),
        OperandSpec::Nvfp4 { block, scale, .. } => {
            let (q_max, amaxes) = match scale {
                ScaleRule::Tensor => (NVFP4_Q_MAX, 1),
                ScaleRule::Row => (NVFP4_Q_MAX, rows),
                ScaleRule::Eden => (NVFP4_Q_MAX_256, 1),
                ScaleRule::FourOverSix { bound, .. } => match bound {
                    ScaleBound::E4m3At256 => (NVFP4_Q_MAX_256, 1),
                    ScaleBound::E4m3At448 => (NVFP4_Q_MAX, 1),
                },
            };
            (Format::Nvfp4 { block }, q_max, amaxes)
        }
        OperandSpec::Mxfp4 { .. } => (Format::Mxfp4, 1.0, 1),
        OperandSpec::Mxfp8 { .. } => (Format::Mxfp8, 1.0, 1),
        OperandSpec::Fp8 { scaling } => {
            let q_max = match scaling {
                crate::format::Fp8Scaling::Tensor => FP8_Q_MAX,
                crate::format::Fp8Scaling::Row128 | crate::format::Fp8Scaling::Tile128x128 => 1.0,
            };
            (Format::Fp8 { scaling }, q_max, 1)
        }
    };
    let k = spec.packed_k(k);
    let layout = format
        .layout(rows, k)
        .expect("a tensor that exists has a size that can be counted");
    // A format without blocks is still padded to whole groups of sixteen.
    let padded_k = layout.padded_k.next_multiple_of(16);
    let scales = scale_shape(format, rows, padded_k);
    let scales = match format {
        Format::Nvfp4 { .. } | Format::Mxfp4 | Format::Mxfp8 => Some((scales, bytes_dtype(client))),
        Format::Fp8 {
            scaling: crate::format::Fp8Scaling::Tensor,
        } => None,
        Format::Fp8 {
            scaling: crate::format::Fp8Scaling::Row128 | crate::format::Fp8Scaling::Tile128x128,
        } => Some((scales, DType::F32)),
    };
    PackedParts {
        k,
        padded_k,
        format,
        q_max,
        codes: Shape::new([rows, padded_k * format.code_bits() / 32]),
        scales,
        amax: Shape::new([amaxes]),
    }
}

/// How a device stores bytes: as such, or one to a word, since WGSL has none.
pub(crate) fn bytes_dtype<R: CubeRuntime>(client: &ComputeClient<R>) -> DType {
    let usage = client.properties().type_usage(DType::U8.into());
    if usage.contains(TypeUsage::Buffer) {
        DType::U8
    } else {
        DType::U32
    }
}
