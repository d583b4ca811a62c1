//! What came of a study: a row for each arm, gaps paired by seed, and what the noise can resolve.
//!
//! Losses, gaps and speeds are those of finished runs. A gap is the loss of a run less that of the
//! reference's run of the same seed; its spread is that of these differences, in which what a seed
//! does to both runs falls out. Gaps in percent are in percent of the reference's loss.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::StudyError;
use super::gap::{
    GapCurve, last_training_gap, over_seeds, percent, tail, training_gap, validation_gap, window,
};
use super::plan::{PlannedRun, Study, run_differences};
use super::record::{RunEnd, RunRecord};
use super::statistics::{Pooled, Summary};
use crate::checkpoint::run::{RunDirectory, differences};
use crate::train::config::TrainConfig;
use crate::train::log::FinalLine;

/// What came of a study.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The study.
    pub study: String,
    /// The arm that gaps are measured from.
    pub reference: String,
    /// Seeds of each arm.
    pub seeds: Vec<u64>,
    /// Steps of a run.
    pub steps: u64,
    /// Training tokens of a run.
    pub tokens: u64,
    /// Parameters of the model; 0 while no run has begun.
    pub parameters: u64,
    /// What runs the tensors, by name; several if runs were made on several.
    pub backends: Vec<String>,
    /// Steps that a point of a training gap is the mean of.
    pub window: usize,
    /// Steps at the end that the training gap of an arm is of.
    pub tail: usize,
    /// A row each, in the order of the study.
    pub arms: Vec<ArmOutcome>,
    /// Gaps over the steps, of every arm but the reference that has any.
    pub gaps: Vec<GapCurve>,
    /// The arms of them that the picture shows; empty: all.
    pub pictured: Vec<String>,
}

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArmOutcome {
    /// The arm.
    pub name: String,
    /// Its recipe.
    pub recipe: String,
    /// Its policy.
    pub policy: String,
    /// Its runs.
    pub runs: Vec<RunOutcome>,
    /// Final validation loss in the recipe's forward, nats per token.
    pub loss: Option<Summary>,
    /// The same in bits per byte.
    pub bits_per_byte: Option<Summary>,
    /// Final validation loss in high precision, nats per token.
    pub high_precision_loss: Option<Summary>,
    /// Gap in the recipe's forward, nats per token.
    pub gap_nats: Option<Summary>,
    /// Gap in the recipe's forward, percent.
    pub gap_percent: Option<Summary>,
    /// Gap of the same weights in high precision, nats per token.
    pub high_precision_gap_nats: Option<Summary>,
    /// Gap of the same weights in high precision, percent.
    pub high_precision_gap_percent: Option<Summary>,
    /// Gap of the training losses over the last steps, percent.
    pub training_gap_percent: Option<Summary>,
    /// Median training tokens per second of a run, mean over seeds.
    pub tokens_per_second: Option<f64>,
    /// Most memory of any run, if that is known.
    pub peak_memory_bytes: Option<u64>,
    /// Steps without an update, over all seeds.
    pub skipped: usize,
    /// Runs that diverged.
    pub diverged: usize,
}

/// A run in the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunOutcome {
    /// Its seed.
    pub seed: u64,
    /// How far it is.
    pub state: State,
    /// Its last step.
    pub step: u64,
    /// Final validation loss in the recipe's forward, nats per token.
    pub loss: Option<f64>,
    /// Final validation loss in high precision, nats per token.
    pub high_precision_loss: Option<f64>,
    /// Gap to the reference's run of the same seed, nats per token.
    pub gap_nats: Option<f64>,
    /// True if it diverged.
    pub diverged: bool,
}

/// How far a run of a study is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// There is no run.
    Missing,
    /// Interrupted, killed, or at work.
    Open,
    /// It gave up.
    Failed(String),
    /// At its end.
    Finished,
}

/// The runs of a study that are there.
pub type Records = BTreeMap<(String, u64), RunRecord>;

