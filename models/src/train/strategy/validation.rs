//! Validation: the mean loss over windows that are always the same, on the first rank.

use std::sync::Arc;

use burn::tensor::Tensor;
use burn::train::{EventProcessorTraining, InferenceStep, LearnerEvent, TrainingItem};
use burn_hybrid_ops::TrainingEngine;

use super::{Loop, Trainable};
use crate::train::gradients::ScalarF32;
use crate::train::log::{Forward, LogLine};
use crate::train::output::{Figures, LossOutput, bits_per_byte};

impl<B: TrainingEngine, M: Trainable<B>> Loop<'_, B, M> {
    /// Mean loss over the validation windows, in nats per token; `None` on ranks that do not
    /// validate.
    pub(super) fn measure(&self, forward: Forward) -> Option<f64> {
        let front = self.front.as_ref()?;
        let model = self.learner.model().valid();
        let mean = || {
            let (mut sum, mut tokens) = (0.0, 0);
            for batch in front.valid.iter() {
                let output = model.step(batch);
                sum += f64::from(output.loss.into_scalar_f32()) * output.tokens as f64;
                tokens += output.tokens;
            }
            sum / tokens as f64
        };
        let mut loss = f64::NAN;
        match forward {
            Forward::Recipe => loss = mean(),
            Forward::HighPrecision => {
                self.numerics.in_high_precision(&mut || loss = mean());
            }
        }
        // Validation is not training: what it found is not a reason to stop the next step.
        let _ = self.numerics.take_non_finite();
        Some(loss)
    }

    /// Measures, logs and shows the validation loss.
    pub(super) fn validate(&mut self, forward: Forward) -> Option<f64> {
        let loss = self.measure(forward)?;
        let bits_per_byte = bits_per_byte(loss, self.strategy.plan.valid_bytes_per_token);
        self.log(&LogLine::Validation {
            step: self.position.step,
            forward,
            loss,
            bits_per_byte,
        });
        self.position.log_bytes = self.strategy.log_bytes();
        if forward == Forward::Recipe {
            self.show_validation(loss, bits_per_byte);
        }
        Some(loss)
    }

    /// Sends a validation to the metrics, as one item.
    fn show_validation(&mut self, loss: f64, bits_per_byte: f64) {
        let figures = Figures {
            loss,
            bits_per_byte,
            grad_norm: None,
            tokens_per_second: f64::NAN,
            mfu: None,
            skipped: self.position.skipped,
            oscillating: self.oscillating,
            operands: Arc::default(),
            seconds_left: f64::NAN,
        };
        // Where the model is: the default device may be another one, which is not to be opened.
        let devices = self.learner.model().devices();
        let device = devices.into_iter().next().unwrap_or_default();
        let loss = Tensor::from_floats([loss], &device);
        let item = LossOutput {
            loss,
            tokens: 0,
            figures: Some(figures),
        };
        let item = TrainingItem::new(item, self.progress(), self.progress(), None, None);
        if let Some(front) = &mut self.front {
            front
                .events
                .process_valid(LearnerEvent::ProcessedItem(item));
        }
    }
}
