//! What is asked of the kernels, and what they give.

use burn_backend::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;

use crate::cpu::Contraction;
use crate::format::Reading;
use crate::kernels::{DecodedTensor, PackedTensor};
use crate::recipe::{OperandSpec, ScaleRule};
use crate::rng::RandomKey;

/// What is wanted of one tensor for one GEMM.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Job {
    /// How to quantize.
    pub spec: OperandSpec,
    /// Which axis of the tensor, seen as a matrix, the GEMM sums over.
    pub along: Contraction,
    /// Names the random bits, if the spec rounds stochastically.
    pub key: RandomKey,
    /// Whether codes and scales are wanted, and packed along which axis.
    pub packing: Packing,
    /// Code times block scale is wanted, in bf16, f16 or f32.
    pub decoded: Option<DType>,
}

/// Watches a tensor for NaN and infinities.
#[derive(Clone, Debug)]
pub struct Watch<R: CubeRuntime> {
    /// u32 `[1]`; `u32::MAX` as long as nothing was found.
    pub found: CubeTensor<R>,
    /// What is written there if the tensor is not finite and nothing was found before.
    pub id: u32,
}

/// What one job gave.
#[derive(Clone, Debug)]
pub struct Quantized<R: CubeRuntime> {
    /// Codes and scales, if they were wanted.
    pub packed: Option<PackedTensor<R>>,
    /// How the GEMM reads the packed operand.
    pub reading: Reading,
    /// Code times block scale, if it was wanted; in the orientation of the tensor.
    pub decoded: Option<DecodedTensor<R>>,
    /// The factor after the GEMM with the operand that this one was quantized for.
    pub alpha: Option<CubeTensor<R>>,
}

/// Along which axis of a tensor codes and scales are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// They are not wanted.
    None,
    /// The one that the GEMM sums over: what FP4 tensor cores read.
    AskedAxis,
    /// Where one packing serves both axes, the one that is contiguous in memory; else the asked
    /// one.
    EitherAxis,
}

/// True if one packing serves both axes, whichever axis it runs along.
///
/// Squares whose scale depends on a maximum alone. The errors of four-over-six are sums, in an
/// order: those squares serve both axes, but come out of the axis that was asked for.
pub const fn packs_either_axis(spec: &OperandSpec) -> bool {
    match spec {
        OperandSpec::Nvfp4 { scale, .. } => {
            spec.is_transposable() && matches!(scale, ScaleRule::Tensor)
        }
        OperandSpec::HighPrecision
        | OperandSpec::Mxfp4 { .. }
        | OperandSpec::Mxfp8 { .. }
        | OperandSpec::Fp8 { .. } => spec.is_transposable(),
    }
}
