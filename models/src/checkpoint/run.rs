//! Run checkpoints: everything from which a run continues to the same bits.
//!
//! ```text
//! runs/<name>/checkpoints/step-00000120/
//!     parameters.safetensors   every parameter by name, exact
//!     moments.safetensors      both AdamW moments of every parameter, exact
//!     state.json               step, what must agree on resume, the whole configuration
//!     SUMS                     fingerprint, size and name of each file above, and of itself
//! ```
//!
//! There is no generator state and no data position to save: both are functions of seed and step.
//! A checkpoint is written beside its place, synced and renamed ([`crate::durable`]); older ones go
//! only after the new one stands. Loading checks sizes and fingerprints before it believes
//! anything.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::HybridConfig;
use crate::data::fingerprint::Fingerprint;
use crate::durable;

/// Tensors by name.
pub type NamedTensors = BTreeMap<String, TensorData>;

const PARAMETERS: &str = "parameters.safetensors";
const MOMENTS: &str = "moments.safetensors";
const STATE: &str = "state.json";
const SUMS: &str = "SUMS";
const PREFIX: &str = "step-";

/// What is wrong with a run directory or a checkpoint in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A new run would write into an old one.
    #[error(
        "{}: a run is already there; continue it with --resume or choose another --out",
        path.display()
    )]
    Exists {
        /// The run directory.
        path: PathBuf,
    },
    /// Nothing to resume.
    #[error("{}: no checkpoint to resume from; start the run without --resume", path.display())]
    NoCheckpoint {
        /// The run directory.
        path: PathBuf,
    },
    /// The step that was asked for has none.
    #[error("{}: no checkpoint of step {step}; there are {}", path.display(), list(available))]
    NoSuchStep {
        /// The run directory.
        path: PathBuf,
        /// The step.
        step: u64,
        /// Steps with a checkpoint.
        available: Vec<u64>,
    },
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A checkpoint is not as it was written.
    #[error(
        "{}: damaged checkpoint: {}; resume from another one with --resume=STEP",
        path.display(), problems.join("; ")
    )]
    Damaged {
        /// The checkpoint.
        path: PathBuf,
        /// Everything that does not hold.
        problems: Vec<String>,
    },
    /// A checkpoint of another model.
    #[error("{}: the checkpoint does not fit the model: {}", path.display(), problems.join("; "))]
    Misfit {
        /// The checkpoint.
        path: PathBuf,
        /// Every missing, misshapen or unexpected tensor.
        problems: Vec<String>,
    },
    /// A run that is not the one that the checkpoint belongs to.
    #[error(
        "{}: this run differs from the one to be resumed: {}; nothing was changed",
        path.display(), differences.join("; ")
    )]
    Differs {
        /// The checkpoint.
        path: PathBuf,
        /// Every difference: what, the value there, the value here.
        differences: Vec<String>,
    },
    /// A tensor in a dtype that is not kept.
    #[error("{name}: dtype {dtype} cannot be saved, f32 is what the run keeps its state in")]
    Dtype {
        /// The tensor.
        name: String,
        /// Its dtype.
        dtype: String,
    },
}

impl RunError {
    fn io(path: impl Into<PathBuf>, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            path,
            action,
            source,
        }
    }
}

