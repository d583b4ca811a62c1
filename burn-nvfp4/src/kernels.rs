//! The formulas of [`cpu`](crate::cpu) as CubeCL kernels: one source for CUDA, Vulkan, Metal and
//! WGSL.
//!
//! Same file names, same steps, same bits. One unit works on one group of sixteen elements along
//! the contraction axis, which is one block of NVFP4, one vector of the Hadamard transform and one
//! block of Philox at once. Nothing here reads back to the host: the amax stays on the device, and
//! whoever needs it reads it there.

pub mod arithmetic;
mod e2m1;
mod e4m3;
mod e8m0;
mod scale;
pub mod philox;
mod hadamard;
mod group;
mod pairs;
mod source;
mod tensors;
pub mod alpha;
mod amax;
mod four_over_six;
pub mod quantize;
pub mod dequantize;
pub mod mean;
pub mod swizzle;
pub mod gemm;

pub use tensors::{PackedParts, as_matrix, count_launch, launches, one, packed_parts, stores};
pub(crate) use tensors::{bytes_dtype, scale_shape};
// What the functions of this module are called with.
pub use burn_cubecl::tensor::CubeTensor;
pub use burn_cubecl::{CubeBackend, CubeRuntime};
#[cfg(feature = "cuda")]
pub use cubecl::cuda::{CudaDevice, CudaRuntime};

use crate::cpu::Contraction;
use crate::format::{Format, Fp8Scaling};
use alpha::OperandScale;

/// A packed operand in device memory: `[rows, k]`, the contraction axis last.
#[derive(Clone, Debug)]
pub struct PackedTensor<R: CubeRuntime> {
    /// Rows: the axis that is not summed over.
    pub rows: usize,
    /// Length of the contraction axis, without padding.
    pub k: usize,
    /// `k` rounded up to whole blocks.
    pub padded_k: usize,
    /// The format of codes and scales.
    pub format: Format,
    /// `[rows, padded_k / codes per word]`, u32: eight 4-bit codes or four 8-bit codes to a word,
    /// the first in the lowest bits. In little-endian memory these are
    /// [`PackedMatrix::codes`](crate::format::PackedMatrix::codes).
    pub codes: CubeTensor<R>,
    /// Decode scales of the blocks.
    pub scales: DeviceScales<R>,
    /// f32, `[1]`, or `[rows]` if each row has a scale of its own.
    pub amax: CubeTensor<R>,
    /// What the amax was mapped to.
    pub q_max: f32,
}

impl<R: CubeRuntime> PackedTensor<R> {
    /// The scale of the tensor, or of its rows.
    pub fn scale(&self) -> OperandScale<R> {
        let has_scale = match self.format {
            Format::Nvfp4 { .. }
            | Format::Fp8 {
                scaling: Fp8Scaling::Tensor,
            } => true,
            Format::Mxfp4
            | Format::Mxfp8
            | Format::Fp8 {
                scaling: Fp8Scaling::Row128 | Fp8Scaling::Tile128x128,
            } => false,
        };
        OperandScale {
            amax: has_scale.then(|| self.amax.clone()),
            q_max: self.q_max,
        }
    }
}

/// Block scales in device memory, `[ceil(rows / block rows), padded_k / block length]`.
#[derive(Clone, Debug)]
pub enum DeviceScales<R: CubeRuntime> {
    /// The format has no blocks.
    None,
    /// One E4M3 or E8M0 byte to an element: u8 where the device stores bytes, else u32.
    Bytes(CubeTensor<R>),
    /// f32.
    F32(CubeTensor<R>),
}

/// Code times block scale, as an emulated GEMM multiplies it; the tensor scale is beside it.
#[derive(Clone, Debug)]
pub struct DecodedTensor<R: CubeRuntime> {
    /// Row-major and dense, bf16 or f32. `[rows, k]` if `along` is [`Contraction::Columns`],
    /// `[k, rows]` if [`Contraction::Rows`]. `k` includes the padding behind a Hadamard transform.
    pub values: CubeTensor<R>,
    /// Which axis of `values` is summed over.
    pub along: Contraction,
    /// f32, `[1]` or `[rows]`; `None` if the operand has no tensor scale.
    pub amax: Option<CubeTensor<R>>,
    /// What the amax was mapped to; 1 without an amax.
    pub q_max: f32,
}
