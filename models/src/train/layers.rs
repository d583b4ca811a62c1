//! What quantization does to each layer, as burn-train metrics: one per layer, its worst operand.
//!
//! [`Numerics::take_statistics`](super::numerics::Numerics::take_statistics) says what was measured
//! in a step, `log.jsonl` has all of it, and the metric of a layer keeps its last value between
//! the steps that are sampled. Figures that later versions added are absent in older logs.

use std::sync::Arc;

use burn::train::metric::{
    Metric, MetricAttributes, MetricMetadata, MetricName, Numeric, NumericAttributes, NumericEntry,
    SerializedEntry,
};
use burn_nvfp4::stats::{GemmSample, OperandSample, OperandStatistics};
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
    /// Share of the blocks whose scale became zero although they hold other elements than zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zero_scale_blocks: Option<f64>,
    /// Largest magnitude; absent where it is not finite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensor_amax: Option<f32>,
    /// Share of the blocks that four-over-six scaled to 4; absent in other recipes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaled_to_four: Option<f64>,
    /// `<x, q - x> / <x, x>` of an operand that is rounded stochastically: what is left of it for a
    /// large operand is bias, negative if quantization shrinks. Absent where nothing is random.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounding_bias: Option<f64>,
}

impl From<OperandSample> for OperandFigure {
    fn from(sample: OperandSample) -> Self {
        let OperandStatistics {
            elements: _,
            tensor_amax,
            sqnr_db,
            underflow,
            saturation,
            zero_scale_blocks,
            scaled_to_four,
            rounding_bias,
        } = sample.statistics;
        Self {
            layer: layer_name(sample.layer),
            operand: sample.operand.into_owned(),
            sqnr_db,
            underflow,
            saturation,
            zero_scale_blocks: Some(zero_scale_blocks),
            tensor_amax: Some(tensor_amax).filter(|amax| amax.is_finite()),
            scaled_to_four,
            rounding_bias,
        }
    }
}

/// One GEMM of one layer, as it ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GemmFigure {
    /// The layer.
    pub layer: String,
    /// `fprop`, `dgrad` or `wgrad`.
    pub gemm: String,
    /// Format of the left operand, in words.
    pub lhs: String,
    /// Format of the right operand, in words.
    pub rhs: String,
    /// What multiplied them.
    pub routine: String,
}

impl From<GemmSample> for GemmFigure {
    fn from(sample: GemmSample) -> Self {
        Self {
            layer: layer_name(sample.layer),
            gemm: sample.gemm.into_owned(),
            lhs: sample.lhs,
            rhs: sample.rhs,
            routine: sample.routine.into_owned(),
        }
    }
}

/// What was measured in a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// What quantization did to each operand.
    pub operands: Vec<OperandFigure>,
    /// Which GEMM ran in which formats by which routine, if that is not what was told before.
    pub gemms: Vec<GemmFigure>,
}

fn layer_name(layer: Option<String>) -> String {
    layer.unwrap_or_else(|| "(no layer)".to_owned())
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