fn list(steps: &[u64]) -> String {
    steps
        .iter()
        .map(u64::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// The part of a checkpoint that is not tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    /// Layout of the checkpoint.
    pub version: u32,
    /// Optimizer steps taken.
    pub step: u64,
    /// What a resumed run must share: model, recipe, data, seed, batch, optimizer, schedule.
    pub identity: Value,
    /// The whole resolved configuration.
    pub config: Value,
}

impl RunState {
    /// The layout that is written and read.
    pub const VERSION: u32 = 1;
}

/// A checkpoint in memory.
#[derive(Clone, Debug)]
pub struct RunCheckpoint {
    /// Step, identity, configuration.
    pub state: RunState,
    /// The model.
    pub parameters: NamedTensors,
    /// The optimizer.
    pub moments: NamedTensors,
}

impl RunCheckpoint {
    /// Every way in which the parameters are not those of a model.
    pub fn parameter_problems(&self, config: &HybridConfig) -> Vec<String> {
        let mut problems = Vec::new();
        let specs = config.params();
        for spec in &specs {
            match self.parameters.get(&spec.name) {
                None => problems.push(format!("{} is missing", spec.name)),
                Some(data) if data.shape.to_vec() != spec.shape || data.dtype != DType::F32 => {
                    problems.push(format!(
                        "{} is {:?} {:?}, the model has F32 {:?}",
                        spec.name,
                        data.dtype,
                        data.shape.to_vec(),
                        spec.shape
                    ));
                }
                Some(_) => {}
            }
        }
        let known: BTreeSet<_> = specs.iter().map(|spec| &spec.name).collect();
        let unknown = self.parameters.keys().filter(|name| !known.contains(name));
        problems.extend(unknown.map(|name| format!("{name} is not part of the model")));
        problems
    }
}

/// The directory of one run.
#[derive(Clone, Debug)]
pub struct RunDirectory {
    path: PathBuf,
}

impl RunDirectory {
    /// Makes the directory of a new run.
    ///
    /// # Errors
    /// [`RunError::Exists`] if there is anything in it, [`RunError::Io`].
    pub fn create(path: &Path) -> Result<Self, RunError> {
        let run = Self {
            path: path.to_owned(),
        };
        run.check_new()?;
        let checkpoints = run.checkpoints();
        fs::create_dir_all(&checkpoints).map_err(RunError::io(checkpoints, "create"))?;
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

    /// Where checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Where the checkpoint of a step is.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.checkpoints().join(format!("{PREFIX}{step:08}"))
    }

    /// Steps with a finished checkpoint, ascending.
    ///
    /// # Errors
    /// [`RunError::Io`] if the directory cannot be listed.
    pub fn steps(&self) -> Result<Vec<u64>, RunError> {
        let folder = self.checkpoints();
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(RunError::io(folder, "list")(error)),
        };
        let mut steps = Vec::new();
        for entry in entries {
            let name = entry.map_err(RunError::io(&folder, "list"))?.file_name();
            let step = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
            steps.extend(step.and_then(|step| step.parse::<u64>().ok()));
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// Saves a checkpoint, then removes the oldest beyond the `keep` newest.
    ///
    /// # Errors
    /// [`RunError::Io`] or [`RunError::Dtype`]; earlier checkpoints are then as they were.
    pub fn save(&self, checkpoint: &RunCheckpoint, keep: usize) -> Result<PathBuf, RunError> {
        let path = self.checkpoint(checkpoint.state.step);
        let state = serde_json::to_vec_pretty(&checkpoint.state).map_err(io::Error::from);
        let files = [
            (PARAMETERS, to_safetensors(&checkpoint.parameters)?),
            (MOMENTS, to_safetensors(&checkpoint.moments)?),
            (STATE, state.map_err(RunError::io(&path, "encode"))?),
        ];
        durable::write_folder::<io::Error>(&path, |folder| {
            for (name, bytes) in &files {
                durable::write_synced(&folder.join(name), bytes)?;
            }
            durable::write_synced(&folder.join(SUMS), sums(&files).as_bytes())
        })
        .map_err(RunError::io(&path, "write the checkpoint"))?;
        let steps = self.steps()?;
        for &old in &steps[..steps.len().saturating_sub(keep.max(1))] {
            // Never the one just written, even if a resumed run stepped back behind older ones.
            if old != checkpoint.state.step {
                let old = self.checkpoint(old);
                fs::remove_dir_all(&old).map_err(RunError::io(&old, "remove"))?;
            }
        }
        Ok(path)
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
        let mut files = read_checked(&path)?;
        let mut take = |name: &str| files.remove(name).unwrap_or_default();
        let state: RunState = serde_json::from_slice(&take(STATE))
            .map_err(|error| damaged(vec![format!("{STATE}: {error}")]))?;
        if state.version != RunState::VERSION || state.step != step {
            let problem = format!(
                "{STATE}: version {} of step {}, version {} of step {step} expected",
                state.version,
                state.step,
                RunState::VERSION
            );
            return Err(damaged(vec![problem]));
        }
        let mut tensors = |name: &str| {
            from_safetensors(&take(name))
                .map_err(|reason| damaged(vec![format!("{name}: {reason}")]))
        };
        let (parameters, moments) = (tensors(PARAMETERS)?, tensors(MOMENTS)?);
        Ok(RunCheckpoint {
            state,
            parameters,
            moments,
        })
    }
}

/// The contents of [`SUMS`]: one line per file, then one for these lines.
fn sums(files: &[(&str, Vec<u8>)]) -> String {
    let mut lines = String::new();
    for (name, bytes) in files {
        lines += &format!("{:016x} {} {name}\n", Fingerprint::of(bytes), bytes.len());
    }
    let own = format!(
        "{:016x} {} {SUMS}\n",
        Fingerprint::of(lines.as_bytes()),
        lines.len()
    );
    lines + &own
}

/// Reads every file of a checkpoint and compares it with [`SUMS`]; all problems at once.
fn read_checked(path: &Path) -> Result<HashMap<String, Vec<u8>>, RunError> {
    let damaged = |problems| RunError::Damaged {
        path: path.to_owned(),
        problems,
    };
    let sums = match fs::read(path.join(SUMS)) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => return Err(damaged(vec![format!("{SUMS}: {error}")])),
    };
    let own = sums
        .trim_end_matches('\n')
        .rfind('\n')
        .map_or(0, |at| at + 1);
    let (lines, own) = sums.split_at(own);
    let expected = format!(
        "{:016x} {} {SUMS}\n",
        Fingerprint::of(lines.as_bytes()),
        lines.len()
    );
    if own != expected {
        return Err(damaged(vec![format!(
            "{SUMS}: its own checksum does not hold"
        )]));
    }
    let wanted = [PARAMETERS, MOMENTS, STATE];
    let (mut files, mut problems) = (HashMap::new(), Vec::new());
    for line in lines.lines() {
        let mut fields = line.splitn(3, ' ');
        let (Some(sum), Some(size), Some(name)) = (fields.next(), fields.next(), fields.next())
        else {
            problems.push(format!("{SUMS}: line {line:?}"));
            continue;
        };
        // The names are outside input: they may not lead to other files, some of which never end.
        if !wanted.contains(&name) {
            problems.push(format!(
                "{SUMS}: it lists {name:?}, which is no part of one"
            ));
            continue;
        }
        match fs::read(path.join(name)) {
            Err(error) => problems.push(format!("{name}: {error}")),
            Ok(bytes) if bytes.len().to_string() != size => {
                problems.push(format!("{name}: {} bytes instead of {size}", bytes.len()));
            }
            Ok(bytes) if format!("{:016x}", Fingerprint::of(&bytes)) != sum => {
                problems.push(format!("{name}: the checksum does not hold"));
            }
            Ok(bytes) => {
                files.insert(name.to_owned(), bytes);
            }
        }
    }
    if problems.is_empty() {
        let missing = wanted.iter().filter(|name| !files.contains_key(**name));
        problems.extend(missing.map(|name| format!("{name}: not listed in {SUMS}")));
    }
    if problems.is_empty() {
        Ok(files)
    } else {
        Err(damaged(problems))
    }
}

fn to_safetensors(tensors: &NamedTensors) -> Result<Vec<u8>, RunError> {
    let dtype_error = |name: &String, data: &TensorData| RunError::Dtype {
        name: name.clone(),
        dtype: format!("{:?}", data.dtype),
    };
    let mut views = Vec::with_capacity(tensors.len());
    for (name, data) in tensors {
        if data.dtype != DType::F32 {
            return Err(dtype_error(name, data));
        }
        let view = TensorView::new(Dtype::F32, data.shape.to_vec(), data.as_bytes())
            .map_err(|_| dtype_error(name, data))?;
        views.push((name, view));
    }
    safetensors::serialize(views, None)
        .map_err(|error| RunError::io(PARAMETERS, "encode")(io::Error::other(error)))
}

fn from_safetensors(bytes: &[u8]) -> Result<NamedTensors, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let mut tensors = NamedTensors::new();
    for (name, view) in file.iter() {
        if view.dtype() != Dtype::F32 {
            return Err(format!("{name}: dtype {:?}, F32 expected", view.dtype()));
        }
        let (values, _) = view.data().as_chunks::<4>();
        let values: Vec<f32> = values
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        tensors.insert(
            name.to_owned(),
            TensorData::new(values, view.shape().to_vec()),
        );
    }
    Ok(tensors)
}

/// Every leaf in which two values differ, as `path: there, here`.
pub fn differences(there: &Value, here: &Value) -> Vec<String> {
    let mut found = Vec::new();
    collect_differences("", there, here, &mut found);
    found
}

fn collect_differences(path: &str, there: &Value, here: &Value, found: &mut Vec<String>) {
    if let (Value::Object(a), Value::Object(b)) = (there, here) {
        let mut keys: Vec<_> = a
            .keys()
            .chain(b.keys().filter(|key| !a.contains_key(*key)))
            .collect();
        keys.sort();
        for key in keys {
            let path = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            let get = |map: &serde_json::Map<String, Value>| map.get(key).cloned();
            let (a, b) = (get(a).unwrap_or(Value::Null), get(b).unwrap_or(Value::Null));
            collect_differences(&path, &a, &b, found);
        }
    } else if there != here {
        found.push(format!(
            "{path} is {there} in the checkpoint and {here} here"
        ));
    }
}

#[cfg(test)]
mod tests;
