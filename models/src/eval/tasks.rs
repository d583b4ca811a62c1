//! The tasks: where their files lie, how their items are asked, what is measured.
//!
//! One file per family in `tasks/`, which holds what the published task is: the words around a
//! question; `tasks/format.rs` does what all of them share. A new task is a new file and a line in
//! [`TASKS`]; the command line and the documentation take their lists from there.

use std::path::Path;

use super::EvalError;
use super::outcome::Measure;
use super::question::Item;

mod format;
mod arc;
mod blimp;
mod gsm8k;
mod hellaswag;
mod humaneval;
mod lambada;
mod math;
mod mmlu;
mod mmlu_continuation;
mod mmlu_pro;
mod piqa;
mod winogrande;
pub mod text;

/// A task.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    /// Its name on the command line, the harness's where that has it.
    pub name: &'static str,
    /// What it asks, in a few words.
    pub about: &'static str,
    /// Its questions, below the folder of all tasks: a file, or a folder with one per subject.
    pub questions: &'static str,
    /// Where examples come from.
    pub shots: ShotSource,
    /// How many examples are usual.
    pub usual_shots: usize,
    /// How its subjects add up.
    pub group: Group,
    /// What is reported, the usual measure first; empty: texts are only kept.
    pub measures: &'static [Measure],
    /// Reads it.
    load: fn(&Task, &Path, Amount) -> Result<Loaded, EvalError>,
}

/// Which examples come before a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShotSource {
    /// None; the task is asked without.
    Absent,
    /// The first of this file.
    First(&'static str),
    /// The first of this file with the question's subject.
    FirstOfSubject(&'static str),
    /// Of this file, drawn anew for every question in order, as the harness does with its seed.
    Drawn(&'static str),
}

/// How the subjects of a task add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// It has one subject only.
    Single,
    /// Every item counts alike.
    BySize,
    /// Every subject counts alike.
    OfParts,
}

/// How much of a task is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Examples before each question; `None`: the usual number.
    pub shots: Option<usize>,
    /// Most items of each subject, the first ones; `None`: all.
    pub limit: Option<usize>,
}

/// The items of a task.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// In the order of the files.
    pub items: Vec<Item>,
    /// Examples before each question.
    pub shots: usize,
    /// Tells the files of questions apart, and that of examples where there are any: equal values,
    /// equal bytes.
    pub fingerprint: u64,
}

/// Every task that is read from files of its own.
pub static TASKS: [Task; 13] = [
    lambada::OPENAI,
    blimp::BLIMP,
    piqa::PIQA,
    hellaswag::HELLASWAG,
    arc::EASY,
    arc::CHALLENGE,
    winogrande::WINOGRANDE,
    mmlu::MMLU,
    mmlu_continuation::MMLU_CONTINUATION,
    mmlu_pro::MMLU_PRO,
    gsm8k::GSM8K,
    math::MATH_500,
    humaneval::HUMANEVAL,
];

impl Task {
    /// The task of this name.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        TASKS.iter().find(|task| task.name == name)
    }

    /// Reads the task's files below `folder`.
    ///
    /// # Errors
    /// [`EvalError`], with the file, and the line where it is one.
    pub fn load(&self, folder: &Path, amount: Amount) -> Result<Loaded, EvalError> {
        (self.load)(self, folder, amount)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::question::Question;
    use super::*;

    /// The items of a task whose files hold these lines.
    pub(crate) fn load(
        name: &str,
        files: &[(&str, &str)],
        amount: Amount,
    ) -> Result<Loaded, String> {
        let folder = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let loaded = Task::by_name(name).unwrap().load(folder.path(), amount);
        loaded.map_err(|error| {
            let message = error.to_string();
            message.replace(&format!("{}/", folder.path().display()), "")
        })
    }

    /// Context and continuation of each request of each item.
    pub(crate) fn requests(items: &[Item]) -> Vec<Vec<(&str, &str)>> {
        fn of(item: &Item) -> Vec<(&str, &str)> {
            let pairs = match &item.question {
                Question::Choice(choice) => &choice.pairs[..],
                Question::Completion(pair) => std::slice::from_ref(pair),
                Question::Text(_) | Question::Generation(_) => &[],
            };
            let texts = pairs.iter();
            texts
                .map(|pair| (pair.context.as_str(), pair.continuation.as_str()))
                .collect()
        }
        items.iter().map(of).collect()
    }

    /// The one choice of an item.
    pub(crate) fn gold(item: &Item) -> usize {
        match &item.question {
            Question::Choice(choice) => choice.gold,
            Question::Completion(_) | Question::Text(_) | Question::Generation(_) => unreachable!(),
        }
    }

    /// No examples, whatever is usual.
    pub(crate) const NO_SHOTS: Amount = Amount {
        shots: Some(0),
        limit: None,
    };

    #[test]
    fn names_are_distinct_and_shots_have_a_source() {
        for (index, task) in TASKS.iter().enumerate() {
            assert!(TASKS[..index].iter().all(|other| other.name != task.name));
            assert!(task.shots != ShotSource::Absent || task.usual_shots == 0);
        }
        assert!(Task::by_name("piqa").is_some() && Task::by_name("piqua").is_none());
    }
}
