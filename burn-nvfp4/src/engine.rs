//! What a base backend brings to the decorator: its tensors' memory, and optionally its own
//! kernels.
//!
//! [`Nvfp4Engine`] has default bodies for everything, so `impl Nvfp4Engine for MyBackend {}` is all
//! that a backend needs. The defaults run `cpu`, the executable specification, on a host copy of
//! each operand. They are not composed of tensor ops, because those cannot keep the bits: WGSL
//! divides to 2.5 ULP and may flush subnormals, while a block scale is one exact quotient away from
//! another code (numerics §2). A backend in host memory overrides the two accessors
//! ([`read_matrix`](Nvfp4Engine::read_matrix), [`from_values`](Nvfp4Engine::from_values)) and so
//! runs the same code in place.

mod operand;
mod host;
pub(crate) mod linear;
mod autodiff;
#[cfg(all(test, feature = "ndarray"))]
mod tests;
#[cfg(feature = "ndarray")]
mod ndarray;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "cubecl")]
mod cube;

use burn_backend::tensor::{Device, FloatTensor};
use burn_backend::{Backend, DType, Shape, TensorData, TensorMetadata, read_sync};

pub use host::{HostMatrix, HostSlice, MemoryOrder};
pub use operand::{Lifetime, Operand, OperandRequest, Reading};

use crate::runtime::LinearPlan;

/// A backend whose linears can run on quantized operands.
pub trait Nvfp4Engine: Backend {
    /// Hands the elements of `x` to `read`, as a matrix `[leading dims flattened, last dim]`.
    ///
    /// The default copies the tensor to the host. It blocks until the device is done.
    fn read_matrix<R>(x: FloatTensor<Self>, read: impl FnOnce(HostMatrix<'_>) -> R) -> R {
        let shape = x.shape();
        let data = read_sync(Self::float_into_data(x))
            .expect("a float tensor that the caller holds can be read");
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

    /// Runs a whole linear. Base backends keep the default; `Autodiff` puts its node here.
    fn linear_with_plan(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        plan: LinearPlan,
    ) -> FloatTensor<Self> {
        linear::fprop::<Self>(x, weight, bias, &plan, linear::Wanted::Nothing).0
    }

    /// Says what runs how on `device`.
    fn support(_device: &Device<Self>) -> Support {
        Support {
            quantize: "cpu, on a host copy of each operand",
            gemm: "emulated: f32 GEMM of decoded operands on the host",
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
    quantize: "cpu, on the tensor's own buffer",
    gemm: "emulated: f32 GEMM of decoded operands",
};

/// How a backend runs the parts of a quantized linear, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Support {
    /// Where and by what operands are quantized.
    pub quantize: &'static str,
    /// Where and by what the GEMM runs.
    pub gemm: &'static str,
}
