//! How operands are quantized, in words: for tables and reports.

use std::fmt;

use super::spec::{
    BlockError, BlockShape, E8m0Rule, Fp8Scaling, OperandSpec, Rounding, ScaleRule, Transform,
};

impl fmt::Display for OperandSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HighPrecision => f.write_str("high precision"),
            Self::Nvfp4 { block, scale, .. } => {
                f.write_str(match block {
                    BlockShape::Row16 => "NVFP4 1x16",
                    BlockShape::Tile16x16 => "NVFP4 16x16",
                })?;
                f.write_str(match scale {
                    ScaleRule::Tensor => "",
                    ScaleRule::Row => ", row scales",
                    ScaleRule::Eden => ", EDEN scales",
                    ScaleRule::FourOverSix { error, .. } => match error {
                        BlockError::Mae => ", 4/6 by MAE",
                        BlockError::Mse => ", 4/6 by MSE",
                    },
                })
            }
            Self::Mxfp4 { scale, .. } => write!(f, "MXFP4, {}", rule(*scale)),
            Self::Mxfp8 { scale } => write!(f, "MXFP8, {}", rule(*scale)),
            Self::Fp8 { scaling } => f.write_str(match scaling {
                Fp8Scaling::Tensor => "FP8 per tensor",
                Fp8Scaling::Row128 => "FP8 1x128",
                Fp8Scaling::Tile128x128 => "FP8 128x128",
            }),
        }?;
        f.write_str(match self.transform() {
            Transform::None => "",
            Transform::Hadamard { .. } => ", Hadamard",
            Transform::RandomHadamard => ", random Hadamard",
        })?;
        f.write_str(match self.rounding() {
            Some(Rounding::Stochastic) => ", stochastic",
            Some(Rounding::NearestEven) | None => "",
        })
    }
}

const fn rule(scale: E8m0Rule) -> &'static str {
    match scale {
        E8m0Rule::Floor => "floor",
        E8m0Rule::RoundUp => "rounded up",
    }
}

#[cfg(test)]
mod tests {
    use super::super::presets;

    #[test]
    fn operands_are_told_apart() {
        let of = |spec: super::OperandSpec| spec.to_string();
        assert_eq!(of(presets::NVIDIA.fprop.rhs), "NVFP4 16x16");
        assert_eq!(
            of(presets::NVIDIA.wgrad.rhs),
            "NVFP4 1x16, Hadamard, stochastic"
        );
        assert_eq!(of(presets::QUARTET2.fprop.lhs), "NVFP4 1x16, 4/6 by MSE");
        assert_eq!(
            of(presets::QUARTET2.dgrad.lhs),
            "NVFP4 1x16, EDEN scales, random Hadamard"
        );
        assert_eq!(of(presets::FP8.fprop.rhs), "FP8 128x128");
    }
}
