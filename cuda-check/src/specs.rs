//! Every way to quantize an operand.

use burn_nvfp4::Recipe;
use burn_nvfp4::recipe::{
    BlockError, BlockShape, E8m0Rule, ErrorArithmetic, Fp8Scaling, GemmSpec, OperandSpec, Rounding,
    ScaleBound, ScaleRule, SignVector, Transform, presets,
};

/// NVFP4 as most operands have it.
pub const ROW16: OperandSpec = nvfp4(BlockShape::Row16, ScaleRule::Tensor);

/// NVFP4, rounded to nearest and not transformed.
pub const fn nvfp4(block: BlockShape, scale: ScaleRule) -> OperandSpec {
    OperandSpec::Nvfp4 {
        block,
        scale,
        rounding: Rounding::NearestEven,
        transform: Transform::None,
    }
}

/// Every operand that a recipe may ask for.
pub fn all() -> Vec<OperandSpec> {
    let mut plain = Vec::new();
    for block in [BlockShape::Row16, BlockShape::Tile16x16] {
        plain.extend([ScaleRule::Tensor, ScaleRule::Row].map(|scale| nvfp4(block, scale)));
        for error in [BlockError::Mae, BlockError::Mse] {
            for arithmetic in [ErrorArithmetic::Exact, ErrorArithmetic::Fast] {
                // The bound is an argument of the kernel, not a part of it.
                let scale = ScaleRule::FourOverSix {
                    bound: ScaleBound::E4m3At256,
                    error,
                    arithmetic,
                };
                plain.push(nvfp4(block, scale));
            }
        }
    }
    for scale in [E8m0Rule::Floor, E8m0Rule::RoundUp] {
        plain.push(OperandSpec::Mxfp4 {
            scale,
            rounding: Rounding::NearestEven,
            transform: Transform::None,
        });
        plain.push(OperandSpec::Mxfp8 { scale });
    }
    let scalings = [
        Fp8Scaling::Tensor,
        Fp8Scaling::Row128,
        Fp8Scaling::Tile128x128,
    ];
    plain.extend(scalings.map(|scaling| OperandSpec::Fp8 { scaling }));

    let hadamard = Transform::Hadamard {
        signs: SignVector::TRANSFORMER_ENGINE,
    };
    plain.push(nvfp4(BlockShape::Row16, ScaleRule::Eden));
    let mut specs: Vec<OperandSpec> = Vec::new();
    for spec in plain {
        for rounding in [Rounding::NearestEven, Rounding::Stochastic] {
            for transform in [Transform::None, hadamard, Transform::RandomHadamard] {
                // Formats with one rounding, or without a transform, give the same spec again.
                let variant = spec.with_rounding(rounding).with_transform(transform);
                if has_arithmetic(variant) && !specs.contains(&variant) {
                    specs.push(variant);
                }
            }
        }
    }
    specs
}

/// Whether a recipe may ask for `spec`.
fn has_arithmetic(spec: OperandSpec) -> bool {
    let gemm = GemmSpec {
        lhs: spec,
        rhs: spec,
    };
    let recipe = Recipe {
        fprop: gemm,
        ..presets::HIGH_PRECISION
    };
    recipe.validate().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operand_of_every_preset_is_recorded() {
        let specs = all();
        for preset in burn_nvfp4::recipe::PRESETS {
            let recipe = preset.recipe;
            for gemm in [recipe.fprop, recipe.dgrad, recipe.wgrad] {
                for spec in [gemm.lhs, gemm.rhs] {
                    let known = !spec.is_quantized() || specs.contains(&spec);
                    assert!(known, "{}: {spec:?}", preset.name);
                }
            }
        }
    }
}
