//! What policies answer, and what they refuse.

use super::presets::POLICIES;
use super::*;
use crate::recipe::presets::{self, HIGH_PRECISION, MXFP4, MXFP8, NVIDIA};

const START: Progress = Progress {
    step: 0,
    total: 100,
};

/// The linears of a hybrid with the given block letters.
fn hybrid(letters: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (index, letter) in letters.chars().enumerate() {
        let linears: &[&str] = match letter {
            'M' => &["in_proj", "out_proj"],
            '*' => &["q_proj", "k_proj", "v_proj", "o_proj"],
            _ => &["up_proj", "down_proj"],
        };
        names.extend(
            linears
                .iter()
                .map(|linear| format!("layers.{index}.mixer.{linear}")),
        );
    }
    names.push("lm_head".to_owned());
    names
}

/// The 12B model of arXiv:2509.25149: 28 Mamba-2, 28 MLP and 6 attention blocks.
fn nemotron_12b() -> Vec<String> {
    let letters: Vec<char> = "M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M-"
        .chars()
        .collect();
    assert_eq!(letters.len(), 62);
    hybrid(&letters.iter().collect::<String>())
}

fn error_of(toml: &str) -> String {
    toml::from_str::<Policy>(toml).unwrap_err().to_string()
}

#[test]
fn the_paper_policy_of_62_blocks_is_the_papers() {
    let policy = Policy::paper(NVIDIA).with_blocks(62).unwrap();
    // golden/nemotron-h/configs/expected.json, nvfp4_bf16_blocks.
    assert_eq!(
        policy.high_precision_blocks(),
        [0, 1, 54, 55, 56, 57, 58, 59, 60, 61]
    );
    let layers = nemotron_12b();
    policy.check_layers(&layers).unwrap();
    // 20 of 124 linears (qkv counted as one) stay in high precision (nemotron-h §2.2); with q, k
    // and v apart, and lm_head, these are still 20, because no attention block is among them.
    let kept = layers
        .iter()
        .filter(|name| !policy.resolve(Some(name), START).is_quantized());
    assert_eq!(kept.count(), 20 + 1);
}

#[test]
fn the_paper_policy_scales_with_depth() {
    let cases = [
        (118, 4, 15),
        (62, 2, 8),
        (52, 2, 7),
        (24, 1, 3),
        (8, 0, 1),
        (4, 0, 1),
        (1, 0, 1),
    ];
    for (blocks, head, tail) in cases {
        let policy = Policy::paper(NVIDIA).with_blocks(blocks).unwrap();
        let expected: Vec<_> = (0..head).chain(blocks - tail..blocks).collect();
        assert_eq!(policy.high_precision_blocks(), expected, "{blocks} blocks");
    }
}

#[test]
fn nemotron3_keeps_attention_and_the_end_and_puts_out_proj_in_mxfp8() {
    let policy = Policy::nemotron3(NVIDIA).with_blocks(62).unwrap();
    assert_eq!(policy.high_precision_blocks(), (53..62).collect::<Vec<_>>());
    policy.check_layers(&nemotron_12b()).unwrap();
    for (layer, expected) in [
        ("layers.0.mixer.in_proj", NVIDIA),
        ("layers.0.mixer.out_proj", MXFP8),
        ("layers.7.mixer.q_proj", HIGH_PRECISION),
        ("layers.7.mixer.o_proj", HIGH_PRECISION),
        ("layers.8.mixer.up_proj", NVIDIA),
        ("layers.58.mixer.out_proj", HIGH_PRECISION),
        ("layers.61.mixer.down_proj", HIGH_PRECISION),
        ("lm_head", HIGH_PRECISION),
    ] {
        assert_eq!(policy.resolve(Some(layer), START), expected, "{layer}");
    }
}

