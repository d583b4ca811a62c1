//! `nvfp4 eval`: how well a checkpoint answers.
//!
//! 1. What can be refused without the weights is refused: folder, tokenizer, tasks, their files,
//!    prompts that do not fit, the file of results.
//! 2. The weights, on the backend and in the precision that were asked for.
//! 3. Task after task: a progress bar on stderr, tables on stdout, every item to `--out`.

use std::io::{Write, stdout};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn_hybrid_ops::HybridEngine;
use burn_nvfp4::{Nvfp4Engine, Policy, presets};

use burn_nvfp4_models::config::HybridConfig;
use burn_nvfp4_models::eval::EvalError;
use burn_nvfp4_models::eval::compare::compare;
use burn_nvfp4_models::eval::encode::Encoder;
use burn_nvfp4_models::eval::evaluator::{Assignment, Evaluator};
use burn_nvfp4_models::eval::results::{
    self, FORMAT, ItemLine, Line, Lines, Results, Run, TaskRun,
};
use burn_nvfp4_models::eval::tasks::{Amount, TASKS, Task};
use burn_nvfp4_models::hybrid::HybridLm;
use burn_nvfp4_models::train::config::{Activations, BackendName, PrecisionConfig};

use super::args::{EvalArgs, EvalCommand};
use super::backend::OnBackend;
use super::model_folder::ModelFolder;
use super::{Failure, Success, backend};

mod progress;
mod table;

/// Everything that is known before the weights are read.
struct Request {
    folder: ModelFolder,
    assignments: Vec<Assignment>,
    /// Which linears are quantized, where that is asked for.
    policy: Option<Policy>,
    batching: Batching,
    out: Option<PathBuf>,
    run: Run,
}

/// How much is computed at a time.
#[derive(Clone, Copy)]
struct Batching {
    tokens: usize,
    threads: NonZeroUsize,
}

impl From<EvalError> for Failure {
    fn from(error: EvalError) -> Self {
        if matches!(error, EvalError::NoShots { .. }) {
            Self::usage(error)
        } else {
            Self::error(error)
        }
    }
}

/// Runs `nvfp4 eval`.
///
/// # Errors
/// [`Failure`], one line each.
pub(crate) fn eval(arguments: &EvalArgs) -> Result<Success, Failure> {
    if let Some(EvalCommand::Compare { a, b }) = &arguments.command {
        let (a, b) = (Results::read(a)?, Results::read(b)?);
        say(&table::comparison(&a, &b, &compare(&a, &b)?));
        return Ok(Success::Done);
    }
    backend::check(arguments.backend, arguments.device)?;
    let request = Request::new(arguments)?;
    backend::dispatch(arguments.backend, arguments.device, request)
}

impl Request {
    /// Step 1.
    fn new(arguments: &EvalArgs) -> Result<Self, Failure> {
        let tasks = tasks(arguments)?;
        let needs_file = |task: &&Task| task.measures.is_empty() && arguments.out.is_none();
        if let Some(task) = tasks.iter().copied().find(needs_file) {
            return Err(Failure::Usage(format!(
                "{} is only written to a file; name one with --out",
                task.name
            )));
        }
        if let Some(path) = &arguments.out {
            check_out(path, arguments.force)?;
        }
        let Some(dir) = &arguments.model else {
            return Err(Failure::Usage(
                "--model names the folder of a checkpoint".to_owned(),
            ));
        };
        let folder = ModelFolder::open(dir, arguments.tokenizer.as_deref())?;
        let policy = policy(arguments, &folder.config)?;
        let encoder = Encoder {
            tokenizer: &folder.tokenizer,
            window: folder.config.context_len,
        };
        let amount = Amount {
            shots: arguments.shots,
            limit: arguments.limit.map(Into::into),
        };
        let mut assignments = Vec::new();
        if !arguments.texts.is_empty() {
            assignments.push(Assignment::of_texts(&arguments.texts, encoder)?);
        }
        for task in tasks {
            let data = data_folder(arguments, task)?;
            assignments.push(Assignment::of_task(task, data, amount, encoder)?);
        }
        let batching = batching(arguments);
        let run = run(arguments, &folder, batching, &assignments);
        Ok(Self {
            folder,
            assignments,
            policy,
            batching,
            out: arguments.out.clone(),
            run,
        })
    }

    /// Step 3.
    fn evaluate<B: HybridEngine>(
        &self,
        model: &HybridLm<B>,
        device: &B::Device,
    ) -> Result<Success, Failure> {
        let ends = self.folder.ends();
        let evaluator = Evaluator {
            model,
            device: device.clone(),
            tokenizer: &self.folder.tokenizer,
            window: self.folder.config.context_len,
            ends: &ends,
            batch_tokens: self.batching.tokens,
            threads: self.batching.threads,
        };
        match &self.out {
            Some(path) => results::write(path, |lines| {
                lines.write(&Line::Run(self.run.clone()))?;
                self.run_tasks(&evaluator, Some(lines))
            })?,
            None => self.run_tasks(&evaluator, None)?,
        }
        Ok(Success::Done)
    }

    fn run_tasks<B: HybridEngine>(
        &self,
        evaluator: &Evaluator<'_, B>,
        mut lines: Option<&mut Lines<'_>>,
    ) -> Result<(), Failure> {
        let mut summaries = Vec::new();
        for assignment in &self.assignments {
            let start = Instant::now();
            let bar = progress::bar(assignment.task, assignment.requests());
            let outcomes = evaluator.outcomes(assignment, &mut |count| bar.inc(count as u64))?;
            bar.finish_and_clear();
            say(&table::speed(assignment, start.elapsed().as_secs_f64()));
            let summary = assignment.summary(&outcomes);
            if let Some(lines) = lines.as_deref_mut() {
                for (item, outcome) in assignment.loaded.items.iter().zip(outcomes) {
                    lines.write(&Line::Item(ItemLine {
                        task: assignment.task.to_owned(),
                        subject: item.subject.clone(),
                        id: item.id.clone(),
                        outcome,
                    }))?;
                }
            }
            summaries.push(summary);
        }
        for (assignment, summary) in self.assignments.iter().zip(&summaries) {
            say(&table::task(summary, assignment.measures));
            if let Some(lines) = lines.as_deref_mut() {
                lines.write(&Line::Summary(summary.clone()))?;
            }
        }
        Ok(())
    }
}

