//! The outcome of a study in words, as a table, as JSON and as a picture.

use std::io::{self, Write};
use std::path::Path;

use burn_nvfp4_models::durable;
use burn_nvfp4_models::study::gap::{GapCurve, GapPoint, thinned};
use burn_nvfp4_models::study::outcome::{ArmOutcome, Outcome, State};
use burn_nvfp4_models::study::statistics::Summary;

use crate::cli::Failure;
use crate::cli::chart::{Chart, Line};
use crate::cli::table::Table;

/// Points of a line in the picture.
const POINTS: usize = 300;

/// Writes `results.md`, `results.json` and `gap.svg`.
///
/// # Errors
/// [`Failure::Error`] for the first that cannot be written.
pub(super) fn write(outcome: &Outcome, out: &Path) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(outcome).map_err(Failure::error)? + "\n";
    let is_pictured =
        |curve: &&GapCurve| outcome.pictured.is_empty() || outcome.pictured.contains(&curve.arm);
    let pictured = outcome.gaps.iter().filter(is_pictured);
    let picture = gap_chart(outcome, pictured).svg().map_err(Failure::error)?;
    let files = [
        ("results.md", markdown(outcome)),
        ("results.json", json),
        ("gap.svg", picture),
    ];
    for (name, text) in files {
        let path = out.join(name);
        durable::write_file::<io::Error>(&path, |file| file.write_all(text.as_bytes())).map_err(
            |error| Failure::Error(format!("{}: cannot write: {error}", path.display())),
        )?;
    }
    Ok(())
}

/// What the terminal shows.
pub(super) fn text(outcome: &Outcome) -> String {
    let notes = outcome.notes().into_iter().chain(failures(outcome));
    let notes: String = notes.map(|note| format!("{note}\n")).collect();
    format!(
        "\n{}\n\n{}\n{notes}",
        heading(outcome),
        table(outcome).text()
    )
}

fn markdown(outcome: &Outcome) -> String {
    let notes = outcome.notes().into_iter().chain(failures(outcome));
    let notes: String = notes.map(|note| format!("* {note}\n")).collect();
    format!(
        "# {}\n\n{}\n\n{}\n{notes}\n![gap](gap.svg)\n\n{}\n",
        outcome.study,
        heading(outcome),
        table(outcome).markdown(),
        caption(outcome)
    )
}

/// The setting, in one line.
pub(crate) fn heading(outcome: &Outcome) -> String {
    let seeds: Vec<_> = outcome.seeds.iter().map(u64::to_string).collect();
    format!(
        "{}: {} parameters, {} steps, {} tokens a run, seeds {}, on {}",
        outcome.study,
        outcome.parameters,
        outcome.steps,
        outcome.tokens,
        seeds.join(" "),
        outcome.backends.join(" and ")
    )
}

/// What the picture shows.
pub(crate) fn caption(outcome: &Outcome) -> String {
    format!(
        "Gap to {} in percent of its loss. Lines: training losses of the same batches, mean of {} \
         steps; the range of the seeds is shaded. Dots: validation.",
        outcome.reference, outcome.window
    )
}

/// Why runs gave up.
pub(crate) fn failures(outcome: &Outcome) -> Vec<String> {
    let runs = outcome
        .arms
        .iter()
        .flat_map(|arm| arm.runs.iter().map(move |run| (arm, run)));
    let failures = runs.filter_map(|(arm, run)| match &run.state {
        State::Failed(reason) => Some(format!("{} seed {}: {reason}", arm.name, run.seed)),
        State::Missing | State::Open | State::Finished => None,
    });
    failures.collect()
}

/// A row for each arm.
pub(crate) fn table(outcome: &Outcome) -> Table {
    let heading = [
        "arm",
        "recipe",
        "policy",
        "runs",
        "loss",
        "gap, %",
        "resolves, %",
        "training gap, %",
        "resolves, %",
        "gap, nats",
        "resolves",
        "loss, high precision",
        "gap in high precision, %",
        "bits/byte",
        "tokens/s",
        "memory, GiB",
        "skipped",
        "diverged",
    ];
    let mut table = Table::new(&heading, 3);
    table.rows = outcome
        .arms
        .iter()
        .map(|arm| row(arm, &outcome.reference))
        .collect();
    table
}