#[test]
fn every_preset_keeps_lm_head_and_gives_unnamed_layers_the_base() {
    for preset in POLICIES {
        let policy = (preset.build)(MXFP4).with_blocks(8).unwrap();
        assert_eq!(
            policy.resolve(Some("lm_head"), START),
            HIGH_PRECISION,
            "{}",
            preset.name
        );
        assert_eq!(policy.resolve(None, START), MXFP4, "{}", preset.name);
        // No attention, no lm_head: still no mistake.
        policy.check_layers(&["layers.0.mixer.in_proj"]).unwrap();
        assert_eq!(
            Policy::by_name(preset.name, MXFP4).unwrap(),
            (preset.build)(MXFP4)
        );
    }
}

#[test]
fn the_last_matching_override_decides() {
    let policy = Policy::uniform(NVIDIA)
        .with_override("layers.*", MXFP4)
        .unwrap()
        .with_override("*.out_proj", MXFP8)
        .unwrap();
    assert_eq!(policy.resolve(Some("layers.3.mixer.in_proj"), START), MXFP4);
    assert_eq!(
        policy.resolve(Some("layers.3.mixer.out_proj"), START),
        MXFP8
    );
    assert_eq!(policy.resolve(Some("encoder.out_proj"), START), MXFP8);
    assert_eq!(policy.resolve(Some("encoder.out_proj.bias"), START), NVIDIA);
}

#[test]
fn the_block_is_the_number_after_layers_or_blocks() {
    for (layer, block) in [
        ("layers.12.mixer.in_proj", Some(12)),
        ("model.layers.3.mlp.up_proj", Some(3)),
        ("blocks.0", Some(0)),
        ("layers", None),
        ("layers.norm.4", None),
        ("sublayers.4.in_proj", None),
        ("lm_head", None),
        ("", None),
    ] {
        assert_eq!(block_of(layer), block, "{layer}");
    }
}

#[test]
fn the_late_switch_takes_the_forward_alone() {
    let policy = Policy::uniform(NVIDIA)
        .with_high_precision_forward_from(0.82)
        .unwrap();
    let at = |step, total| policy.resolve(Some("layers.0.up_proj"), Progress { step, total });
    let switched = Recipe {
        fprop: GemmSpec::HIGH_PRECISION,
        ..NVIDIA
    };
    assert_eq!(at(81, 100), NVIDIA);
    assert_eq!(at(82, 100), switched);
    assert_eq!(at(99, 100), switched);
    // Without an end, there is no fraction of it.
    assert_eq!(at(1_000_000, 0), NVIDIA);
}

#[test]
fn a_warm_up_runs_what_is_quantized_in_its_own_recipe() {
    let policy = Policy::uniform(NVIDIA)
        .with_override("*.out_proj", presets::ROW_SCALED)
        .unwrap()
        .with_warm_up(presets::FP8, 0.1)
        .unwrap()
        .with_high_precision_forward_from(0.9)
        .unwrap();
    let at = |layer, step, total| policy.resolve(Some(layer), Progress { step, total });
    assert_eq!(at("layers.0.up_proj", 0, 100), presets::FP8);
    assert_eq!(at("layers.0.up_proj", 9, 100), presets::FP8);
    assert_eq!(at("layers.0.up_proj", 10, 100), NVIDIA);
    assert_eq!(at("lm_head", 0, 100), presets::HIGH_PRECISION);
    // Its backward is in high precision, and stays there.
    let forward_only = Recipe {
        fprop: presets::FP8.fprop,
        ..presets::HIGH_PRECISION
    };
    assert_eq!(at("layers.0.mixer.out_proj", 0, 100), forward_only);
    // What is trained for 4 bits is served in 4 bits.
    assert_eq!(at("layers.0.up_proj", 0, 0), NVIDIA);
    let refused = Policy::uniform(NVIDIA).with_warm_up(presets::FP8, 0.0);
    assert!(refused.unwrap_err().to_string().contains("warm_up.until"));
}

