//! Progress as plain lines, for pipes, logs and `--plain`: burn-train's renderer interface on a
//! sink.
//!
//! One line every few steps and one per validation. A sink that fails (a closed pipe) is ignored:
//! the run is worth more than its display, and the jsonl log has every number.

use std::collections::HashMap;
use std::error::Error;
use std::io::Write;

use burn::train::LearnerSummary;
use burn::train::metric::{MetricDefinition, MetricId};
use burn::train::renderer::{
    EvaluationName, EvaluationProgress, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining, ProgressType, TrainingProgress,
};

use super::metrics::Figure;

/// Writes a line to a sink every `every` steps.
#[derive(Debug)]
pub struct PlainRenderer<W> {
    sink: W,
    every: usize,
    figures: HashMap<MetricId, Figure>,
    train: HashMap<&'static str, f64>,
    valid: HashMap<&'static str, f64>,
}

impl<W: Write + Send + Sync> PlainRenderer<W> {
    /// A renderer that writes the first and the last step and every `every`th to `sink`.
    pub fn new(sink: W, every: usize) -> Self {
        let (figures, train, valid) = <(HashMap<_, _>, HashMap<_, _>, HashMap<_, _>)>::default();
        Self {
            sink,
            every: every.max(1),
            figures,
            train,
            valid,
        }
    }

    fn note(&mut self, state: &MetricState, validation: bool) {
        let MetricState::Numeric(entry, value) = state else {
            return;
        };
        if let Some(figure) = self.figures.get(&entry.metric_id) {
            let values = if validation {
                &mut self.valid
            } else {
                &mut self.train
            };
            values.insert(figure.name(), value.current());
        }
    }

    fn line(&mut self, line: &str) {
        let _ = writeln!(self.sink, "{line}").and_then(|()| self.sink.flush());
    }
}

fn of(values: &HashMap<&'static str, f64>, figure: Figure) -> f64 {
    values.get(figure.name()).copied().unwrap_or(f64::NAN)
}

/// Seconds as `1h02m`, `3m05s` or `42s`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".to_owned();
    }
    let rounded = std::time::Duration::from_secs_f64(seconds.min(1e12)).as_secs();
    let (hours, minutes, seconds) = (rounded / 3600, rounded / 60 % 60, rounded % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds:02}s"),
        (_, _) => format!("{hours}h{minutes:02}m"),
    }
}

impl<W: Write + Send + Sync> MetricsRendererTraining for PlainRenderer<W> {
    fn update_train(&mut self, state: MetricState) {
        self.note(&state, false);
    }

    fn update_valid(&mut self, state: MetricState) {
        self.note(&state, true);
    }

    fn render_train(&mut self, item: TrainingProgress, _indicators: Vec<ProgressType>) {
        let total = item.global_progress.items_total;
        let step = item.global_progress.items_processed;
        if step != 1 && step != total && !step.is_multiple_of(self.every) {
            return;
        }
        let width = total.to_string().len();
        let values = &self.train;
        let mfu = match of(values, Figure::FlopUtilisation) {
            mfu if mfu.is_nan() => String::new(),
            mfu => format!("  MFU {:.1} %", 100.0 * mfu),
        };
        let skipped = match of(values, Figure::SkippedSteps) {
            skipped if skipped > 0.0 => format!("  skipped {skipped}"),
            _ => String::new(),
        };
        let line = format!(
            "step {step:>width$}/{total}  loss {:.4}  bpb {:.4}  lr {:.2e}  norm {:.3}  \
             {:.0} tok/s{mfu}{skipped}  ETA {}",
            of(values, Figure::Loss),
            of(values, Figure::BitsPerByte),
            of(values, Figure::LearningRate),
            of(values, Figure::GradNorm),
            of(values, Figure::TokensPerSecond),
            duration(of(values, Figure::SecondsLeft)),
        );
        self.line(&line);
    }

    fn render_valid(&mut self, item: TrainingProgress, _indicators: Vec<ProgressType>) {
        let total = item.global_progress.items_total;
        let step = item.global_progress.items_processed;
        let width = total.to_string().len();
        let values = &self.valid;
        let line = format!(
            "step {step:>width$}/{total}  validation loss {:.4}  bpb {:.4}",
            of(values, Figure::Loss),
            of(values, Figure::BitsPerByte),
        );
        self.line(&line);
    }

    fn on_train_end(&mut self, _summary: Option<LearnerSummary>) -> Result<(), Box<dyn Error>> {
        Ok(())
    }
}

impl<W: Write + Send + Sync> MetricsRendererEvaluation for PlainRenderer<W> {
    fn update_test(&mut self, _name: EvaluationName, _state: MetricState) {}

    fn render_test(&mut self, _item: EvaluationProgress, _indicators: Vec<ProgressType>) {}

    fn on_test_end(&mut self, _summary: Option<LearnerSummary>) -> Result<(), Box<dyn Error>> {
        Ok(())
    }
}

impl<W: Write + Send + Sync> MetricsRenderer for PlainRenderer<W> {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, definition: MetricDefinition) {
        let figure = Figure::ALL
            .into_iter()
            .find(|figure| figure.name() == definition.name);
        if let Some(figure) = figure {
            self.figures.insert(definition.metric_id, figure);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn durations_read_well() {
        for (seconds, text) in [
            (0.4, "0s"),
            (59.9, "59s"),
            (61.0, "1m01s"),
            (3725.0, "1h02m"),
            (f64::NAN, "?"),
            (f64::INFINITY, "?"),
            (-1.0, "?"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }
}
