//! The number formats and how their bits are laid out; no arithmetic on matrices.
//!
//! [`e2m1`], [`e4m3`] and [`e8m0`] are the three element and scale formats, [`scale`] holds every
//! formula that turns an amax into a scale, [`packing`] and [`swizzle`] are layouts, and
//! [`PackedMatrix`] is a quantized GEMM operand. Nothing here knows of tensors, recipes or
//! backends.

use serde::{Deserialize, Serialize};

mod minifloat;
pub mod e2m1;
pub mod e4m3;
pub mod e8m0;
pub mod scale;
pub mod packing;
pub mod swizzle;
pub(crate) mod layout;
pub mod matrix;

pub use layout::Format;
pub use matrix::{BlockScales, PackedMatrix, Reading, TensorScale};

/// Which elements share one NVFP4 block scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockShape {
    /// 1x16: 16 neighbours along the contraction axis.
    Row16,
    /// 16x16: the transpose has the same codes and scales.
    Tile16x16,
}

/// Which elements share an FP8 scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fp8Scaling {
    /// The whole tensor, `448 / amax`.
    Tensor,
    /// 128 neighbours along the contraction axis.
    Row128,
    /// Tiles of 128x128.
    Tile128x128,
}