/// `row_scaled` quantizes fprop alone: of `quartet2` that left a backward in high precision that
/// was to read the operands of fprop, and nobody had checked it.
#[test]
fn a_warm_up_is_refused_where_its_part_of_a_recipe_has_no_arithmetic() {
    for (start, reason) in [
        (presets::QUARTET2, "wgrad.lhs: backward that reads"),
        (presets::AVERIS, "token_mean: a mean that is kept apart"),
    ] {
        let refused = |policy: Policy| policy.with_warm_up(start, 0.1).unwrap_err().to_string();
        assert_eq!(
            refused(Policy::uniform(presets::ROW_SCALED)).find(reason),
            Some("warm_up.recipe where base quantizes: ".len())
        );
        let policy = Policy::uniform(NVIDIA).with_override("*.out_proj", presets::ROW_SCALED);
        let message = refused(policy.unwrap());
        let place = "warm_up.recipe where the override of `*.out_proj` quantizes: ";
        assert_eq!(message.find(place), Some(0), "{message}");
        assert_eq!(message.find(reason), Some(place.len()), "{message}");
    }
}

#[test]
fn every_recipe_warms_up_every_recipe_that_quantizes_all_gemms_or_none() {
    for start in presets::PRESETS {
        for own in presets::PRESETS {
            let policy = Policy::uniform(own.recipe).with_warm_up(start.recipe, 0.5);
            let gemms = [own.recipe.fprop, own.recipe.dgrad, own.recipe.wgrad];
            if gemms.map(|gemm| gemm.is_quantized()) == [true, false, false] {
                continue;
            }
            let policy = policy.unwrap_or_else(|e| panic!("{} {}: {e}", start.name, own.name));
            let runs = policy.resolve(Some("layers.0.up_proj"), START);
            let expected = if own.recipe.is_quantized() {
                start.recipe
            } else {
                HIGH_PRECISION
            };
            assert_eq!(runs, expected, "{} {}", start.name, own.name);
        }
    }
}

#[test]
fn a_policy_survives_toml_and_json() {
    let one_gemm = Recipe {
        wgrad: MXFP4.wgrad,
        ..NVIDIA
    };
    let mut policies: Vec<Policy> = POLICIES
        .iter()
        .map(|preset| (preset.build)(NVIDIA))
        .collect();
    policies.push(
        Policy::paper(one_gemm)
            .with_blocks(62)
            .unwrap()
            .with_override("layers.5.*", one_gemm)
            .unwrap()
            .with_high_precision_forward_from(0.9)
            .unwrap()
            .with_warm_up(presets::FP8, 0.05)
            .unwrap(),
    );
    for policy in policies {
        let text = toml::to_string(&policy).unwrap();
        assert_eq!(toml::from_str::<Policy>(&text).unwrap(), policy, "{text}");
        let text = serde_json::to_string(&policy).unwrap();
        assert_eq!(
            serde_json::from_str::<Policy>(&text).unwrap(),
            policy,
            "{text}"
        );
    }
}

#[test]
fn a_config_is_read_as_it_looks() {
    let policy: Policy = toml::from_str(
        r#"
        base = "nvidia"
        blocks = 12
        head = { blocks = 1 }
        tail = { fraction = 0.2 }
        high_precision_forward_from = 0.9

        [[overrides]]
        layers = "*.out_proj"
        recipe = "mxfp8"
        "#,
    )
    .unwrap();
    assert_eq!(policy.high_precision_blocks(), [0, 10, 11]);
    assert_eq!(
        policy.resolve(Some("layers.4.mixer.out_proj"), START),
        MXFP8
    );
}

#[test]
fn mistakes_in_a_config_are_named() {
    for (config, expected) in [
        (
            "base = 'nvidea'",
            "no recipe is called `nvidea`; there are high_precision, nvidia,",
        ),
        ("base = 'nvidia'\nblock = 3", "unknown field `block`"),
        ("blocks = 3", "missing field `base`"),
        (
            "base = 'nvidia'\ntail = { fraction = 0.0 }",
            "tail.fraction is 0, not a fraction",
        ),
        (
            "base = 'nvidia'\nhead = { fraction = 1.5 }",
            "head.fraction is 1.5, not a fraction",
        ),
        (
            "base = 'nvidia'\nhead = { fraction = nan }",
            "head.fraction is NaN, not a fraction",
        ),
        (
            "base = 'nvidia'\nhead = { part = 0.5 }",
            "unknown variant `part`",
        ),
        ("base = 'nvidia'\nhead = { blocks = -1 }", "-1"),
        (
            "base = 'nvidia'\nhigh_precision_forward_from = -0.1",
            "high_precision_forward_from is -0.1, not a fraction above 0 and at most 1",
        ),
        (
            "base = 'nvidia'\nblocks = 4\nhead = { blocks = 3 }\ntail = { blocks = 2 }",
            "3 blocks at the start and 2 at the end make more than 4 in all",
        ),
        (
            "base = 'nvidia'\nblocks = 4\nhead = { blocks = 4294967296 }",
            "4294967296 blocks at the start",
        ),
        (
            "base = 'nvidia'\n[[overrides]]\nlayers = 'layers.{1'\nrecipe = 'mxfp4'",
            "`layers.{1` is not a layer pattern: unclosed alternate group",
        ),
        (
            "base = 'nvidia'\n[[overrides]]\nlayers = '*'\nrecipe = 'x'",
            "no recipe is called `x`",
        ),
    ] {
        let message = error_of(config);
        assert!(message.contains(expected), "{config}\n{message}");
    }
}

