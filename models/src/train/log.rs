//! The machine-readable log: `log.jsonl`, one JSON object per line, flushed line by line.
//!
//! The first line is the resolved configuration. A resumed run first drops what lies behind its
//! checkpoint, so that every step stands in the log once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::durable;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum LogLine {
    /// What runs.
    Start {
        /// The resolved configuration.
        config: Value,
        /// The model in full.
        model: Value,
        /// Number of parameters.
        parameters: u64,
        /// What was tokenised.
        data: Value,
    },
    /// The run continued after this step.
    Resume {
        /// Steps taken before.
        step: u64,
    },
    /// One optimizer step.
    Step {
        /// Counted from 1.
        step: u64,
        /// Nats per token.
        loss: f64,
        /// Bits per byte.
        bits_per_byte: f64,
        /// Learning rate.
        learning_rate: f64,
        /// Global norm before clipping.
        grad_norm: f64,
        /// Training tokens so far.
        tokens: u64,
        /// Training tokens per second, this step.
        tokens_per_second: f64,
        /// Since the process began to train.
        seconds: f64,
    },
    /// A validation.
    Validation {
        /// After this step.
        step: u64,
        /// In which arithmetic.
        forward: Forward,
        /// Nats per token.
        loss: f64,
        /// Bits per byte.
        bits_per_byte: f64,
    },
    /// A checkpoint was written.
    Checkpoint {
        /// After this step.
        step: u64,
    },
    /// The run is complete.
    Final(FinalLine),
}

/// The last line of a complete run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FinalLine {
    /// Steps of the run.
    pub step: u64,
    /// Mean training loss of the last tenth of the steps, nats per token.
    pub train_loss: f64,
    /// Validation in the recipe's forward, nats per token.
    pub validation_loss: f64,
    /// Validation in the recipe's forward, bits per byte.
    pub validation_bits_per_byte: f64,
    /// Validation in high precision, nats per token.
    pub high_precision_loss: f64,
    /// Validation in high precision, bits per byte.
    pub high_precision_bits_per_byte: f64,
    /// What byte counts give on the validation windows, bits per byte.
    pub order0_bits_per_byte: f64,
    /// What counts of byte pairs give there, bits per byte.
    pub order1_bits_per_byte: f64,
    /// Training tokens per second of this process, without validation.
    pub tokens_per_second: f64,
    /// Seconds of this process in the loop.
    pub seconds: f64,
}

/// In which arithmetic a validation ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Forward {
    /// As the policy says for this step.
    Recipe,
    /// Every linear in high precision.
    HighPrecision,
}

impl LogLine {
    /// The step that a line belongs to; `None` for the first line.
    pub fn step(&self) -> Option<u64> {
        match self {
            Self::Start { .. } => None,
            Self::Resume { step }
            | Self::Step { step, .. }
            | Self::Validation { step, .. }
            | Self::Checkpoint { step }
            | Self::Final(FinalLine { step, .. }) => Some(*step),
        }
    }
}

impl LogLine {
    fn is_final(&self) -> bool {
        matches!(self, Self::Final(_))
    }
}

/// An open log.
#[derive(Debug)]
pub struct RunLog {
    path: PathBuf,
    file: File,
}

impl RunLog {
    /// Begins a log with its first line.
    ///
    /// # Errors
    /// What the file system reports, among others that the file exists.
    pub fn create(path: &Path, first: &LogLine) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        let mut log = Self {
            path: path.to_owned(),
            file,
        };
        log.write(first)?;
        Ok(log)
    }

    /// Opens a log to continue after `step`: later lines go, as does a half-written last one.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn resume(path: &Path, step: u64) -> io::Result<Self> {
        let old = fs::read_to_string(path)?;
        durable::write_file::<io::Error>(path, |out| {
            for line in old.lines() {
                let keep = serde_json::from_str::<LogLine>(line)
                    .is_ok_and(|line| line.step().is_none_or(|at| at <= step) && !line.is_final());
                if keep {
                    writeln!(out, "{line}")?;
                }
            }
            Ok(())
        })?;
        let file = OpenOptions::new().append(true).open(path)?;
        let mut log = Self {
            path: path.to_owned(),
            file,
        };
        log.write(&LogLine::Resume { step })?;
        Ok(log)
    }

    /// Appends a line.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn write(&mut self, line: &LogLine) -> io::Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        self.file.write_all(text.as_bytes())
    }

    /// Where the log is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Appends one line to a log that nothing else has open.
///
/// # Errors
/// What the file system reports.
pub fn append(path: &Path, line: &LogLine) -> io::Result<()> {
    let file = OpenOptions::new().append(true).open(path)?;
    RunLog {
        path: path.to_owned(),
        file,
    }
    .write(line)
}

/// Mean training loss over the last tenth of the steps in a log; NaN without steps.
pub fn train_loss(lines: &[LogLine]) -> f64 {
    let losses = lines.iter().filter_map(|line| match line {
        LogLine::Step { loss, .. } => Some(*loss),
        LogLine::Start { .. }
        | LogLine::Resume { .. }
        | LogLine::Validation { .. }
        | LogLine::Checkpoint { .. }
        | LogLine::Final(_) => None,
    });
    let losses: Vec<f64> = losses.collect();
    let tail = &losses[losses.len() - losses.len().div_ceil(10)..];
    tail.iter().sum::<f64>() / tail.len() as f64
}

/// Reads a log; lines that are none are left out.
///
/// # Errors
/// What the file system reports.
pub fn read(path: &Path) -> io::Result<Vec<LogLine>> {
    let text = fs::read_to_string(path)?;
    Ok(text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_log_holds_every_step_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let start = LogLine::Start {
            config: Value::Null,
            model: Value::Null,
            parameters: 1,
            data: Value::Null,
        };
        let mut log = RunLog::create(&path, &start).unwrap();
        for step in 1..=3 {
            log.write(&LogLine::Checkpoint { step }).unwrap();
        }
        fs::write(
            &path,
            fs::read_to_string(&path).unwrap() + "{\"event\":\"st",
        )
        .unwrap();
        let mut log = RunLog::resume(&path, 2).unwrap();
        log.write(&LogLine::Checkpoint { step: 3 }).unwrap();
        let steps: Vec<_> = read(&path).unwrap().iter().map(LogLine::step).collect();
        assert_eq!(steps, [None, Some(1), Some(2), Some(2), Some(3)]);
        assert!(RunLog::create(&path, &start).is_err());
    }
}
