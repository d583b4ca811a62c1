//! The page of a study.

use burn_nvfp4_models::study::outcome::{Outcome, State};

use super::html::Page;
use crate::cli::compare::results;
use crate::cli::table::Table;

/// Writes it.
///
/// # Errors
/// If the picture cannot be drawn.
pub(super) fn page(outcome: &Outcome) -> anyhow::Result<String> {
    let mut page = Page::new(&outcome.study, &results::heading(outcome));
    page.section("Outcome");
    page.html(&results::table(outcome).html());
    for note in outcome.notes() {
        page.note(&note);
    }
    page.section("Gap");
    if outcome.gaps.is_empty() {
        page.note("No arm has a run and a reference of the same seed yet.");
    } else {
        page.html(&results::gap_chart(outcome, &outcome.gaps).svg()?);
        page.note(&results::caption(outcome));
    }
    page.section("Runs");
    page.html(&runs(outcome).html());
    page.note("The page of a run: nvfp4 report OUT/ARM/seed-N.");
    Ok(page.finish())
}

fn runs(outcome: &Outcome) -> Table {
    let heading = [
        "arm",
        "state",
        "seed",
        "step",
        "loss",
        "loss, high precision",
        "gap, nats",
    ];
    let mut table = Table::new(&heading, 2);
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |it| format!("{it:.4}"));
    for arm in &outcome.arms {
        for run in &arm.runs {
            let state = match &run.state {
                State::Missing => "missing".to_owned(),
                State::Open => "not finished".to_owned(),
                State::Failed(reason) => format!("gave up: {reason}"),
                State::Finished if run.diverged => "finished, diverged".to_owned(),
                State::Finished => "finished".to_owned(),
            };
            table.rows.push(vec![
                arm.name.clone(),
                state,
                run.seed.to_string(),
                run.step.to_string(),
                number(run.loss),
                number(run.high_precision_loss),
                number(run.gap_nats),
            ]);
        }
    }
    table
}
