//! `cargo xtask interop`: our files against the Python packages that read and write such files.
//!
//! 1. A virtual environment with the pinned packages of `xtask/interop/requirements.txt`, in a
//!    cache folder outside of the repository; its name holds a hash of that file. Several
//!    gigabytes: torch comes with CUDA's libraries.
//! 2. The command and the example `interop` of the models crate, in release.
//! 3. The scripts, one after the other; each prints a line per check and fails if one does not
//!    hold.

use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Packages and their versions.
const REQUIREMENTS: &str = "xtask/interop/requirements.txt";

/// Runs the scripts whose names contain `filter`; with the folder of the evaluation sets, also the
/// comparison with lm_eval.
pub(crate) fn run(filter: &str, eval_data: Option<&Path>) -> Result<String> {
    let root = workspace::root()?;
    let python = python(&root)?;
    let build = ["build", "--release", "--locked", "-p", "burn-nvfp4-models"];
    let mut cargo = Command::new(workspace::cargo());
    cargo
        .args(build)
        .args(["--bin", "nvfp4", "--example", "interop"]);
    status(cargo.current_dir(&root))?;
    let target = workspace::target_folder()?.join("release");
    let (nvfp4, tool) = (target.join("nvfp4"), target.join("examples/interop"));
    let work = env::temp_dir().join(format!("burn-nvfp4-interop-{}", std::process::id()));
    let mut scripts: Vec<(&str, Vec<&Path>)> = vec![
        ("checkpoints.py", vec![Path::new("--tool"), &tool]),
        (
            "serving.py",
            vec![Path::new("--nvfp4"), &nvfp4, Path::new("--tool"), &tool],
        ),
    ];
    if let Some(data) = eval_data {
        let (ours, theirs) = (Path::new("--nvfp4"), Path::new("--data"));
        let arguments = vec![ours, &nvfp4, Path::new("--tool"), &tool, theirs, data];
        scripts.push(("lm_eval_parity.py", arguments));
    }
    scripts.retain(|(script, _)| script.contains(filter));
    if scripts.is_empty() {
        bail!("no interop script's name contains {filter:?}");
    }
    for (script, arguments) in &scripts {
        let mut command = Command::new(&python);
        command
            .arg(root.join("xtask/interop").join(script))
            .args(arguments)
            .arg("--work")
            .arg(&work)
            // Nothing may be fetched by a model's name.
            .env("HF_HUB_OFFLINE", "1")
            .env("TOKENIZERS_PARALLELISM", "false")
            .env("PYTHONWARNINGS", "ignore");
        status(&mut command)?;
    }
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    Ok(format!("{} scripts passed", scripts.len()))
}

/// The interpreter of the environment, which is made if it is not there.
fn python(root: &Path) -> Result<PathBuf> {
    let requirements = root.join(REQUIREMENTS);
    let text =
        fs::read_to_string(&requirements).with_context(|| format!("cannot read {REQUIREMENTS}"))?;
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let folder = workspace::cache_folder()?.join(format!("interop-{:016x}", hasher.finish()));
    let (python, complete) = (folder.join("bin/python"), folder.join("complete"));
    if complete.exists() {
        return Ok(python);
    }
    status(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--requirement"]);
    status(pip.arg(&requirements))?;
    fs::write(&complete, "").with_context(|| format!("cannot write {}", complete.display()))?;
    Ok(python)
}

fn status(command: &mut Command) -> Result<()> {
    let program = Path::new(command.get_program()).to_owned();
    let program = program
        .file_name()
        .unwrap_or_default()
        .display()
        .to_string();
    let status = command
        .status()
        .with_context(|| format!("cannot start {program}"))?;
    if !status.success() {
        bail!("{program} failed ({status})");
    }
    Ok(())
}
