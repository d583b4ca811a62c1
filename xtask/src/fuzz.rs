//! `cargo xtask fuzz`: libFuzzer on the targets of the package `fuzz`, one after the other.
//!
//! 1. `fuzz/instrument.sh` compiles the crates of the workspace with coverage counters, which a
//!    stable toolchain can; libraries are those of `cargo test`.
//! 2. Each target runs for its share of the minutes, which are minutes of the processor, from its
//!    seeds in the repository and from the inputs that earlier runs found to be new.
//! 3. An input that fails ends the run. It is kept; as a file in `fuzz/seeds/TARGET` it is a test.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace;

const BUILD: &[&str] = &[
    "test",
    "--features",
    "fuzz/libfuzzer",
    "--test",
    "libfuzzer",
];

/// Runs the targets whose names contain `filter` for `minutes` in all.
pub(crate) fn run(filter: &str, minutes: u64) -> Result<String> {
    let root = workspace::root()?;
    let seeds = root.join("fuzz/seeds");
    let targets: Vec<_> = folders(&seeds)?
        .into_iter()
        .filter(|name| name.contains(filter))
        .collect();
    if targets.is_empty() {
        bail!("no target's name contains {filter:?}");
    }
    let seconds = (minutes * 60).div_ceil(targets.len() as u64);
    let out = workspace::target_folder()?.join("fuzz");
    let status = cargo(&root).arg("--no-run").status();
    if !status.context("cannot start cargo")?.success() {
        bail!("the targets do not compile");
    }
    for target in &targets {
        say(&fuzz(&root, &seeds, &out, target, seconds)?);
    }
    Ok(format!(
        "{} targets, {seconds} s of the processor each, no finding",
        targets.len()
    ))
}

/// cargo, as it builds the targets.
fn cargo(root: &Path) -> Command {
    let mut cargo = Command::new(workspace::cargo());
    cargo
        .args(BUILD)
        .current_dir(root)
        .env("RUSTC_WORKSPACE_WRAPPER", root.join("fuzz/instrument.sh"));
    cargo
}

/// Runs one target; the line that it ends with.
fn fuzz(root: &Path, seeds: &Path, out: &Path, target: &str, seconds: u64) -> Result<String> {
    let (corpus, findings) = (out.join("corpus").join(target), out.join("findings"));
    for folder in [&corpus, &findings] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let log = out.join(format!("{target}.log"));
    let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let prefix = findings.join(format!("{target}-"));
    let mut command = cargo(root);
    command
        .arg("--")
        .args([&corpus, &seeds.join(target)])
        .args(["-max_len=16384", "-timeout=20", "-rss_limit_mb=4096"])
        .arg(format!("-artifact_prefix={}", prefix.display()))
        .env("NVFP4_FUZZ_TARGET", target)
        .env("NVFP4_FUZZ_SECONDS", seconds.to_string())
        .env("RAYON_NUM_THREADS", "1")
        .env("TMPDIR", files_in_memory())
        .stderr(file);
    let status = command.status().context("cannot start cargo")?;
    let text = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let text = String::from_utf8_lossy(&text);
    let line = |start: &str| text.lines().rfind(|line| line.starts_with(start));
    if status.success() {
        let ended = line(&format!("{target}: ")).context("it ended before its time")?;
        return Ok(ended.to_owned());
    }
    let reason = line("finding of ").unwrap_or("a crash, or no answer in time");
    bail!(
        "{target}: {reason}; the input is in {}, the rest of what was said in {}",
        findings.display(),
        log.display()
    );
}

/// Where files are cheap to write, if there is such a place.
fn files_in_memory() -> PathBuf {
    let shared = PathBuf::from("/dev/shm");
    if shared.is_dir() {
        shared
    } else {
        env::temp_dir()
    }
}

/// Names of the folders in one, in order.
fn folders(path: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

#[expect(clippy::print_stdout, reason = "a command line tool reports on stdout")]
fn say(line: &str) {
    println!("{line}");
}
