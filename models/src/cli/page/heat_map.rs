//! A map of layers over steps: the darker, the worse. A cell says on hovering what it is.

use std::collections::BTreeMap;
use std::fmt::Write;

use burn_nvfp4_models::train::layers::OperandFigure;

use crate::cli::table::escaped;

/// Most columns.
const COLUMNS: usize = 120;
/// Width of all cells, and height of one.
const WIDTH: f64 = 700.0;
const HEIGHT: f64 = 15.0;
/// Widest cell.
const WIDEST: f64 = 28.0;
/// Width of the names.
const NAMES: f64 = 230.0;
/// From good to bad.
const SCALE: [[f64; 3]; 5] = [
    [255.0, 247.0, 236.0],
    [253.0, 212.0, 158.0],
    [252.0, 141.0, 89.0],
    [215.0, 48.0, 31.0],
    [127.0, 0.0, 0.0],
];

/// What a map shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measure {
    /// Signal to quantization noise.
    Sqnr,
    /// Share that became zero.
    Underflow,
    /// Share that was cut off.
    Saturation,
}

impl Measure {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Sqnr, Self::Underflow, Self::Saturation];

    /// Its name.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Sqnr => "Signal to quantization noise, worst operand",
            Self::Underflow => "Share of elements that became zero, worst operand",
            Self::Saturation => "Share of elements that were cut off, worst operand",
        }
    }

    fn of(self, figure: &OperandFigure) -> Option<f64> {
        match self {
            Self::Sqnr => figure.sqnr_db,
            Self::Underflow => Some(figure.underflow),
            Self::Saturation => Some(figure.saturation),
        }
    }

    fn is_worse(self, a: f64, b: f64) -> bool {
        match self {
            Self::Sqnr => a < b,
            Self::Underflow | Self::Saturation => a > b,
        }
    }

    fn words(self, value: f64) -> String {
        match self {
            Self::Sqnr => format!("{value:.1} dB"),
            Self::Underflow | Self::Saturation => format!("{:.2} %", 100.0 * value),
        }
    }
}

/// The worst operand of a layer in a step.
struct Cell<'a> {
    value: f64,
    operand: &'a str,
}

/// Draws the map; `None` without a value, or where every value is zero.
pub(super) fn heat_map(
    samples: &BTreeMap<u64, Vec<OperandFigure>>,
    measure: Measure,
) -> Option<String> {
    let apart = samples.len().div_ceil(COLUMNS).max(1);
    let columns: Vec<_> = samples.iter().step_by(apart).collect();
    let mut layers: Vec<&str> = Vec::new();
    for figure in columns.iter().flat_map(|(_, figures)| *figures) {
        if !layers.contains(&figure.layer.as_str()) {
            layers.push(&figure.layer);
        }
    }
    let cells: BTreeMap<(usize, usize), Cell<'_>> = columns
        .iter()
        .enumerate()
        .flat_map(|(column, (_, figures))| {
            let worst = worst(figures, measure);
            let layers = &layers;
            worst.into_iter().filter_map(move |(layer, cell)| {
                let row = layers.iter().position(|name| *name == layer)?;
                Some(((row, column), cell))
            })
        })
        .collect();
    let values = || cells.values().map(|cell| cell.value);
    let low = values().fold(f64::INFINITY, f64::min);
    let high = values().fold(f64::NEG_INFINITY, f64::max);
    if cells.is_empty() || (low == 0.0 && high == 0.0) {
        return None;
    }
    let steps: Vec<u64> = columns.iter().map(|(step, _)| **step).collect();
    Some(draw(&layers, &steps, &cells, (measure, low, high)))
}

fn worst(figures: &[OperandFigure], measure: Measure) -> BTreeMap<&str, Cell<'_>> {
    let mut worst: BTreeMap<&str, Cell<'_>> = BTreeMap::new();
    for figure in figures {
        let Some(value) = measure.of(figure).filter(|value| value.is_finite()) else {
            continue;
        };
        let earlier = worst.get(figure.layer.as_str());
        if earlier.is_none_or(|cell| measure.is_worse(value, cell.value)) {
            let operand = &figure.operand;
            worst.insert(&figure.layer, Cell { value, operand });
        }
    }
    worst
}

fn draw(
    layers: &[&str],
    steps: &[u64],
    cells: &BTreeMap<(usize, usize), Cell<'_>>,
    (measure, low, high): (Measure, f64, f64),
) -> String {
    let width = (WIDTH / steps.len() as f64).min(WIDEST);
    let bottom = HEIGHT * layers.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:.0} {:.0}\" width=\"{:.0}\" \
         role=\"img\" font-family=\"sans-serif\" font-size=\"11\">\n",
        NAMES + WIDTH + 40.0,
        bottom + 62.0,
        NAMES + WIDTH + 40.0,
    );
    for (row, layer) in layers.iter().enumerate() {
        let (x, y) = (NAMES - 6.0, HEIGHT * row as f64 + 11.5);
        let layer = escaped(layer);
        let _ = writeln!(
            out,
            "<text x=\"{x}\" y=\"{y}\" text-anchor=\"end\">{layer}</text>"
        );
    }
    for ((row, column), cell) in cells {
        let (x, y) = (NAMES + width * *column as f64, HEIGHT * *row as f64);
        let badness = match measure {
            Measure::Sqnr => (high - cell.value) / (high - low),
            Measure::Underflow | Measure::Saturation => (cell.value - low) / (high - low),
        };
        let _ = writeln!(
            out,
            "<rect x=\"{x:.2}\" y=\"{y}\" width=\"{width:.2}\" height=\"{HEIGHT}\" fill=\"{}\">\
             <title>{}, step {}: {} ({})</title></rect>",
            colour(badness),
            escaped(layers[*row]),
            steps[*column],
            measure.words(cell.value),
            escaped(cell.operand)
        );
    }
    let middle = steps.len() / 2;
    let mut ticks = vec![0, middle, steps.len() - 1];
    ticks.dedup();
    for column in ticks {
        let x = NAMES + width * (column as f64 + 0.5);
        let _ = writeln!(
            out,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            bottom + 14.0,
            steps[column]
        );
    }
    let (good, bad) = match measure {
        Measure::Sqnr => (high, low),
        Measure::Underflow | Measure::Saturation => (low, high),
    };
    legend(
        &mut out,
        bottom + 28.0,
        &measure.words(good),
        &measure.words(bad),
    );
    out += "</svg>\n";
    out
}

