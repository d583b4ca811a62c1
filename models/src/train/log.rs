//! The machine-readable log: `log.jsonl`, one JSON object per line, written line by line.
//!
//! The first line is the resolved configuration. A checkpoint knows how long the log was; a resumed
//! run cuts what lies behind. After a rewind the lines of the abandoned steps stay, and a
//! [`LogLine::Rewind`] says so: [`current`] leaves them out. A full disk stops no run: lines
//! wait in memory (250 bytes a step) until they can be written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::layers::{GemmFigure, OperandFigure};
use super::oscillation::Oscillation;
use crate::json::number_or_nan;

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
        /// What was tokenised. `validation_fingerprint` is of a folder that is for validation:
        /// null without one, absent in logs of before.
        data: Value,
        /// Devices that train together.
        #[serde(default = "one")]
        ranks: usize,
    },
    /// The run continued after this step.
    Resume {
        /// Steps taken before.
        step: u64,
        /// Newer checkpoints that were passed over, and why.
        damaged: Vec<String>,
        /// Devices that train together from here on.
        #[serde(default = "one")]
        ranks: usize,
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
        /// Model FLOP utilisation, if the device's peak is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mfu: Option<f64>,
        /// Since the process began to train.
        seconds: f64,
    },
    /// What quantization did in a step that was sampled.
    Quantization {
        /// Counted from 1.
        step: u64,
        /// Every operand that was measured.
        operands: Vec<OperandFigure>,
    },
    /// What a window of watched weights found.
    Oscillation {
        /// The step that ended it, counted from 1.
        step: u64,
        /// Counts, and shares of layers.
        #[serde(flatten)]
        found: Oscillation,
    },
    /// How the GEMMs of a step that was sampled ran: at the first one, and where they run otherwise
    /// than before.
    Gemms {
        /// Counted from 1.
        step: u64,
        /// Every GEMM of every layer.
        gemms: Vec<GemmFigure>,
    },
    /// A step that did not update the model.
    Skipped(SkippedLine),
    /// The run went back.
    Rewind(RewindLine),
    /// A validation.
    Validation {
        /// After this step.
        step: u64,
        /// In which arithmetic.
        forward: Forward,
        /// Nats per token.
        #[serde(deserialize_with = "number_or_nan")]
        loss: f64,
        /// Bits per byte.
        #[serde(deserialize_with = "number_or_nan")]
        bits_per_byte: f64,
    },
    /// A checkpoint stands. Written when it does: steps after it may be in front.
    Checkpoint {
        /// After this step.
        step: u64,
        /// Its size.
        bytes: u64,
        /// Seconds to write it, beside training.
        seconds: f64,
        /// Seconds before that in which training waited: for the checkpoint before, and for the
        /// copy of the state to the host. Absent in logs of before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        waited: Option<f64>,
    },
    /// A checkpoint could not be written, or an older one not be removed; those before it stand.
    SaveFailed {
        /// After this step.
        step: u64,
        /// Why not.
        error: String,
    },
    /// The process stopped before the end of the run.
    Stopped {
        /// After this step.
        step: u64,
        /// Why.
        reason: String,
    },
    /// The run is complete.
    Final(FinalLine),
}

/// The ranks of a log that does not name them.
fn one() -> usize {
    1
}

/// The last line of a complete run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FinalLine {
    /// Steps of the run.
    pub step: u64,
    /// Mean training loss of the last tenth of the steps, nats per token.
    #[serde(deserialize_with = "number_or_nan")]
    pub train_loss: f64,
    /// Validation in the recipe's forward, nats per token.
    #[serde(deserialize_with = "number_or_nan")]
    pub validation_loss: f64,
    /// Validation in the recipe's forward, bits per byte.
    #[serde(deserialize_with = "number_or_nan")]
    pub validation_bits_per_byte: f64,
    /// Validation in high precision, nats per token.
    #[serde(deserialize_with = "number_or_nan")]
    pub high_precision_loss: f64,
    /// Validation in high precision, bits per byte.
    #[serde(deserialize_with = "number_or_nan")]
    pub high_precision_bits_per_byte: f64,
    /// What byte counts give on the validation windows, bits per byte.
    #[serde(deserialize_with = "number_or_nan")]
    pub order0_bits_per_byte: f64,
    /// What counts of byte pairs give there, bits per byte.
    #[serde(deserialize_with = "number_or_nan")]
    pub order1_bits_per_byte: f64,
    /// Training tokens per second of this process, without validation.
    #[serde(deserialize_with = "number_or_nan")]
    pub tokens_per_second: f64,
    /// Seconds of this process in the loop.
    #[serde(deserialize_with = "number_or_nan")]
    pub seconds: f64,
    /// Seconds of them in which training waited for checkpoints. Absent in logs of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited_seconds: Option<f64>,
    /// Most memory that this process held: on a CPU resident memory, on a GPU what its memory pools
    /// and their neighbours hold at the end. Absent where nobody tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
}

