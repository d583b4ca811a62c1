//! `nvfp4 report`: one HTML file about a run, or about a study.
//!
//! It opens without a network: pictures are inline SVG, styles are inline, and there is no script.
//! Whatever comes from a file is escaped.

mod html;
mod curves;
mod heat_map;
mod run;
mod study;

use std::fs;
use std::io::{self, Write, stdout};
use std::path::{Path, PathBuf};

use burn_nvfp4_models::checkpoint::run::RunDirectory;
use burn_nvfp4_models::durable;
use burn_nvfp4_models::study::outcome::{Outcome, read_runs};
use burn_nvfp4_models::study::plan::Study;
use burn_nvfp4_models::study::record::RunRecord;

use super::args::ReportArgs;
use super::compare::plan_of;
use super::{Failure, Success};

/// The name of a page in its folder.
const FILE: &str = "report.html";

/// Runs `nvfp4 report`.
///
/// # Errors
/// [`Failure`], one line each.
pub(crate) fn report(arguments: &ReportArgs) -> Result<Success, Failure> {
    let folder = &arguments.folder;
    let page = match plan_of(folder) {
        Some(_) if arguments.against.is_some() => {
            let message = "--against is for a run; a study has its reference".to_owned();
            return Err(Failure::Usage(message));
        }
        Some(plan) => of_study(&plan, folder)?,
        None => of_run(folder, arguments.against.as_deref())?,
    };
    let path = arguments.out.clone().unwrap_or_else(|| folder.join(FILE));
    durable::write_file::<io::Error>(&path, |file| file.write_all(page.as_bytes()))
        .map_err(|error| Failure::Error(format!("{}: cannot write: {error}", path.display())))?;
    // A closed pipe is no reason to lose the page.
    let _ = writeln!(stdout(), "{}", path.display());
    Ok(Success::Done)
}

fn of_study(plan: &Path, folder: &Path) -> Result<String, Failure> {
    let study = Study::from_resolved(plan)?;
    let records = read_runs(&study, folder)?;
    study::page(&Outcome::of(&study, &records)).map_err(Failure::error)
}

fn of_run(folder: &Path, against: Option<&Path>) -> Result<String, Failure> {
    let run = read(folder)?;
    let against = against.map(read).transpose()?;
    run::page(&run, against.as_ref()).map_err(Failure::error)
}

/// A run to write about.
struct Run {
    /// Its folder, as it was given.
    folder: PathBuf,
    record: RunRecord,
    /// The resolved configuration.
    config: String,
}

fn read(folder: &Path) -> Result<Run, Failure> {
    let directory = RunDirectory::at(folder);
    let (log, config) = (directory.log(), directory.config());
    if !log.is_file() {
        return Err(Failure::Error(format!(
            "{}: no run and no study: there is no log.jsonl and no plan.toml in it",
            folder.display()
        )));
    }
    let record = RunRecord::read(&log).map_err(Failure::error)?;
    // Logs alone are often copied, and their first line has the configuration too.
    let config = match fs::read_to_string(&config) {
        Ok(text) => text,
        Err(_) => serde_json::to_string_pretty(&record.config).map_err(Failure::error)?,
    };
    Ok(Run {
        folder: folder.to_owned(),
        record,
        config,
    })
}
