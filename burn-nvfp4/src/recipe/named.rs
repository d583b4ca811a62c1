//! A [`Recipe`] in a config file: the name of a preset, or the recipe in full, of which each GEMM
//! may be the name of the preset that it is taken from.
//!
//! For `#[serde(with = "burn_nvfp4::recipe::named")]`. A recipe that equals a preset is written as
//! the preset's name; one that is read in full must pass [`Recipe::validate`].

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::presets::{PRESETS, by_name};
use super::spec::{GemmSpec, Recipe};

/// Writes the preset's name, or the recipe in full if it is none.
///
/// # Errors
/// Those of `serializer`.
pub fn serialize<S: Serializer>(recipe: &Recipe, serializer: S) -> Result<S::Ok, S::Error> {
    match PRESETS.iter().find(|preset| preset.recipe == *recipe) {
        Some(preset) => serializer.serialize_str(preset.name),
        None => recipe.serialize(serializer),
    }
}

/// Reads a preset's name or a recipe in full.
///
/// # Errors
/// Those of `deserializer`; an unknown name; unknown fields; a recipe without an arithmetic.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Recipe, D::Error> {
    deserializer.deserialize_any(NameOrRecipe)
}

struct NameOrRecipe;

impl<'de> Visitor<'de> for NameOrRecipe {
    type Value = Recipe;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the name of a recipe, or a recipe with fprop, dgrad and wgrad")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Recipe, E> {
        by_name(name).map(|preset| preset.recipe).map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Recipe, A::Error> {
        let recipe = Recipe::deserialize(MapAccessDeserializer::new(map))?;
        recipe.validate().map_err(A::Error::custom)?;
        Ok(recipe)
    }
}

/// Reads a GEMM, or the name of the preset whose fprop it is.
pub(super) fn fprop<'de, D: Deserializer<'de>>(deserializer: D) -> Result<GemmSpec, D::Error> {
    deserializer.deserialize_any(NameOrGemm(|recipe| recipe.fprop))
}

/// Reads a GEMM, or the name of the preset whose dgrad it is.
pub(super) fn dgrad<'de, D: Deserializer<'de>>(deserializer: D) -> Result<GemmSpec, D::Error> {
    deserializer.deserialize_any(NameOrGemm(|recipe| recipe.dgrad))
}

/// Reads a GEMM, or the name of the preset whose wgrad it is.
pub(super) fn wgrad<'de, D: Deserializer<'de>>(deserializer: D) -> Result<GemmSpec, D::Error> {
    deserializer.deserialize_any(NameOrGemm(|recipe| recipe.wgrad))
}

/// With the GEMM that is taken from a preset.
struct NameOrGemm(fn(&Recipe) -> GemmSpec);

impl<'de> Visitor<'de> for NameOrGemm {
    type Value = GemmSpec;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the name of a recipe that has this GEMM, or lhs and rhs")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<GemmSpec, E> {
        let preset = by_name(name).map_err(E::custom)?;
        Ok((self.0)(&preset.recipe))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<GemmSpec, A::Error> {
        GemmSpec::deserialize(MapAccessDeserializer::new(map))
    }
}

#[cfg(test)]
mod tests {
    use super::super::presets::{
        FOUR_OVER_SIX_1D, HIGH_PRECISION, NVIDIA, NVIDIA_1D_WEIGHTS, NVIDIA_NO_SR,
    };
    use super::super::renewal::ScaleRenewal;
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Config {
        #[serde(with = "super")]
        recipe: Recipe,
    }

    fn error(toml: &str) -> String {
        toml::from_str::<Config>(toml).unwrap_err().to_string()
    }

    #[test]
    fn presets_are_read_and_written_by_name() {
        for preset in PRESETS {
            let config = Config {
                recipe: preset.recipe,
            };
            let text = toml::to_string(&config).unwrap();
            assert_eq!(text, format!("recipe = \"{}\"\n", preset.name));
            assert_eq!(toml::from_str::<Config>(&text).unwrap(), config);
        }
    }

    #[test]
    fn other_recipes_are_read_and_written_in_full() {
        // Each GEMM of each preset alone: every operand spec that a preset uses occurs.
        for preset in PRESETS {
            for recipe in [
                Recipe {
                    fprop: preset.recipe.fprop,
                    ..HIGH_PRECISION
                },
                Recipe {
                    dgrad: preset.recipe.dgrad,
                    ..HIGH_PRECISION
                },
                Recipe {
                    wgrad: preset.recipe.wgrad,
                    ..HIGH_PRECISION
                },
            ] {
                let config = Config { recipe };
                let text = toml::to_string(&config).unwrap();
                assert_eq!(toml::from_str::<Config>(&text).unwrap(), config, "{text}");
                let text = serde_json::to_string(&config).unwrap();
                assert_eq!(
                    serde_json::from_str::<Config>(&text).unwrap(),
                    config,
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn the_renewal_of_scales_is_read_and_written() {
        let recipe = Recipe {
            scale_renewal: ScaleRenewal::EverySteps(std::num::NonZeroU32::MIN),
            ..NVIDIA
        };
        let text = toml::to_string(&Config { recipe }).unwrap();
        assert!(text.contains("every_steps = 1"), "{text}");
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), Config { recipe });
        let never = text.replace("every_steps = 1", "every_steps = 0");
        assert!(error(&never).contains("nonzero"), "{}", error(&never));
    }

    #[test]
    fn a_name_and_its_recipe_in_full_are_the_same() {
        let full = format!("[recipe]\n{}", toml::to_string(&NVIDIA).unwrap());
        let full = full
            .replace("[fprop", "[recipe.fprop")
            .replace("[dgrad", "[recipe.dgrad");
        let full = full.replace("[wgrad", "[recipe.wgrad");
        assert_eq!(
            toml::from_str::<Config>(&full).unwrap(),
            Config { recipe: NVIDIA }
        );
    }

    #[test]
    fn a_gemm_may_be_that_of_a_preset() {
        let text = "recipe = { fprop = 'four_over_six_1d', dgrad = 'nvidia_1d_weights', \
                    wgrad = 'nvidia_no_sr' }";
        let recipe = Recipe {
            fprop: FOUR_OVER_SIX_1D.fprop,
            dgrad: NVIDIA_1D_WEIGHTS.dgrad,
            wgrad: NVIDIA_NO_SR.wgrad,
            ..NVIDIA
        };
        assert_eq!(toml::from_str::<Config>(text).unwrap(), Config { recipe });
        // All of one preset is that preset.
        let all = text.replace("four_over_six_1d", "nvidia_1d_weights");
        let all = all.replace("nvidia_no_sr", "nvidia_1d_weights");
        let read = toml::from_str::<Config>(&all).unwrap();
        let written = toml::to_string(&read).unwrap();
        assert_eq!(written, "recipe = \"nvidia_1d_weights\"\n");
        let unknown = text.replace("nvidia_no_sr", "no_sr");
        assert!(error(&unknown).contains("no recipe is called `no_sr`"));
        let number = text.replace("'nvidia_no_sr'", "4");
        assert!(error(&number).contains("the name of a recipe that has this GEMM"));
    }

    #[test]
    fn errors_say_what_would_be_right() {
        assert!(error("recipe = 'nvfp4'").contains("no recipe is called `nvfp4`"));
        assert!(error("recipe = 4").contains("the name of a recipe"));
        assert!(error("recipe = { forward = 1 }").contains("unknown field `forward`"));
        assert!(error("recipe = {}").contains("missing field `fprop`"));
    }
}
