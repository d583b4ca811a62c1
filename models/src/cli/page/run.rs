//! The page of a run.

use burn_nvfp4_models::study::gap::{percent, training_gap, validation_gap};
use burn_nvfp4_models::study::record::{RunEnd, RunRecord};
use burn_nvfp4_models::train::log::SkipReason;

use super::heat_map::{Measure, heat_map};
use super::html::Page;
use super::{Run, curves};
use crate::cli::measured;
use crate::cli::table::Table;

/// Writes it.
///
/// # Errors
/// If a picture cannot be drawn.
pub(super) fn page(run: &Run, against: Option<&Run>) -> anyhow::Result<String> {
    let record = &run.record;
    let name = record.config["name"].as_str();
    let folder = run.folder.display().to_string();
    let mut page = Page::new(name.unwrap_or(&folder), &line(record, &folder));
    page.tiles(&tiles(record));
    page.section("Loss");
    page.html(&curves::losses(record, &record.precision("recipe")).svg()?);
    if let Some(other) = against {
        gap(&mut page, record, other)?;
    }
    page.section("Learning rate and gradient norm");
    page.html(&curves::learning_rate(record).svg()?);
    page.html(&curves::gradient_norm(record).svg()?);
    quantization(&mut page, record);
    routines(&mut page, record);
    page.section("Throughput");
    page.html(&curves::throughput(record).svg()?);
    events(&mut page, record);
    page.section("Configuration");
    page.text(&run.config);
    Ok(page.finish())
}

/// The line under the title.
fn line(record: &RunRecord, folder: &str) -> String {
    format!(
        "{folder}: {} parameters, recipe {}, policy {}, on {}, seed {}",
        record.parameters,
        record.precision("recipe"),
        record.precision("policy"),
        record.precision("backend"),
        record.config["seed"]
    )
}

fn tiles(record: &RunRecord) -> Vec<(&'static str, String)> {
    let unknown = || "-".to_owned();
    let total = record
        .total()
        .map_or("?".to_owned(), |total| total.to_string());
    let state = match record.end() {
        RunEnd::Finished => "finished".to_owned(),
        RunEnd::Failed(_) => "gave up".to_owned(),
        RunEnd::Open => "not finished".to_owned(),
    };
    let validation = record.validations.last_key_value().map(|(_, loss)| *loss);
    let high_precision = record
        .high_precision
        .last_key_value()
        .map(|(_, loss)| *loss);
    let memory = record.last.and_then(|last| last.peak_memory_bytes);
    let tokens = record.steps.last().map(|point| point.tokens);
    vec![
        ("state", state),
        ("steps", format!("{} of {total}", record.step())),
        (
            "training tokens",
            tokens.map_or_else(unknown, |tokens| tokens.to_string()),
        ),
        (
            "validation loss, nats",
            validation.map_or_else(unknown, |loss| format!("{:.4}", loss.nats)),
        ),
        (
            "bits per byte",
            validation.map_or_else(unknown, |loss| format!("{:.4}", loss.bits_per_byte)),
        ),
        (
            "the same in high precision, nats",
            high_precision.map_or_else(unknown, |loss| format!("{:.4}", loss.nats)),
        ),
        (
            "tokens per second, median",
            record
                .tokens_per_second()
                .map_or_else(unknown, |speed| format!("{speed:.0}")),
        ),
        (
            "peak memory, GiB",
            memory.map_or_else(unknown, |bytes| {
                format!("{:.2}", bytes as f64 / f64::from(1 << 30))
            }),
        ),
        ("steps without an update", record.skipped.len().to_string()),
    ]
}

