//! Which recipes are refused, by serde and by [`Recipe::validate`].

use super::*;
use crate::recipe::presets::{HIGH_PRECISION, NVIDIA, PRESETS, QUARTET2};

const NEAREST: OperandSpec = NVIDIA.fprop.lhs;

const FOUR_OVER_SIX: ScaleRule = ScaleRule::FourOverSix {
    bound: ScaleBound::E4m3At448,
    error: BlockError::Mse,
    arithmetic: ErrorArithmetic::Fast,
};

fn nvfp4(block: BlockShape, scale: ScaleRule, rounding: Rounding) -> OperandSpec {
    OperandSpec::Nvfp4 {
        block,
        scale,
        rounding,
        transform: Transform::None,
    }
}

fn parse(operand: &str) -> Result<OperandSpec, String> {
    serde_json::from_str(operand).map_err(|error| error.to_string())
}

#[test]
fn a_spec_is_spelled_as_it_reads() {
    let written = serde_json::to_string(&NVIDIA.wgrad.rhs).unwrap();
    assert_eq!(
        written,
        concat!(
            r#"{"format":"nvfp4","block":"row16","scale":{"rule":"tensor"},"#,
            r#""rounding":"stochastic","transform":{"kind":"hadamard","signs":55272}}"#
        )
    );
    let written = serde_json::to_string(&FOUR_OVER_SIX).unwrap();
    assert_eq!(
        written,
        r#"{"rule":"four_over_six","bound":"448","error":"mse","arithmetic":"fast"}"#
    );
    assert_eq!(
        serde_json::to_string(&OperandSpec::HighPrecision).unwrap(),
        r#"{"format":"high_precision"}"#
    );
}

#[test]
fn every_preset_survives_json_and_toml_in_full() {
    for preset in PRESETS {
        let json = serde_json::to_string(&preset.recipe).unwrap();
        assert_eq!(
            serde_json::from_str::<Recipe>(&json).unwrap(),
            preset.recipe
        );
        let toml = toml::to_string(&preset.recipe).unwrap();
        assert_eq!(toml::from_str::<Recipe>(&toml).unwrap(), preset.recipe);
    }
}

