//! Published recipes, one constant each.
//!
//! A constant reads like the table of its source. [`PRESETS`] names them all: the command line, the
//! configs and the documentation derive their lists from it.

use std::num::NonZeroU32;

use super::RecipeError;
use super::renewal::ScaleRenewal;
use super::spec::{
    BackwardReads, BlockError, BlockShape, E8m0Rule, ErrorArithmetic, Fp8Scaling, GemmSpec,
    OperandSpec, Recipe, Rounding, ScaleBound, ScaleRule, TokenMean, Transform,
};

/// A recipe with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    /// How configs and the command line call it.
    pub name: &'static str,
    /// What it is.
    pub recipe: Recipe,
    /// What it does, in one line.
    pub summary: &'static str,
    /// Where it is published.
    pub source: &'static str,
}

/// Every preset, plain recipes first.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "high_precision",
        recipe: HIGH_PRECISION,
        summary: "no quantization: the backend's own bits",
        source: "the baseline",
    },
    Preset {
        name: "nvidia",
        recipe: NVIDIA,
        summary: "NVFP4: 16x16 weights, stochastic gradients, Hadamard transform on wgrad",
        source: "arXiv:2509.25149v1 §4; TransformerEngine's NVFP4BlockScaling()",
    },
    Preset {
        name: "nvidia_no_rht",
        recipe: NVIDIA_NO_RHT,
        summary: "nvidia without the Hadamard transform",
        source: "arXiv:2509.25149v1 §4.2; NVFP4BlockScaling(disable_rht=True)",
    },
    Preset {
        name: "nvidia_no_sr",
        recipe: NVIDIA_NO_SR,
        summary: "nvidia with gradients rounded to nearest",
        source: "arXiv:2509.25149v1 §4.4; NVFP4BlockScaling(disable_stochastic_rounding=True)",
    },
    Preset {
        name: "nvidia_1d_weights",
        recipe: NVIDIA_1D_WEIGHTS,
        summary: "nvidia with 1x16 weight blocks, so that fprop and dgrad see different weights",
        source: "arXiv:2509.25149v1 §4.3; NVFP4BlockScaling(disable_2d_quantization=True)",
    },
    Preset {
        name: "row_scaled",
        recipe: ROW_SCALED,
        summary: "NVFP4 forward with one activation scale per token, backward in high precision",
        source: "NVFP4BlockScaling(row_scaled_activation=True, backward_override='high_precision')",
    },
    Preset {
        name: "four_over_six",
        recipe: FOUR_OVER_SIX,
        summary: "nvidia with activations and weights scaled to 4 or 6, whichever errs less",
        source: "arXiv:2512.02010; TransformerEngine's nvfp4_4over6 defaults",
    },
    Preset {
        name: "four_over_six_1d",
        recipe: FOUR_OVER_SIX_1D,
        summary: "1x16 weights, and forward scaled to 4 or 6 by squared error; nvidia's gradients",
        source: "arXiv:2601.22813 (its forward); arXiv:2512.02010",
    },
    Preset {
        name: "quartet2",
        recipe: QUARTET2,
        summary: "four_over_six_1d forward, MS-EDEN backward: rotated operands, stochastic scales",
        source: "arXiv:2601.22813 (Quartet II)",
    },
    Preset {
        name: "averis",
        recipe: AVERIS,
        summary: "nvidia with means over tokens kept apart in place of the Hadamard transform",
        source: "arXiv:2603.10444v2 (Averis)",
    },
    Preset {
        name: "nvidia_renewed_16",
        recipe: NVIDIA_RENEWED_16,
        summary: "nvidia with tensor scales that are renewed every 16 steps",
        source: "not published; the idea of TransformerEngine's DelayedScaling() for FP8",
    },
    Preset {
        name: "mxfp4",
        recipe: MXFP4,
        summary: "nvidia with blocks of 32 and power-of-two scales",
        source: "OCP Microscaling Formats v1.0; the comparison of arXiv:2509.25149v1 §5",
    },
    Preset {
        name: "mxfp8",
        recipe: MXFP8,
        summary: "E4M3 with power-of-two scales per 32 elements",
        source: "arXiv:2506.08027; TransformerEngine's MXFP8BlockScaling()",
    },
    Preset {
        name: "fp8",
        recipe: FP8,
        summary: "E4M3 with f32 scales: 1x128 activations and gradients, 128x128 weights",
        source: "the FP8 baseline of arXiv:2509.25149v1; arXiv:2412.19437 §3.3",
    },
];

