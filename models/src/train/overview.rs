//! What run folders say about their runs, damaged ones too: the log, and whether a process is at
//! work.

use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use walkdir::WalkDir;

use super::log::{self, Forward, LogLine, SkippedLine};
use crate::checkpoint::run::RunDirectory;

/// One run, as far as its folder tells.
#[derive(Clone, Debug, PartialEq)]
pub struct RunOverview {
    /// Name of the folder, behind those of its study and arm if it has one.
    pub name: String,
    /// What it is up to.
    pub state: RunState,
    /// The last step in the log.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: Option<u64>,
    /// Steps that did not update the model.
    pub skipped: u64,
    /// Loss of the last step, nats per token.
    pub last_loss: Option<f64>,
    /// Lowest validation loss with the recipe's forward, nats per token.
    pub best_loss: Option<f64>,
    /// The recipe's name.
    pub recipe: Option<String>,
    /// When the log was last written.
    pub changed: Option<SystemTime>,
}

/// What a run is up to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    /// A process trains it.
    Running,
    /// It came to its end.
    Finished,
    /// It was stopped, and said so.
    Interrupted,
    /// It gave up, and said why.
    Failed(String),
    /// Its process ended without a word.
    Killed,
    /// Its log cannot be read, or says nothing.
    Unreadable(String),
}

/// Folders in folders down to the runs of a study: its own, that of an arm, that of a seed.
const DEPTH: usize = 3;

/// Reads every run below a folder, those of studies in it too, the one that changed last in front;
/// what is no run is left out.
///
/// # Errors
/// If the folder cannot be listed.
pub fn runs(folder: &Path) -> io::Result<Vec<RunOverview>> {
    fs::read_dir(folder)?;
    let mut runs = Vec::new();
    let mut below = WalkDir::new(folder).max_depth(DEPTH).into_iter();
    while let Some(entry) = below.next() {
        // The folder itself is a run's if somebody asks so, and is then not below itself.
        let Some(entry) = entry.ok().filter(|entry| entry.depth() > 0) else {
            continue;
        };
        if entry.file_type().is_dir() && RunDirectory::at(entry.path()).has_run() {
            below.skip_current_dir();
            let name = entry.path().strip_prefix(folder).unwrap_or(entry.path());
            runs.push(RunOverview {
                name: name.to_string_lossy().into_owned(),
                ..overview(entry.path())
            });
        }
    }
    runs.sort_by(|a, b| b.changed.cmp(&a.changed).then_with(|| a.name.cmp(&b.name)));
    Ok(runs)
}

/// Reads one run.
pub fn overview(path: &Path) -> RunOverview {
    let mut run = logged(path);
    if RunDirectory::at(path).is_locked() {
        run.state = RunState::Running;
    }
    run
}

/// Reads the log of one run, whoever is at work on it.
pub fn logged(path: &Path) -> RunOverview {
    let directory = RunDirectory::at(path);
    let name = path.file_name().unwrap_or(path.as_os_str());
    let mut run = RunOverview {
        name: name.to_string_lossy().into_owned(),
        state: RunState::Killed,
        step: 0,
        steps: None,
        skipped: 0,
        last_loss: None,
        best_loss: None,
        recipe: None,
        changed: fs::metadata(directory.log())
            .and_then(|log| log.modified())
            .ok(),
    };
    match log::read(&directory.log()) {
        Ok(lines) if lines.is_empty() => {
            run.state = RunState::Unreadable("no line in log.jsonl".to_owned());
        }
        Ok(lines) => log::current(lines).iter().for_each(|line| run.take(line)),
        Err(error) => run.state = RunState::Unreadable(format!("log.jsonl: {error}")),
    }
    run
}

