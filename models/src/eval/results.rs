//! A file of results: one JSON object a line.
//!
//! First the run, then every item in the order of the tasks, then a summary of each task. The file
//! appears when the run is done, and not before: whatever interrupts the run leaves no file under
//! that name (see [`crate::durable`]).

use std::fs;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::EvalError;
use super::jsonl;
use super::outcome::Outcome;
use super::summary::Summary;
use crate::durable;

/// The version of this form; another one is refused.
pub const FORMAT: u32 = 1;

/// A line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub enum Line {
    /// What ran.
    Run(Run),
    /// One item.
    Item(ItemLine),
    /// A task.
    Summary(Summary),
}

/// What ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// [`FORMAT`].
    pub format: u32,
    /// The checkpoint.
    pub model: String,
    /// The tokenizer.
    pub tokenizer: String,
    /// How linears computed.
    pub precision: String,
    /// What ran the tensors.
    pub backend: String,
    /// Most positions of a batch.
    pub batch_tokens: usize,
    /// What was asked.
    pub tasks: Vec<TaskRun>,
}

/// What was asked of one task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRun {
    /// The task.
    pub task: String,
    /// Examples before each question.
    pub shots: usize,
    /// Its items.
    pub items: usize,
    /// Fingerprint of the files of questions, and of that of examples where there are any, in
    /// hexadecimal.
    pub questions: String,
}

/// One item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ItemLine {
    /// The task.
    pub task: String,
    /// The part of the task.
    pub subject: String,
    /// Names the item within the task.
    pub id: String,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Writes the lines of a file of results.
#[derive(Debug)]
pub struct Lines<'a> {
    path: PathBuf,
    out: &'a mut BufWriter<File>,
}

impl Lines<'_> {
    /// Writes a line.
    ///
    /// # Errors
    /// [`EvalError::Io`], a full disk for one.
    pub fn write(&mut self, line: &Line) -> Result<(), EvalError> {
        let text = serde_json::to_string(line).expect("names and numbers are valid json");
        writeln!(self.out, "{text}").map_err(cannot_write(&self.path))
    }
}

fn cannot_write(path: &Path) -> impl FnOnce(io::Error) -> EvalError {
    move |source| EvalError::Io {
        path: path.to_owned(),
        action: "write",
        source,
    }
}

/// Writes a file of results, the lines of which come from `fill`.
///
/// # Errors
/// What `fill` or the file system reports; `path` is then as it was.
pub fn write<E: From<EvalError>>(
    path: &Path,
    fill: impl FnOnce(&mut Lines<'_>) -> Result<(), E>,
) -> Result<(), E> {
    /// Tells errors of the file system from those of the caller.
    enum Ended<E> {
        Here(io::Error),
        There(E),
    }
    impl<E> From<io::Error> for Ended<E> {
        fn from(error: io::Error) -> Self {
            Self::Here(error)
        }
    }
    let written = durable::write_file(path, |out| {
        let path = path.to_owned();
        fill(&mut Lines { path, out }).map_err(Ended::There)
    });
    written.map_err(|ended| match ended {
        Ended::Here(error) => cannot_write(path)(error).into(),
        Ended::There(error) => error,
    })
}

/// A file of results that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Results {
    /// Where it is.
    pub path: PathBuf,
    /// What ran.
    pub run: Run,
    /// Every item.
    pub items: Vec<ItemLine>,
}

impl Results {
    /// Reads a file of results.
    ///
    /// # Errors
    /// [`EvalError`] if it cannot be read, is none, or is not finished.
    pub fn read(path: &Path) -> Result<Self, EvalError> {
        let text = fs::read_to_string(path).map_err(|source| EvalError::Io {
            path: path.to_owned(),
            action: "read",
            source,
        })?;
        let refused = |line, reason| EvalError::Line {
            path: path.to_owned(),
            line,
            reason,
        };
        let mut run = None;
        let mut items = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line: Line = serde_json::from_str(line).map_err(|error| {
                refused(
                    index + 1,
                    format!("no line of results: {}", jsonl::reason(&error)),
                )
            })?;
            match line {
                Line::Run(found) if found.format != FORMAT => {
                    let format = found.format;
                    let reason = format!("results of format {format}, {FORMAT} is known");
                    return Err(refused(index + 1, reason));
                }
                Line::Run(found) => run = Some(found),
                Line::Item(item) => items.push(item),
                Line::Summary(_) => {}
            }
        }
        let run = run.ok_or_else(|| refused(1, "the line of the run is missing".to_owned()))?;
        let counts = run.tasks.iter().map(|task| task.items);
        let expected = counts.fold(0, usize::saturating_add);
        if items.len() != expected {
            return Err(EvalError::Unfinished {
                path: path.to_owned(),
                found: items.len(),
                expected,
            });
        }
        Ok(Self {
            path: path.to_owned(),
            run,
            items,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::super::compare::compare;
    use super::super::outcome::{Measure, Response};
    use super::super::tasks::{Group, text};
    use super::*;

    /// Results of a task whose items have these names and are right or wrong.
    pub(in crate::eval) fn results(path: &str, task: &str, items: &[(&str, bool)]) -> Results {
        let item = |&(id, right): &(&str, bool)| ItemLine {
            task: task.to_owned(),
            subject: task.to_owned(),
            id: id.to_owned(),
            outcome: Outcome {
                response: Response::Completion {
                    log_likelihood: if right { -1.0 } else { -2.0 },
                    tokens: 1,
                },
                correct: [(Measure::Acc, right)].into(),
            },
        };
        Results {
            path: path.into(),
            run: Run {
                format: FORMAT,
                model: "model".to_owned(),
                tokenizer: "bytes".to_owned(),
                precision: "high_precision".to_owned(),
                backend: "flex".to_owned(),
                batch_tokens: 64,
                tasks: vec![TaskRun {
                    task: task.to_owned(),
                    shots: 0,
                    items: items.len(),
                    questions: "00".to_owned(),
                }],
            },
            items: items.iter().map(item).collect(),
        }
    }

    fn write_all(path: &Path, results: &Results) -> Result<(), EvalError> {
        write(path, |lines| {
            lines.write(&Line::Run(results.run.clone()))?;
            let mut items = results.items.iter();
            items.try_for_each(|item| lines.write(&Line::Item(item.clone())))?;
            lines.write(&Line::Summary(Summary {
                task: "t".to_owned(),
                items: results.items.len(),
                figures: BTreeMap::new(),
                subjects: Vec::new(),
            }))
        })
    }

    #[test]
    fn results_come_back_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        let mut expected = results("", "t", &[("1", true), ("2", false)]);
        write_all(&path, &expected).unwrap();
        expected.path.clone_from(&path);
        assert_eq!(Results::read(&path).unwrap(), expected);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 4);
    }

