//! One weight of a directory in 4 bits.

use burn_nvfp4::cpu::{self, Contraction, Element, MatrixView};
use burn_nvfp4::export::{ExportError, quantize_as_modelopt, served};
use burn_nvfp4::format::{BlockShape, PackedMatrix};
use burn_nvfp4::recipe::{
    BlockError, ErrorArithmetic, OperandSpec, Rounding, ScaleBound, ScaleRule, Transform,
};
use burn_nvfp4::rng::{RandomKey, Stream};
use rayon::prelude::*;

use super::ServingError;
use crate::checkpoint::files::{FileTensor, Floats, on_floats};

/// Whose arithmetic rounds a weight; all three round to nearest in blocks of 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightRule {
    /// TransformerEngine's: what `Nvfp4<B>` multiplies when it quantizes the weight itself.
    TransformerEngine,
    /// TransformerEngine's four-over-six: each block takes the better of two scales.
    FourOverSix,
    /// NVIDIA Model Optimizer's: what its own export would write.
    Modelopt,
}

impl WeightRule {
    /// The operand spec of a rule of TransformerEngine's.
    const fn spec(self) -> Option<OperandSpec> {
        let scale = match self {
            Self::TransformerEngine => ScaleRule::Tensor,
            Self::FourOverSix => ScaleRule::FourOverSix {
                bound: ScaleBound::E4m3At256,
                error: BlockError::Mae,
                arithmetic: ErrorArithmetic::Exact,
            },
            Self::Modelopt => return None,
        };
        Some(OperandSpec::Nvfp4 {
            block: BlockShape::Row16,
            scale,
            rounding: Rounding::NearestEven,
            transform: Transform::None,
        })
    }

    /// Quantizes a weight `[d_output, d_input]` under a tensor amax.
    ///
    /// # Errors
    /// If rows do not divide into blocks.
    pub(super) fn quantize(
        self,
        floats: &Floats<'_>,
        (rows, k): (usize, usize),
        amax: f32,
    ) -> Result<PackedMatrix, ExportError> {
        // Nothing is drawn: all rules round to nearest.
        let key = RandomKey {
            seed: 0,
            step: 0,
            micro_batch: 0,
            stream: Stream::Other(0),
        };
        on_floats!(floats, data => {
            let view = MatrixView::new(data, rows, k)?;
            match self.spec() {
                None => quantize_as_modelopt(view, amax),
                Some(spec) => {
                    let columns = Contraction::Columns;
                    served(&cpu::quantize_with_amax(view, columns, &spec, amax, key)?)
                }
            }
        })
    }
}

/// The amax of a tensor.
///
/// # Errors
/// [`ServingError::NotFinite`]: NaN is skipped by an amax, and neither it nor infinity can be
/// decoded.
pub(super) fn finite_amax(
    tensor: &FileTensor<'_>,
    floats: &Floats<'_>,
) -> Result<f32, ServingError> {
    let finite = on_floats!(floats, data => {
        data.par_chunks(1 << 16).all(|chunk| chunk.iter().all(|x| Element::is_finite(*x)))
    });
    if finite {
        Ok(on_floats!(floats, data => cpu::tensor_amax(data)))
    } else {
        let key = tensor.key.clone();
        Err(ServingError::NotFinite { key })
    }
}