/// A step that did not update the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SkippedLine {
    /// Counted from 1.
    pub step: u64,
    /// Why.
    pub reason: SkipReason,
    /// Nats per token; a word, because JSON has no NaN.
    pub loss: String,
    /// Global norm before clipping.
    pub grad_norm: String,
    /// Where NaN or infinity arose: layer and operand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// Such steps in a row.
    pub in_a_row: u64,
    /// Steps left out in all.
    pub skipped: u64,
}

/// Why a step did not update the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipReason {
    /// NaN or infinity.
    NonFinite,
    /// A loss beyond the spike guard's limit.
    Spike,
}

/// A return to an earlier checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RewindLine {
    /// The step that was one outlier too many.
    pub from: u64,
    /// The step of the checkpoint.
    pub to: u64,
    /// Its loss.
    pub loss: f64,
    /// The largest loss that would have been none.
    pub limit: f64,
    /// Returns so far.
    pub rewinds: u64,
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
            Self::Resume { step, .. }
            | Self::Step { step, .. }
            | Self::Quantization { step, .. }
            | Self::Oscillation { step, .. }
            | Self::Gemms { step, .. }
            | Self::Skipped(SkippedLine { step, .. })
            | Self::Rewind(RewindLine { to: step, .. })
            | Self::Validation { step, .. }
            | Self::Checkpoint { step, .. }
            | Self::SaveFailed { step, .. }
            | Self::Stopped { step, .. }
            | Self::Final(FinalLine { step, .. }) => Some(*step),
        }
    }
}

/// An open log.
#[derive(Debug)]
pub struct RunLog {
    path: PathBuf,
    file: File,
    /// Bytes that stand.
    written: u64,
    /// Lines that could not be written yet.
    waiting: Vec<u8>,
}

impl RunLog {
    /// Begins a log with its first line, over what a run left that came to no checkpoint.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn create(path: &Path, first: &LogLine) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).open(path)?;
        Self::at(path, file, 0, first)
    }

    /// Opens a log to continue where it was `bytes` long: later lines go, as does half a line.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn resume(path: &Path, bytes: u64, first: &LogLine) -> io::Result<Self> {
        let mut old = fs::read(path)?;
        old.truncate(usize::try_from(bytes).unwrap_or(usize::MAX));
        let whole = old.iter().rposition(|byte| *byte == b'\n');
        let whole = whole.map_or(0, |last| last as u64 + 1);
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(whole)?;
        Self::at(path, file, whole, first)
    }

    fn at(path: &Path, file: File, written: u64, first: &LogLine) -> io::Result<Self> {
        let mut log = Self {
            path: path.to_owned(),
            file,
            written,
            waiting: Vec::new(),
        };
        log.write(first)?;
        Ok(log)
    }

    /// Appends a line, behind those that still wait.
    ///
    /// # Errors
    /// What the file system reports; the line then waits for the next call.
    pub fn write(&mut self, line: &LogLine) -> io::Result<()> {
        serde_json::to_writer(&mut self.waiting, line)?;
        self.waiting.push(b'\n');
        self.flush()
    }

    /// Writes the lines that wait.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.written))?;
        if let Err(error) = self.file.write_all(&self.waiting) {
            // A part of a line may stand. Cutting it off needs no room.
            let _ = self.file.set_len(self.written);
            return Err(error);
        }
        self.written += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }

    /// Bytes of all lines, waiting ones among them.
    pub fn bytes(&self) -> u64 {
        self.written + self.waiting.len() as u64
    }

    /// True while lines wait.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
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
    let file = OpenOptions::new().write(true).open(path)?;
    let written = file.metadata()?.len();
    RunLog::at(path, file, written, line).map(|_log| ())
}

/// The lines of the run as it stands: without the steps that a rewind abandoned.
pub fn current(lines: Vec<LogLine>) -> Vec<LogLine> {
    let mut current: Vec<LogLine> = Vec::with_capacity(lines.len());
    for line in lines {
        if let LogLine::Rewind(RewindLine { to, .. }) = line {
            current.retain(|line| line.step().is_none_or(|step| step <= to));
        }
        current.push(line);
    }
    current
}

/// Mean training loss over the last tenth of the steps in a log; NaN without steps.
pub fn train_loss(lines: &[LogLine]) -> f64 {
    let mut losses = Vec::new();
    for line in lines {
        if let LogLine::Step { loss, .. } = line {
            losses.push(*loss);
        }
    }
    let tail = &losses[losses.len() - losses.len().div_ceil(10)..];
    tail.iter().sum::<f64>() / tail.len() as f64
}

/// What is wrong with a log that has to be whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// It cannot be read.
    #[error("{}: cannot read the log: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It says nothing.
    #[error("{}: no line of a log in it", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A line that is none of a log.
    #[error("{}: line {line} is no line of a log: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its number, counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads a log of which every line counts. Half a line at its end is what a killed process leaves,
