//! Curves of a run over its steps.

use std::collections::BTreeMap;

use burn_nvfp4_models::study::gap::window;
use burn_nvfp4_models::study::record::{Loss, RunRecord, StepPoint};

use crate::cli::chart::{Chart, Line};

/// Points of a line.
const POINTS: usize = 400;
const SIZE: (u32, u32) = (980, 340);

/// Steps that a point of a smoothed line is the mean of.
pub(super) fn smoothing(record: &RunRecord) -> usize {
    window(record.total().unwrap_or_else(|| record.step()))
}

/// Training and validation losses.
pub(super) fn losses(record: &RunRecord, name: &str) -> Chart {
    let window = smoothing(record);
    let mut lines = vec![
        Line {
            label: format!("training, mean of {window}"),
            points: thinned(&smoothed(&values(record, |point| point.loss), window)),
            ..Line::default()
        },
        validations(&format!("validation, {name}"), &record.validations),
    ];
    if !record.high_precision.is_empty() {
        lines.push(validations(
            "validation, high precision",
            &record.high_precision,
        ));
    }
    chart("loss, nats per token", lines, (0.0, 0.04), None)
}

/// The gap to another run, from what can be compared: training losses over windows of so many
/// steps, validations.
pub(super) fn gap(
    window: usize,
    training: Option<BTreeMap<u64, f64>>,
    validation: Option<BTreeMap<u64, f64>>,
) -> Chart {
    let training = training.map(|gaps| Line {
        label: format!("training, mean of {window}"),
        points: thinned(&gaps.into_iter().map(at_step).collect::<Vec<_>>()),
        ..Line::default()
    });
    let validation = validation.map(|gaps| Line {
        label: "validation".to_owned(),
        dots: gaps.into_iter().map(at_step).collect(),
        ..Line::default()
    });
    let lines = training.into_iter().chain(validation).collect();
    chart("gap, % of the other loss", lines, (0.02, 0.02), Some(0.0))
}

/// Learning rate.
pub(super) fn learning_rate(record: &RunRecord) -> Chart {
    let rates = thinned(&values(record, |point| point.learning_rate));
    chart(
        "learning rate",
        vec![line("learning rate", rates)],
        (0.0, 0.0),
        Some(0.0),
    )
}

/// Norm of the gradient before clipping.
pub(super) fn gradient_norm(record: &RunRecord) -> Chart {
    let window = smoothing(record);
    let norms = thinned(&smoothed(&values(record, |point| point.grad_norm), window));
    let label = format!("mean of {window}");
    chart(
        "gradient norm",
        vec![line(&label, norms)],
        (0.0, 0.04),
        Some(0.0),
    )
}

/// Tokens per second.
pub(super) fn throughput(record: &RunRecord) -> Chart {
    let window = smoothing(record);
    let speeds = thinned(&smoothed(
        &values(record, |point| point.tokens_per_second),
        window,
    ));
    let label = format!("mean of {window}");
    chart(
        "tokens per second",
        vec![line(&label, speeds)],
        (0.0, 0.0),
        Some(0.0),
    )
}

fn chart(values: &str, lines: Vec<Line>, cut: (f64, f64), zero: Option<f64>) -> Chart {
    Chart {
        values: values.to_owned(),
        lines,
        cut,
        zero,
        size: SIZE,
    }
}

fn line(label: &str, points: Vec<(f64, f64)>) -> Line {
    Line {
        label: label.to_owned(),
        points,
        ..Line::default()
    }
}

fn validations(label: &str, losses: &BTreeMap<u64, Loss>) -> Line {
    let points: Vec<_> = losses
        .iter()
        .map(|(&step, loss)| at_step((step, loss.nats)))
        .collect();
    let last = points.last();
    Line {
        label: last.map_or(label.to_owned(), |(_, loss)| format!("{label}: {loss:.3}")),
        dots: points.clone(),
        points,
        ..Line::default()
    }
}

fn values(record: &RunRecord, of: fn(&StepPoint) -> f64) -> Vec<(f64, f64)> {
    record
        .steps
        .iter()
        .map(|point| at_step((point.step, of(point))))
        .collect()
}

fn at_step((step, value): (u64, f64)) -> (f64, f64) {
    (step as f64, value)
}

/// Means over the last `window` points, from the first full window on; of a shorter line nothing is
/// hidden.
fn smoothed(points: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    let window = window.clamp(1, points.len().max(1));
    let mean = |points: &[(f64, f64)]| {
        let sum: f64 = points.iter().map(|point| point.1).sum();
        (points[points.len() - 1].0, sum / points.len() as f64)
    };
    points.windows(window).map(mean).collect()
}

/// Every so many points, and the last one: what a picture can show of a smooth line.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let apart = points.len().div_ceil(POINTS).max(1);
    let mut thin: Vec<_> = points.iter().step_by(apart).copied().collect();
    if let Some(last) = points.last()
        && thin.last() != Some(last)
    {
        thin.push(*last);
    }
    thin
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_smooth_line_begins_at_its_first_full_window_and_ends_at_the_last_step() {
        let points: Vec<_> = (1..=5)
            .map(|step| (f64::from(step), f64::from(step)))
            .collect();
        assert_eq!(smoothed(&points, 3), [(3.0, 2.0), (4.0, 3.0), (5.0, 4.0)]);
        assert_eq!(smoothed(&points, 9), [(5.0, 3.0)]);
        assert_eq!(smoothed(&[], 9), []);
        let many: Vec<_> = (1..=1001).map(|step| (f64::from(step), 0.0)).collect();
        let thin = thinned(&many);
        assert!(thin.len() <= POINTS + 1 && thin.last() == many.last());
    }
}
