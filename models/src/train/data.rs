//! The data of a run, as its configuration says it: one text, or sources with weights and phases.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::data::dataset::{HeldOut, Reading};
use crate::data::{Blend, Curriculum, Weight};

use super::config::{TrainConfig, TrainConfigError};

/// Which text, and how it becomes ids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// A text file, a folder of them, or a folder that `nvfp4 tokenize` wrote; absent, and without
    /// sources: the Rust sources of the locked dependencies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// A Hugging Face `tokenizer.json`; absent: bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// What a run on tokenised folders is validated on; text holds out a part by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationData>,
    /// Several sources instead of one path.
    #[serde(default, rename = "source", skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceConfig>,
    /// Blends that follow each other; absent: the weights of the sources, all along.
    #[serde(default, rename = "phase", skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<PhaseConfig>,
}

/// What a run on tokenised folders is validated on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ValidationData {
    /// This share of each source, at its end, from the start of a document on.
    HoldOut(f64),
    /// A tokenised folder.
    Path(PathBuf),
}

/// One source of several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// What phases call it.
    pub name: String,
    /// As [`DataConfig::path`].
    pub path: PathBuf,
    /// Its share of the sequences, relative to the other sources; absent where phases say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
}

/// A blend for a part of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseConfig {
    /// The share of the run's steps at which it ends; 1 for the last.
    pub until: f64,
    /// Weights by name of source; one that is not named has none.
    pub weights: BTreeMap<String, f64>,
}

impl DataConfig {
    /// Makes `path` all that is read; what it is validated on stays.
    pub fn replace(&mut self, path: &Path) {
        self.path = Some(path.to_owned());
        self.sources.clear();
        self.phases.clear();
    }

    /// The paths that are read, in the order of the sources.
    pub fn paths(&self) -> Vec<PathBuf> {
        let sources = self.sources.iter().map(|source| &source.path);
        self.path.iter().chain(sources).cloned().collect()
    }

    /// What a run on tokenised folders is validated on.
    pub fn held_out(&self) -> Option<HeldOut> {
        self.validation.as_ref().map(|validation| match validation {
            ValidationData::HoldOut(share) => HeldOut::Share(*share),
            ValidationData::Path(path) => HeldOut::Folder(path.clone()),
        })
    }

    /// Weights, phases and what is held out, for the identity of a run; absent for one text.
    pub(super) fn blend(&self) -> Option<Value> {
        if self.sources.is_empty() && self.validation.is_none() {
            return None;
        }
        let weights: Vec<_> = self
            .sources
            .iter()
            .map(|source| (&source.name, source.weight))
            .collect();
        let share = match self.validation {
            Some(ValidationData::HoldOut(share)) => Some(share),
            Some(ValidationData::Path(_)) | None => None,
        };
        Some(json!({ "weights": weights, "phases": self.phases, "hold_out": share }))
    }

    /// Checks that sources, weights and phases belong together.
    pub(super) fn validate(&self) -> Result<(), TrainConfigError> {
        let wrong = |reason: String| Err(TrainConfigError::Data(reason));
        if let Some(ValidationData::HoldOut(share)) = self.validation
            && !(share > 0.0 && share < 1.0)
        {
            return wrong(format!(
                "validation.hold_out is {share}, it must lie between 0 and 1"
            ));
        }
        if self.path.is_some() && !self.sources.is_empty() {
            return wrong("path and [[data.source]] exclude each other".to_owned());
        }
        if self.sources.is_empty() && !self.phases.is_empty() {
            return wrong("[[data.phase]] needs [[data.source]]".to_owned());
        }
        for (index, source) in self.sources.iter().enumerate() {
            let name = &source.name;
            if self.sources[..index]
                .iter()
                .any(|other| other.name == *name)
            {
                return wrong(format!("two sources are called {name:?}"));
            }
            match (source.weight, self.phases.is_empty()) {
                (None, true) => return wrong(format!("source {name:?} has no weight")),
                (Some(_), false) => {
                    return wrong(format!(
                        "source {name:?} has a weight, but the weights are those of the phases"
                    ));
                }
                (Some(_), true) | (None, false) => {}
            }
        }
        let mut last = 0.0;
        for phase in &self.phases {
            let until = phase.until;
            if !(until > last && until <= 1.0) {
                return wrong(format!(
                    "a phase lasts until {until}, it must be more than {last} and at most 1"
                ));
            }
            last = until;
            let known = |name: &&String| self.sources.iter().all(|source| source.name != **name);
            if let Some(name) = phase.weights.keys().find(known) {
                return wrong(format!(
                    "the phase until {until} weighs {name:?}, which is no source"
                ));
            }
        }
        if !self.phases.is_empty() && last < 1.0 {
            return wrong(format!("the last phase lasts until {last}, it must be 1"));
        }
        self.blends().map(|_| ())
    }

