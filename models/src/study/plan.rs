//! A study file: one base run, seeds, and arms that differ in precision alone.
//!
//! ```toml
//! name = "four-bits"
//! base = "default.toml"          # a run's configuration, beside this file; or its sections inline
//! seeds = [1, 2, 3]
//! reference = "high_precision"   # the arm that gaps are measured from
//! pictured = ["nvidia-late"]     # the arms whose gaps the picture shows; all if absent
//! steps = 1000                   # anything of a run's configuration, instead of the base's
//!
//! [[arm]]
//! name = "high_precision"
//! recipe = "high_precision"
//!
//! [[arm]]
//! name = "nvidia-late"
//! recipe = "nvidia"              # any field of [precision]
//! high_precision_forward_from = 0.8
//! ```
//!
//! 1. The base's table, with what the study file itself says put over it: sections key by key, but
//!    `model` and `data` as a whole, whose keys exclude each other.
//! 2. For each arm its fields over `[precision]`, and a name.
//!
//! Relative paths of the study file are relative to it; those in a base are left as `nvfp4 train`
//! takes them.

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use toml::Table;

use super::StudyError;
use crate::checkpoint::run::differences;
use crate::train::config::TrainConfig;

/// Checkpoints that stay while a run of a study trains, besides the one with the lowest validation
/// loss: enough to resume.
const KEEP: i64 = 1;

/// A study, resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Study {
    /// Its name.
    pub name: String,
    /// The arm that gaps are measured from.
    pub reference: String,
    /// Seeds of each arm.
    pub seeds: Vec<u64>,
    /// The arms in the picture of gaps; empty: all.
    #[serde(default)]
    pub pictured: Vec<String>,
    /// What stays of a run that has finished.
    pub finished_checkpoints: FinishedCheckpoints,
    /// What is compared, in the order of the file.
    #[serde(rename = "arm")]
    pub arms: Vec<Arm>,
}

/// Which checkpoints of a finished run stay. Its log, and so its place in the table, always does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishedCheckpoints {
    /// The last one.
    #[default]
    Last,
    /// None.
    None,
}

/// One recipe under test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// Its name, and that of the folder of its runs.
    pub name: String,
    /// The run, with the first of the seeds.
    pub config: TrainConfig,
}

/// One run of a study.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedRun {
    /// Its arm.
    pub arm: String,
    /// Its seed.
    pub seed: u64,
    /// What it is.
    pub config: TrainConfig,
}

impl PlannedRun {
    /// Its folder in that of the study.
    pub fn folder(&self, study: &Path) -> PathBuf {
        study.join(&self.arm).join(format!("seed-{}", self.seed))
    }
}

/// What only a study file has.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    name: String,
    base: Option<PathBuf>,
    seeds: Vec<u64>,
    reference: String,
    #[serde(default)]
    pictured: Vec<String>,
    #[serde(default)]
    finished_checkpoints: FinishedCheckpoints,
    arm: Vec<Table>,
}

/// The keys of [`Header`].
const HEADER: [&str; 7] = [
    "name",
    "base",
    "seeds",
    "reference",
    "pictured",
    "finished_checkpoints",
    "arm",
];

impl Study {
    /// Reads a study file and its base.
    ///
    /// # Errors
    /// [`StudyError`]: what cannot be read, what is no study, the first arm that makes no run.
    pub fn read(path: &Path) -> Result<Self, StudyError> {
        Self::from_toml(&read(path)?, path)
    }