/// Finds a preset by its name.
///
/// # Errors
/// [`RecipeError::UnknownRecipe`] lists the names there are.
pub fn by_name(name: &str) -> Result<&'static Preset, RecipeError> {
    PRESETS
        .iter()
        .find(|preset| preset.name == name)
        .ok_or_else(|| {
            let known: Vec<_> = PRESETS.iter().map(|preset| preset.name).collect();
            RecipeError::UnknownRecipe {
                name: name.to_owned(),
                known: known.join(", "),
            }
        })
}

/// NVFP4 with one f32 scale per tensor, rounded to nearest.
const fn nvfp4(block: BlockShape) -> OperandSpec {
    OperandSpec::Nvfp4 {
        block,
        scale: ScaleRule::Tensor,
        rounding: Rounding::NearestEven,
        transform: Transform::None,
    }
}

/// The activation.
const X: OperandSpec = nvfp4(BlockShape::Row16);
/// The weight. A 16x16 tile has the same codes read along either axis.
const W: OperandSpec = nvfp4(BlockShape::Tile16x16);
/// The output gradient.
const DY: OperandSpec = X.with_rounding(Rounding::Stochastic);

/// No quantization.
pub const HIGH_PRECISION: Recipe = Recipe {
    backward_reads: BackwardReads::Tensors,
    token_mean: TokenMean::Quantized,
    scale_renewal: ScaleRenewal::EveryUse,
    fprop: GemmSpec::HIGH_PRECISION,
    dgrad: GemmSpec::HIGH_PRECISION,
    wgrad: GemmSpec::HIGH_PRECISION,
};

/// NVIDIA's recipe, which is TransformerEngine's default (numerics §3).
pub const NVIDIA: Recipe = Recipe {
    backward_reads: BackwardReads::Tensors,
    token_mean: TokenMean::Quantized,
    scale_renewal: ScaleRenewal::EveryUse,
    fprop: GemmSpec { lhs: X, rhs: W },
    dgrad: GemmSpec { lhs: DY, rhs: W },
    wgrad: GemmSpec {
        lhs: X.with_hadamard(),
        rhs: DY.with_hadamard(),
    },
};

/// [`NVIDIA`] without the Hadamard transform.
pub const NVIDIA_NO_RHT: Recipe = Recipe {
    wgrad: GemmSpec { lhs: X, rhs: DY },
    ..NVIDIA
};

/// [`NVIDIA`] with gradients rounded to nearest, ties to even.
pub const NVIDIA_NO_SR: Recipe = Recipe {
    dgrad: GemmSpec { lhs: X, rhs: W },
    wgrad: GemmSpec {
        lhs: X.with_hadamard(),
        rhs: X.with_hadamard(),
    },
    ..NVIDIA
};

/// [`NVIDIA`] with 1x16 weight blocks: `W` in fprop and `Wᵀ` in dgrad are quantized apart.
pub const NVIDIA_1D_WEIGHTS: Recipe = Recipe {
    fprop: GemmSpec {
        lhs: X,
        rhs: nvfp4(BlockShape::Row16),
    },
    dgrad: GemmSpec {
        lhs: DY,
        rhs: nvfp4(BlockShape::Row16),
    },
    ..NVIDIA
};

/// One f32 scale per token in the activation of fprop.
///
/// TransformerEngine's row scales belong to fprop alone. It runs them with the Hadamard transform,
/// stochastic rounding and 16x16 weights switched off, and takes backward from the operands in
/// high precision (its tests and its `nvfp4_row_scaled_fwd_high_precision_bwd`): so does this.
pub const ROW_SCALED: Recipe = Recipe {
    fprop: GemmSpec {
        lhs: OperandSpec::Nvfp4 {
            block: BlockShape::Row16,
            scale: ScaleRule::Row,
            rounding: Rounding::NearestEven,
            transform: Transform::None,
        },
        rhs: nvfp4(BlockShape::Row16),
    },
    ..HIGH_PRECISION
};