    /// The blends, each with the share of the run at which it ends.
    fn blends(&self) -> Result<Vec<(Blend, f64)>, TrainConfigError> {
        let blend = |weight: &dyn Fn(&SourceConfig) -> Option<f64>| {
            let weights = self.sources.iter().map(|source| Weight {
                source: source.name.clone(),
                weight: weight(source).unwrap_or(0.0),
            });
            Blend::new(&weights.collect::<Vec<_>>())
                .map_err(|error| TrainConfigError::Data(error.to_string()))
        };
        if self.sources.is_empty() {
            return Ok(vec![(Blend::single(), 1.0)]);
        }
        if self.phases.is_empty() {
            return Ok(vec![(blend(&|source| source.weight)?, 1.0)]);
        }
        let phase = |phase: &PhaseConfig| {
            let blend = blend(&|source| phase.weights.get(&source.name).copied())?;
            Ok((blend, phase.until))
        };
        self.phases.iter().map(phase).collect()
    }
}

impl TrainConfig {
    /// How the sources are read. A phase ends with a step.
    ///
    /// # Errors
    /// [`TrainConfigError::Data`] for weights that make no blend.
    pub fn reading(&self) -> Result<Reading, TrainConfigError> {
        let blends = self.data.blends()?.into_iter();
        let phases = blends.map(|(blend, until)| (blend, self.sequences_until(until)));
        Ok(Reading {
            curriculum: Curriculum::new(self.data.sources.len().max(1), phases),
            sequences: self.sequences(),
            length: self.batch.length,
            seed: self.seed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: &str = include_str!("../../../configs/default.toml");

    /// The default run with other lines under `[data]`.
    fn parse(data: &str) -> Result<TrainConfig, TrainConfigError> {
        let text = DEFAULT.replace("[data]\n", &format!("[data]\n{data}\n"));
        TrainConfig::from_toml(&text, Path::new("run.toml"))
    }

    const SOURCES: &str = r#"
        validation = { hold_out = 0.01 }
        [[data.source]]
        name = "crawl"
        path = "tokens/crawl"
        [[data.source]]
        name = "code"
        path = "tokens/code"
    "#;

    const PHASES: &str = r#"
        [[data.phase]]
        until = 0.7
        weights = { crawl = 90, code = 10 }
        [[data.phase]]
        until = 0.9
        weights = { crawl = 0.5, code = 0.5 }
        [[data.phase]]
        until = 1.0
        weights = { code = 1 }
    "#;

    #[test]
    fn phases_end_with_their_share_of_the_steps() {
        let config = parse(&format!("{SOURCES}{PHASES}")).unwrap();
        assert_eq!(
            config.data.paths(),
            [Path::new("tokens/crawl"), Path::new("tokens/code")]
        );
        let reading = config.reading().unwrap();
        // 400 steps of 8 sequences.
        assert_eq!(reading.sequences, 3200);
        let counts = |range| reading.curriculum.counts(range);
        assert_eq!(counts(0..2240), [2016, 224]);
        assert_eq!(counts(2240..2880), [320, 320]);
        assert_eq!(counts(2880..3200), [0, 320]);
        let again = toml::to_string(&config).unwrap();
        assert_eq!(
            TrainConfig::from_toml(&again, Path::new("again")).unwrap(),
            config
        );
    }

    #[test]
    fn what_does_not_belong_together_is_named() {
        let weighed = SOURCES.replace("path =", "weight = 1\npath =");
        let cases = [
            (
                format!("path = \"x\"\n{weighed}"),
                "path and [[data.source]]",
            ),
            (SOURCES.to_owned(), "source \"crawl\" has no weight"),
            (format!("{weighed}{PHASES}"), "has a weight, but"),
            (
                format!("{SOURCES}{}", PHASES.replace("0.9", "0.6")),
                "until 0.6",
            ),
            (
                format!("{SOURCES}{}", PHASES.replace("1.0", "0.95")),
                "until 0.95",
            ),
            (
                format!("{SOURCES}{}", PHASES.replace("{ code", "{ cod")),
                "\"cod\"",
            ),
            (
                format!("{SOURCES}{}", PHASES.replace("code = 1 }", "code = 0 }")),
                "every weight",
            ),
            (weighed.replace("0.01", "1.5"), "hold_out is 1.5"),
            (weighed.replace("\"code\"", "\"crawl\""), "two sources"),
            (PHASES.to_owned(), "needs [[data.source]]"),
        ];
        for (data, reason) in cases {
            let error = parse(&data).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}, not {reason}");
        }
        parse(&weighed).unwrap();
    }
}