impl RunOverview {
    /// Learns from a line of the log.
    fn take(&mut self, line: &LogLine) {
        match line {
            LogLine::Start { config, .. } => {
                self.steps = config["steps"].as_u64();
                let recipe = &config["precision"]["recipe"];
                let name = recipe.as_str().unwrap_or("a recipe of its own");
                self.recipe = (!recipe.is_null()).then(|| name.to_owned());
            }
            LogLine::Step { step, loss, .. } => (self.step, self.last_loss) = (*step, Some(*loss)),
            LogLine::Skipped(SkippedLine { step, skipped, .. }) => {
                (self.step, self.skipped) = (*step, *skipped);
            }
            LogLine::Validation {
                forward: Forward::Recipe,
                loss,
                ..
            } => {
                let best = self.best_loss.map_or(*loss, |best| best.min(*loss));
                self.best_loss = Some(best);
            }
            LogLine::Stopped { reason, .. } if reason == "interrupted" => {
                self.state = RunState::Interrupted;
            }
            LogLine::Stopped { reason, .. } => self.state = RunState::Failed(reason.clone()),
            LogLine::Final(_) => self.state = RunState::Finished,
            LogLine::Resume { step, .. } => (self.state, self.step) = (RunState::Killed, *step),
            LogLine::Rewind(_)
            | LogLine::Validation { .. }
            | LogLine::Quantization { .. }
            | LogLine::Oscillation { .. }
            | LogLine::Gemms { .. }
            | LogLine::Checkpoint { .. }
            | LogLine::SaveFailed { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::train::log::RunLog;

    fn start() -> LogLine {
        LogLine::Start {
            config: json!({"steps": 9, "precision": {"recipe": "nvidia"}}),
            model: json!(null),
            parameters: 1,
            data: json!(null),
            ranks: 1,
        }
    }

    fn stopped(reason: &str) -> LogLine {
        let reason = reason.to_owned();
        LogLine::Stopped { step: 4, reason }
    }

    fn validation(step: u64, loss: f64) -> LogLine {
        LogLine::Validation {
            step,
            forward: Forward::Recipe,
            loss,
            bits_per_byte: loss,
        }
    }

    #[test]
    fn the_state_of_a_run_is_read_from_its_last_word_and_its_lock() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDirectory::create(&dir.path().join("a")).unwrap();
        let mut log = RunLog::create(&run.log(), &start()).unwrap();
        assert_eq!(overview(run.path()).state, RunState::Killed);
        let lock = run.lock().unwrap();
        assert_eq!(overview(run.path()).state, RunState::Running);
        assert!(run.lock().is_err(), "two processes in one run");
        drop(lock);
        log.write(&stopped("interrupted")).unwrap();
        assert_eq!(overview(run.path()).state, RunState::Interrupted);
        log.write(&stopped("NaN")).unwrap();
        let failed = RunState::Failed("NaN".to_owned());
        assert_eq!(overview(run.path()).state, failed);
    }

    #[test]
    fn damaged_folders_are_listed_and_others_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let good = RunDirectory::create(&at("good")).unwrap();
        let mut log = RunLog::create(&good.log(), &start()).unwrap();
        for line in [validation(2, 3.0), validation(3, 2.5), validation(4, 2.75)] {
            log.write(&line).unwrap();
        }
        fs::create_dir(at("tokens")).unwrap();
        fs::write(at("file"), b"x").unwrap();
        fs::create_dir_all(at("empty/checkpoints")).unwrap();
        fs::create_dir_all(at("odd/log.jsonl")).unwrap();
        fs::create_dir_all(at("odd/checkpoints")).unwrap();
        fs::create_dir(at("noise")).unwrap();
        fs::write(at("noise/log.jsonl"), [0, 159, 146, 150, b'\n', b'{']).unwrap();
        let found = runs(dir.path()).unwrap();
        let mut names: Vec<_> = found.iter().map(|run| run.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["empty", "good", "noise", "odd"]);
        for run in &found {
            let readable = !matches!(run.state, RunState::Unreadable(_));
            assert_eq!(readable, run.name == "good", "{run:?}");
        }
        let good = found.iter().find(|run| run.name == "good").unwrap();
        assert_eq!((good.steps, good.best_loss), (Some(9), Some(2.5)));
        assert_eq!(good.recipe.as_deref(), Some("nvidia"));
    }
}
