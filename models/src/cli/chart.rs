//! Lines over steps as an SVG, with a legend beside them.
//!
//! Colours are those of Okabe and Ito, which differ in print and to colour-blind eyes; past the end
//! of the list they come again as dashes.

use plotters::coord::Shift;
use plotters::prelude::*;

/// Distinguishable colours.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(96, 58, 138),
    RGBColor(70, 70, 70),
];
const GREY: RGBColor = RGBColor(120, 120, 120);
/// Width of the legend.
const LEGEND: i32 = 250;
/// Height of a line of the legend.
const LEGEND_LINE: i32 = 20;

/// One line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line {
    /// Its place in the legend.
    pub(crate) label: String,
    /// Step and value.
    pub(crate) points: Vec<(f64, f64)>,
    /// Step, low and high.
    pub(crate) band: Vec<(f64, f64, f64)>,
    /// Points that are drawn as dots.
    pub(crate) dots: Vec<(f64, f64)>,
}

/// A picture.
#[derive(Clone, Debug)]
pub(crate) struct Chart {
    /// What the values are.
    pub(crate) values: String,
    /// Its lines, in the order of the legend.
    pub(crate) lines: Vec<Line>,
    /// Shares of the values that may lie beyond the lower and the upper edge: the first steps of a
    /// run would flatten all others.
    pub(crate) cut: (f64, f64),
    /// A value that is drawn as a line of its own and always shown.
    pub(crate) zero: Option<f64>,
    /// Width and height in pixels.
    pub(crate) size: (u32, u32),
}

impl Chart {
    /// Draws it.
    ///
    /// # Errors
    /// What plotters reports.
    pub(crate) fn svg(&self) -> anyhow::Result<String> {
        let mut out = String::new();
        {
            let root = SVGBackend::with_string(&mut out, self.size).into_drawing_area();
            root.fill(&WHITE)?;
            let (plot, legend) = root.split_horizontally(self.size.0 as i32 - LEGEND);
            self.draw(&plot)?;
            self.draw_legend(&legend)?;
            root.present()?;
        }
        Ok(out)
    }

