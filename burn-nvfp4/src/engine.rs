//! What a base backend brings to the decorator: its tensors' memory, and optionally its own
//! kernels.
//!
//! [`Nvfp4Engine`] has default bodies for everything, so `impl Nvfp4Engine for MyBackend {}` is all
//! that a backend needs. The defaults run `cpu`, the executable specification, on a host copy of
//! each operand. They are not composed of tensor ops, because those cannot keep the bits: WGSL
//! divides to 2.5 ULP and may flush subnormals, while a block scale is one exact quotient away from
//! another code (numerics §2). A backend in host memory overrides the two accessors
//! ([`read_matrix`](Nvfp4Engine::read_matrix), [`from_values`](Nvfp4Engine::from_values)) and so
//! runs the same code in place. A backend with a device overrides quantization and GEMM.

mod operand;
mod host;
pub(crate) mod linear;
mod mean;
mod sample;
mod renewal;
mod autodiff;
#[cfg(all(test, feature = "ndarray"))]
mod tests;
#[cfg(feature = "ndarray")]
mod ndarray;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cubecl")]
mod fusion;

use std::borrow::Cow;

use burn_backend::tensor::{Device, FloatTensor};
use burn_backend::{Backend, DType, Shape, TensorData, TensorMetadata, read_sync};

#[cfg(feature = "cubecl")]
pub use fusion::record;
pub use host::{HostMatrix, HostSlice, MemoryOrder};
pub use linear::{Kept, Like, Wanted, Weight, WeightOperands};
pub use operand::{
    DeviceDecoded, DeviceOperand, DevicePacked, DeviceScales, Lifetime, Operand, OperandRequest,
    PackedLayout,
};

use crate::cpu::Contraction;
pub use crate::format::Reading;
use crate::packed_weights::PackedWeight;
use crate::recipe::OperandSpec;
use crate::runtime::LinearPlan;

