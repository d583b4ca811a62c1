//! Before the first code: the format, the amax that it needs, and the rule for its block scales.
//!
//! An amax is taken behind the transform, over the tensor, over each row of the packed operand, or
//! not at all. A transformed operand is transformed twice, here and when it is encoded: that costs
//! less than a transformed copy, which would be written to memory and read back.

use rayon::prelude::*;

use super::amax::{slice_amax, tensor_amax};
use super::block_scale::BlockRule;
use super::eden::Eden;
use super::element::{Contraction, Element, MatrixView};
use super::four_over_six::FourOverSix;
use super::strip::{GROUP, Grid, PARALLEL_FROM, Rotation, Strip};
use crate::error::QuantizeError;
use crate::format::layout::Layout;
use crate::format::scale::{
    EdenScaling, FP8_Q_MAX, NVFP4_Q_MAX, NVFP4_Q_MAX_256, Nvfp4Scaling, tensor_encode_scale,
};
use crate::format::{Format, Fp8Scaling, TensorScale, e2m1, e4m3};
use crate::recipe::{OperandSpec, Rounding, ScaleBound, ScaleRule};
use crate::rng::RandomKey;

/// Everything about a quantization that is known before the first code.
pub(super) struct Plan {
    pub(super) grid: Grid,
    /// Contraction length of the packed operand.
    pub(super) k: usize,
    pub(super) format: Format,
    pub(super) layout: Layout,
    pub(super) rotation: Rotation,
    pub(super) rule: BlockRule,
    pub(super) tensor_scale: TensorScale,
    /// Key and tensor amax of stochastic rounding.
    pub(super) random: Option<(RandomKey, f32)>,
}

/// Where the amax behind the tensor scale comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum TensorAmax {
    /// From the matrix.
    Measured,
    /// From a whole that the matrix is a part of, or from an earlier step.
    Given(f32),
}

impl TensorAmax {
    /// Why the operand cannot have it.
    fn conflict(self, spec: &OperandSpec) -> Option<&'static str> {
        let has_one = match spec {
            OperandSpec::Nvfp4 { scale, .. } => !matches!(scale, ScaleRule::Row),
            OperandSpec::Fp8 { scaling } => *scaling == Fp8Scaling::Tensor,
            OperandSpec::HighPrecision | OperandSpec::Mxfp4 { .. } | OperandSpec::Mxfp8 { .. } => {
                false
            }
        };
        (matches!(self, Self::Given(_)) && !has_one)
            .then_some("only an operand with one scale for the tensor can be given its amax")
    }
}

impl Plan {
    pub(super) fn new<E: Element>(
        x: &MatrixView<'_, E>,
        along: Contraction,
        spec: &OperandSpec,
        amax: TensorAmax,
        key: RandomKey,
    ) -> Result<Self, QuantizeError> {
        if let Some(reason) = spec.conflict().or(amax.conflict(spec)) {
            return Err(QuantizeError::Unsupported { reason });
        }
        let (rows, k) = match along {
            Contraction::Columns => (x.rows(), x.cols()),
            Contraction::Rows => (x.cols(), x.rows()),
        };
        let format = match *spec {
            OperandSpec::HighPrecision => return Err(QuantizeError::HighPrecision),
            OperandSpec::Nvfp4 { block, .. } => Format::Nvfp4 { block },
            OperandSpec::Mxfp4 { .. } => Format::Mxfp4,
            OperandSpec::Mxfp8 { .. } => Format::Mxfp8,
            OperandSpec::Fp8 { scaling } => Format::Fp8 { scaling },
        };
        let grid = Grid::new((rows, k), along, format.block_dims(), spec.transform());
        let too_large = QuantizeError::TooLarge { rows, k };
        // No axis of a slice is so long that completing a vector overflows.
        let k = spec.packed_k(k);
        let layout = format.layout(rows, k).ok_or(too_large)?;
        let rotation = Rotation::new(spec.transform(), &key);
        let tensor = || match (amax, rotation) {
            (TensorAmax::Given(amax), _) => amax,
            (TensorAmax::Measured, Rotation::None) => tensor_amax(x.data()),
            (TensorAmax::Measured, Rotation::Fixed(_) | Rotation::Random(_)) => {
                let rows = row_amaxes(x, along, &grid, rotation);
                rows.into_iter().fold(0.0, f32::max)
            }
        };
        let (rule, tensor_scale) = match *spec {
            OperandSpec::HighPrecision => return Err(QuantizeError::HighPrecision),
            OperandSpec::Nvfp4 { scale, .. } => {
                let amax = match scale {
                    ScaleRule::Tensor | ScaleRule::FourOverSix { .. } | ScaleRule::Eden => {
                        vec![tensor()]
                    }
                    ScaleRule::Row => row_amaxes(x, along, &grid, rotation),
                };
                nvfp4_rule(scale, amax, key, layout.padded_k / GROUP)
            }
            OperandSpec::Mxfp4 { scale: rule, .. } => (
                BlockRule::Mx {
                    rule,
                    element_max: e2m1::MAX,
                },
                TensorScale::unit(),
            ),
            OperandSpec::Mxfp8 { scale: rule } => (
                BlockRule::Mx {
                    rule,
                    element_max: e4m3::MAX,
                },
                TensorScale::unit(),
            ),
            OperandSpec::Fp8 {
                scaling: Fp8Scaling::Tensor,
            } => {
                let amax = tensor();
                let encode = tensor_encode_scale(amax, FP8_Q_MAX);
                (
                    BlockRule::Fp8Tensor { encode },
                    TensorScale {
                        amax: vec![amax],
                        q_max: FP8_Q_MAX,
                    },
                )
            }
            OperandSpec::Fp8 {
                scaling: Fp8Scaling::Row128 | Fp8Scaling::Tile128x128,
            } => (BlockRule::Fp8Block, TensorScale::unit()),
        };
        let random = match spec.rounding() {
            // The MX formats have no tensor amax of their own; only the key asks for it.
            Some(Rounding::Stochastic) if format == Format::Mxfp4 => Some((key, tensor())),
            Some(Rounding::Stochastic) => Some((key, tensor_scale.max_amax())),
            Some(Rounding::NearestEven) | None => None,
        };
        Ok(Self {
            grid,
            k,
            format,
            layout,
            rotation,
            rule,
            tensor_scale,
            random,
        })
    }
}

