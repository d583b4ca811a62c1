//! `nvfp4 runs`: a table of the runs below a folder.

use std::io::{Write, stdout};
use std::time::SystemTime;

use burn_nvfp4_models::train::overview::{RunOverview, RunState, runs};
use burn_nvfp4_models::train::renderer::duration;

use super::args::RunsArgs;
use super::report::printable;
use super::{Failure, Success};

/// Runs `nvfp4 runs`.
///
/// # Errors
/// [`Failure`], one line each.
pub(crate) fn list(arguments: &RunsArgs) -> Result<Success, Failure> {
    let folder = &arguments.folder;
    let found = runs(folder)
        .map_err(|error| Failure::Error(format!("{}: cannot list: {error}", folder.display())))?;
    let text = if found.is_empty() {
        format!("no runs in {}\n", folder.display())
    } else {
        table(&found, SystemTime::now())
    };
    // A closed pipe (`| head`) has seen enough.
    let _ = stdout().write_all(text.as_bytes());
    Ok(Success::Done)
}

/// A row per run, columns as wide as they have to be.
fn table(runs: &[RunOverview], now: SystemTime) -> String {
    let heading = ["run", "state", "steps", "loss", "best", "recipe", "changed"];
    let mut rows = vec![heading.map(str::to_owned)];
    rows.extend(runs.iter().map(|run| row(run, now)));
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut out = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).enumerate();
        let line: Vec<_> = cells
            .map(|(column, (cell, width))| match column {
                2..=4 => format!("{cell:>width$}"),
                _ => format!("{cell:<width$}"),
            })
            .collect();
        out += line.join("  ").trim_end();
        out.push('\n');
    }
    for run in runs {
        if let RunState::Failed(reason) | RunState::Unreadable(reason) = &run.state {
            out += &visible(&format!("{}: {reason}", run.name));
            out.push('\n');
        }
    }
    out
}

fn row(run: &RunOverview, now: SystemTime) -> [String; 7] {
    let state = match run.state {
        RunState::Running => "running",
        RunState::Finished => "finished",
        RunState::Interrupted => "interrupted",
        RunState::Failed(_) => "failed",
        RunState::Killed => "killed",
        RunState::Unreadable(_) => "unreadable",
    };
    let steps = run.steps.map_or("?".to_owned(), |steps| steps.to_string());
    let skipped = match run.skipped {
        0 => String::new(),
        skipped => format!(" ({skipped} skipped)"),
    };
    let loss = |loss: Option<f64>| loss.map_or("-".to_owned(), |loss| format!("{loss:.4}"));
    let age = run.changed.and_then(|at| now.duration_since(at).ok());
    [
        visible(&run.name),
        state.to_owned(),
        format!("{}/{steps}{skipped}", run.step),
        loss(run.last_loss),
        loss(run.best_loss),
        visible(run.recipe.as_deref().unwrap_or("-")),
        age.map_or("-".to_owned(), |age| {
            format!("{} ago", duration(age.as_secs_f64()))
        }),
    ]
}

/// A text from a file, on one line and without the terminal's commands.
fn visible(text: &str) -> String {
    printable(text.as_bytes()).replace(['\n', '\t'], " ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn columns_line_up_and_a_failure_says_why() {
        let run = |name: &str, state: RunState| RunOverview {
            name: name.to_owned(),
            state,
            step: 12,
            steps: Some(400),
            skipped: 2,
            last_loss: Some(1.5),
            best_loss: None,
            recipe: Some("nvidia".to_owned()),
            changed: Some(SystemTime::UNIX_EPOCH),
        };
        let failed = run("b\x1b[31m", RunState::Failed("NaN\nin x".to_owned()));
        let runs = [run("a-long-name", RunState::Finished), failed];
        let text = table(&runs, SystemTime::UNIX_EPOCH + Duration::from_secs(65));
        let expected = "\
run          state                steps    loss  best  recipe  changed
a-long-name  finished  12/400 (2 skipped)  1.5000     -  nvidia  1m05s ago
b\u{fffd}[31m       failed    12/400 (2 skipped)  1.5000     -  nvidia  1m05s ago
b\u{fffd}[31m: NaN in x
";
        let squeezed = |text: &str| {
            let lines = text.lines().map(|line| {
                let words: Vec<_> = line.split_whitespace().collect();
                words.join(" ")
            });
            lines.collect::<Vec<_>>()
        };
        assert_eq!(squeezed(&text), squeezed(expected));
        let column = |line: &str| line.split("nvidia").next().map(|text| text.chars().count());
        let columns: Vec<_> = text.lines().skip(1).take(2).map(column).collect();
        assert_eq!(columns[0], columns[1], "{text}");
    }
}