/// Four-over-six with TransformerEngine's defaults for all but the error: bound 256, exact
/// arithmetic.
const fn four_over_six(block: BlockShape, error: BlockError) -> OperandSpec {
    OperandSpec::Nvfp4 {
        block,
        scale: ScaleRule::FourOverSix {
            bound: ScaleBound::E4m3At256,
            error,
            arithmetic: ErrorArithmetic::Exact,
        },
        rounding: Rounding::NearestEven,
        transform: Transform::None,
    }
}

/// Four-over-six on activation and weight in fprop, [`NVIDIA`]'s gradients.
///
/// dgrad takes the weight as fprop has it: one packing, and both GEMMs see the same weight, which
/// matters from the first step (arXiv:2509.25149v1, figure 14). The rule is undefined together with
/// stochastic rounding and with the Hadamard transform, so wgrad stays [`NVIDIA`]'s.
pub const FOUR_OVER_SIX: Recipe = Recipe {
    fprop: GemmSpec {
        lhs: four_over_six(BlockShape::Row16, BlockError::Mae),
        rhs: four_over_six(BlockShape::Tile16x16, BlockError::Mae),
    },
    dgrad: GemmSpec {
        lhs: DY,
        rhs: four_over_six(BlockShape::Tile16x16, BlockError::Mae),
    },
    wgrad: NVIDIA.wgrad,
    ..NVIDIA
};

/// Both operands of fprop in 1x16 blocks, scaled to 4 or 6 by the squared error.
const FPROP_1D: GemmSpec = {
    let operand = four_over_six(BlockShape::Row16, BlockError::Mse);
    GemmSpec {
        lhs: operand,
        rhs: operand,
    }
};

/// 1x16 weights with four-over-six in fprop, [`NVIDIA_1D_WEIGHTS`]'s backward.
///
/// A 1x16 block follows the weight more closely than a tile does, and four-over-six gains where the
/// blocks are small (numerics §10): together a quarter off the loss that forward costs. In return
/// `Wᵀ` of dgrad is another quantization of the weight.
pub const FOUR_OVER_SIX_1D: Recipe = Recipe {
    fprop: FPROP_1D,
    ..NVIDIA_1D_WEIGHTS
};

/// An operand of MS-EDEN (numerics §11).
const EDEN: OperandSpec = OperandSpec::Nvfp4 {
    block: BlockShape::Row16,
    scale: ScaleRule::Eden,
    rounding: Rounding::NearestEven,
    transform: Transform::RandomHadamard,
};

/// Quartet II: [`FOUR_OVER_SIX_1D`]'s forward, MS-EDEN on all four operands of backward.
///
/// Backward re-quantizes what fprop multiplied, so that its gradients are, in the mean, those of
/// the forward that ran.
pub const QUARTET2: Recipe = Recipe {
    backward_reads: BackwardReads::FpropOperands,
    token_mean: TokenMean::Quantized,
    scale_renewal: ScaleRenewal::EveryUse,
    fprop: FPROP_1D,
    dgrad: GemmSpec {
        lhs: EDEN,
        rhs: EDEN,
    },
    wgrad: GemmSpec {
        lhs: EDEN,
        rhs: EDEN,
    },
};

/// Averis: [`NVIDIA_NO_RHT`] on what is left of activations and gradients without their means over
/// tokens, which set the block scales of a transformer's activations more than single outliers do.
///
/// Not for inputs that are mostly exact zeros, as behind squared ReLU: NVFP4 has a code for zero,
/// and none for what is left where the mean is taken out.
pub const AVERIS: Recipe = Recipe {
    token_mean: TokenMean::Apart,
    ..NVIDIA_NO_RHT
};

/// [`NVIDIA`] under amaxes that are taken in every sixteenth step: in the others no operand is read
/// for its amax before it is quantized.
pub const NVIDIA_RENEWED_16: Recipe = Recipe {
    scale_renewal: ScaleRenewal::EverySteps(NonZeroU32::new(16).unwrap()),
    ..NVIDIA
};