/// A backend whose linears can run on quantized operands.
pub trait Nvfp4Engine: Backend {
    /// Hands the elements of `x` to `read`, as a matrix `[leading dims flattened, last dim]`.
    ///
    /// The default copies the tensor to the host. It blocks until the device is done.
    fn read_matrix<R>(x: FloatTensor<Self>, read: impl FnOnce(HostMatrix<'_>) -> R) -> R {
        let shape = x.shape();
        // Burn's CUDA backend cannot read a tensor without elements.
        let data = if shape.num_elements() == 0 {
            TensorData::new(Vec::<f32>::new(), shape.clone())
        } else {
            read_sync(Self::float_into_data(x))
                .expect("a float tensor that the caller holds can be read")
        };
        host::with_data(&data, &shape, read)
    }

    /// Makes a tensor from f32 values, rounded to `dtype`.
    fn from_values(
        values: Vec<f32>,
        shape: Shape,
        dtype: DType,
        device: &Device<Self>,
    ) -> FloatTensor<Self> {
        let tensor = Self::float_from_data(TensorData::new(values, shape), device);
        linear::cast::<Self>(tensor, dtype)
    }

    /// Quantizes one operand of a GEMM.
    fn quantize_operand(x: FloatTensor<Self>, request: &OperandRequest<'_>) -> Operand<Self> {
        host::quantize::<Self>(x, request)
    }

    /// Quantizes several operands of the same tensor, in one pass over it where the backend can.
    ///
    /// `other` is the other operand of the first one's GEMM if it is there already: a backend may
    /// then make what belongs to both.
    fn quantize_operands(
        x: FloatTensor<Self>,
        requests: &[OperandRequest<'_>],
        _other: Option<&Operand<Self>>,
    ) -> Vec<Operand<Self>> {
        requests
            .iter()
            .map(|request| Self::quantize_operand(x.clone(), request))
            .collect()
    }

    /// [`quantize_operands`](Self::quantize_operands), where an operand may be under an amax of an
    /// earlier step instead of its own, f32 `[1]`: what lies beyond it is cut off.
    ///
    /// The default runs such operands on the host.
    fn quantize_operands_under(
        x: FloatTensor<Self>,
        requests: &[OperandRequest<'_>],
        amaxes: &[Option<FloatTensor<Self>>],
        _other: Option<&Operand<Self>>,
    ) -> Vec<Operand<Self>> {
        let operands = requests.iter().zip(amaxes);
        let make = |(request, amax): (&OperandRequest<'_>, &Option<FloatTensor<Self>>)| match amax {
            None => Self::quantize_operand(x.clone(), request),
            Some(_) => host::quantize_under::<Self>(x.clone(), request, amax.clone()),
        };
        operands.map(make).collect()
    }

    /// The values that a GEMM multiplies of a quantized operand, in f32 and in the shape of the
    /// tensor that it was made of `along`: code times block scale, times `amax * f32(1 / q_max)`.
    ///
    /// Not for operands behind a transform, which hold rotated values.
    fn dequantize_operand(
        operand: &Operand<Self>,
        along: Contraction,
        shape: Shape,
        device: &Device<Self>,
    ) -> FloatTensor<Self> {
        let values = host::dequantize::<Self>(operand, along, &shape);
        Self::from_values(values, shape, DType::F32, device)
    }

    /// The values of a weight that fprop multiplies under a quantized `spec` without a transform
    /// and the weight's own amax, f32 and in the shape of the weight.
    fn weight_values(weight: FloatTensor<Self>, spec: OperandSpec) -> FloatTensor<Self> {
        linear::weight_values::<Self>(weight, spec)
    }

    /// `x`, which has elements, without its mean over tokens, and that mean as f32 `[1, columns]`.
    fn split_token_mean(x: FloatTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (shape, dtype, device) = (x.shape(), x.dtype(), Self::float_device(&x));
        let (rest, mean) = Self::read_matrix(x, |matrix| matrix.split_token_mean());
        let mean_shape = Shape::new([1, mean.len()]);
        (
            Self::from_values(rest, shape, dtype, &device),
            Self::from_values(mean, mean_shape, DType::F32, &device),
        )
    }

    /// Multiplies `row`, f32 `[1, k]`, by the transpose of `rhs [n, k]` and adds `bias [n]`, in
    /// f32: what a GEMM then adds to every row, `[n]`. The default sums along `k` in index order.
    fn multiply_row(
        row: FloatTensor<Self>,
        rhs: &Operand<Self>,
        bias: Option<FloatTensor<Self>>,
        device: &Device<Self>,
    ) -> FloatTensor<Self> {
        let values = host::multiply_row::<Self>(row, rhs, bias);
        let shape = Shape::new([values.len()]);
        Self::from_values(values, shape, DType::F32, device)
    }

    /// Makes the operand of a weight that comes packed.
    fn load_weight(weight: &PackedWeight, _device: &Device<Self>) -> Operand<Self> {
        Operand::Packed {
            matrix: weight.matrix().clone(),
            reading: Reading::AsPacked,
        }
    }

    /// True if one packing of a transposable operand serves a GEMM along either axis. Tensor cores
    /// that read packed operands want the contraction axis last, so there each axis has its own.
    fn packs_for_both_axes(_device: &Device<Self>) -> bool {
        true
    }

    /// True if [`gemm`](Self::gemm) is also to run the GEMMs whose operands are not quantized;
    /// otherwise those are Burn's own ops.
    fn has_own_gemm(_device: &Device<Self>) -> bool {
        false
    }

    /// Multiplies `lhs [m, k]` by the transpose of `rhs [n, k]` with f32 accumulation, applies the
    /// tensor scales, adds `bias [n]` in f32, and rounds once to the dtype of `output`.
    fn gemm(
        lhs: &Operand<Self>,
        rhs: &Operand<Self>,
        bias: Option<FloatTensor<Self>>,
        output: Output<'_, Self>,
    ) -> FloatTensor<Self> {
        host::gemm::<Self>(lhs, rhs, bias, output)
    }

    /// What [`gemm`](Self::gemm) multiplies these operands with, in words.
    fn gemm_routine(
        _lhs: &Operand<Self>,
        _rhs: &Operand<Self>,
        _device: &Device<Self>,
    ) -> Cow<'static, str> {
        Cow::Borrowed("emulated: f32 GEMM of decoded operands on the host")
    }

    /// Packs a weight for all fprop and dgrad of a step.
    ///
    /// This and the four that follow are whole passes of a linear. The defaults put them together
    /// from the methods above; a backend that records operations overrides them to record one.
    fn pack_weight(weight: FloatTensor<Self>, plan: &LinearPlan) -> WeightOperands<Self> {
        linear::pack_weight::<Self>(weight, plan)
    }

    /// `Y = X W + b`, and the operands that backward will need.
    fn fprop(
        x: FloatTensor<Self>,
        weight: Weight<Self>,
        bias: Option<FloatTensor<Self>>,
        plan: &LinearPlan,
        wanted: Wanted,
    ) -> (FloatTensor<Self>, Kept<Self>) {
        linear::fprop::<Self>(x, weight, bias, plan, wanted)
    }

    /// `dX` and `dW` from what forward has kept: each if its operand is there.
    fn backward(
        kept: Kept<Self>,
        dy: FloatTensor<Self>,
        plan: &LinearPlan,
        x: Like,
        weight: Like,
    ) -> (Option<FloatTensor<Self>>, Option<FloatTensor<Self>>) {
        linear::backward::<Self>(kept, dy, plan, x, weight)
    }

    /// `dX = dY Wᵀ` where forward has kept nothing.
    fn x_backward(
        weight: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        plan: &LinearPlan,
        x: Like,
    ) -> FloatTensor<Self> {
        linear::x_backward::<Self>(weight, dy, plan, x)
    }

    /// `dW = Xᵀ dY` where forward has kept nothing.
    fn weight_backward(
        x: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        plan: &LinearPlan,
        weight: Like,
    ) -> FloatTensor<Self> {
        linear::weight_backward::<Self>(x, dy, plan, weight)
    }

    /// Runs a whole linear. Base backends keep the default; `Autodiff` puts its node here.
    fn linear_with_plan(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        plan: LinearPlan,
    ) -> FloatTensor<Self> {
        let weight = Weight::Tensor(weight);
        Self::fprop(x, weight, bias, &plan, Wanted::Nothing).0
    }

    /// A gauge of the memory that `device` holds for the caller's thread, for any thread to read;
    /// `None` where nobody counts it.
    fn memory_gauge(_device: &Device<Self>) -> Option<MemoryGauge> {
        None
    }

    /// Says what runs how on `device`.
    fn support(_device: &Device<Self>) -> Support {
        Support {
            quantize: "cpu, on a host copy of each operand".into(),
            gemm: "emulated: f32 GEMM of decoded operands on the host".into(),
        }
    }
}

/// Where the result of a GEMM goes.
#[derive(Debug)]
pub struct Output<'a, B: Backend> {
    /// Shape of the result, `[.., n]`; leading dims multiply to `m`.
    pub shape: Shape,
    /// Dtype of the result.
    pub dtype: DType,
    /// Device of the result.
    pub device: &'a Device<B>,
}

/// Support of the backends whose tensors lie in host memory.
#[cfg(any(feature = "ndarray", feature = "flex"))]
const IN_PLACE: Support = Support {
    quantize: Cow::Borrowed("cpu, on the tensor's own buffer"),
    gemm: Cow::Borrowed("emulated: f32 GEMM of decoded operands"),
};

/// Reads an allocator; see [`Nvfp4Engine::memory_gauge`]. `None` if the device has failed.
pub type MemoryGauge = Box<dyn Fn() -> Option<MemoryInUse> + Send>;

/// What the allocator of a device says, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryInUse {
    /// Of tensors that live.
    pub in_use: u64,
    /// Taken from the device, to be used again.
    pub reserved: u64,
}

/// How a backend runs the parts of a quantized linear, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Support {
    /// Where and by what operands are quantized.
    pub quantize: Cow<'static, str>,
    /// Where and by what the GEMM runs.
    pub gemm: Cow<'static, str>,
}