    /// Reads a study file's text; `path` is where it lies.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn from_toml(text: &str, path: &Path) -> Result<Self, StudyError> {
        let wrong = |reason: String| StudyError::Study {
            path: path.to_owned(),
            reason,
        };
        let mut own = parse(text, path)?;
        let header: Table = HEADER
            .iter()
            .filter_map(|key| Some(((*key).to_owned(), own.remove(*key)?)))
            .collect();
        let header: Header = header.try_into().map_err(|error| wrong(one_line(&error)))?;
        header.check().map_err(wrong)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        place_paths(&mut own, folder);
        let mut run = match &header.base {
            None => Table::new(),
            Some(base) => {
                let base = folder.join(base);
                parse(&read(&base)?, &base)?
            }
        };
        let has_own_keep = own
            .get("checkpoint")
            .is_some_and(|checkpoint| checkpoint.get("keep").is_some());
        put_over(&mut run, own);
        if let (false, Some(toml::Value::Table(checkpoint))) =
            (has_own_keep, run.get_mut("checkpoint"))
        {
            checkpoint.insert("keep".to_owned(), KEEP.into());
        }
        let arms = header.arm.iter().enumerate();
        let arms = arms.map(|(index, arm)| header.resolve(&run, arm, index, path));
        let study = Self {
            arms: arms.collect::<Result<_, _>>()?,
            name: header.name,
            reference: header.reference,
            seeds: header.seeds,
            pictured: header.pictured,
            finished_checkpoints: header.finished_checkpoints,
        };
        study.checked(path)
    }

    /// Reads what [`Self::to_toml`] wrote.
    ///
    /// # Errors
    /// [`StudyError`] if it is not that.
    pub fn from_resolved(path: &Path) -> Result<Self, StudyError> {
        let study: Self = toml::from_str(&read(path)?).map_err(|error| StudyError::Study {
            path: path.to_owned(),
            reason: one_line(&error),
        })?;
        study.checked(path)
    }

    /// The study with every arm in full.
    ///
    /// # Errors
    /// If a number does not fit into TOML.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// Every run, one seed after another, so that each seed is soon complete.
    pub fn runs(&self) -> Vec<PlannedRun> {
        let of_seed = |&seed: &u64| {
            self.arms.iter().map(move |arm| PlannedRun {
                arm: arm.name.clone(),
                seed,
                config: TrainConfig {
                    name: format!("{}-{}-seed-{seed}", self.name, arm.name),
                    seed,
                    ..arm.config.clone()
                },
            })
        };
        self.seeds.iter().flat_map(of_seed).collect()
    }

    /// The names of the arms, for a message.
    pub fn arm_names(&self) -> String {
        let names: Vec<_> = self.arms.iter().map(|arm| arm.name.as_str()).collect();
        names.join(", ")
    }

    /// Checks that arms and seeds can be told apart and that arms that are named are there.
    fn checked(self, path: &Path) -> Result<Self, StudyError> {
        let wrong = |reason: String| {
            let path = path.to_owned();
            Err(StudyError::Study { path, reason })
        };
        for (index, arm) in self.arms.iter().enumerate() {
            if self.arms[..index]
                .iter()
                .any(|other| other.name == arm.name)
            {
                return wrong(format!("two arms are called {:?}", arm.name));
            }
        }
        for (index, seed) in self.seeds.iter().enumerate() {
            if self.seeds[..index].contains(seed) {
                return wrong(format!("seeds: {seed} stands there twice"));
            }
        }
        let pictured = self.pictured.iter().map(|name| ("pictured", name));
        for (key, name) in std::iter::once(("reference", &self.reference)).chain(pictured) {
            if !self.arms.iter().any(|arm| arm.name == *name) {
                return wrong(format!(
                    "{key} is {name:?}, it must be one of the arms: {}",
                    self.arm_names()
                ));
            }
        }
        Ok(self)
    }
}

impl Header {
    fn check(&self) -> Result<(), String> {
        if !is_plain(&self.name) {
            return Err(not_plain("name", &self.name));
        }
        if self.seeds.is_empty() {
            return Err("seeds is empty, it must name at least one".to_owned());
        }
        Ok(())
    }

    /// Step 2.
    fn resolve(
        &self,
        run: &Table,
        arm: &Table,
        index: usize,
        path: &Path,
    ) -> Result<Arm, StudyError> {
        let mut fields = arm.clone();
        let name = match fields.remove("name") {
            Some(toml::Value::String(name)) if is_plain(&name) => name,
            Some(toml::Value::String(name)) => {
                let reason = not_plain("arm.name", &name);
                let path = path.to_owned();
                return Err(StudyError::Study { path, reason });
            }
            Some(_) | None => {
                let reason = format!("arm {} has no name", index + 1);
                let path = path.to_owned();
                return Err(StudyError::Study { path, reason });
            }
        };
        let wrong = |reason: String| StudyError::Arm {
            path: path.to_owned(),
            arm: name.clone(),
            reason,
        };
        let mut run = run.clone();
        run.insert("name".to_owned(), format!("{}-{name}", self.name).into());
        let seed = i64::try_from(self.seeds[0]).map_err(|error| wrong(error.to_string()))?;
        run.insert("seed".to_owned(), seed.into());
        let precision = run
            .entry("precision")
            .or_insert_with(|| Table::new().into());
        let toml::Value::Table(precision) = precision else {
            return Err(wrong("precision is no table".to_owned()));
        };
        precision.extend(fields);
        let config: TrainConfig = run.try_into().map_err(|error| wrong(one_line(&error)))?;
        config
            .validate()
            .map_err(|error| wrong(error.to_string()))?;
        Ok(Arm { name, config })
    }
}

