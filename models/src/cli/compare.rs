//! `nvfp4 compare`: the runs of a study, one after another, and what came of them.
//!
//! 1. Read the study; refuse what can be refused: an arm that makes no run, a run in the folder
//!    that is another one.
//! 2. For each run that is asked for and not over: take its folder, train it as `nvfp4 train` does.
//!    A run that another process trains is left to it; one that gave up stays as it is.
//! 3. Read every log in the folder and write the outcome ([`results`]).
//!
//! ```text
//! OUT/plan.toml                        the study, every arm in full
//! OUT/ARM/seed-N/                      a run as any other
//! OUT/tokens/                          the text of all of them
//! OUT/results.md, results.json, gap.svg
//! ```

pub(crate) mod results;

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use globset::{Glob, GlobSet, GlobSetBuilder};

use burn_nvfp4_models::checkpoint::run::{RunDirectory, RunError, RunLock};
use burn_nvfp4_models::durable;
use burn_nvfp4_models::study::StudyError;
use burn_nvfp4_models::study::outcome::{Outcome, check_run, read_runs};
use burn_nvfp4_models::study::plan::{FinishedCheckpoints, PlannedRun, Study};
use burn_nvfp4_models::train::overview::{RunState, logged};

use super::args::CompareArgs;
use super::backend::training;
use super::prepare::{self, Begin, Request, warn};
use super::{Failure, Success, signal};

impl From<StudyError> for Failure {
    fn from(error: StudyError) -> Self {
        let is_usage = matches!(
            error,
            StudyError::Io { .. }
                | StudyError::Study { .. }
                | StudyError::Arm { .. }
                | StudyError::Config(_)
        );
        if is_usage {
            Self::usage(error)
        } else {
            Self::error(error)
        }
    }
}

/// Runs `nvfp4 compare`.
///
/// # Errors
/// [`Failure`], one line each.
pub(crate) fn compare(arguments: &CompareArgs) -> Result<Success, Failure> {
    let study = resolve(arguments)?;
    let default = || Path::new("runs").join(&study.name);
    let out = arguments.out.clone().unwrap_or_else(default);
    if !arguments.table {
        let chosen = chosen(&study, arguments)?;
        for run in study.runs() {
            check_run(&run.folder(&out), &run)?;
        }
        // One arm after another, so that what is wrong with the last one is said first.
        for arm in &study.arms {
            prepare::check(&arm.config, &[arguments.device])
                .map_err(|failure| of_arm(&arm.name, failure))?;
        }
        write_plan(&study, &out)?;
        let work = Work {
            study: &study,
            out: &out,
            arguments,
            runs: chosen.len(),
        };
        for (index, run) in chosen.iter().enumerate() {
            if work.run(index + 1, run)? == Success::Interrupted {
                say("the same command goes on with the study");
                return Ok(Success::Interrupted);
            }
        }
    }
    let records = read_runs(&study, &out)?;
    if records.is_empty() {
        let message = format!("{}: there is no run of this study", out.display());
        return Err(Failure::Error(message));
    }
    if let Some(arm) = &arguments.against {
        if !study.arms.iter().any(|other| other.name == *arm) {
            return Err(no_arm(&study, "--against", arm));
        }
        let reference = arm.clone();
        let study = Study { reference, ..study };
        say(&results::text(&Outcome::of(&study, &records)));
        return Ok(Success::Done);
    }
    if plan_of(&out).is_none() {
        // The folder is a copy of logs alone.
        write_plan(&study, &out)?;
    }
    let outcome = Outcome::of(&study, &records);
    results::write(&outcome, &out)?;
    say(&results::text(&outcome));
    say(&format!(
        "files: {}/{{results.md, results.json, gap.svg}}; as a page: nvfp4 report {}",
        out.display(),
        out.display()
    ));
    Ok(Success::Done)
}

/// Step 1.
fn resolve(arguments: &CompareArgs) -> Result<Study, Failure> {
    let mut study = Study::read(&arguments.study)?;
    for arm in &mut study.arms {
        let config = &mut arm.config;
        if let Some(path) = &arguments.data {
            config.data.replace(path);
        }
        if arguments.tokenizer.is_some() {
            config.data.tokenizer.clone_from(&arguments.tokenizer);
        }
        if let Some(backend) = arguments.backend {
            config.precision.backend = backend;
        }
    }
    Ok(study)
}

/// The runs that this call is for.
fn chosen(study: &Study, arguments: &CompareArgs) -> Result<Vec<PlannedRun>, Failure> {
    let mut patterns = GlobSetBuilder::new();
    for pattern in &arguments.only {
        let glob = Glob::new(pattern)
            .map_err(|error| Failure::Usage(format!("--only {pattern}: {error}")))?;
        if !study
            .arms
            .iter()
            .any(|arm| glob.compile_matcher().is_match(&arm.name))
        {
            return Err(no_arm(study, "--only", pattern));
        }
        patterns.add(glob);
    }
    let patterns: GlobSet = patterns.build().map_err(Failure::usage)?;
    if let Some(seed) = arguments
        .seeds
        .iter()
        .find(|seed| !study.seeds.contains(*seed))
    {
        let message = format!("--seeds {seed}: the study has {:?}", study.seeds);
        return Err(Failure::Usage(message));
    }
    let is_chosen = |run: &PlannedRun| {
        (patterns.is_empty() || patterns.is_match(&run.arm))
            && (arguments.seeds.is_empty() || arguments.seeds.contains(&run.seed))
    };
    Ok(study.runs().into_iter().filter(is_chosen).collect())
}