    /// JSON has null for infinity, and a file with that in a summary was refused.
    #[test]
    fn a_figure_beyond_all_numbers_does_not_make_the_file_unreadable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        let response = Response::Text {
            log_likelihood: -5000.0,
            tokens: 900,
            words: 1,
            bytes: 900,
        };
        let mut expected = results("", text::NAME, &[("long.txt", true)]);
        let outcome = &mut expected.items[0].outcome;
        (outcome.response, outcome.correct) = (response, BTreeMap::new());
        let outcomes = [(text::NAME, &expected.items[0].outcome)];
        let summary = Summary::new(text::NAME, Group::Single, text::MEASURES, outcomes);
        let value = |summary: &Summary| summary.figures[&Measure::WordPerplexity].value;
        assert_eq!(value(&summary), f64::INFINITY);
        write::<EvalError>(&path, |lines| {
            lines.write(&Line::Run(expected.run.clone()))?;
            lines.write(&Line::Item(expected.items[0].clone()))?;
            lines.write(&Line::Summary(summary))
        })
        .unwrap();
        let read = Results::read(&path).unwrap();
        assert_eq!(read.items, expected.items);
        let differences = compare(&read, &read).unwrap();
        assert_eq!(differences.len(), 1);
        assert_eq!(differences[0].difference.value, 0.0);
        let whole = fs::read_to_string(&path).unwrap();
        let last: Line = serde_json::from_str(whole.lines().last().unwrap()).unwrap();
        match last {
            Line::Summary(summary) => assert!(value(&summary).is_nan()),
            line @ (Line::Run(_) | Line::Item(_)) => panic!("{line:?}"),
        }
    }

    #[test]
    fn what_is_no_file_of_results_is_refused_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        write_all(&path, &results("", "t", &[("1", true), ("2", false)])).unwrap();
        let whole = fs::read_to_string(&path).unwrap();
        let refused = |text: String| {
            fs::write(&path, text).unwrap();
            let error = Results::read(&path).unwrap_err().to_string();
            error.rsplit_once("out.jsonl: ").unwrap().1.to_owned()
        };
        let first = whole.lines().next().unwrap();
        assert_eq!(
            refused(first.to_owned()),
            "0 of 2 items; the run did not finish"
        );
        let error = refused(format!("{first}\n{{\"prompt\""));
        assert!(error.starts_with("line 2: no line of results: "), "{error}");
        let error = refused(whole.replace("\"format\":1", "\"format\":9"));
        assert_eq!(error, "line 1: results of format 9, 1 is known");
        // The numbers of items of all tasks are added up.
        let many = format!("\"items\":{}", usize::MAX);
        let task = first
            .split_once("\"tasks\":[")
            .unwrap()
            .1
            .trim_end_matches("]}");
        let twice = first.replace(task, &format!("{task},{task}"));
        let error = refused(twice.replace("\"items\":2", &many));
        assert_eq!(
            error,
            format!("0 of {} items; the run did not finish", usize::MAX)
        );
        let rest = whole.split_once('\n').unwrap().1.to_owned();
        assert_eq!(refused(rest), "line 1: the line of the run is missing");
    }

    #[test]
    fn a_run_that_fails_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        let failed = write(&path, |lines| {
            lines.write(&Line::Run(results("", "t", &[]).run))?;
            Err(EvalError::NoShots {
                task: "t",
                shots: 1,
            })
        });
        assert!(matches!(failed, Err(EvalError::NoShots { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let nowhere = dir.path().join("none/out.jsonl");
        let error = write::<EvalError>(&nowhere, |_| Ok(())).unwrap_err();
        assert!(
            error.to_string().contains("none/out.jsonl: cannot write"),
            "{error}"
        );
    }
}
