//! CubeCL backends (`Wgpu`, `Vulkan`, `Metal`, `Cuda`, `Rocm`): our kernels on their tensors.
//!
//! Nothing here reads a tensor back. What a GEMM reads depends on the device's routine
//! ([`routines`]): packed operands where it has FP4 tensor cores, code times block scale in bf16 or
//! f32 where it does not. Operands without elements take the portable way.

mod upload;
mod watch;

use burn_backend::ops::FloatTensorOps;
use burn_backend::tensor::{Device, FloatTensor};
use burn_backend::{Backend, DType, DeviceOps, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_std::{Metadata, strides};
use cubecl::server::ComputeServer;

use super::fusion::Form;
use super::linear::KeptUse;
use super::{
    DeviceDecoded, DeviceOperand, DevicePacked, DeviceScales, Lifetime, Nvfp4Engine, Operand,
    OperandRequest, Output, PackedLayout, Reading, Support, host, linear,
};
use crate::cpu::Contraction;
use crate::format::Format;
use crate::kernels::alpha::{OperandScale, alpha};
use crate::kernels::gemm::routine::{DenseRoutine, Fp4Routine, routines};
use crate::kernels::gemm::{self, Problem, Scale, epilogue};
use crate::kernels::quantize::{Job, Packing, Quantized, packs_either_axis, quantize_for};
use crate::kernels::{self, DecodedTensor, PackedTensor, dequantize};
use crate::packed_weights::PackedWeight;
use crate::recipe::{OperandSpec, ScaleRule};
use crate::runtime;

impl<R, F, I, BT> Nvfp4Engine for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    R::Server: ComputeServer,
    R::Device: DeviceOps,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    fn quantize_operand(x: FloatTensor<Self>, request: &OperandRequest<'_>) -> Operand<Self> {
        let mut operands = Self::quantize_operands(x, std::slice::from_ref(request), None);
        operands.pop().expect("one operand for each request")
    }

    fn quantize_operands(
        x: FloatTensor<Self>,
        requests: &[OperandRequest<'_>],
        other: Option<&Operand<Self>>,
    ) -> Vec<Operand<Self>> {
        if x.meta.num_elements() == 0 {
            let on_host = |request| host::quantize::<Self>(x.clone(), request);
            return requests.iter().map(on_host).collect();
        }
        let quantized = requests.iter().filter(|r| r.spec.is_quantized());
        let jobs: Vec<_> = quantized.map(|r| job::<R>(&x.device, r)).collect();
        let mut made = if jobs.is_empty() {
            vec![]
        } else {
            // What serves both axes is packed along the one that is contiguous in memory. A node
            // under fusion says in advance which one that is: the last.
            let packs = jobs.iter().any(|job| job.packing == Packing::EitherAxis);
            let x = if packs {
                into_contiguous(x.clone())
            } else {
                x.clone()
            };
            let watch = runtime::is_watched::<Self>(&x.device)
                .then(|| watch::watch::<Self, R>(&x, &requests[0]));
            let other = other
                .filter(|_| requests[0].spec.is_quantized())
                .and_then(operand_scale);
            quantize_for(&x, &jobs, watch.as_ref(), other.as_ref())
        }
        .into_iter();
        let operands = requests.iter().map(|request| {
            if request.spec.is_quantized() {
                Operand::Device(device_operand(made.next().expect("a result for each job")))
            } else {
                Operand::HighPrecision {
                    tensor: x.clone(),
                    along: request.along,
                }
            }
        });
        operands.collect()
    }

    fn load_weight(weight: &PackedWeight, device: &Device<Self>) -> Operand<Self> {
        weight.loaded(|matrix| {
            if matrix.rows() == 0 || matrix.k() == 0 {
                let (matrix, reading) = (matrix.clone(), Reading::AsPacked);
                return Operand::Packed { matrix, reading };
            }
            let packed = upload::upload::<R>(matrix, device);
            Operand::Device(DeviceOperand {
                packed: Some(device_packed(packed, Reading::AsPacked)),
                decoded: None,
                alpha: None,
            })
        })
    }

    fn packs_for_both_axes(device: &Device<Self>) -> bool {
        routines::<R>(device).fp4.routine == Fp4Routine::Emulated
    }

    fn has_own_gemm(device: &Device<Self>) -> bool {
        routines::<R>(device).dense.routine == DenseRoutine::CublasLt
    }

    fn gemm(
        lhs: &Operand<Self>,
        rhs: &Operand<Self>,
        bias: Option<FloatTensor<Self>>,
        output: Output<'_, Self>,
    ) -> FloatTensor<Self> {
        let bias = bias.map(|bias| linear::cast::<Self>(bias, DType::F32));
        let dtype = output.dtype;
        let product = match Sides::new(lhs, rhs) {
            Sides::Empty => {
                // Rows of nothing, or sums over nothing.
                let zeros = vec![0.0; output.shape.num_elements()];
                return Self::from_values(zeros, output.shape, dtype, output.device);
            }
            Sides::Fp4(sides, alpha) => fp4(*sides, alpha, bias, dtype),
            Sides::Dense(sides, alpha) => dense(*sides, alpha, bias, dtype),
        };
        Self::float_reshape(product, output.shape)
    }

    fn support(device: &Device<Self>) -> Support {
        let client = R::client(device);
        let routines = routines::<R>(device);
        Support {
            quantize: format!("CubeCL kernels on {}", R::name(&client)).into(),
            gemm: format!(
                "NVFP4: {}; dense: {}",
                routines.fp4.reason, routines.dense.reason
            )
            .into(),
        }
    }
}

/// A request in terms of the kernels.
fn job<R: CubeRuntime>(device: &R::Device, request: &OperandRequest<'_>) -> Job {
    let spec = request.spec;
    let native = reads_packed::<R>(device, &spec);
    let decoded = (!native && request.lifetime != Lifetime::Kept).then(|| {
        let f32_scales = matches!(spec, OperandSpec::Fp8 { .. });
        decoded_dtype::<R>(device, f32_scales)
    });
    let packing = match request.lifetime {
        _ if native => Packing::AskedAxis,
        Lifetime::OneGemm => Packing::None,
        Lifetime::Kept | Lifetime::NowAndKept => Packing::EitherAxis,
    };
    Job {
        spec,
        along: request.along,
        key: request.key,
        packing,
        decoded,
    }
}

fn device_operand<B, R>(quantized: Quantized<R>) -> DeviceOperand<B>
where
    B: Backend<FloatTensorPrimitive = CubeTensor<R>, IntTensorPrimitive = CubeTensor<R>>,
    R: CubeRuntime,
{
    let Quantized {
        packed,
        reading,
        decoded,
        alpha,
    } = quantized;
    DeviceOperand {
        alpha,
        packed: packed.map(|packed| device_packed(packed, reading)),
        decoded: decoded.map(|decoded| DeviceDecoded {
            values: decoded.values,
            along: decoded.along,
            amax: decoded.amax,
            q_max: decoded.q_max,
        }),
    }
}

/// True if the GEMM of this device reads packed operands of this kind.
fn reads_packed<R: CubeRuntime>(device: &R::Device, spec: &OperandSpec) -> bool {
    is_native(spec) && routines::<R>(device).fp4.routine != Fp4Routine::Emulated
}

/// True if FP4 tensor cores can read the operand: NVFP4 with one scale per tensor.
fn is_native(spec: &OperandSpec) -> bool {
    matches!(
        spec,
        OperandSpec::Nvfp4 {
            scale: ScaleRule::Tensor | ScaleRule::FourOverSix { .. },
            ..
        }
    )
}

/// The narrowest dtype of the device in which code times block scale is exact: f32 scales need f32.
fn decoded_dtype<R: CubeRuntime>(device: &R::Device, f32_scales: bool) -> DType {
    if !f32_scales && kernels::stores::<R>(&R::client(device), DType::BF16) {
        DType::BF16
    } else {
        DType::F32
    }
}

/// What a node will keep of a tensor of this shape for `kept`, known before it is made.
pub(super) fn kept_form<R: CubeRuntime>(device: &R::Device, kept: KeptUse, shape: &Shape) -> Form {
    let KeptUse { later, one_packing } = kept;
    if !later.spec.is_quantized() {
        return Form::HighPrecision { along: later.along };
    }
    let read_packed = reads_packed::<R>(device, &later.spec);
    let (along, reading) = match later.along {
        Contraction::Rows if !read_packed && packs_either_axis(&later.spec) => {
            (Contraction::Columns, Reading::Transposed)
        }
        // Packed along the axis of fprop, which is the other one.
        along if one_packing && !read_packed && !packs_either_axis(&later.spec) => {
            (along.other(), Reading::Transposed)
        }
        Contraction::Columns | Contraction::Rows => (later.along, Reading::AsPacked),
    };
    let (rows, cols) = host::flat_dims(shape);
    let (rows, k) = match along {
        Contraction::Columns => (rows, cols),
        Contraction::Rows => (cols, rows),
    };
    let parts = kernels::packed_parts::<R>(&R::client(device), &later.spec, rows, k);
    Form::Packed {
        layout: PackedLayout {
            rows,
            k,
            padded_k: parts.padded_k,
            format: parts.format,
            q_max: parts.q_max,
        },
        reading,
        codes: parts.codes,
        scales: parts.scales,
        amax: parts.amax,
    }
}

fn device_packed<B, R>(packed: PackedTensor<R>, reading: Reading) -> DevicePacked<B>
where
    B: Backend<FloatTensorPrimitive = CubeTensor<R>, IntTensorPrimitive = CubeTensor<R>>,
    R: CubeRuntime,
{
    DevicePacked {
        layout: PackedLayout {
            rows: packed.rows,
            k: packed.k,
            padded_k: packed.padded_k,
            format: packed.format,
            q_max: packed.q_max,
        },
        reading,
        codes: packed.codes,
        scales: match packed.scales {
            kernels::DeviceScales::None => DeviceScales::None,
            kernels::DeviceScales::Bytes(scales) => DeviceScales::Bytes(scales),
            kernels::DeviceScales::F32(scales) => DeviceScales::F32(scales),
        },
        amax: packed.amax,
    }
}

fn packed_tensor<B, R>(packed: &DevicePacked<B>) -> PackedTensor<R>
where
    B: Backend<FloatTensorPrimitive = CubeTensor<R>, IntTensorPrimitive = CubeTensor<R>>,
    R: CubeRuntime,
{
    let PackedLayout {
        rows,
        k,
        padded_k,
        format,
        q_max,
    } = packed.layout;
    PackedTensor {
        rows,
        k,
        padded_k,
        format,
        q_max,
        codes: packed.codes.clone(),
        scales: match &packed.scales {
            DeviceScales::None => kernels::DeviceScales::None,
            DeviceScales::Bytes(scales) => kernels::DeviceScales::Bytes(scales.clone()),
            DeviceScales::F32(scales) => kernels::DeviceScales::F32(scales.clone()),
        },
        amax: packed.amax.clone(),
    }
}

/// The two operands, as the routine that fits both reads them.
enum Sides<R: CubeRuntime> {
    /// One of them has no elements.
    Empty,
    /// Packed, contraction axis last, and the factor after the GEMM if it is there.
    Fp4(Box<[PackedTensor<R>; 2]>, Option<CubeTensor<R>>),
    /// Anything else.
    Dense(Box<[Dense<R>; 2]>, Option<CubeTensor<R>>),
}

/// An operand of a dense GEMM.
struct Dense<R: CubeRuntime> {
    values: CubeTensor<R>,
    along: Contraction,
    scale: OperandScale<R>,
    /// False if `values` is a tensor of the caller's in its own dtype.
    quantized: bool,
}

impl<R: CubeRuntime> Sides<R> {
    fn new<B>(lhs: &Operand<B>, rhs: &Operand<B>) -> Self
    where
        B: Backend<FloatTensorPrimitive = CubeTensor<R>, IntTensorPrimitive = CubeTensor<R>>,
    {
        let mut alpha = given_alpha(rhs).or_else(|| given_alpha(lhs));
        if let (Some(lhs), Some(rhs)) = (packed_only(lhs), packed_only(rhs)) {
            return Self::Fp4(Box::new([packed_tensor(lhs), packed_tensor(rhs)]), alpha);
        }
        // What has to be decoded makes the factor on the way.
        let mut dense = |operand, other| {
            let other = if alpha.is_none() {
                operand_scale(other)
            } else {
                None
            };
            let (dense, made) = Dense::new(operand, other.as_ref())?;
            alpha = alpha.take().or(made);
            Some(dense)
        };
        match (dense(lhs, rhs), dense(rhs, lhs)) {
            (Some(lhs), Some(rhs)) => Self::Dense(Box::new([lhs, rhs]), alpha),
            _ => Self::Empty,
        }
    }
}

/// The factor that came with an operand.
fn given_alpha<B, R>(operand: &Operand<B>) -> Option<CubeTensor<R>>
where
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
    R: CubeRuntime,
{
    match operand {
        Operand::Device(DeviceOperand { alpha, .. }) => alpha.clone(),
        Operand::HighPrecision { .. } | Operand::Packed { .. } | Operand::Decoded(_) => None,
    }
}

/// The tensor scale of an operand in device memory.
fn operand_scale<B, R>(operand: &Operand<B>) -> Option<OperandScale<R>>
where
    B: Backend<FloatTensorPrimitive = CubeTensor<R>, IntTensorPrimitive = CubeTensor<R>>,
    R: CubeRuntime,
{
    match operand {
        Operand::HighPrecision { .. } => Some(OperandScale::NONE),
        Operand::Device(DeviceOperand {
            decoded: Some(decoded),
            ..
        }) => Some(OperandScale {
            amax: decoded.amax.clone(),
            q_max: decoded.q_max,
        }),
        Operand::Device(DeviceOperand {
            packed: Some(packed),
            ..
        }) => Some(packed_tensor(packed).scale()),
        Operand::Device(_) | Operand::Packed { .. } | Operand::Decoded(_) => None,
    }
}

/// The packed form of an operand that FP4 tensor cores can read as it lies.
fn packed_only<B, R>(operand: &Operand<B>) -> Option<&DevicePacked<B>>
where
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
    R: CubeRuntime,
{
    match operand {
        Operand::Device(DeviceOperand {
            packed: Some(packed),
            decoded: None,
            ..
        }) => {
            let nvfp4 = matches!(packed.layout.format, Format::Nvfp4 { .. });
            let fp4 = routines::<R>(&packed.amax.device).fp4.routine != Fp4Routine::Emulated;
            let one_scale = packed.amax.meta.num_elements() == 1;
            (nvfp4 && fp4 && one_scale && packed.reading == Reading::AsPacked).then_some(packed)
        }
        Operand::Device(_)
        | Operand::HighPrecision { .. }
        | Operand::Packed { .. }
        | Operand::Decoded(_) => None,
    }
}

impl<R: CubeRuntime> Dense<R> {
    /// With the factor after the GEMM, if `other`, the scale of its other operand, is given and
    /// this one is decoded here. `None` if the operand has no elements, and so no memory on the
    /// device.
    fn new<B>(
        operand: &Operand<B>,
        other: Option<&OperandScale<R>>,
    ) -> Option<(Self, Option<CubeTensor<R>>)>
    where
        B: Backend<FloatTensorPrimitive = CubeTensor<R>, IntTensorPrimitive = CubeTensor<R>>,
    {
        match operand {
            Operand::HighPrecision { tensor, along } => {
                if tensor.meta.num_elements() == 0 {
                    return None;
                }
                let (values, along) = kernels::as_matrix(tensor, *along);
                let dense = Self {
                    values,
                    along,
                    scale: OperandScale::NONE,
                    quantized: false,
                };
                Some((dense, None))
            }
            Operand::Device(DeviceOperand {
                decoded: Some(decoded),
                ..
            }) => {
                let dense = Self {
                    values: decoded.values.clone(),
                    along: decoded.along,
                    scale: OperandScale {
                        amax: decoded.amax.clone(),
                        q_max: decoded.q_max,
                    },
                    quantized: true,
                };
                Some((dense, None))
            }
            Operand::Device(DeviceOperand {
                packed: Some(packed),
                ..
            }) => {
                let device = &packed.amax.device;
                let f32_scales = matches!(packed.layout.format, Format::Fp8 { .. });
                let dtype = decoded_dtype::<R>(device, f32_scales);
                let tensor = packed_tensor(packed);
                let (mut decoded, alpha) = match other {
                    Some(other) => dequantize::decode_for(&tensor, dtype, other),
                    None => (dequantize::decode(&tensor, dtype), None),
                };
                let PackedLayout {
                    rows, k, padded_k, ..
                } = packed.layout;
                if packed.reading == Reading::Transposed && padded_k != k {
                    // Read along the other axis, the padding would be rows of the operand.
                    let shape = Shape::new([rows, k]);
                    let strides = strides![padded_k, 1];
                    *decoded.values.meta = Metadata::new(shape, strides);
                    decoded.values = into_contiguous(decoded.values);
                }
                Some((Self::decoded(decoded, packed.reading), alpha))
            }
            Operand::Device(_) | Operand::Packed { .. } | Operand::Decoded(_) => None,
        }
    }

    fn decoded(decoded: DecodedTensor<R>, reading: Reading) -> Self {
        let DecodedTensor {
            values,
            along,
            amax,
            q_max,
        } = decoded;
        Self {
            values,
            along: match reading {
                Reading::AsPacked => along,
                Reading::Transposed => along.other(),
            },
            scale: OperandScale { amax, q_max },
            quantized: true,
        }
    }

    fn cast(mut self, dtype: DType) -> Self {
        if self.values.dtype != dtype {
            self.values = burn_cubecl::kernel::cast(self.values, dtype);
        }
        self
    }
}

/// A GEMM of packed operands on FP4 tensor cores.
fn fp4<R: CubeRuntime>(
    [lhs, rhs]: [PackedTensor<R>; 2],
    given: Option<CubeTensor<R>>,
    bias: Option<CubeTensor<R>>,
    out: DType,
) -> CubeTensor<R> {
    let alpha = given.or_else(|| alpha(&lhs.scale(), &rhs.scale()));
    gemm::fp4(&lhs, &rhs, alpha, bias, out)
}

/// A GEMM of dense operands, tensor scales after it.
fn dense<R: CubeRuntime>(
    [lhs, rhs]: [Dense<R>; 2],
    given: Option<CubeTensor<R>>,
    bias: Option<CubeTensor<R>>,
    out: DType,
) -> CubeTensor<R> {
    let dtype = common_dtype(&lhs, &rhs);
    let (lhs, rhs) = (lhs.cast(dtype), rhs.cast(dtype));
    let problem = Problem {
        lhs: lhs.values,
        lhs_along: lhs.along,
        rhs: rhs.values,
        rhs_along: rhs.along,
        alpha: None,
        bias: None,
        accumulate: None,
        out: DType::F32,
    };
    if !(lhs.scale.is_single() && rhs.scale.is_single()) {
        let one = || kernels::one(&problem.lhs);
        let scale = Scale::Rows {
            factor: 1.0 / (lhs.scale.q_max * rhs.scale.q_max),
            lhs: lhs.scale.amax.unwrap_or_else(one),
            rhs: rhs.scale.amax.unwrap_or_else(one),
        };
        return epilogue::finish(gemm::dense(problem), scale, bias, out);
    }
    let alpha = given.or_else(|| alpha(&lhs.scale, &rhs.scale));
    gemm::dense(Problem {
        alpha,
        bias,
        out,
        ..problem
    })
}

/// The dtype in which two operands meet.
///
/// Decoded values fit every dtype that an operand has here. Of two tensors of the caller's, the
/// activation has the narrow dtype and a master weight the wide one: activations decide.
fn common_dtype<R: CubeRuntime>(lhs: &Dense<R>, rhs: &Dense<R>) -> DType {
    let (l, r) = (lhs.values.dtype, rhs.values.dtype);
    let narrow = |dtype| matches!(dtype, DType::BF16 | DType::F16);
    match (lhs.quantized, rhs.quantized) {
        _ if l == r => l,
        (false, false) if narrow(l) => l,
        (false, false) if narrow(r) => r,
        _ => DType::F32,
    }
}
