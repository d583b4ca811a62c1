//! What the log of a run says, sorted by kind.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::train::layers::{GemmFigure, OperandFigure};
use crate::train::log::{
    self, FinalLine, Forward, LogError, LogLine, RewindLine, SkippedLine, current,
};

/// A run, as its log tells.
#[derive(Clone, Debug, Default)]
pub struct RunRecord {
    /// The resolved configuration; null without a first line.
    pub config: Value,
    /// The model in full.
    pub model: Value,
    /// Parameters of the model.
    pub parameters: u64,
    /// What was tokenised.
    pub data: Value,
    /// Steps that updated the model, ascending.
    pub steps: Vec<StepPoint>,
    /// Validations in the recipe's forward by step.
    pub validations: BTreeMap<u64, Loss>,
    /// Validations in high precision by step.
    pub high_precision: BTreeMap<u64, Loss>,
    /// Operands of the steps that were sampled.
    pub quantization: BTreeMap<u64, Vec<OperandFigure>>,
    /// How GEMMs ran, from these steps on.
    pub gemms: BTreeMap<u64, Vec<GemmFigure>>,
    /// Steps that did not update the model.
    pub skipped: Vec<SkippedLine>,
    /// Returns to a checkpoint.
    pub rewinds: Vec<RewindLine>,
    /// What else happened: step and words.
    pub incidents: Vec<(u64, String)>,
    /// The last line of a run that is complete.
    pub last: Option<FinalLine>,
    /// Why it stopped, if it said so.
    pub stopped: Option<String>,
}

/// A step that updated the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepPoint {
    /// Counted from 1.
    pub step: u64,
    /// Nats per token.
    pub loss: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Training tokens so far.
    pub tokens: u64,
    /// Training tokens per second.
    pub tokens_per_second: f64,
}

/// A loss in both units.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// Nats per token.
    pub nats: f64,
    /// Bits per byte.
    pub bits_per_byte: f64,
}

/// How a run ended, if it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// At its last step.
    Finished,
    /// It gave up, and said why.
    Failed(String),
    /// Not yet: interrupted, killed, or still at work.
    Open,
}