fn no_arm(study: &Study, option: &str, name: &str) -> Failure {
    let names = study.arm_names();
    Failure::Usage(format!(
        "{option} {name}: no arm is called so; there are {names}"
    ))
}

/// Keeps the resolved study beside its runs, for `nvfp4 report`.
fn write_plan(study: &Study, out: &Path) -> Result<(), Failure> {
    let path = out.join("plan.toml");
    let text = study.to_toml().map_err(Failure::error)?;
    durable::create_folder(out)
        .and_then(|()| {
            durable::write_file::<std::io::Error>(&path, |file| file.write_all(text.as_bytes()))
        })
        .map_err(|error| Failure::Error(format!("{}: cannot write: {error}", path.display())))
}

/// A call at work.
struct Work<'a> {
    study: &'a Study,
    out: &'a Path,
    arguments: &'a CompareArgs,
    /// How many runs it is for.
    runs: usize,
}

impl Work<'_> {
    /// Step 2 for one run.
    fn run(&self, number: usize, run: &PlannedRun) -> Result<Success, Failure> {
        if signal::is_asked() {
            return Ok(Success::Interrupted);
        }
        let folder = run.folder(self.out);
        let title = format!("[{number}/{}] {} seed {}", self.runs, run.arm, run.seed);
        let Some((directory, lock, begin)) = take(&folder)? else {
            say(&format!("{title}: another process trains it"));
            return Ok(Success::Done);
        };
        // Whoever had the lock until now may have finished it.
        match state(&directory) {
            RunState::Finished => {
                say(&format!("{title}: finished"));
                return self.tidy(&directory);
            }
            RunState::Failed(reason) => {
                warn(&format!(
                    "{title}: it gave up: {reason}; it stays so while {} is there",
                    folder.display()
                ));
                return Ok(Success::Done);
            }
            RunState::Running
            | RunState::Interrupted
            | RunState::Killed
            | RunState::Unreadable(_) => {}
        }
        check_run(&folder, run)?;
        say(&format!("{title}: into {}", folder.display()));
        let begin = match begin {
            Some(begin) => begin,
            None => prepare::beginning(&directory, None)?,
        };
        let prepared = prepare::prepare_request(Request {
            config: run.config.clone(),
            directory: directory.clone(),
            begin,
            lock: Some(lock),
            cache: self.out.join("tokens"),
            devices: vec![self.arguments.device],
            plain: true,
            log_every: self.log_every(run),
        })?;
        let backend = run.config.precision.backend;
        match training::dispatch(backend, &[self.arguments.device], prepared) {
            Ok(Success::Done) => self.tidy(&directory),
            Ok(Success::Interrupted) => Ok(Success::Interrupted),
            Err(failure) => match state(&directory) {
                // A recipe under which training breaks down is an outcome, not an error.
                RunState::Failed(reason) => {
                    warn(&format!("{title}: {reason}"));
                    Ok(Success::Done)
                }
                RunState::Running
                | RunState::Finished
                | RunState::Interrupted
                | RunState::Killed
                | RunState::Unreadable(_) => Err(failure),
            },
        }
    }

    fn log_every(&self, run: &PlannedRun) -> usize {
        let tenth = usize::try_from(run.config.steps / 10).unwrap_or(usize::MAX);
        self.arguments
            .log_every
            .map_or(tenth.max(1), std::num::NonZeroUsize::get)
    }

    /// Removes the checkpoints that a finished run need not keep.
    fn tidy(&self, directory: &RunDirectory) -> Result<Success, Failure> {
        let keep = match self.study.finished_checkpoints {
            FinishedCheckpoints::Last => 1,
            FinishedCheckpoints::None => 0,
        };
        directory.keep_newest(keep).map_err(Failure::error)?;
        Ok(Success::Done)
    }
}

/// Takes the folder of a run, which other processes may want too: the lock, and where a run that
/// begins here begins; `None` if another process has it.
fn take(folder: &Path) -> Result<Option<(RunDirectory, RunLock, Option<Begin>)>, Failure> {
    let mut begin = None;
    let directory = RunDirectory::at(folder);
    if !directory.has_run() {
        match RunDirectory::create(folder) {
            Ok(_) => begin = Some(Begin::Again),
            // Another process was quicker, unless the folder holds something else.
            Err(RunError::Exists { .. }) if directory.has_run() => {}
            Err(error) => return Err(Failure::error(error)),
        }
    }
    match directory.lock() {
        Ok(lock) => Ok(Some((directory, lock, begin))),
        Err(RunError::Busy { .. }) => Ok(None),
        Err(error) => Err(Failure::error(error)),
    }
}

/// What the log of a run says, whoever holds its lock.
fn state(directory: &RunDirectory) -> RunState {
    logged(directory.path()).state
}

/// Names the arm in a failure.
fn of_arm(arm: &str, failure: Failure) -> Failure {
    let named = |message: String| format!("arm {arm:?}: {message}");
    match failure {
        Failure::Usage(message) => Failure::Usage(named(message)),
        Failure::Error(message) => Failure::Error(named(message)),
    }
}

/// The folder of a study that was compared, if this is one.
pub(crate) fn plan_of(folder: &Path) -> Option<PathBuf> {
    Some(folder.join("plan.toml")).filter(|path| path.is_file())
}

/// Writes to stdout; a closed pipe is no reason to lose a study.
fn say(text: &str) {
    let _ = writeln!(stdout(), "{text}");
}