#[test]
fn an_unknown_policy_is_answered_with_the_known_ones() {
    let message = Policy::by_name("papre", NVIDIA).unwrap_err().to_string();
    assert_eq!(
        message,
        "no policy is called `papre`; there are uniform, paper, nemotron3"
    );
}

#[test]
fn a_pattern_that_matches_nothing_is_named_with_some_layers() {
    let policy = Policy::uniform(NVIDIA)
        .with_override("layers.*.attn", MXFP8)
        .unwrap();
    assert_eq!(
        policy.check_layers(&hybrid("M-M")).unwrap_err().to_string(),
        "the pattern `layers.*.attn` matches no layer; the model has `layers.0.mixer.in_proj`, \
         `layers.0.mixer.out_proj`, `layers.1.mixer.up_proj`, `layers.1.mixer.down_proj` and 3 more"
    );
    let message = policy.check_layers::<String>(&[]).unwrap_err().to_string();
    assert!(
        message.ends_with("the model has no named layers"),
        "{message}"
    );
}

#[test]
fn the_depth_must_be_known_and_hold() {
    let policy = Policy::paper(NVIDIA);
    assert_eq!(policy.validate(), Err(RecipeError::UnknownDepth));
    assert_eq!(
        policy.check_layers(&["lm_head"]),
        Err(RecipeError::UnknownDepth)
    );
    let policy = policy.with_blocks(2).unwrap();
    assert_eq!(policy.validate(), Ok(()));
    assert_eq!(
        policy.check_layers(&hybrid("M-M")).unwrap_err().to_string(),
        "the layer `layers.2.mixer.in_proj` lies outside the 2 blocks that the policy was made for"
    );
    // A number of blocks at the start can be told without a depth.
    let spec = PolicySpec {
        head: Extent::Blocks(2),
        ..Policy::uniform(NVIDIA).spec().clone()
    };
    let policy = Policy::new(spec).unwrap();
    assert_eq!(policy.validate(), Ok(()));
    assert_eq!(policy.high_precision_blocks(), [0, 1]);
}

#[test]
fn a_recipe_without_an_arithmetic_is_refused() {
    let lopsided = Recipe {
        wgrad: GemmSpec {
            rhs: NVIDIA.fprop.rhs,
            ..NVIDIA.wgrad
        },
        ..NVIDIA
    };
    assert!(
        Policy::uniform(NVIDIA)
            .with_override("*", lopsided)
            .is_err()
    );
    assert!(Policy::by_name("uniform", lopsided).is_err());
}

/// A configuration from elsewhere could have megabytes compiled by a pattern of kilobytes.
#[test]
fn a_pattern_longer_than_any_layer_name_is_refused() {
    let policy = |length: usize| {
        Policy::uniform(NVIDIA).with_override(&"\u{ef}".repeat(length / 2), HIGH_PRECISION)
    };
    policy(128).unwrap();
    let message = policy(9000).unwrap_err().to_string();
    assert_eq!(
        message,
        format!(
            "`{}..` is not a layer pattern: it has 9000 bytes, at most 128 are taken",
            "\u{ef}".repeat(24)
        )
    );
}