/// and is left out.
///
/// # Errors
/// [`LogError`] with the first line that is none.
pub fn read_whole(path: &Path) -> Result<Vec<LogLine>, LogError> {
    let text = fs::read(path).map_err(|source| LogError::Io {
        path: path.to_owned(),
        source,
    })?;
    let whole = text.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
    let lines = text[..whole].split(|byte| *byte == b'\n').enumerate();
    let lines = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
    let lines: Vec<_> = lines
        .map(|(index, line)| {
            serde_json::from_slice(line).map_err(|error| LogError::Line {
                path: path.to_owned(),
                line: index + 1,
                reason: error.to_string(),
            })
        })
        .collect::<Result<_, _>>()?;
    if lines.is_empty() {
        let path = path.to_owned();
        return Err(LogError::Empty { path });
    }
    Ok(lines)
}

/// Reads a log; lines that are none are left out.
///
/// # Errors
/// What the file system reports.
pub fn read(path: &Path) -> io::Result<Vec<LogLine>> {
    let text = fs::read(path)?;
    let lines = text.split(|byte| *byte == b'\n');
    Ok(lines
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped(step: u64) -> LogLine {
        let reason = "test".to_owned();
        LogLine::Stopped { step, reason }
    }

    fn resume(step: u64) -> LogLine {
        let damaged = Vec::new();
        LogLine::Resume {
            step,
            damaged,
            ranks: 1,
        }
    }

    fn steps(path: &Path) -> Vec<Option<u64>> {
        read(path).unwrap().iter().map(LogLine::step).collect()
    }

    #[test]
    fn a_resumed_log_goes_on_where_it_was_so_long_and_drops_half_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let mut log = RunLog::create(&path, &stopped(0)).unwrap();
        log.write(&stopped(1)).unwrap();
        log.write(&stopped(2)).unwrap();
        let bytes = log.bytes();
        log.write(&stopped(3)).unwrap();
        let mut log = RunLog::resume(&path, bytes, &resume(2)).unwrap();
        log.write(&stopped(3)).unwrap();
        assert_eq!(steps(&path), [0, 1, 2, 2, 3].map(Some));
        // A kill in the middle of a line, and a checkpoint that knows of more than there is.
        let half = fs::read_to_string(&path).unwrap() + "{\"event\":\"st";
        fs::write(&path, half).unwrap();
        RunLog::resume(&path, 1 << 40, &resume(3)).unwrap();
        assert_eq!(steps(&path), [0, 1, 2, 2, 3, 3].map(Some));
    }

    #[test]
    fn lines_wait_while_they_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let mut log = RunLog::create(&path, &stopped(0)).unwrap();
        let writable = std::mem::replace(&mut log.file, File::open(&path).unwrap());
        assert!(log.write(&stopped(1)).is_err());
        assert!(log.write(&stopped(2)).is_err());
        let bytes = log.bytes();
        assert_eq!(steps(&path), [Some(0)]);
        log.file = writable;
        log.write(&stopped(3)).unwrap();
        assert_eq!(steps(&path), [0, 1, 2, 3].map(Some));
        assert!(bytes < log.bytes() && log.bytes() == fs::metadata(&path).unwrap().len());
    }

    #[test]
    fn a_broken_line_is_named_and_half_a_line_at_the_end_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let whole = "{\"event\":\"stopped\",\"step\":1,\"reason\":\"x\"}\n";
        let check = |text: &str, expected: &str| {
            fs::write(&path, text).unwrap();
            let error = read_whole(&path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}, {expected:?} expected");
            assert!(!error.contains('\n'), "{error}");
        };
        check("", "no line of a log");
        check("{\"event\":\"sta", "no line of a log");
        check(
            &format!("{whole}nonsense\n{whole}"),
            "line 2 is no line of a log",
        );
        check(
            &format!("{whole}{{\"event\":\"unheard_of\"}}\n"),
            "unheard_of",
        );
        fs::write(&path, format!("{whole}{whole}{{\"event\":\"st")).unwrap();
        assert_eq!(
            read_whole(&path).unwrap(),
            [stopped_as("x"), stopped_as("x")]
        );
        assert!(matches!(read_whole(dir.path()), Err(LogError::Io { .. })));
    }

    fn stopped_as(reason: &str) -> LogLine {
        let reason = reason.to_owned();
        LogLine::Stopped { step: 1, reason }
    }

    #[test]
    fn a_validation_that_is_no_number_is_read_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let line = LogLine::Validation {
            step: 3,
            forward: Forward::Recipe,
            loss: f64::NAN,
            bits_per_byte: f64::INFINITY,
        };
        RunLog::create(&path, &line).unwrap();
        let lines = read_whole(&path).unwrap();
        let [LogLine::Validation { step: 3, loss, .. }] = lines[..] else {
            panic!("{lines:?}")
        };
        assert!(loss.is_nan());
    }

    #[test]
    fn a_rewind_abandons_the_steps_behind_its_checkpoint() {
        let rewind = LogLine::Rewind(RewindLine {
            from: 4,
            to: 2,
            loss: 9.0,
            limit: 3.0,
            rewinds: 1,
        });
        let lines = [stopped(1), stopped(2), stopped(3), rewind, stopped(3)];
        let steps: Vec<_> = current(lines.to_vec())
            .iter()
            .filter_map(LogLine::step)
            .collect();
        assert_eq!(steps, [1, 2, 2, 3]);
    }
}
