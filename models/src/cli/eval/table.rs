//! The tables that people read; files of results have every digit.

use std::fmt::Write;

use burn_nvfp4_models::eval::compare::{Difference, other_batches};
use burn_nvfp4_models::eval::evaluator::Assignment;
use burn_nvfp4_models::eval::outcome::Measure;
use burn_nvfp4_models::eval::results::Results;
use burn_nvfp4_models::eval::stats::Figure;
use burn_nvfp4_models::eval::summary::{Figures, Summary};

/// How long a task took.
pub(super) fn speed(assignment: &Assignment, seconds: f64) -> String {
    let (requests, tokens) = (assignment.requests(), assignment.tokens());
    format!(
        "{}: {} items, {} shots, {requests} requests of {tokens} tokens in {seconds:.1} s, \
         {:.0} tokens/s\n",
        assignment.task,
        assignment.loaded.items.len(),
        assignment.loaded.shots,
        tokens as f64 / seconds.max(1e-9)
    )
}

/// The figures of a task, and of its subjects if it has any.
pub(super) fn task(summary: &Summary, measures: &[Measure]) -> String {
    let subjects = summary
        .subjects
        .iter()
        .map(|subject| subject.subject.len() + 2);
    let width = subjects.chain([summary.task.len(), 20]).max().unwrap_or(0);
    let mut out = format!("\n{:width$} {:>7}", "", "items");
    for measure in measures {
        let _ = write!(out, " {:>20}", measure.name());
    }
    out.push('\n');
    let mut row = |name: &str, items: usize, figures: &Figures| {
        let _ = write!(out, "{name:width$} {items:>7}");
        for measure in measures {
            let figure = figures.get(measure).map_or_else(String::new, number);
            let _ = write!(out, " {figure:>20}");
        }
        out.push('\n');
    };
    row(&summary.task, summary.items, &summary.figures);
    for subject in &summary.subjects {
        row(
            &format!("  {}", subject.subject),
            subject.items,
            &subject.figures,
        );
    }
    out
}

/// Two results, measure by measure.
pub(super) fn comparison(a: &Results, b: &Results, differences: &[Difference]) -> String {
    let mut out = String::new();
    for (name, results) in [("A", a), ("B", b)] {
        let _ = writeln!(
            out,
            "{name}: {} ({}, {})",
            results.path.display(),
            results.run.model,
            results.run.precision
        );
    }
    if let Some(note) = other_batches(a, b) {
        let _ = writeln!(out, "{note}");
    }
    let width = differences
        .iter()
        .map(|difference| difference.task.len())
        .max()
        .unwrap_or(0);
    let _ = writeln!(
        out,
        "\n{:width$} {:<16} {:>7} {:>10} {:>10} {:>20} {:>7} {:>7} {:>10}",
        "", "", "items", "A", "B", "B - A", "only A", "only B", "McNemar p"
    );
    for row in differences {
        let _ = write!(
            out,
            "{:width$} {:<16} {:>7} {:>10.4} {:>10.4} {:>20}",
            row.task,
            row.measure.name(),
            row.items,
            row.first,
            row.second,
            number(&row.difference)
        );
        if let Some(disagreement) = row.disagreement {
            let (a, b) = (disagreement.only_first, disagreement.only_second);
            let _ = write!(out, " {a:>7} {b:>7} {:>10.3e}", disagreement.p_value);
        }
        out.push('\n');
    }
    out
}

/// A figure with its standard error.
fn number(figure: &Figure) -> String {
    match figure.stderr {
        Some(stderr) => format!("{:.4} ± {stderr:.4}", figure.value),
        None => format!("{:.4}", figure.value),
    }
}

#[cfg(test)]
mod tests {
    use burn_nvfp4_models::eval::summary::Subject;

    use super::*;

    #[test]
    fn a_table_has_a_line_for_the_task_and_one_for_each_subject() {
        let figures = |value| -> Figures {
            let figure = Figure {
                value,
                stderr: Some(0.01),
            };
            [(Measure::Acc, figure)].into()
        };
        let summary = Summary {
            task: "sums".to_owned(),
            items: 40,
            figures: figures(0.5),
            subjects: vec![Subject {
                subject: "of_a_subject_with_a_long_name".to_owned(),
                items: 40,
                figures: figures(0.25),
            }],
        };
        let expected = "
                                  items                  acc
sums                                 40      0.5000 ± 0.0100
  of_a_subject_with_a_long_name      40      0.2500 ± 0.0100
";
        assert_eq!(task(&summary, &[Measure::Acc]), expected);
    }
}
