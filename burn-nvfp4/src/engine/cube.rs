//! CubeCL backends (`Wgpu`, `Vulkan`, `Metal`, `Cuda`, `Rocm`): our kernels on their tensors.
//!
//! Nothing here reads a tensor back. What a GEMM reads depends on the device's routine
//! ([`routines`]): packed operands where it has FP4 tensor cores, code times block scale in bf16 or
//! f32 where it does not. Operands without elements take the portable way.

mod sides;
mod upload;
mod watch;

use std::borrow::Cow;

use burn_backend::ops::FloatTensorOps;
use burn_backend::tensor::{Device, FloatTensor};
use burn_backend::{Backend, DType, DeviceOps, Shape, Slice};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::server::ComputeServer;
use cubecl_common::stream_id::StreamId;

use self::sides::{Dense, Sides, dense, fp4, operand_scale};
use super::fusion::Form;
use super::linear::KeptUse;
use super::{
    DeviceDecoded, DeviceOperand, DevicePacked, DeviceScales, Lifetime, MemoryGauge, MemoryInUse,
    Nvfp4Engine, Operand, OperandRequest, Output, PackedLayout, Reading, Support, host, linear,
};
use crate::cpu::Contraction;
use crate::kernels::alpha::OperandScale;
use crate::kernels::gemm::routine::{DenseRoutine, Fp4Routine, routines};
use crate::kernels::quantize::{Job, Packing, Quantized, packs_either_axis, quantize_under};
use crate::kernels::{self, PackedTensor};
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
        let own = vec![None; requests.len()];
        Self::quantize_operands_under(x, requests, &own, other)
    }

    fn quantize_operands_under(
        x: FloatTensor<Self>,
        requests: &[OperandRequest<'_>],
        amaxes: &[Option<FloatTensor<Self>>],
        other: Option<&Operand<Self>>,
    ) -> Vec<Operand<Self>> {
        if x.meta.num_elements() == 0 {
            let on_host = |request| host::quantize::<Self>(x.clone(), request);
            return requests.iter().map(on_host).collect();
        }
        let quantized = requests.iter().zip(amaxes);
        let quantized = quantized.filter(|(r, _)| r.spec.is_quantized());
        let (jobs, amaxes): (Vec<_>, Vec<_>) = quantized
            .map(|(request, amax)| (job::<R>(&x.device, request), amax.clone()))
            .unzip();
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
            quantize_under(&x, &jobs, &amaxes, watch.as_ref(), other.as_ref())
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

    fn dequantize_operand(
        operand: &Operand<Self>,
        along: Contraction,
        shape: Shape,
        device: &Device<Self>,
    ) -> FloatTensor<Self> {
        let Some((dense, _)) = Dense::new(operand, None) else {
            // Nothing, or what the host quantized because it is nothing.
            return Self::from_values(vec![], shape, DType::F32, device);
        };
        let values = dense.cast(DType::F32);
        let OperandScale { amax, q_max } = values.scale;
        // Packed operands come decoded with their contraction axis last.
        let matrix = match (values.along, along) {
            (Contraction::Columns, Contraction::Rows)
            | (Contraction::Rows, Contraction::Columns) => Self::float_transpose(values.values),
            (Contraction::Columns, Contraction::Columns)
            | (Contraction::Rows, Contraction::Rows) => values.values,
        };
        // Blocks may have padded the contraction axis.
        let cols = shape.as_slice().last().copied().unwrap_or(1);
        let rows = shape.num_elements() / cols.max(1);
        let matrix = if matrix.meta.shape().as_slice() == [rows, cols] {
            matrix
        } else {
            Self::float_slice(matrix, &[Slice::from(0..rows), Slice::from(0..cols)])
        };
        let matrix = match amax {
            None => matrix,
            Some(amax) => {
                let amaxes = amax.meta.num_elements();
                let factor = Self::float_mul_scalar(amax, (1.0 / q_max).into());
                let factor = Self::float_reshape(
                    factor,
                    match along {
                        Contraction::Columns => Shape::new([amaxes, 1]),
                        Contraction::Rows => Shape::new([1, amaxes]),
                    },
                );
                Self::float_mul(matrix, factor)
            }
        };
        Self::float_reshape(matrix, shape)
    }

    fn multiply_row(
        row: FloatTensor<Self>,
        rhs: &Operand<Self>,
        bias: Option<FloatTensor<Self>>,
        device: &Device<Self>,
    ) -> FloatTensor<Self> {
        let n = sides::rows(rhs);
        // A factor that came with the operand belongs to the GEMM that it was quantized for.
        let rhs = rhs.clone().without_alpha();
        let row = Operand::HighPrecision {
            tensor: row,
            along: Contraction::Columns,
        };
        let output = Output {
            shape: Shape::new([1, n]),
            dtype: DType::F32,
            device,
        };
        Self::float_reshape(Self::gemm(&row, &rhs, bias, output), Shape::new([n]))
    }

    fn split_token_mean(x: FloatTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        kernels::mean::split_token_mean(&x)
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

    fn gemm_routine(
        lhs: &Operand<Self>,
        rhs: &Operand<Self>,
        device: &Device<Self>,
    ) -> Cow<'static, str> {
        let routines = routines::<R>(device);
        let reason = if sides::both_packed(lhs, rhs) {
            &routines.fp4.reason
        } else {
            &routines.dense.reason
        };
        Cow::Owned(reason.to_string())
    }

    fn memory_gauge(device: &Device<Self>) -> Option<MemoryGauge> {
        // Each stream has an allocator of its own.
        let (client, stream) = (R::client(device), StreamId::current());
        Some(Box::new(move || {
            let usage = stream.executes(|| client.memory_usage()).ok()?;
            Some(MemoryInUse {
                in_use: usage.bytes_in_use,
                reserved: usage.bytes_reserved,
            })
        }))
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
            scale: ScaleRule::Tensor | ScaleRule::FourOverSix { .. } | ScaleRule::Eden,
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
            k: parts.k,
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
