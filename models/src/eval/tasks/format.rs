//! What the families share: questions from one file or many, examples before them, limits.
//!
//! A prompt is `description`, then `question answer` and an empty line for each example, then the
//! question. Prompts end without a space; answers begin with one.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::super::EvalError;
use super::super::jsonl;
use super::super::python_random::PythonRandom;
use super::super::question::{Item, Question};
use super::{Amount, Loaded, ShotSource, Task};
use crate::data::fingerprint::Fingerprint;

/// The harness's seed of examples.
const SEED: u32 = 1234;

/// A line of a task's file, and how it is asked.
pub(super) trait Format: DeserializeOwned {
    /// A line of the file of examples.
    type Shot: Shot;

    /// What the types leave open.
    ///
    /// # Errors
    /// What is wrong, for the message that names the line.
    fn check(&self) -> Result<(), String>;

    /// The part of the task that it belongs to; `None`: the file's name, or the task's.
    fn subject(&self) -> Option<&str> {
        None
    }

    /// Its name; `None`: the number of its line.
    fn id(&self) -> Option<String> {
        None
    }

    /// What stands before everything else.
    fn description(&self) -> String {
        String::new()
    }

    /// The question behind `before`, which is the description and the examples.
    fn question(&self, before: &str) -> Question;
}

/// An example with its answer.
pub(super) trait Shot: DeserializeOwned {
    /// What the types leave open.
    ///
    /// # Errors
    /// As [`Format::check`].
    fn check(&self) -> Result<(), String>;

    /// The subject that it is an example of.
    fn subject(&self) -> Option<&str> {
        None
    }

    /// The question and its answer.
    fn solved(&self) -> String;
}

/// No example is one: for tasks that are asked without.
#[derive(Debug, serde::Deserialize)]
pub(super) enum NoShot {}

impl Shot for NoShot {
    fn check(&self) -> Result<(), String> {
        match *self {}
    }

    fn solved(&self) -> String {
        match *self {}
    }
}

/// Reads a task whose lines are `F`.
pub(super) fn load<F: Format>(
    task: &Task,
    folder: &Path,
    amount: Amount,
) -> Result<Loaded, EvalError> {
    let shots = amount.shots.unwrap_or(task.usual_shots);
    let files = files(&folder.join(task.questions), task)?;
    let mut examples = Examples::<F::Shot>::read(task, folder, shots)?;
    let mut fingerprint = Fingerprint::default();
    if let Some(examples) = examples.fingerprint {
        fingerprint.update(&examples.to_le_bytes());
    }
    let mut counts: HashMap<String, usize> = HashMap::new();
    let mut items = Vec::new();
    for (subject, path) in files {
        let lines = jsonl::read::<F>(&path, task.name, F::check)?;
        fingerprint.update(&lines.fingerprint.to_le_bytes());
        for (number, line) in lines.lines {
            let subject = line.subject().unwrap_or(&subject).to_owned();
            let count = counts.entry(subject.clone()).or_default();
            *count += 1;
            if amount.limit.is_some_and(|limit| *count > limit) {
                continue;
            }
            let before = line.description() + &examples.before(&subject)?;
            items.push(Item {
                id: line.id().unwrap_or_else(|| number.to_string()),
                question: line.question(&before),
                subject,
            });
        }
    }
    Ok(Loaded {
        items,
        shots,
        fingerprint: fingerprint.finish(),
    })
}

/// The files of questions, each with the subject that its name stands for.
fn files(path: &Path, task: &Task) -> Result<Vec<(String, PathBuf)>, EvalError> {
    if !path.is_dir() {
        return Ok(vec![(task.name.to_owned(), path.to_owned())]);
    }
    let io = |source| EvalError::Io {
        path: path.to_owned(),
        action: "list",
        source,
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "jsonl")
        {
            let stem = path.file_stem().unwrap_or_default();
            files.push((stem.to_string_lossy().into_owned(), path));
        }
    }
    files.sort();
    match files.is_empty() {
        true => Err(EvalError::Empty {
            path: path.to_owned(),
        }),
        false => Ok(files),
    }
}

/// What examples there are, and which come next.
struct Examples<S> {
    path: PathBuf,
    shots: Vec<S>,
    /// Of the file's bytes; `None` if nothing is taken from it.
    fingerprint: Option<u64>,
    wanted: usize,
    choice: Choice,
}

/// Which examples come before a question.
enum Choice {
    First,
    FirstOfSubject,
    Drawn(Box<PythonRandom>),
}

impl<S: Shot> Examples<S> {
    fn read(task: &Task, folder: &Path, wanted: usize) -> Result<Self, EvalError> {
        let (file, choice) = match task.shots {
            ShotSource::First(file) => (file, Choice::First),
            ShotSource::FirstOfSubject(file) => (file, Choice::FirstOfSubject),
            ShotSource::Drawn(file) => {
                let random = PythonRandom::new(SEED);
                (file, Choice::Drawn(Box::new(random)))
            }
            ShotSource::Absent if wanted > 0 => {
                return Err(EvalError::NoShots {
                    task: task.name,
                    shots: wanted,
                });
            }
            ShotSource::Absent => ("", Choice::First),
        };
        let path = folder.join(file);
        let (shots, fingerprint) = match wanted {
            // The file need not be there if nothing is taken from it.
            0 => (Vec::new(), None),
            _ => {
                let read = jsonl::read::<S>(&path, task.name, S::check)?;
                let shots = read.lines.into_iter().map(|(_, shot)| shot);
                (shots.collect(), Some(read.fingerprint))
            }
        };
        Ok(Self {
            path,
            shots,
            fingerprint,
            wanted,
            choice,
        })
    }

    /// The examples before a question of `subject`.
    fn before(&mut self, subject: &str) -> Result<String, EvalError> {
        let (n, wanted) = (self.shots.len(), self.wanted);
        let (chosen, of): (Vec<&S>, _) = match &mut self.choice {
            Choice::First => (self.shots.iter().take(wanted).collect(), String::new()),
            Choice::FirstOfSubject => {
                let shots = self.shots.iter();
                let of_subject = shots.filter(|shot| shot.subject() == Some(subject));
                (of_subject.take(wanted).collect(), format!(" of {subject}"))
            }
            Choice::Drawn(random) => {
                let chosen = random.sample(n, wanted).into_iter();
                (
                    chosen.map(|index| &self.shots[index]).collect(),
                    String::new(),
                )
            }
        };
        if chosen.len() < wanted {
            return Err(EvalError::TooFewShots {
                path: self.path.clone(),
                found: chosen.len(),
                of,
                wanted,
            });
        }
        Ok(chosen.iter().map(|shot| shot.solved() + "\n\n").collect())
    }
}

/// Checks that an index is one of `count` answers.
pub(super) fn check_gold(gold: usize, count: usize) -> Result<(), String> {
    match gold < count {
        true => Ok(()),
        false => Err(format!(
            "the right answer is number {gold}, counted from 0, of {count}"
        )),
    }
}
