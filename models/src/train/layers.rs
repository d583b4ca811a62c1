//! What quantization does to each layer, as burn-train metrics: one per layer, its worst operand.
//!
//! [`Numerics::take_statistics`](super::numerics::Numerics::take_statistics) says what was measured
//! in a step, `log.jsonl` has all of it, and the metric of a layer keeps its last value between
//! the steps that are sampled.

use std::sync::Arc;

use burn::train::metric::{
    Metric, MetricAttributes, MetricMetadata, MetricName, Numeric, NumericAttributes, NumericEntry,
    SerializedEntry,
};
use serde::{Deserialize, Serialize};

use super::output::Figures;

/// What quantization did to one operand of one layer in a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperandFigure {
    /// The layer.
    pub layer: String,
    /// GEMM and side, e.g. `wgrad.rhs`.
    pub operand: String,
    /// Signal to quantization noise in dB; absent without noise or without a signal.
    pub sqnr_db: Option<f64>,
    /// Share of the elements other than zero that became zero.
    pub underflow: f64,
    /// Share of the elements that were cut off at the largest code.
    pub saturation: f64,
}

/// Shows the lowest signal to quantization noise among a layer's operands.
#[derive(Clone, Debug)]
pub struct LayerMetric {
    layer: String,
    name: MetricName,
    last: f64,
    shown: String,
}

impl LayerMetric {
    /// A metric without a value yet.
    pub fn new(layer: &str) -> Self {
        Self {
            layer: layer.to_owned(),
            name: Arc::new(format!("SQNR of {layer}")),
            last: f64::NAN,
            shown: "not sampled yet".to_owned(),
        }
    }
}

impl Metric for LayerMetric {
    type Input = Figures;

    fn name(&self) -> MetricName {
        self.name.clone()
    }

    fn attributes(&self) -> MetricAttributes {
        NumericAttributes {
            unit: Some("dB".to_owned()),
            higher_is_better: true,
        }
        .into()
    }

    fn update(&mut self, figures: &Figures, _metadata: &MetricMetadata) -> SerializedEntry {
        let operands = figures.operands.iter();
        let of_layer = operands.filter(|operand| operand.layer == self.layer);
        let measured = of_layer.filter_map(|operand| Some((operand.sqnr_db?, operand)));
        if let Some((sqnr, worst)) = measured.min_by(|a, b| a.0.total_cmp(&b.0)) {
            self.last = sqnr;
            self.shown = format!(
                "{sqnr:.1} dB ({}, {:.1} % to zero, {:.1} % cut off)",
                worst.operand,
                100.0 * worst.underflow,
                100.0 * worst.saturation
            );
        }
        SerializedEntry::new(self.shown.clone(), self.last.to_string())
    }

    fn clear(&mut self) {
        *self = Self::new(&self.layer);
    }
}

impl Numeric for LayerMetric {
    fn value(&self) -> NumericEntry {
        NumericEntry::Value(self.last)
    }

    fn running_value(&self) -> NumericEntry {
        NumericEntry::Value(self.last)
    }
}
