//! The two operands of a GEMM in device memory, brought to the form that its routine reads.

use burn_backend::{Backend, DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_std::{Metadata, strides};

use super::super::host::flat_dims;
use super::super::{DeviceOperand, DevicePacked, Operand, PackedLayout, Reading};
use super::{decoded_dtype, packed_tensor};
use crate::cpu::Contraction;
use crate::format::Format;
use crate::kernels::alpha::{OperandScale, alpha};
use crate::kernels::gemm::routine::{Fp4Routine, routines};
use crate::kernels::gemm::{self, Problem, Scale, epilogue};
use crate::kernels::{self, DecodedTensor, PackedTensor, dequantize};

/// The two operands, as the routine that fits both reads them.
pub(super) enum Sides<R: CubeRuntime> {
    /// One of them has no elements.
    Empty,
    /// Packed, contraction axis last, and the factor after the GEMM if it is there.
    Fp4(Box<[PackedTensor<R>; 2]>, Option<CubeTensor<R>>),
    /// Anything else.
    Dense(Box<[Dense<R>; 2]>, Option<CubeTensor<R>>),
}

/// An operand of a dense GEMM.
pub(super) struct Dense<R: CubeRuntime> {
    pub(super) values: CubeTensor<R>,
    pub(super) along: Contraction,
    pub(super) scale: OperandScale<R>,
    /// False if `values` is a tensor of the caller's in its own dtype.
    quantized: bool,
}

impl<R: CubeRuntime> Sides<R> {
    pub(super) fn new<B>(lhs: &Operand<B>, rhs: &Operand<B>) -> Self
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
pub(super) fn operand_scale<B, R>(operand: &Operand<B>) -> Option<OperandScale<R>>
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

/// True if FP4 tensor cores multiply the two as they lie.
pub(super) fn both_packed<B, R>(lhs: &Operand<B>, rhs: &Operand<B>) -> bool
where
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
    R: CubeRuntime,
{
    packed_only(lhs).is_some() && packed_only(rhs).is_some()
}

/// Rows of an operand: the axis that a GEMM does not sum over.
pub(super) fn rows<B, R>(operand: &Operand<B>) -> usize
where
    B: Backend<FloatTensorPrimitive = CubeTensor<R>>,
    R: CubeRuntime,
{
    let other_axis = |shape: &Shape, along| {
        let (rows, cols) = flat_dims(shape);
        match along {
            Contraction::Columns => rows,
            Contraction::Rows => cols,
        }
    };
    match operand {
        Operand::HighPrecision { tensor, along } => other_axis(tensor.meta.shape(), *along),
        Operand::Packed { matrix, reading } => match reading {
            Reading::AsPacked => matrix.rows(),
            Reading::Transposed => matrix.k(),
        },
        Operand::Decoded(matrix) => matrix.rows,
        Operand::Device(DeviceOperand {
            packed, decoded, ..
        }) => match (decoded, packed) {
            (Some(decoded), _) => other_axis(decoded.values.meta.shape(), decoded.along),
            (None, Some(packed)) => match packed.reading {
                Reading::AsPacked => packed.layout.rows,
                Reading::Transposed => packed.layout.k,
            },
            (None, None) => 0,
        },
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
    pub(super) fn new<B>(
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

    pub(super) fn cast(mut self, dtype: DType) -> Self {
        if self.values.dtype != dtype {
            // A cast may pad rows.
            self.values = into_contiguous(burn_cubecl::kernel::cast(self.values, dtype));
        }
        self
    }
}

/// A GEMM of packed operands on FP4 tensor cores.
pub(super) fn fp4<R: CubeRuntime>(
    [lhs, rhs]: [PackedTensor<R>; 2],
    given: Option<CubeTensor<R>>,
    bias: Option<CubeTensor<R>>,
    out: DType,
) -> CubeTensor<R> {
    let alpha = given.or_else(|| alpha(&lhs.scale(), &rhs.scale()));
    gemm::fp4(&lhs, &rhs, alpha, bias, out)
}

/// A GEMM of dense operands, tensor scales after it.
pub(super) fn dense<R: CubeRuntime>(
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