impl OnBackend for Request {
    /// Step 2.
    fn run<E: Nvfp4Engine + HybridEngine>(self, device: E::Device) -> Result<Success, Failure> {
        let model = self.folder.load::<E>(&device)?;
        if let Some(policy) = &self.policy {
            burn_nvfp4::set_policy::<E>(&device, policy.clone()).map_err(Failure::usage)?;
        }
        self.evaluate(&model, &device)
    }
}

/// The tasks that are asked for.
fn tasks(arguments: &EvalArgs) -> Result<Vec<&'static Task>, Failure> {
    let listed = || {
        let names = TASKS
            .iter()
            .map(|task| format!("{} ({})", task.name, task.about));
        names.collect::<Vec<_>>().join(", ")
    };
    if arguments.tasks.is_empty() && arguments.texts.is_empty() {
        return Err(Failure::Usage(format!(
            "nothing to evaluate: give --text FILE, or --task with some of {}",
            listed()
        )));
    }
    let mut tasks: Vec<&Task> = Vec::new();
    for name in &arguments.tasks {
        let unknown =
            || Failure::Usage(format!("there is no task `{name}`; there are {}", listed()));
        let task = Task::by_name(name).ok_or_else(unknown)?;
        if tasks.iter().any(|other| other.name == task.name) {
            return Err(Failure::Usage(format!("task `{name}` is asked for twice")));
        }
        tasks.push(task);
    }
    Ok(tasks)
}

/// The folder with the files of `task`.
fn data_folder<'a>(arguments: &'a EvalArgs, task: &Task) -> Result<&'a Path, Failure> {
    match &arguments.data {
        None => Err(Failure::Usage(format!(
            "--data names the folder with {} in it, which task {} reads",
            task.questions, task.name
        ))),
        Some(folder) if !folder.is_dir() => Err(Failure::Error(format!(
            "{}: no such folder; --data takes one with {} in it, which task {} reads",
            folder.display(),
            task.questions,
            task.name
        ))),
        Some(folder) => Ok(folder),
    }
}

/// Refuses a file of results that would replace one, or that has no folder.
fn check_out(path: &Path, force: bool) -> Result<(), Failure> {
    if path.is_dir() {
        return Err(Failure::Error(format!(
            "{}: a folder, not a file",
            path.display()
        )));
    }
    if path.exists() && !force {
        return Err(Failure::Error(format!(
            "{}: the file exists; --force replaces it",
            path.display()
        )));
    }
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    match parent {
        Some(parent) if !parent.is_dir() => Err(Failure::Error(format!(
            "{}: no such folder, for {}",
            parent.display(),
            path.display()
        ))),
        Some(_) | None => Ok(()),
    }
}

/// Small batches on every core of a CPU, whose caches they fit; large ones on a GPU.
fn batching(arguments: &EvalArgs) -> Batching {
    let (usual, threads) = match arguments.backend {
        BackendName::Ndarray | BackendName::Flex => {
            let cores = std::thread::available_parallelism();
            (1024, cores.unwrap_or(NonZeroUsize::MIN))
        }
        BackendName::Wgpu | BackendName::Cuda => (16384, NonZeroUsize::MIN),
    };
    Batching {
        tokens: arguments.batch_tokens.map_or(usual, NonZeroUsize::get),
        threads,
    }
}

/// The policy that is asked for, checked against the model's layers.
fn policy(arguments: &EvalArgs, config: &HybridConfig) -> Result<Option<Policy>, Failure> {
    let Some(name) = &arguments.recipe else {
        return Ok(None);
    };
    let precision = PrecisionConfig {
        backend: arguments.backend,
        recipe: presets::by_name(name).map_err(Failure::usage)?.recipe,
        policy: arguments.policy.clone(),
        activations: Activations::F32,
        warm_up: None,
        high_precision_forward_from: None,
        osci_reset: None,
        overrides: Vec::new(),
    };
    let policy = precision.policy(config).map_err(Failure::usage)?;
    Ok(Some(policy))
}

/// What the first line of the results says.
fn run(
    arguments: &EvalArgs,
    folder: &ModelFolder,
    batching: Batching,
    assignments: &[Assignment],
) -> Run {
    let tasks = assignments.iter().map(|assignment| TaskRun {
        task: assignment.task.to_owned(),
        shots: assignment.loaded.shots,
        items: assignment.loaded.items.len(),
        questions: format!("{:016x}", assignment.loaded.fingerprint),
    });
    Run {
        format: FORMAT,
        model: folder.dir.display().to_string(),
        tokenizer: folder.tokenizer.name(),
        precision: match &arguments.recipe {
            Some(recipe) => format!("{recipe}, policy {}", arguments.policy),
            None if folder.is_quantized => "weights as stored, in NVFP4".to_owned(),
            None => "high_precision".to_owned(),
        },
        backend: format!("{:?}", arguments.backend).to_lowercase(),
        batch_tokens: batching.tokens,
        tasks: tasks.collect(),
    }
}

/// Writes to stdout; a closed pipe is no reason to lose results.
fn say(text: &str) {
    let _ = write!(stdout(), "{text}");
}