    fn draw(&self, plot: &DrawingArea<SVGBackend<'_>, Shift>) -> anyhow::Result<()> {
        let steps = self
            .lines
            .iter()
            .flat_map(|line| line.points.iter().chain(&line.dots));
        let last = steps.map(|point| point.0).fold(1.0, f64::max);
        let (low, high) = self.range();
        let mut chart = ChartBuilder::on(plot)
            .margin(10)
            .x_label_area_size(42)
            .y_label_area_size(66)
            .build_cartesian_2d(0.0..last, low..high)?;
        chart
            .configure_mesh()
            .x_desc("step")
            .y_desc(self.values.as_str())
            .x_label_formatter(&|step| format!("{step:.0}"))
            .light_line_style(TRANSPARENT)
            .bold_line_style(GREY.mix(0.25))
            .draw()?;
        if let Some(zero) = self.zero {
            let line = [(0.0, zero), (last, zero)];
            chart.draw_series(LineSeries::new(line, GREY.stroke_width(1)))?;
        }
        // plotters does not cut what lies beyond the edges.
        let inside = |value: f64| value.clamp(low, high);
        for (index, line) in self.lines.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            if !line.band.is_empty() {
                let up = line
                    .band
                    .iter()
                    .map(|&(step, _, high)| (step, inside(high)));
                let down = line
                    .band
                    .iter()
                    .rev()
                    .map(|&(step, low, _)| (step, inside(low)));
                let edge: Vec<_> = up.chain(down).collect();
                chart.draw_series([Polygon::new(edge, colour.mix(0.15))])?;
            }
        }
        for (index, line) in self.lines.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let points = line.points.iter().filter(|point| point.1.is_finite());
            let points: Vec<_> = points.map(|&(step, value)| (step, inside(value))).collect();
            let style = colour.stroke_width(2);
            if index < COLOURS.len() {
                chart.draw_series(LineSeries::new(points, style))?;
            } else {
                chart.draw_series(DashedLineSeries::new(points, 7, 4, style))?;
            }
            let dots = line
                .dots
                .iter()
                .filter(|(_, value)| (low..=high).contains(value));
            chart.draw_series(dots.map(|&dot| Circle::new(dot, 4, colour.filled())))?;
        }
        Ok(())
    }

    fn draw_legend(&self, area: &DrawingArea<SVGBackend<'_>, Shift>) -> anyhow::Result<()> {
        let mut top = 24;
        for (index, line) in self.lines.iter().enumerate() {
            let style = COLOURS[index % COLOURS.len()].stroke_width(2);
            // Dashes of the second round, as in the plot.
            let parts: &[(i32, i32)] = if index < COLOURS.len() {
                &[(4, 28)]
            } else {
                &[(4, 11), (15, 22), (26, 28)]
            };
            for &(from, to) in parts {
                area.draw(&PathElement::new([(from, top), (to, top)], style))?;
            }
            let font = ("sans-serif", 13).into_font();
            area.draw(&Text::new(line.label.clone(), (34, top - 8), font))?;
            top += LEGEND_LINE;
        }
        Ok(())
    }

    /// The values that are shown.
    fn range(&self) -> (f64, f64) {
        let values = self.lines.iter().flat_map(|line| {
            let points = line.points.iter().chain(&line.dots).map(|point| point.1);
            points.chain(line.band.iter().flat_map(|&(_, low, high)| [low, high]))
        });
        let mut values: Vec<_> = values.filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let count = values.len();
        let at = |share: f64| {
            let index = (share * count.saturating_sub(1) as f64).round();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a share of a length"
            )]
            values.get(index as usize).copied()
        };
        let (low, high) = (at(self.cut.0), at(1.0 - self.cut.1));
        let (low, high) = low.zip(high).unwrap_or((0.0, 1.0));
        // Where lines end is what is read off: it is left out only if it would flatten all else.
        let near = high + (high - low);
        let ends = self.lines.iter().filter_map(|line| line.points.last());
        let ends = ends.map(|end| end.1).filter(|&end| end <= near);
        let high = ends.fold(high, f64::max);
        let low = self.zero.map_or(low, |zero| low.min(zero));
        let high = self.zero.map_or(high, |zero| high.max(zero));
        let margin = if low < high { 0.05 * (high - low) } else { 0.5 };
        (low - margin, high + margin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(lines: Vec<Line>) -> Chart {
        Chart {
            values: "gap, %".to_owned(),
            lines,
            cut: (0.0, 0.02),
            zero: Some(0.0),
            size: (900, 420),
        }
    }

    #[test]
    fn every_line_has_a_place_in_the_legend_and_labels_stay_text() {
        let line = |label: &str| Line {
            label: label.to_owned(),
            points: vec![(1.0, 2.0), (2.0, 3.0)],
            band: vec![(1.0, 1.0, 3.0), (2.0, 2.0, 4.0)],
            dots: vec![(2.0, 3.5)],
        };
        let lines = (0..10).map(|i| line(&format!("arm{i}<b>"))).collect();
        let svg = chart(lines).svg().unwrap();
        for i in 0..10 {
            assert!(svg.contains(&format!("arm{i}&lt;b&gt;")), "{svg}");
        }
        assert!(!svg.contains("<b>"), "{svg}");
        assert!(svg.contains("gap, %") && svg.contains("<polygon") && svg.contains("<circle"));
        assert!(svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn no_lines_and_no_numbers_still_make_a_picture() {
        assert!(chart(Vec::new()).svg().unwrap().contains("<svg"));
        let line = Line {
            points: vec![(1.0, f64::NAN)],
            ..Line::default()
        };
        let svg = chart(vec![line]).svg().unwrap();
        assert!(!svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn a_few_wild_values_do_not_flatten_the_others() {
        let points = (0..100)
            .map(|i| (f64::from(i), if i == 0 { 1e6 } else { 1.0 }))
            .collect();
        let line = Line {
            points,
            ..Line::default()
        };
        let (low, high) = chart(vec![line]).range();
        assert!(low <= 0.0 && high < 2.0, "{low}, {high}");
    }

    #[test]
    fn where_a_line_ends_is_shown() {
        let rising = |i: u8| (f64::from(i), if i < 90 { 1.0 } else { 1.1 });
        let flat = |i: u8| (f64::from(i), 0.5);
        let line = |points: Vec<_>| Line {
            points,
            ..Line::default()
        };
        let mut chart = chart(vec![
            line((0..100).map(rising).collect()),
            line((0..200).map(flat).collect()),
        ]);
        chart.cut = (0.0, 0.1);
        assert!(chart.range().1 > 1.1, "{:?}", chart.range());
    }
}