/// MXFP4 along the contraction axis.
///
/// The scale is rounded up: nothing saturates, so that stochastic rounding stays unbiased.
const MX4: OperandSpec = OperandSpec::Mxfp4 {
    scale: E8m0Rule::RoundUp,
    rounding: Rounding::NearestEven,
    transform: Transform::None,
};
/// The output gradient in MXFP4.
const MX4_DY: OperandSpec = MX4.with_rounding(Rounding::Stochastic);

/// [`NVIDIA`]'s rounding and transform with MXFP4's blocks and scales, so that a comparison of the
/// two is one of formats. The weight has 1x32 blocks: OCP MX defines no tiles.
pub const MXFP4: Recipe = Recipe {
    fprop: GemmSpec { lhs: MX4, rhs: MX4 },
    dgrad: GemmSpec {
        lhs: MX4_DY,
        rhs: MX4,
    },
    wgrad: GemmSpec {
        lhs: MX4.with_hadamard(),
        rhs: MX4_DY.with_hadamard(),
    },
    ..HIGH_PRECISION
};

/// Both operands in MXFP8.
const MX8_GEMM: GemmSpec = {
    let operand = OperandSpec::Mxfp8 {
        scale: E8m0Rule::RoundUp,
    };
    GemmSpec {
        lhs: operand,
        rhs: operand,
    }
};

/// MXFP8: E4M3 for every operand, scales rounded up (arXiv:2506.08027).
pub const MXFP8: Recipe = Recipe {
    fprop: MX8_GEMM,
    dgrad: MX8_GEMM,
    wgrad: MX8_GEMM,
    ..HIGH_PRECISION
};

/// FP8 activations and gradients.
const FP8_ROW: OperandSpec = OperandSpec::Fp8 {
    scaling: Fp8Scaling::Row128,
};
/// FP8 weights.
const FP8_TILE: OperandSpec = OperandSpec::Fp8 {
    scaling: Fp8Scaling::Tile128x128,
};

/// FP8 with blocks of 128, the baseline that NVIDIA compares NVFP4 with.
pub const FP8: Recipe = Recipe {
    fprop: GemmSpec {
        lhs: FP8_ROW,
        rhs: FP8_TILE,
    },
    dgrad: GemmSpec {
        lhs: FP8_ROW,
        rhs: FP8_TILE,
    },
    wgrad: GemmSpec {
        lhs: FP8_ROW,
        rhs: FP8_ROW,
    },
    ..HIGH_PRECISION
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_has_an_arithmetic() {
        for preset in PRESETS {
            assert_eq!(preset.recipe.validate(), Ok(()), "{}", preset.name);
        }
    }

    #[test]
    fn names_and_recipes_are_distinct() {
        for (index, one) in PRESETS.iter().enumerate() {
            for other in &PRESETS[index + 1..] {
                assert_ne!(one.name, other.name);
                assert_ne!(one.recipe, other.recipe, "{} and {}", one.name, other.name);
            }
        }
    }

    #[test]
    fn a_preset_is_found_by_its_name() {
        for preset in PRESETS {
            assert_eq!(by_name(preset.name), Ok(preset));
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let message = by_name("nvidea").unwrap_err().to_string();
        assert!(message.contains("`nvidea`"), "{message}");
        for preset in PRESETS {
            assert!(message.contains(preset.name), "{message}");
        }
    }

    #[test]
    fn gradients_alone_are_rounded_stochastically() {
        // SR on activations or weights diverges (arXiv:2509.25149v1, figure 10).
        for Preset { name, recipe, .. } in PRESETS {
            for operand in [
                recipe.fprop.lhs,
                recipe.fprop.rhs,
                recipe.dgrad.rhs,
                recipe.wgrad.lhs,
            ] {
                assert_ne!(operand.rounding(), Some(Rounding::Stochastic), "{name}");
            }
        }
    }

    #[test]
    fn the_default_quantizes_its_weight_once() {
        for recipe in [NVIDIA, NVIDIA_NO_RHT, NVIDIA_NO_SR, FOUR_OVER_SIX, FP8] {
            assert_eq!(recipe.fprop.rhs, recipe.dgrad.rhs);
            assert!(recipe.dgrad.rhs.is_transposable());
        }
        assert!(!NVIDIA_1D_WEIGHTS.dgrad.rhs.is_transposable());
    }
}