/// Every way in which a run is another one than the study asks for; where its data lies, what runs
/// its tensors and what it keeps, writes and measures beside training does not matter.
pub fn run_differences(there: &TrainConfig, asked: &TrainConfig) -> Vec<String> {
    let essence = |config: &TrainConfig| {
        let mut config = serde_json::to_value(config).unwrap_or(Value::Null);
        if let Some(fields) = config.as_object_mut() {
            for beside in [
                "name",
                "checkpoint",
                "sample",
                "peak_tflops",
                "statistics_every",
            ] {
                fields.remove(beside);
            }
        }
        if let Some(precision) = config["precision"].as_object_mut() {
            precision.remove("backend");
        }
        if let Some(data) = config["data"].as_object_mut() {
            data.remove("path");
            data.remove("tokenizer");
            if data
                .get("validation")
                .is_some_and(|it| it.get("path").is_some())
            {
                data.remove("validation");
            }
            if let Some(sources) = data.get_mut("source").and_then(Value::as_array_mut) {
                let sources = sources.iter_mut().filter_map(Value::as_object_mut);
                sources.for_each(|source| drop(source.remove("path")));
            }
        }
        if let Some(model) = config["model"].as_object_mut()
            && let Some(path) = model.get_mut("config")
        {
            *path = Value::Null;
        }
        // Both sides are as JSON is read, which may lose the last bit of a number.
        serde_json::from_str(&config.to_string()).unwrap_or(config)
    };
    let found = differences(&essence(there), &essence(asked));
    let found = found.iter();
    found
        .map(|it| it.replace(" in the checkpoint and ", " there and "))
        .collect()
}

/// Step 1: puts the second table over the first one.
fn put_over(under: &mut Table, over: Table) {
    for (key, value) in over {
        let replaced = matches!(key.as_str(), "model" | "data");
        match (under.get_mut(&key), value) {
            (Some(toml::Value::Table(under)), toml::Value::Table(over)) if !replaced => {
                under.extend(over);
            }
            (_, value) => drop(under.insert(key, value)),
        }
    }
}

/// Makes the paths of a study file those of its folder.
fn place_paths(own: &mut Table, folder: &Path) {
    let place = |value: &mut toml::Value| {
        if let toml::Value::String(path) = value
            && let Some(placed) = folder.join(&*path).to_str()
        {
            placed.clone_into(path);
        }
    };
    if let Some(config) = own
        .get_mut("model")
        .and_then(|model| model.get_mut("config"))
    {
        place(config);
    }
    let Some(data) = own.get_mut("data").and_then(toml::Value::as_table_mut) else {
        return;
    };
    for key in ["path", "tokenizer"] {
        data.get_mut(key).into_iter().for_each(place);
    }
    if let Some(path) = data.get_mut("validation").and_then(|it| it.get_mut("path")) {
        place(path);
    }
    if let Some(sources) = data.get_mut("source").and_then(toml::Value::as_array_mut) {
        sources
            .iter_mut()
            .filter_map(|source| source.get_mut("path"))
            .for_each(place);
    }
}

fn parse(text: &str, path: &Path) -> Result<Table, StudyError> {
    text.parse::<Table>().map_err(|error| {
        let line = error.span().map_or(1, |span| {
            let before = text.bytes().take(span.start);
            before.filter(|byte| *byte == b'\n').count() + 1
        });
        StudyError::Study {
            path: path.to_owned(),
            reason: format!("line {line}: {}", one_line(&error)),
        }
    })
}

fn read(path: &Path) -> Result<String, StudyError> {
    fs::read_to_string(path).map_err(|source| StudyError::Io {
        path: path.to_owned(),
        source,
    })
}

fn one_line(error: &toml::de::Error) -> String {
    let words = error.message().split_whitespace();
    words.collect::<Vec<_>>().join(" ")
}

/// True for a name that is a folder's on every system and a word in every table.
fn is_plain(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let is_one = matches!(components.next(), Some(Component::Normal(_)));
    is_one
        && components.next().is_none()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.+".contains(c))
}

fn not_plain(field: &str, name: &str) -> String {
    format!("{field} is {name:?}, it must be of letters, digits and - _ . + alone")
}

#[cfg(test)]
mod tests;