fn gap(page: &mut Page, record: &RunRecord, other: &Run) -> anyhow::Result<()> {
    let there = &other.record;
    let folder = other.folder.display();
    page.section("Gap");
    let differing = unpaired(record, there);
    let are_alike = are_validated_alike(record, there);
    let window = curves::smoothing(record);
    let training = differing
        .is_empty()
        .then(|| training_gap(record, there, window));
    let validation = are_alike.then(|| validation_gap(record, there));
    page.html(&curves::gap(window, training, validation).svg()?);
    let finals = record.last.zip(there.last).filter(|_| are_alike);
    let at_the_end = finals.map_or(String::new(), |(here, there)| {
        let (here, there) = (here.validation_loss, there.validation_loss);
        let (nats, percent) = (here - there, percent(here, there));
        format!(" At the end {nats:+.4} nats, {percent:+.2} %.")
    });
    let differing = differing.join(", ");
    let what = match (differing.is_empty(), are_alike) {
        (true, true) => "Lines: training losses of the same batches. Dots: validation.".to_owned(),
        (true, false) => "Lines: training losses of the same batches. The runs were validated on \
                          other tokens: their validations are not compared."
            .to_owned(),
        (false, true) => format!(
            "The runs differ in {differing}: their batches are not paired, and only validations \
             are compared."
        ),
        (false, false) => format!(
            "The runs differ in {differing} and were validated on other tokens: nothing is \
             compared."
        ),
    };
    page.note(&format!(
        "To {folder}, in percent of its loss. {what}{at_the_end}"
    ));
    Ok(())
}

/// What keeps the batches of two runs apart.
fn unpaired(record: &RunRecord, other: &RunRecord) -> Vec<&'static str> {
    let mut differing = Vec::new();
    if record.fingerprint() != other.fingerprint() {
        differing.push("data");
    }
    for field in ["seed", "batch", "steps"] {
        if record.config[field] != other.config[field] {
            differing.push(field);
        }
    }
    differing
}

/// False if two runs are known to be validated on folders of other tokens.
fn are_validated_alike(record: &RunRecord, other: &RunRecord) -> bool {
    let here = record.validation_fingerprint();
    let both = here.zip(other.validation_fingerprint());
    both.is_none_or(|(here, there)| here == there)
}

fn quantization(page: &mut Page, record: &RunRecord) {
    page.section("What quantization does");
    let Some((step, figures)) = record.quantization.last_key_value() else {
        page.note("No step was sampled; nvfp4 train --statistics-every N samples every N-th.");
        return;
    };
    for measure in Measure::ALL {
        match heat_map(&record.quantization, measure) {
            Some(map) => {
                page.html(&format!("<p>{}</p>\n{map}", measure.title()));
            }
            None => page.note(&format!("{}: none in any sample.", measure.title())),
        }
    }
    let title = format!("Every operand in step {step}");
    page.folded(&title, &measured::operands(figures).html());
}

fn routines(page: &mut Page, record: &RunRecord) {
    page.section("What ran where");
    if record.gemms.is_empty() {
        page.note("Not in this log; nvfp4 train --statistics-every N has it.");
    }
    for (step, figures) in &record.gemms {
        page.html(&format!("<p>From step {step} on</p>\n"));
        page.html(&measured::gemms(figures).html());
    }
}

fn events(page: &mut Page, record: &RunRecord) {
    page.section("Events");
    let mut table = Table::new(&["step", "what"], 2);
    let mut rows: Vec<(u64, String)> = record.incidents.clone();
    rows.extend(record.skipped.iter().map(|line| {
        let why = match line.reason {
            SkipReason::NonFinite => "NaN or infinity",
            SkipReason::Spike => "an outlying loss",
        };
        let place = line
            .place
            .as_deref()
            .map_or(String::new(), |place| format!(" in {place}"));
        let (loss, norm) = (&line.loss, &line.grad_norm);
        (
            line.step,
            format!("no update: {why}{place}; loss {loss}, gradient norm {norm}"),
        )
    }));
    rows.extend(record.rewinds.iter().map(|line| {
        let (to, loss, limit) = (line.to, line.loss, line.limit);
        (
            line.from,
            format!("back to step {to}: loss {loss:.4}, more than {limit:.4}"),
        )
    }));
    rows.sort_by_key(|row| row.0);
    if rows.is_empty() {
        page.note("None: no step without an update, no interruption.");
        return;
    }
    table.rows = rows
        .into_iter()
        .map(|(step, what)| vec![step.to_string(), what])
        .collect();
    page.html(&table.html());
}

#[cfg(test)]
mod tests;