impl RunRecord {
    /// Reads the log of a run; abandoned steps are left out.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn read(log: &Path) -> Result<Self, LogError> {
        Ok(Self::of(log::read_whole(log)?))
    }

    /// Sorts the lines of a log.
    pub fn of(lines: Vec<LogLine>) -> Self {
        let mut record = Self::default();
        current(lines)
            .into_iter()
            .for_each(|line| record.take(line));
        record
    }

    fn take(&mut self, line: LogLine) {
        match line {
            LogLine::Start {
                config,
                model,
                parameters,
                data,
                ranks: _,
            } => {
                (self.config, self.model, self.parameters, self.data) =
                    (config, model, parameters, data)
            }
            LogLine::Resume { step, damaged, .. } => {
                self.stopped = None;
                let passed_over = match damaged.len() {
                    0 => String::new(),
                    count => format!(", {count} damaged checkpoints passed over"),
                };
                self.incidents.push((step, format!("resumed{passed_over}")));
            }
            LogLine::Step {
                step,
                loss,
                learning_rate,
                grad_norm,
                tokens,
                tokens_per_second,
                ..
            } => self.steps.push(StepPoint {
                step,
                loss,
                learning_rate,
                grad_norm,
                tokens,
                tokens_per_second,
            }),
            LogLine::Quantization { step, operands } => {
                self.quantization.insert(step, operands);
            }
            LogLine::Oscillation { step, found } => {
                let (watched, reset) = (found.watched, found.reset);
                self.incidents.push((
                    step,
                    format!(
                        "{} of {watched} watched weights oscillated, {reset} were reset",
                        found.oscillating
                    ),
                ));
            }
            LogLine::Gemms { step, gemms } => drop(self.gemms.insert(step, gemms)),
            LogLine::Skipped(line) => self.skipped.push(line),
            LogLine::Rewind(line) => self.rewinds.push(line),
            LogLine::Validation {
                step,
                forward,
                loss,
                bits_per_byte,
            } => {
                let loss = Loss {
                    nats: loss,
                    bits_per_byte,
                };
                let _earlier = match forward {
                    Forward::Recipe => self.validations.insert(step, loss),
                    Forward::HighPrecision => self.high_precision.insert(step, loss),
                };
            }
            LogLine::Checkpoint { .. } => {}
            LogLine::SaveFailed { step, error } => {
                self.incidents
                    .push((step, format!("checkpoint not saved: {error}")));
            }
            LogLine::Stopped { step, reason } => {
                self.incidents.push((step, format!("stopped: {reason}")));
                self.stopped = Some(reason);
            }
            LogLine::Final(line) => (self.last, self.stopped) = (Some(line), None),
        }
    }

    /// How it ended.
    pub fn end(&self) -> RunEnd {
        match (&self.last, &self.stopped) {
            (Some(_), _) => RunEnd::Finished,
            (None, Some(reason)) if reason != "interrupted" => RunEnd::Failed(reason.clone()),
            (None, _) => RunEnd::Open,
        }
    }

    /// The last step that is over.
    pub fn step(&self) -> u64 {
        let skipped = self.skipped.last().map_or(0, |line| line.step);
        self.steps.last().map_or(0, |point| point.step).max(skipped)
    }

    /// Steps of the whole run.
    pub fn total(&self) -> Option<u64> {
        self.config["steps"].as_u64()
    }

    /// A field of the precision section in words; what is written in full has no name.
    pub fn precision(&self, field: &str) -> String {
        match &self.config["precision"][field] {
            Value::String(name) => name.clone(),
            Value::Null => "-".to_owned(),
            Value::Object(_) => "of its own".to_owned(),
            value @ (Value::Bool(_) | Value::Number(_) | Value::Array(_)) => value.to_string(),
        }
    }

    /// Fingerprint of the tokens.
    pub fn fingerprint(&self) -> &str {
        self.data["fingerprint"].as_str().unwrap_or_default()
    }

    /// Fingerprint of the folder of tokens that is for validation; `None` without one, and in logs
    /// of before.
    pub fn validation_fingerprint(&self) -> Option<&str> {
        self.data["validation_fingerprint"].as_str()
    }

    /// The median speed of its steps: a mean would count the compilation of kernels and the steps
    /// that were sampled.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let mut speeds: Vec<_> = self.steps.iter().map(|it| it.tokens_per_second).collect();
        speeds.sort_by(f64::total_cmp);
        speeds.get(speeds.len() / 2).copied()
    }

    /// True if the run gave up, or ended with a validation loss that is no number or more than 5 %
    /// above its own lowest one.
    pub fn has_diverged(&self) -> bool {
        const RISE: f64 = 1.05;
        if let RunEnd::Failed(_) = self.end() {
            return true;
        }
        let losses = self.validations.values().map(|loss| loss.nats);
        let lowest = losses.fold(f64::INFINITY, f64::min);
        self.last.is_some_and(|last| {
            !last.validation_loss.is_finite() || last.validation_loss > RISE * lowest
        })
    }

    /// The first step whose batch is not that of the same step in a run that never went back.
    pub fn first_other_batch(&self) -> Option<u64> {
        self.rewinds.iter().map(|line| line.to + 1).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::log::SkipReason;

    fn step(step: u64, tokens_per_second: f64) -> LogLine {
        LogLine::Step {
            step,
            loss: 2.0,
            bits_per_byte: 2.0,
            learning_rate: 1e-3,
            grad_norm: 1.0,
            tokens: step * 10,
            tokens_per_second,
            mfu: None,
            seconds: 1.0,
        }
    }

    fn validation(step: u64, nats: f64) -> LogLine {
        LogLine::Validation {
            step,
            forward: Forward::Recipe,
            loss: nats,
            bits_per_byte: nats,
        }
    }

    fn last(validation_loss: f64) -> LogLine {
        LogLine::Final(FinalLine {
            step: 9,
            train_loss: 1.0,
            validation_loss,
            validation_bits_per_byte: 1.0,
            high_precision_loss: 1.0,
            high_precision_bits_per_byte: 1.0,
            order0_bits_per_byte: 1.0,
            order1_bits_per_byte: 1.0,
            tokens_per_second: 1.0,
            seconds: 1.0,
            waited_seconds: None,
            peak_memory_bytes: None,
        })
    }

    fn stopped(reason: &str) -> LogLine {
        let reason = reason.to_owned();
        LogLine::Stopped { step: 2, reason }
    }

    #[test]
    fn an_end_is_the_last_word_of_the_log() {
        let end = |lines: &[LogLine]| RunRecord::of(lines.to_vec()).end();
        assert_eq!(end(&[step(1, 1.0)]), RunEnd::Open);
        assert_eq!(end(&[stopped("interrupted")]), RunEnd::Open);
        assert_eq!(end(&[stopped("NaN")]), RunEnd::Failed("NaN".to_owned()));
        let resume = LogLine::Resume {
            step: 2,
            damaged: Vec::new(),
            ranks: 1,
        };
        assert_eq!(end(&[stopped("NaN"), resume.clone()]), RunEnd::Open);
        assert_eq!(end(&[stopped("NaN"), resume, last(1.0)]), RunEnd::Finished);
    }

    #[test]
    fn the_speed_is_that_of_most_steps() {
        let lines = [1.0, 100.0, 98.0, 102.0, 40.0].map(|speed| step(1, speed));
        assert_eq!(
            RunRecord::of(lines.to_vec()).tokens_per_second(),
            Some(98.0)
        );
        assert_eq!(RunRecord::default().tokens_per_second(), None);
    }

    #[test]
    fn a_run_diverged_if_it_gave_up_or_ended_above_its_own_best() {
        let diverged = |lines: &[LogLine]| RunRecord::of(lines.to_vec()).has_diverged();
        assert!(diverged(&[stopped("NaN")]));
        assert!(!diverged(&[stopped("interrupted")]));
        assert!(!diverged(&[validation(3, 2.0), last(2.0)]));
        assert!(!diverged(&[validation(3, 2.0), last(2.09)]));
        assert!(diverged(&[validation(3, 2.0), last(2.11)]));
        assert!(diverged(&[validation(3, 2.0), last(f64::NAN)]));
    }

    #[test]
    fn skipped_steps_count_and_abandoned_ones_do_not() {
        let skipped = LogLine::Skipped(SkippedLine {
            step: 4,
            reason: SkipReason::NonFinite,
            loss: "NaN".to_owned(),
            grad_norm: "NaN".to_owned(),
            place: None,
            in_a_row: 1,
            skipped: 1,
        });
        let rewind = LogLine::Rewind(RewindLine {
            from: 3,
            to: 1,
            loss: 9.0,
            limit: 3.0,
            rewinds: 1,
        });
        let record = RunRecord::of(vec![
            step(1, 1.0),
            step(2, 1.0),
            rewind,
            step(2, 1.0),
            skipped,
        ]);
        assert_eq!((record.step(), record.steps.len()), (4, 2));
        assert_eq!(record.first_other_batch(), Some(2));
    }
}
