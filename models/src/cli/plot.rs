//! `loss.svg`: bits per byte over steps, from the log.

use std::path::Path;

use plotters::prelude::*;

use burn_nvfp4_models::data::Floors;
use burn_nvfp4_models::train::log::{Forward, LogLine};

/// Draws training and validation bits per byte, with the floors as lines.
///
/// # Errors
/// If the picture cannot be written.
pub(crate) fn loss_curve(path: &Path, lines: &[LogLine], floors: Floors) -> anyhow::Result<()> {
    let (mut training, mut validation) = (Vec::new(), Vec::new());
    for line in lines {
        if let LogLine::Step {
            step,
            bits_per_byte,
            ..
        } = line
        {
            training.push((*step, *bits_per_byte));
        } else if let LogLine::Validation {
            step,
            forward: Forward::Recipe,
            bits_per_byte,
            ..
        } = line
        {
            validation.push((*step, *bits_per_byte));
        }
    }
    let last = training
        .iter()
        .chain(&validation)
        .map(|point| point.0)
        .max()
        .unwrap_or(1);
    let values = training.iter().chain(&validation).map(|point| point.1);
    let values = values
        .chain([floors.order0, floors.order1])
        .filter(|value| value.is_finite());
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    let (low, high) = if low < high { (low, high) } else { (0.0, 8.0) };
    let margin = (high - low) * 0.05;

    let root = SVGBackend::new(path, (900, 520)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0..last.max(1), low - margin..high + margin)?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc("bits per byte")
        .light_line_style(TRANSPARENT)
        .draw()?;
    let legend = |color: RGBColor| {
        move |(x, y): (i32, i32)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2))
    };
    let (blue, red, grey) = (
        RGBColor(31, 119, 180),
        RGBColor(214, 39, 40),
        RGBColor(120, 120, 120),
    );
    for (value, label) in [
        (floors.order0, "byte counts"),
        (floors.order1, "byte pair counts"),
    ] {
        chart
            .draw_series(LineSeries::new(
                [(0, value), (last, value)],
                grey.stroke_width(1),
            ))?
            .label(format!("{label}: {value:.3}"))
            .legend(legend(grey));
    }
    chart
        .draw_series(LineSeries::new(training, blue.mix(0.7).stroke_width(1)))?
        .label("training")
        .legend(legend(blue));
    let label = validation
        .last()
        .map(|point| format!("validation: {:.3}", point.1));
    chart
        .draw_series(LineSeries::new(validation, red.stroke_width(2)))?
        .label(label.unwrap_or_else(|| "validation".to_owned()))
        .legend(legend(red));
    chart
        .configure_series_labels()
        .border_style(grey)
        .background_style(WHITE)
        .draw()?;
    root.present()?;
    Ok(())
}