/// The scale from good to bad.
fn legend(out: &mut String, top: f64, good: &str, bad: &str) {
    const STEPS: u32 = 20;
    const STEP: f64 = 8.0;
    for step in 0..STEPS {
        let _ = writeln!(
            out,
            "<rect x=\"{}\" y=\"{top}\" width=\"{STEP}\" height=\"10\" fill=\"{}\"/>",
            NAMES + STEP * f64::from(step),
            colour(f64::from(step) / f64::from(STEPS - 1))
        );
    }
    let end = NAMES + STEP * f64::from(STEPS) + 6.0;
    let (text, left) = (top + 9.5, NAMES - 6.0);
    let _ = writeln!(
        out,
        "<text x=\"{left}\" y=\"{text}\" text-anchor=\"end\">{good}</text><text x=\"{end}\" \
         y=\"{text}\">{bad}</text><text x=\"{end}\" y=\"{}\" fill=\"#57606a\" \
         text-anchor=\"end\">step</text>",
        top - 14.0
    );
}

/// The colour of a badness from 0 to 1.
fn colour(badness: f64) -> String {
    let place = if badness.is_finite() {
        badness.clamp(0.0, 1.0)
    } else {
        0.0
    } * 4.0;
    let below = place.floor().min(3.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "from 0 to 3"
    )]
    let index = below as usize;
    let mix = |channel: usize| {
        let (a, b) = (SCALE[index][channel], SCALE[index + 1][channel]);
        a + (b - a) * (place - below)
    };
    format!("rgb({:.0},{:.0},{:.0})", mix(0), mix(1), mix(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(layer: &str, operand: &str, sqnr_db: Option<f64>, underflow: f64) -> OperandFigure {
        OperandFigure {
            layer: layer.to_owned(),
            operand: operand.to_owned(),
            sqnr_db,
            underflow,
            saturation: 0.0,
            zero_scale_blocks: None,
            tensor_amax: None,
            scaled_to_four: None,
            rounding_bias: None,
        }
    }

    fn samples() -> BTreeMap<u64, Vec<OperandFigure>> {
        BTreeMap::from([
            (
                1,
                vec![
                    figure("a<b>", "fprop.lhs", Some(20.0), 0.1),
                    figure("a<b>", "wgrad.rhs", Some(15.0), 0.05),
                    figure("c", "fprop.lhs", None, 0.0),
                ],
            ),
            (11, vec![figure("c", "fprop.lhs", Some(30.0), 0.2)]),
        ])
    }

    #[test]
    fn a_cell_is_the_worst_operand_of_its_layer_and_its_name_stays_text() {
        let map = heat_map(&samples(), Measure::Sqnr).unwrap();
        assert!(
            map.contains("<title>a&lt;b&gt;, step 1: 15.0 dB (wgrad.rhs)</title>"),
            "{map}"
        );
        assert!(
            map.contains("<title>c, step 11: 30.0 dB (fprop.lhs)</title>"),
            "{map}"
        );
        // Nothing was measured for c in step 1.
        assert_eq!(map.matches("<title>").count(), 2);
        assert!(!map.contains("<b>") && !map.contains("NaN"), "{map}");
        // The worst is the darkest, the best the lightest.
        assert!(map.contains("fill=\"rgb(127,0,0)\"><title>a"), "{map}");
        assert!(map.contains("fill=\"rgb(255,247,236)\"><title>c"), "{map}");
        let map = heat_map(&samples(), Measure::Underflow).unwrap();
        assert!(map.contains("step 1: 10.00 % (fprop.lhs)"), "{map}");
    }

    #[test]
    fn what_is_zero_everywhere_needs_no_map() {
        assert!(heat_map(&samples(), Measure::Saturation).is_none());
        assert!(heat_map(&BTreeMap::new(), Measure::Sqnr).is_none());
    }

    #[test]
    fn one_value_and_many_steps_make_a_map_too() {
        let one = BTreeMap::from([(5, vec![figure("a", "fprop.lhs", Some(3.0), 0.5)])]);
        assert!(!heat_map(&one, Measure::Sqnr).unwrap().contains("NaN"));
        let many = (1..=1000).map(|step| (step, vec![figure("a", "x", Some(3.0), 0.5)]));
        let map = heat_map(&many.collect(), Measure::Sqnr).unwrap();
        assert!(map.matches("<title>").count() <= COLUMNS);
    }
}