/// The rule for NVFP4 block scales, and the tensor level that goes with it; `groups` of a row.
fn nvfp4_rule(
    scale: ScaleRule,
    amax: Vec<f32>,
    key: RandomKey,
    groups: usize,
) -> (BlockRule, TensorScale) {
    let scalings = |q_max| {
        amax.iter()
            .map(|&amax| Nvfp4Scaling::new(amax, q_max))
            .collect()
    };
    match scale {
        ScaleRule::Tensor | ScaleRule::Row => {
            let rule = BlockRule::Nvfp4(scalings(NVFP4_Q_MAX));
            (
                rule,
                TensorScale {
                    amax,
                    q_max: NVFP4_Q_MAX,
                },
            )
        }
        ScaleRule::Eden => {
            let q_max = NVFP4_Q_MAX_256;
            let tensor_scale = TensorScale { amax, q_max };
            let amax = tensor_scale.max_amax();
            let scaling = EdenScaling::new(amax);
            let rule = Eden {
                scaling,
                key,
                amax,
                groups,
            };
            (BlockRule::Eden(rule), tensor_scale)
        }
        ScaleRule::FourOverSix {
            bound,
            error,
            arithmetic,
        } => {
            let q_max = match bound {
                ScaleBound::E4m3At256 => NVFP4_Q_MAX_256,
                ScaleBound::E4m3At448 => NVFP4_Q_MAX,
            };
            let tensor_scale = TensorScale { amax, q_max };
            let amax = tensor_scale.max_amax();
            let scaling = Nvfp4Scaling::new(amax, q_max);
            (
                BlockRule::FourOverSix(FourOverSix {
                    scaling,
                    amax,
                    q_max,
                    error,
                    arithmetic,
                }),
                tensor_scale,
            )
        }
    }
}

/// `max |x|` of every row of the packed operand, behind the transform.
fn row_amaxes<E: Element>(
    x: &MatrixView<'_, E>,
    along: Contraction,
    grid: &Grid,
    rotation: Rotation,
) -> Vec<f32> {
    let mut amaxes = vec![0.0_f32; grid.rows];
    let work = |strip: &mut Strip, (i, amaxes): (usize, &mut [f32])| {
        for window in grid.windows(i * grid.height) {
            strip.load(x, along, rotation, window);
            for (amax, row) in amaxes
                .iter_mut()
                .zip(strip.values.chunks_exact(window.width))
            {
                *amax = amax.max(slice_amax(row));
            }
        }
    };
    if grid.rows * grid.k < PARALLEL_FROM {
        let mut strip = Strip::default();
        amaxes
            .chunks_mut(grid.height)
            .enumerate()
            .for_each(|task| work(&mut strip, task));
    } else {
        amaxes
            .par_chunks_mut(grid.height)
            .enumerate()
            .for_each_init(Strip::default, work);
    }
    amaxes
}