/// Reads every run of a study that is in its folder.
///
/// # Errors
/// [`StudyError::Differs`] for the first run that is another one than the study asks for, or that
/// makes another model than an earlier one, [`StudyError::OtherData`] if two read other tokens,
/// what cannot be read.
pub fn read_runs(study: &Study, folder: &Path) -> Result<Records, StudyError> {
    let mut read: Vec<(PathBuf, PlannedRun, RunRecord)> = Vec::new();
    for run in study.runs() {
        let path = run.folder(folder);
        let log = RunDirectory::at(&path).log();
        if !log.is_file() {
            continue;
        }
        let record = RunRecord::read(&log)?;
        check_run(&path, &run)?;
        // Every earlier one: not each log says what was validated on, so the first may not tell.
        for (other, _, there) in &read {
            check_alike((path.as_path(), &record), (other.as_path(), there))?;
        }
        read.push((path, run, record));
    }
    let read = read.into_iter();
    Ok(read
        .map(|(_, run, record)| ((run.arm, run.seed), record))
        .collect())
}

/// Checks that a run reads the tokens of an earlier one into the same model; each with its folder.
///
/// # Errors
/// As [`read_runs`].
fn check_alike(
    (path, here): (&Path, &RunRecord),
    (other, there): (&Path, &RunRecord),
) -> Result<(), StudyError> {
    let trained = (here.fingerprint(), there.fingerprint());
    let validated = here.validation_fingerprint();
    let validated = validated.zip(there.validation_fingerprint());
    let tokens = [("tokens", Some(trained)), ("validation tokens", validated)];
    for (what, fingerprints) in tokens {
        if let Some((here, there)) = fingerprints
            && here != there
        {
            return Err(StudyError::OtherData {
                path: path.to_owned(),
                other: other.to_owned(),
                here: format!("{what} {here}"),
                there: format!("{what} {there}"),
            });
        }
    }
    let differences = model_differences(here, (other, there));
    if differences.is_empty() {
        return Ok(());
    }
    let path = path.to_owned();
    Err(StudyError::Differs { path, differences })
}

/// Every field in which the model of a run is another one than that of the run in `other`.
fn model_differences(here: &RunRecord, (other, there): (&Path, &RunRecord)) -> Vec<String> {
    let model = |record: &RunRecord| json!({ "model": record.model });
    let between = format!(" in {} and ", other.display());
    let found = differences(&model(there), &model(here)).into_iter();
    found
        .map(|it| it.replacen(" in the checkpoint and ", &between, 1))
        .collect()
}

/// Checks that the run in a folder is the one that a study asks for, by its `config.toml`; a folder
/// without one holds no run yet.
///
/// # Errors
/// [`StudyError::Differs`], or what is wrong with the file.
pub fn check_run(folder: &Path, run: &PlannedRun) -> Result<(), StudyError> {
    let path = RunDirectory::at(folder).config();
    if !path.is_file() {
        return Ok(());
    }
    let text = fs::read_to_string(&path).map_err(|source| StudyError::Io {
        path: path.clone(),
        source,
    })?;
    let there = TrainConfig::from_toml(&text, &path)?;
    let differences = run_differences(&there, &run.config);
    if differences.is_empty() {
        return Ok(());
    }
    let path = folder.to_owned();
    Err(StudyError::Differs { path, differences })
}

impl Outcome {
    /// Makes the table of the runs that are there.
    pub fn of(study: &Study, records: &Records) -> Self {
        let config = &study.arms[0].config;
        let window = window(config.steps);
        let mut backends: Vec<_> = records.values().map(|it| it.precision("backend")).collect();
        backends.sort();
        backends.dedup();
        let arms = study.arms.iter().map(|arm| {
            let at = |seed: u64| records.get(&(arm.name.clone(), seed));
            let other = |seed: u64| records.get(&(study.reference.clone(), seed));
            ArmOutcome {
                name: arm.name.clone(),
                recipe: arm.config.precision.recipe_name().to_owned(),
                policy: arm.config.precision.policy.clone(),
                ..row(&study.seeds, config.steps, at, other)
            }
        });
        let others = study.arms.iter().filter(|arm| arm.name != study.reference);
        let curves = others.map(|arm| curve(study, records, &arm.name, window));
        let has_points =
            |curve: &GapCurve| !(curve.training.is_empty() && curve.validation.is_empty());
        Self {
            study: study.name.clone(),
            reference: study.reference.clone(),
            seeds: study.seeds.clone(),
            steps: config.steps,
            tokens: config.steps * config.batch.tokens_per_step() as u64,
            parameters: records.values().map(|it| it.parameters).max().unwrap_or(0),
            backends,
            window,
            tail: tail(config.steps),
            arms: arms.collect(),
            gaps: curves.filter(has_points).collect(),
            pictured: study.pictured.clone(),
        }
    }

