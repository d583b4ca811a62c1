//! The directory of a run: what is in it, who may write there, which checkpoint is loaded, which
//! go.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::stored::{self, CARRIED, MOMENTS, PARAMETERS, STATE, Sums};
use super::{NamedTensors, RunCheckpoint, RunError, RunState};
use crate::durable::{self, ASIDE};

const PREFIX: &str = "step-";
/// Beginning of the names of checkpoints that were put aside.
const PUT_ASIDE: &str = "aside-";
const LOCK: &str = "run.lock";
/// How often a lock that is held is tried again.
const LOOKS: usize = 5;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// The directory of one run.
#[derive(Clone, Debug)]
pub struct RunDirectory {
    path: PathBuf,
}

/// The right to write into a run's directory, until it is dropped or the process ends.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

/// The newest checkpoint that is as it was written.
#[derive(Debug)]
pub struct Found {
    /// The checkpoint.
    pub checkpoint: RunCheckpoint,
    /// What is wrong with each newer one.
    pub damaged: Vec<RunError>,
}

impl RunDirectory {
    /// Makes the directory of a new run.
    ///
    /// # Errors
    /// [`RunError::Exists`] if there is anything in it, [`RunError::Io`].
    pub fn create(path: &Path) -> Result<Self, RunError> {
        let run = Self::at(path);
        run.check_new()?;
        let checkpoints = run.checkpoints();
        durable::create_folder(&checkpoints).map_err(RunError::io(checkpoints, "create"))?;
        Ok(run)
    }

