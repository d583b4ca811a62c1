//! The figures of a step as burn-train metrics: the TUI plots them, the plain renderer prints them.

use std::sync::Arc;

use burn::train::metric::{
    Adaptor, Metric, MetricAttributes, MetricMetadata, MetricName, Numeric, NumericAttributes,
    NumericEntry, SerializedEntry,
};

use super::output::Figures;

impl Adaptor<Figures> for Figures {
    fn adapt(&self) -> Figures {
        self.clone()
    }
}

/// Which number a [`FigureMetric`] shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Cross-entropy, nats per token.
    Loss,
    /// Cross-entropy, bits per byte.
    BitsPerByte,
    /// Learning rate.
    LearningRate,
    /// Global gradient norm before clipping.
    GradNorm,
    /// Tokens per second.
    TokensPerSecond,
    /// Model FLOP utilisation; only shown where the device's peak is known.
    FlopUtilisation,
    /// Steps that did not update the model.
    SkippedSteps,
    /// Weights that oscillated in the last window; only shown where weights are watched.
    OscillatingWeights,
    /// Seconds to the end.
    SecondsLeft,
}

impl Figure {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 9] = [
        Self::Loss,
        Self::BitsPerByte,
        Self::LearningRate,
        Self::GradNorm,
        Self::TokensPerSecond,
        Self::FlopUtilisation,
        Self::SkippedSteps,
        Self::OscillatingWeights,
        Self::SecondsLeft,
    ];

    /// The name in the TUI, by which renderers know it again.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loss => "Loss",
            Self::BitsPerByte => "Bits per byte",
            Self::LearningRate => "Learning rate",
            Self::GradNorm => "Gradient norm",
            Self::TokensPerSecond => "Tokens per second",
            Self::FlopUtilisation => "Model FLOP utilisation",
            Self::SkippedSteps => "Skipped steps",
            Self::OscillatingWeights => "Oscillating weights",
            Self::SecondsLeft => "Seconds left",
        }
    }

    fn of(self, figures: &Figures, metadata: &MetricMetadata) -> f64 {
        match self {
            Self::Loss => figures.loss,
            Self::BitsPerByte => figures.bits_per_byte,
            Self::LearningRate => metadata.lr.unwrap_or(f64::NAN),
            Self::GradNorm => figures.grad_norm.unwrap_or(f64::NAN),
            Self::TokensPerSecond => figures.tokens_per_second,
            Self::FlopUtilisation => figures.mfu.unwrap_or(f64::NAN),
            Self::SkippedSteps => figures.skipped as f64,
            Self::OscillatingWeights => figures.oscillating.map_or(f64::NAN, |count| count as f64),
            Self::SecondsLeft => figures.seconds_left,
        }
    }
}

/// Shows the last value of one figure. It has no running mean: burn's would average over the whole
/// run, because a run without epochs never clears it.
#[derive(Clone, Debug)]
pub struct FigureMetric {
    figure: Figure,
    name: MetricName,
    last: f64,
}

impl FigureMetric {
    /// A metric without a value yet.
    pub fn new(figure: Figure) -> Self {
        Self {
            figure,
            name: Arc::new(figure.name().to_owned()),
            last: f64::NAN,
        }
    }
}

impl Metric for FigureMetric {
    type Input = Figures;

    fn name(&self) -> MetricName {
        self.name.clone()
    }

    fn attributes(&self) -> MetricAttributes {
        let better = [Figure::TokensPerSecond, Figure::FlopUtilisation];
        let higher_is_better = better.contains(&self.figure);
        NumericAttributes {
            unit: None,
            higher_is_better,
        }
        .into()
    }

    fn update(&mut self, figures: &Figures, metadata: &MetricMetadata) -> SerializedEntry {
        self.last = self.figure.of(figures, metadata);
        let shown = match self.figure {
            Figure::TokensPerSecond
            | Figure::SkippedSteps
            | Figure::OscillatingWeights
            | Figure::SecondsLeft => {
                format!("{:.0}", self.last)
            }
            Figure::FlopUtilisation => format!("{:.1} %", 100.0 * self.last),
            Figure::LearningRate => format!("{:.2e}", self.last),
            Figure::Loss | Figure::BitsPerByte | Figure::GradNorm => format!("{:.4}", self.last),
        };
        SerializedEntry::new(shown, self.last.to_string())
    }

    fn clear(&mut self) {
        self.last = f64::NAN;
    }
}

impl Numeric for FigureMetric {
    fn value(&self) -> NumericEntry {
        NumericEntry::Value(self.last)
    }

    fn running_value(&self) -> NumericEntry {
        NumericEntry::Value(self.last)
    }
}