#[test]
fn unknown_fields_are_refused_at_every_level() {
    let recipe = serde_json::to_string(&NVIDIA).unwrap();
    for (from, to) in [
        (r#"{"fprop""#, r#"{"extra":1,"fprop""#),
        (r#"{"lhs""#, r#"{"extra":1,"lhs""#),
        (r#"{"format":"nvfp4""#, r#"{"extra":1,"format":"nvfp4""#),
        (r#"{"rule":"tensor""#, r#"{"extra":1,"rule":"tensor""#),
        (r#"{"kind":"none""#, r#"{"extra":1,"kind":"none""#),
        (r#"{"kind":"hadamard""#, r#"{"extra":1,"kind":"hadamard""#),
    ] {
        let with_extra = recipe.replacen(from, to, 1);
        assert_ne!(with_extra, recipe, "{from}");
        let error = serde_json::from_str::<Recipe>(&with_extra)
            .unwrap_err()
            .to_string();
        assert!(error.contains("unknown field `extra`"), "{from}: {error}");
    }
}

#[test]
fn a_format_takes_its_own_fields_and_all_of_them() {
    for (operand, expected) in [
        (
            r#"{"format":"high_precision","rounding":"stochastic"}"#,
            "unknown field `rounding`",
        ),
        (
            r#"{"format":"mxfp8","scale":"floor","rounding":"stochastic"}"#,
            "unknown field",
        ),
        (
            r#"{"format":"fp8","scaling":"row16"}"#,
            "unknown variant `row16`",
        ),
        (
            r#"{"format":"mxfp4","scale":"floor","rounding":"stochastic"}"#,
            "missing field",
        ),
        (r#"{"format":"nvfp4"}"#, "missing field `block`"),
        (r#"{"format":"int4"}"#, "unknown variant `int4`"),
        (r#"{"block":"row16"}"#, "missing field `format`"),
    ] {
        let error = parse(operand).unwrap_err();
        assert!(error.contains(expected), "{operand}: {error}");
    }
}

#[test]
fn what_has_no_arithmetic_is_refused_with_its_place() {
    use BlockShape::{Row16, Tile16x16};
    use Rounding::{NearestEven, Stochastic};
    let hadamard = |operand: OperandSpec| operand.with_hadamard();
    for (operand, reason) in [
        (
            nvfp4(Row16, FOUR_OVER_SIX, Stochastic),
            "stochastic rounding",
        ),
        (
            nvfp4(Tile16x16, FOUR_OVER_SIX, Stochastic),
            "stochastic rounding",
        ),
        (
            hadamard(nvfp4(Row16, FOUR_OVER_SIX, NearestEven)),
            "Hadamard",
        ),
        (
            nvfp4(Row16, ScaleRule::Row, Stochastic),
            "stochastic rounding",
        ),
        (
            hadamard(nvfp4(Row16, ScaleRule::Row, NearestEven)),
            "Hadamard",
        ),
        (nvfp4(Tile16x16, ScaleRule::Row, NearestEven), "1x16 blocks"),
        (
            hadamard(nvfp4(Tile16x16, ScaleRule::Tensor, NearestEven)),
            "16x16 tiles",
        ),
    ] {
        // Both operands alike, so that the transform is not what is refused.
        let gemm = GemmSpec {
            lhs: operand,
            rhs: operand,
        };
        for (recipe, place) in [
            (
                Recipe {
                    fprop: gemm,
                    ..HIGH_PRECISION
                },
                "fprop.lhs",
            ),
            (
                Recipe {
                    dgrad: gemm,
                    ..HIGH_PRECISION
                },
                "dgrad.lhs",
            ),
            (
                Recipe {
                    wgrad: gemm,
                    ..HIGH_PRECISION
                },
                "wgrad.lhs",
            ),
            (
                Recipe {
                    wgrad: GemmSpec {
                        lhs: NEAREST,
                        rhs: operand,
                    },
                    ..NVIDIA
                },
                "wgrad.rhs",
            ),
        ] {
            let message = recipe.validate().unwrap_err().to_string();
            assert!(message.starts_with(place), "{message}");
            assert!(message.contains(reason), "{message}");
        }
    }
}

#[test]
fn a_transform_on_one_operand_is_refused() {
    let plain = Transform::Hadamard {
        signs: SignVector::PLAIN,
    };
    for rhs in [
        NEAREST,
        NEAREST.with_transform(plain),
        OperandSpec::HighPrecision,
    ] {
        let wgrad = GemmSpec {
            lhs: NEAREST.with_hadamard(),
            rhs,
        };
        let message = Recipe { wgrad, ..NVIDIA }
            .validate()
            .unwrap_err()
            .to_string();
        assert!(
            message.starts_with("wgrad: the Hadamard transform must be on both"),
            "{message}"
        );
    }
}

/// The mean was multiplied as it is with the rotated weight: outputs and gradients were others.
#[test]
fn a_mean_apart_is_refused_where_the_weight_is_transformed() {
    let plain = GemmSpec {
        lhs: NEAREST,
        rhs: NEAREST,
    };
    let rotated = GemmSpec {
        lhs: NEAREST.with_hadamard(),
        rhs: NEAREST.with_hadamard(),
    };
    let apart = Recipe {
        token_mean: TokenMean::Apart,
        fprop: plain,
        dgrad: plain,
        wgrad: plain,
        ..HIGH_PRECISION
    };
    for gemm in [rotated, QUARTET2.dgrad] {
        for (recipe, place) in [
            (
                Recipe {
                    fprop: gemm,
                    ..apart
                },
                "fprop: ",
            ),
            (
                Recipe {
                    dgrad: gemm,
                    ..apart
                },
                "dgrad: ",
            ),
        ] {
            let message = recipe.validate().unwrap_err().to_string();
            assert!(message.starts_with(place), "{message}");
            assert!(message.contains("must not be transformed"), "{message}");
            let quantized = Recipe {
                token_mean: TokenMean::Quantized,
                ..recipe
            };
            assert_eq!(quantized.validate(), Ok(()));
        }
        // There both means are multiplied with each other.
        let wgrad = Recipe {
            wgrad: gemm,
            ..apart
        };
        assert_eq!(wgrad.validate(), Ok(()));
    }
    // Nothing is quantized in this fprop, so no mean is taken out of its operand.
    let fprop = GemmSpec::HIGH_PRECISION;
    assert_eq!(Recipe { fprop, ..apart }.validate(), Ok(()));
}

#[test]
fn one_packing_serves_both_axes_only_where_it_does() {
    use BlockShape::{Row16, Tile16x16};
    use Rounding::{NearestEven, Stochastic};
    for (operand, expected) in [
        (nvfp4(Tile16x16, ScaleRule::Tensor, NearestEven), true),
        (nvfp4(Tile16x16, FOUR_OVER_SIX, NearestEven), true),
        (nvfp4(Tile16x16, ScaleRule::Tensor, Stochastic), false),
        (nvfp4(Row16, ScaleRule::Tensor, NearestEven), false),
        (
            OperandSpec::Fp8 {
                scaling: Fp8Scaling::Tensor,
            },
            true,
        ),
        (
            OperandSpec::Fp8 {
                scaling: Fp8Scaling::Row128,
            },
            false,
        ),
        (OperandSpec::HighPrecision, false),
    ] {
        assert_eq!(operand.is_transposable(), expected, "{operand:?}");
    }
}