    /// Checks that a new run may use the directory, without touching it.
    ///
    /// # Errors
    /// [`RunError::Exists`] if there is anything in it, [`RunError::Io`].
    pub fn check_new(&self) -> Result<(), RunError> {
        match fs::read_dir(&self.path) {
            Ok(entries) => match entries.count() {
                0 => Ok(()),
                _ => Err(RunError::Exists {
                    path: self.path.clone(),
                }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(RunError::io(&self.path, "use as a run directory")(error)),
        }
    }

    /// The directory at a path, whatever is in it.
    pub fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the log is.
    pub fn log(&self) -> PathBuf {
        self.path.join("log.jsonl")
    }

    /// Where the resolved configuration is.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// Where checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Where the checkpoint of a step is.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.checkpoints().join(format!("{PREFIX}{step:08}"))
    }

    /// True if a run began here, whether or not it came to a checkpoint.
    pub fn has_run(&self) -> bool {
        self.log().is_file() || self.config().is_file() || self.checkpoints().is_dir()
    }

    /// Takes the right to write here. The system gives it back when a process ends, however it
    /// does.
    ///
    /// # Errors
    /// [`RunError::Busy`] while another process has it, [`RunError::Io`].
    pub fn lock(&self) -> Result<RunLock, RunError> {
        let path = self.path.join(LOCK);
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(RunError::io(&path, "open"))?;
        let mut attempt = file.try_lock();
        for _ in 0..LOOKS {
            // [`Self::is_locked`] of another process may hold it for an instant.
            if matches!(attempt, Err(TryLockError::WouldBlock)) {
                thread::sleep(BETWEEN_LOOKS);
                attempt = file.try_lock();
            }
        }
        match attempt {
            Ok(()) => Ok(RunLock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(RunError::Busy {
                path: self.path.clone(),
            }),
            // Some network file systems have no locks; a run there is worth more than the guard.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                Ok(RunLock { _file: file })
            }
            Err(TryLockError::Error(error)) => Err(RunError::io(&path, "lock")(error)),
        }
    }

    /// True while a process holds [`Self::lock`].
    pub fn is_locked(&self) -> bool {
        File::open(self.path.join(LOCK))
            .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// Steps with a finished checkpoint, ascending.
    ///
    /// # Errors
    /// [`RunError::Io`] if the directory cannot be listed.
    pub fn steps(&self) -> Result<Vec<u64>, RunError> {
        let mut steps: Vec<_> = self
            .entries()?
            .iter()
            .filter_map(|name| name.strip_prefix(PREFIX)?.parse().ok())
            .collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Names in the folder of checkpoints.
    fn entries(&self) -> Result<Vec<String>, RunError> {
        let folder = self.checkpoints();
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(RunError::io(folder, "list")(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(RunError::io(&folder, "list"))?.file_name();
            names.extend(name.into_string().ok());
        }
        Ok(names)
    }

    /// Saves a checkpoint and returns its size in bytes.
    ///
    /// # Errors
    /// [`RunError::Io`] or [`RunError::Dtype`]; earlier checkpoints are then as they were.
    pub fn save(&self, checkpoint: &RunCheckpoint) -> Result<u64, RunError> {
        stored::check_dtypes(&checkpoint.parameters)?;
        stored::check_dtypes(&checkpoint.moments)?;
        stored::check_dtypes(&checkpoint.carried)?;
        let path = self.checkpoint(checkpoint.step());
        let mut sums = Sums::default();
        durable::write_folder::<io::Error>(&path, |folder| {
            let (parameters, moments) = (&checkpoint.parameters, &checkpoint.moments);
            sums.write(folder, PARAMETERS, |out| {
                stored::write_tensors(parameters, out)
            })?;
            sums.write(folder, MOMENTS, |out| stored::write_tensors(moments, out))?;
            let carried = &checkpoint.carried;
            if !carried.is_empty() {
                sums.write(folder, CARRIED, |out| stored::write_tensors(carried, out))?;
            }
            sums.write(folder, STATE, |out| {
                Ok(serde_json::to_writer_pretty(out, &checkpoint.state)?)
            })?;
            sums.finish(folder)
        })
        .map_err(RunError::io(&path, "write the checkpoint"))?;
        Ok(sums.bytes)
    }

    /// Removes what a checkpoint that was just saved makes superfluous: all but the `keep` newest
    /// up to it, and the one with the lowest validation loss.
    ///
    /// # Errors
    /// [`RunError::Io`] for the first that cannot be removed.
    pub fn rotate(&self, newest: &RunState, keep: usize) -> Result<(), RunError> {
        let position = &newest.position;
        let mut steps = self.steps()?;
        steps.retain(|step| *step <= position.step);
        for &old in &steps[..steps.len().saturating_sub(keep.max(1))] {
            if position.best.is_none_or(|best| best.step != old) {
                let old = self.checkpoint(old);
                fs::remove_dir_all(&old).map_err(RunError::io(&old, "remove"))?;
            }
        }
        Ok(())
    }

    /// Removes all checkpoints but the `keep` newest, of a run that is over.
    ///
    /// # Errors
    /// [`RunError::Io`] for the first that cannot be removed.
    pub fn keep_newest(&self, keep: usize) -> Result<(), RunError> {
        let steps = self.steps()?;
        for &old in &steps[..steps.len().saturating_sub(keep)] {
            let old = self.checkpoint(old);
            fs::remove_dir_all(&old).map_err(RunError::io(&old, "remove"))?;
        }
        Ok(())
    }

    /// Loads and checks the newest checkpoint, or that of a step.
    ///
    /// # Errors
    /// [`RunError::NoCheckpoint`], [`RunError::NoSuchStep`], [`RunError::Damaged`] with every
    /// problem, [`RunError::Io`].
    pub fn load(&self, step: Option<u64>) -> Result<RunCheckpoint, RunError> {
        let available = self.steps()?;
        let Some(&newest) = available.last() else {
            return Err(RunError::NoCheckpoint {
                path: self.path.clone(),
            });
        };
        let step = step.unwrap_or(newest);
        if !available.contains(&step) {
            return Err(RunError::NoSuchStep {
                path: self.path.clone(),
                step,
                available,
            });
        }
        let path = self.checkpoint(step);
        let damaged = |problems| RunError::Damaged {
            path: path.clone(),
            problems,
        };
        let mut files = stored::read_checked(&path)?;
        let carries = files.contains_key(CARRIED);
        let mut take = |name: &str| files.remove(name).unwrap_or_default();
        let state = read_state(&take(STATE), step).map_err(|problem| damaged(vec![problem]))?;
        let mut tensors = |name: &str| {
            stored::read_tensors(&take(name))
                .map_err(|reason| damaged(vec![format!("{name}: {reason}")]))
        };
        let (parameters, moments) = (tensors(PARAMETERS)?, tensors(MOMENTS)?);
        let carried = if carries {
            tensors(CARRIED)?
        } else {
            NamedTensors::new()
        };
        Ok(RunCheckpoint {
            state,
            parameters,
            moments,
            carried,
        })
    }

    /// Loads the newest checkpoint that is as it was written, and says what is wrong with newer
    /// ones.
    ///
    /// # Errors
    /// [`RunError::NoCheckpoint`], [`RunError::AllDamaged`], [`RunError::Io`].
    pub fn load_newest_intact(&self) -> Result<Found, RunError> {
        self.load_newest_intact_where(|_| true)
    }

    /// The same of those that are wanted, or of all if none is.
    ///
    /// # Errors
    /// Those of [`Self::load_newest_intact`].
    pub fn load_newest_intact_where(
        &self,
        is_wanted: impl Fn(&RunState) -> bool,
    ) -> Result<Found, RunError> {
        let mut damaged = Vec::new();
        let mut unwanted = None;
        for step in self.steps()?.into_iter().rev() {
            match self.load(Some(step)) {
                Ok(checkpoint) if is_wanted(&checkpoint.state) => {
                    return Ok(Found {
                        checkpoint,
                        damaged,
                    });
                }
                Ok(_) => unwanted = unwanted.or(Some(step)),
                Err(error @ RunError::Damaged { .. }) => damaged.push(error),
                Err(error) => return Err(error),
            }
        }
        if unwanted.is_some() {
            return Ok(Found {
                checkpoint: self.load(unwanted)?,
                damaged,
            });
        }
        let path = self.path.clone();
        if damaged.is_empty() {
            return Err(RunError::NoCheckpoint { path });
        }
        let problems = damaged.iter().map(|error| {
            if let RunError::Damaged { path, problems } = error {
                format!("{}: {}", path.display(), problems.join(", "))
            } else {
                error.to_string()
            }
        });
        let problems = problems.collect();
        Err(RunError::AllDamaged { path, problems })
    }

    /// Tidies up before a run continues after `step`: what a killed save left goes, and checkpoints
    /// of later steps, damaged or passed over, step aside under another name, so that none of them
    /// is ever taken for one of this run. Returns where those are.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn recover(&self, step: u64) -> Result<Vec<PathBuf>, RunError> {
        let folder = self.checkpoints();
        for name in self.entries()? {
            if name.ends_with(ASIDE) {
                let path = folder.join(&name);
                durable::recover_folder(&path).map_err(RunError::io(path, "recover"))?;
            }
        }
        let mut aside = Vec::new();
        for later in self.steps()?.into_iter().filter(|later| *later > step) {
            let from = self.checkpoint(later);
            // One that an earlier return put aside stays.
            let name = |number: u32| match number {
                1 => folder.join(format!("{PUT_ASIDE}{later:08}")),
                _ => folder.join(format!("{PUT_ASIDE}{later:08}-{number}")),
            };
            let free = (1..).map(name).find(|path| !path.exists());
            let to = free.expect("a folder has fewer names than numbers");
            fs::rename(&from, &to).map_err(RunError::io(&from, "put aside"))?;
            aside.push(to);
        }
        Ok(aside)
    }
}

/// Reads `state.json` of a step.
fn read_state(bytes: &[u8], step: u64) -> Result<RunState, String> {
    #[derive(serde::Deserialize)]
    struct Layout {
        version: u32,
    }
    let unreadable = |error| format!("{STATE}: {error}");
    // The layout first: another one has other fields.
    let Layout { version } = serde_json::from_slice(bytes).map_err(unreadable)?;
    let wanted = RunState::VERSION;
    if version != wanted {
        return Err(format!(
            "{STATE}: layout {version}, {wanted} is what is read"
        ));
    }
    let state: RunState = serde_json::from_slice(bytes).map_err(unreadable)?;
    let found = state.position.step;
    if found == step {
        Ok(state)
    } else {
        Err(format!("{STATE}: of step {found}, {step} expected"))
    }
}