fn row(arm: &ArmOutcome, reference: &str) -> Vec<String> {
    let finished = arm
        .runs
        .iter()
        .filter(|run| run.state == State::Finished)
        .count();
    let is_reference = arm.name == reference;
    let gap = |gap: Option<Summary>, decimals: usize| {
        if is_reference {
            return "reference".to_owned();
        }
        gap.map_or("-".to_owned(), |gap| with_deviation(gap, decimals, true))
    };
    let resolves = |gap: Option<Summary>, decimals: usize| {
        let spread = gap.filter(|_| !is_reference).and_then(|gap| gap.spread);
        spread.map_or("-".to_owned(), |spread| {
            format!("{:.decimals$}", spread.resolution)
        })
    };
    let loss =
        |loss: Option<Summary>| loss.map_or("-".to_owned(), |loss| with_deviation(loss, 4, false));
    vec![
        arm.name.clone(),
        arm.recipe.clone(),
        arm.policy.clone(),
        format!("{finished}/{}", arm.runs.len()),
        loss(arm.loss),
        gap(arm.gap_percent, 2),
        resolves(arm.gap_percent, 2),
        gap(arm.training_gap_percent, 2),
        resolves(arm.training_gap_percent, 2),
        gap(arm.gap_nats, 4),
        resolves(arm.gap_nats, 4),
        loss(arm.high_precision_loss),
        gap(arm.high_precision_gap_percent, 2),
        loss(arm.bits_per_byte),
        arm.tokens_per_second
            .map_or("-".to_owned(), |speed| format!("{speed:.0}")),
        arm.peak_memory_bytes.map_or("-".to_owned(), |bytes| {
            format!("{:.2}", bytes as f64 / f64::from(1 << 30))
        }),
        arm.skipped.to_string(),
        match arm.diverged {
            0 => "no".to_owned(),
            runs => format!("{runs} of {}", arm.runs.len()),
        },
    ]
}

fn with_deviation(summary: Summary, decimals: usize, signed: bool) -> String {
    let mean = if signed {
        format!("{:+.decimals$}", summary.mean)
    } else {
        format!("{:.decimals$}", summary.mean)
    };
    match summary.spread {
        None => mean,
        Some(spread) => format!("{mean} ± {:.decimals$}", spread.deviation),
    }
}

/// Gaps over the steps.
pub(crate) fn gap_chart<'a>(
    outcome: &Outcome,
    curves: impl IntoIterator<Item = &'a GapCurve>,
) -> Chart {
    let is_several = outcome.seeds.len() > 1;
    let line = |curve: &GapCurve| {
        let points = thinned(&curve.training, POINTS);
        let value = |point: &GapPoint| (point.step as f64, point.mean);
        let range = |point: &GapPoint| (point.step as f64, point.low, point.high);
        let last = curve.validation.last();
        Line {
            label: last.map_or(curve.arm.clone(), |last| {
                let (arm, mean) = (&curve.arm, last.mean);
                if last.step < outcome.steps {
                    format!("{arm}: {mean:+.2} % at {}", last.step)
                } else {
                    format!("{arm}: {mean:+.2} %")
                }
            }),
            points: points.iter().map(value).collect(),
            band: if is_several {
                points.iter().map(range).collect()
            } else {
                Vec::new()
            },
            dots: curve.validation.iter().map(value).collect(),
        }
    };
    let lines: Vec<_> = curves.into_iter().map(line).collect();
    let values = format!("gap to {}, % of its loss", outcome.reference);
    let height = 420_u32.max(60 + 20 * u32::try_from(lines.len()).unwrap_or(0));
    Chart {
        values,
        lines,
        // The first steps, in which runs fall at different speeds.
        cut: (0.02, 0.02),
        zero: Some(0.0),
        size: (980, height),
    }
}

#[cfg(test)]
mod tests {
    use burn_nvfp4_models::study::outcome::RunOutcome;

    use super::*;