    /// What a reader of the table has to know, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = vec![format!(
            "Gaps are to {} of the same seed, on the same batches; percent are of its loss.",
            self.reference
        )];
        notes.push(format!(
            "The training gap is that of the training losses over the last {} steps.",
            self.tail
        ));
        let seeds = self.arms.iter().filter_map(|arm| Some(arm.gap_nats?.seeds));
        match seeds.max() {
            None => {}
            Some(1) => notes.push(
                "One seed: there is no spread, and nothing says which gaps are noise.".to_owned(),
            ),
            Some(seeds) => notes.push(format!(
                "± is the sample deviation over up to {seeds} seeds. A mean gap below what its \
                 seeds resolve (half the 95 % interval of the paired gaps, Student's t) cannot be \
                 told from none.",
            )),
        }
        notes.extend(self.pooled());
        let runs = self.arms.iter().flat_map(|arm| &arm.runs);
        let open = runs
            .clone()
            .filter(|run| run.state != State::Finished)
            .count();
        if open > 0 {
            let all = runs.count();
            notes.push(format!(
                "{open} of {all} runs are not finished; rows are of those that are."
            ));
        }
        if self.arms.iter().any(|arm| arm.diverged > 0) {
            notes.push(
                "Diverged: the run gave up, or ended more than 5 % above its own lowest \
                 validation loss."
                    .to_owned(),
            );
        }
        if self.backends.len() > 1 {
            notes.push(format!(
                "Runs were made on several backends: {}; speeds and memory are not comparable.",
                self.backends.join(", ")
            ));
        }
        notes
    }

    /// What tells two arms apart, by the spread of all of them.
    ///
    /// Where a run ends that diverged says nothing about noise: its arm is left out. The reference
    /// is in every gap, so with such a run of it nothing is said.
    fn pooled(&self) -> Option<String> {
        let others = self.arms.iter().filter(|arm| arm.name != self.reference);
        let sound = others.clone().filter(|arm| arm.diverged == 0);
        let mut references = self.arms.iter().filter(|arm| arm.name == self.reference);
        if references.any(|arm| arm.diverged > 0) {
            return None;
        }
        let pool =
            |gap: fn(&ArmOutcome) -> Option<Summary>| Pooled::of(sound.clone().filter_map(gap));
        let validation = pool(|arm| arm.gap_percent)?;
        let training = pool(|arm| arm.training_gap_percent);
        let seeds = sound.clone().filter_map(|arm| Some(arm.gap_percent?.seeds));
        let most = seeds.max()?;
        let (deviation, freedom) = (validation.deviation, validation.freedom);
        let deviates = match training {
            None => format!("{deviation:.2} % ({freedom} degrees of freedom)"),
            Some(training) if training.freedom == freedom => format!(
                "{deviation:.2} % ({:.2} % in training; {freedom} degrees of freedom)",
                training.deviation
            ),
            Some(training) => format!(
                "{deviation:.2} % ({freedom} degrees of freedom) and by {:.2} % in training ({} \
                 degrees of freedom)",
                training.deviation, training.freedom
            ),
        };
        let differ = |seeds: usize| {
            let training = training.map(|it| format!(" ({:.2} % in training)", it.resolves(seeds)));
            let training = training.unwrap_or_default();
            format!("{:.2} %{training}", validation.resolves(seeds))
        };
        let left_out = match others.count() - sound.count() {
            0 => "",
            _ => " and no diverged run",
        };
        Some(format!(
            "Over {} arms with several seeds{left_out} a gap deviates by {deviates}. By that, two \
             arms differ beyond noise if they are {} apart with {most} seeds each, {} with one.",
            validation.groups,
            differ(most),
            differ(1),
        ))
    }
}

/// Everything in the row of an arm but its names.
fn row<'a>(
    seeds: &[u64],
    steps: u64,
    at: impl Fn(u64) -> Option<&'a RunRecord>,
    reference: impl Fn(u64) -> Option<&'a RunRecord>,
) -> ArmOutcome {
    let last = |record: Option<&RunRecord>| record.and_then(|record| record.last);
    let each = |of: &dyn Fn(&RunRecord, FinalLine) -> Option<f64>| {
        let runs = seeds.iter().filter_map(|&seed| at(seed));
        runs.filter_map(|run| of(run, run.last?))
            .collect::<Vec<_>>()
    };
    let loss = |of: fn(&FinalLine) -> f64| Summary::of(&each(&|_, last| Some(of(&last))));
    let paired = |of: fn(&FinalLine) -> f64, gap: fn(f64, f64) -> f64| {
        let pairs = seeds
            .iter()
            .map(|&seed| Some((last(at(seed))?, last(reference(seed))?)));
        let gaps = pairs
            .flatten()
            .map(|(here, there)| gap(of(&here), of(&there)));
        Summary::of(&gaps.collect::<Vec<_>>())
    };
    let training = seeds.iter().filter_map(|&seed| {
        let (run, reference) = (at(seed)?, reference(seed)?);
        (run.last.is_some() && reference.last.is_some())
            .then(|| last_training_gap(run, reference, steps))?
    });
    let training = Summary::of(&training.collect::<Vec<_>>());
    let recipe: fn(&FinalLine) -> f64 = |line| line.validation_loss;
    let high_precision: fn(&FinalLine) -> f64 = |line| line.high_precision_loss;
    let nats: fn(f64, f64) -> f64 = |here, there| here - there;
    let runs = seeds
        .iter()
        .map(|&seed| run_outcome(seed, at(seed), last(reference(seed))));
    let records = || seeds.iter().filter_map(|&seed| at(seed));
    let speeds = each(&|run, _| run.tokens_per_second());
    ArmOutcome {
        name: String::new(),
        recipe: String::new(),
        policy: String::new(),
        runs: runs.collect(),
        loss: loss(recipe),
        bits_per_byte: loss(|line| line.validation_bits_per_byte),
        high_precision_loss: loss(high_precision),
        gap_nats: paired(recipe, nats),
        gap_percent: paired(recipe, percent),
        high_precision_gap_nats: paired(high_precision, nats),
        high_precision_gap_percent: paired(high_precision, percent),
        training_gap_percent: training,
        tokens_per_second: Summary::of(&speeds).map(|summary| summary.mean),
        peak_memory_bytes: records()
            .filter_map(|run| run.last?.peak_memory_bytes)
            .max(),
        skipped: records().map(|run| run.skipped.len()).sum(),
        diverged: records().filter(|run| run.has_diverged()).count(),
    }
}

fn run_outcome(seed: u64, run: Option<&RunRecord>, reference: Option<FinalLine>) -> RunOutcome {
    let state = match run.map(RunRecord::end) {
        None => State::Missing,
        Some(RunEnd::Open) => State::Open,
        Some(RunEnd::Failed(reason)) => State::Failed(reason),
        Some(RunEnd::Finished) => State::Finished,
    };
    let last = run.and_then(|run| run.last);
    RunOutcome {
        seed,
        state,
        step: run.map_or(0, RunRecord::step),
        loss: last.map(|last| last.validation_loss),
        high_precision_loss: last.map(|last| last.high_precision_loss),
        gap_nats: last
            .zip(reference)
            .map(|(last, reference)| last.validation_loss - reference.validation_loss),
        diverged: run.is_some_and(RunRecord::has_diverged),
    }
}

/// The gaps of an arm over the steps, over all seeds of which both runs have begun.
fn curve(study: &Study, records: &Records, arm: &str, window: usize) -> GapCurve {
    let of_seed = |&seed: &u64| {
        let run = records.get(&(arm.to_owned(), seed))?;
        let reference = records.get(&(study.reference.clone(), seed))?;
        Some((
            training_gap(run, reference, window),
            validation_gap(run, reference),
        ))
    };
    let (training, validation): (Vec<_>, Vec<_>) = study.seeds.iter().filter_map(of_seed).unzip();
    GapCurve {
        arm: arm.to_owned(),
        training: over_seeds(&training),
        validation: over_seeds(&validation),
    }
}

#[cfg(test)]
mod tests;