    fn arm(name: &str, gaps: &[f64]) -> ArmOutcome {
        let runs = (1..).zip(gaps).map(|(seed, gap)| RunOutcome {
            seed,
            state: State::Finished,
            step: 4,
            loss: Some(1.0 + gap),
            high_precision_loss: Some(1.0 + gap),
            gap_nats: Some(*gap),
            diverged: false,
        });
        let losses: Vec<_> = gaps.iter().map(|gap| 1.0 + gap).collect();
        let percent: Vec<_> = gaps.iter().map(|gap| 100.0 * gap).collect();
        ArmOutcome {
            name: name.to_owned(),
            recipe: "nvidia".to_owned(),
            policy: "paper".to_owned(),
            runs: runs.collect(),
            loss: Summary::of(&losses),
            bits_per_byte: Summary::of(&losses),
            high_precision_loss: Summary::of(&losses),
            gap_nats: Summary::of(gaps),
            gap_percent: Summary::of(&percent),
            high_precision_gap_nats: Summary::of(gaps),
            high_precision_gap_percent: Summary::of(&percent),
            training_gap_percent: Summary::of(&percent),
            tokens_per_second: Some(1234.4),
            peak_memory_bytes: None,
            skipped: 0,
            diverged: 0,
        }
    }

    fn outcome() -> Outcome {
        let point = |step: u64| GapPoint {
            step,
            mean: 2.0,
            low: 1.0,
            high: 3.0,
        };
        Outcome {
            study: "s".to_owned(),
            reference: "bf16".to_owned(),
            seeds: vec![1, 2, 3],
            steps: 4,
            tokens: 400,
            parameters: 10,
            backends: vec!["ndarray".to_owned()],
            window: 2,
            tail: 1,
            arms: vec![
                arm("bf16", &[0.0, 0.0, 0.0]),
                arm("fp4", &[0.01, 0.02, 0.03]),
            ],
            gaps: vec![GapCurve {
                arm: "fp4".to_owned(),
                training: (2..=4).map(point).collect(),
                validation: vec![point(4)],
            }],
            pictured: vec![],
        }
    }

    #[test]
    fn a_row_says_the_gap_its_spread_and_what_the_seeds_resolve() {
        let text = text(&outcome());
        let row = text.lines().find(|line| line.starts_with("fp4")).unwrap();
        let cells: Vec<_> = row.split_whitespace().collect();
        assert_eq!(
            cells.join(" "),
            // t(2) * 0.01 / sqrt(3) = 0.0248.
            "fp4 nvidia paper 3/3 1.0200 ± 0.0100 +2.00 ± 1.00 2.48 +2.00 ± 1.00 2.48 +0.0200 ± \
             0.0100 0.0248 1.0200 ± 0.0100 +2.00 ± 1.00 1.0200 ± 0.0100 1234 - 0 no"
        );
        let reference = text.lines().find(|line| line.starts_with("bf16")).unwrap();
        assert_eq!(reference.matches("reference").count(), 4, "{reference}");
    }

    #[test]
    fn the_files_hold_the_table_the_numbers_and_the_picture() {
        let dir = tempfile::tempdir().unwrap();
        write(&outcome(), dir.path()).unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(read("results.md").contains("| fp4 | nvidia | paper | 3/3 |"));
        assert!(read("results.md").contains("mean of 2 steps"));
        let json: Outcome = serde_json::from_str(&read("results.json")).unwrap();
        // Reading may lose the last bit of a number.
        let as_read = serde_json::to_string(&outcome()).unwrap();
        assert_eq!(json, serde_json::from_str(&as_read).unwrap());
        let svg = read("gap.svg");
        assert!(
            svg.contains("fp4: +2.00 %") && svg.contains("gap to bf16"),
            "{svg}"
        );
        let pictured = vec!["bf16".to_owned()];
        write(
            &Outcome {
                pictured,
                ..outcome()
            },
            dir.path(),
        )
        .unwrap();
        assert!(!read("gap.svg").contains("fp4"), "only what is asked for");
        assert!(read("results.json").contains("fp4"));
    }
}
