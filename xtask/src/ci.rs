//! `cargo xtask ci`: everything that a change has to pass, in the order of what fails fastest.
//!
//! `.ci/run` calls this, so that a contributor runs what CI runs.
//!
//! Most of the time is spent on dependencies, once for each set of features and each kind of
//! output. Clippy and rustdoc need metadata, tests need code, and there are three sets: what a user
//! gets by default (tests), everything with the GPU backends (clippy and rustdoc, one set that
//! holds both `wgpu` and `cuda`), and the device tests together with `cuda-check`. Clippy of the
//! default set would be one more, for a handful of lines that only it compiles.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{cuda_check, forwards, tidy, workspace};

/// One step of the run.
struct Step {
    /// What it is called in the output.
    name: &'static str,
    /// What it does.
    action: Action,
}

/// What a step does.
enum Action {
    /// Runs cargo.
    Cargo {
        /// Its arguments.
        arguments: &'static str,
        /// Variables that are set for it.
        environment: &'static [(&'static str, &'static str)],
    },
    /// Calls a check of ours, which returns the line to print.
    Check(fn() -> Result<String>),
}

/// A step that is cargo with these arguments.
const fn cargo(name: &'static str, arguments: &'static str) -> Step {
    cargo_with(name, arguments, &[])
}

/// A step that is cargo with these arguments and variables.
const fn cargo_with(
    name: &'static str,
    arguments: &'static str,
    environment: &'static [(&'static str, &'static str)],
) -> Step {
    let action = Action::Cargo {
        arguments,
        environment,
    };
    Step { name, action }
}

/// A step that is a check of ours.
const fn check(name: &'static str, check: fn() -> Result<String>) -> Step {
    let action = Action::Check(check);
    Step { name, action }
}

/// The steps. A test compares the test command with the README's.
const STEPS: [Step; 11] = [
    cargo("format", "fmt --all --check"),
    check("forwards", forwards::check),
    check("tidy", tidy::check),
    cargo(
        "clippy",
        "clippy --workspace --all-targets --features tests/wgpu,tests/cuda --locked \
         -- -D warnings",
    ),
    // The same features as clippy before it: rustdoc finds the metadata of the dependencies.
    cargo_with(
        "docs",
        "doc --workspace --no-deps --features tests/wgpu,tests/cuda --locked",
        &[("RUSTDOCFLAGS", "-D warnings")],
    ),
    // Burn's own CPU autodiff does not compile with `distributed`, so the library without it.
    cargo(
        "clippy of data parallelism",
        "clippy -p burn-nvfp4 --lib --no-default-features --features cubecl,distributed \
         --locked -- -D warnings",
    ),
    // What trains on several GPUs: a build without CPU training, so with features of its own.
    cargo(
        "clippy of the command for several GPUs",
        "clippy -p burn-nvfp4-models --all-targets --no-default-features \
         --features cuda,distributed --locked -- -D warnings",
    ),
    cargo("test", "test"),
    cargo("test of xtask", "test -p xtask"),
    // With cuda-check among the packages, though only one binary is built: cargo unites the
    // features of the packages that are named, and cuda-check then finds Burn and CubeCL as it
    // needs them.
    cargo_with(
        "test on a device",
        "test -p tests -p cuda-check --features tests/wgpu --test gpu --locked",
        &[
            // Without a device the tests fail instead of being skipped.
            ("NVFP4_REQUIRE_DEVICE", "1"),
            // CubeCL compiles kernels on a thread of its own, deeper than 2 MiB in a debug build.
            ("RUST_MIN_STACK", "33554432"),
        ],
    ),
    check("cuda-check", cuda_check::check),
];

/// Runs every step; stops at the first that fails.
#[expect(clippy::print_stdout, reason = "a command line tool reports on stdout")]
pub(crate) fn run() -> Result<()> {
    let start = Instant::now();
    for Step { name, action } in &STEPS {
        let begin = Instant::now();
        match action {
            Action::Cargo {
                arguments,
                environment,
            } => run_cargo(name, arguments, environment)?,
            Action::Check(check) => {
                println!("== {name}");
                println!("{}", check().with_context(|| (*name).to_owned())?);
            }
        }
        println!(
            "== {name}: passed in {:.0} s",
            begin.elapsed().as_secs_f64()
        );
    }
    println!(
        "== all {} steps passed in {:.0} s",
        STEPS.len(),
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a command line tool reports on stdout")]
fn run_cargo(name: &str, arguments: &str, environment: &[(&str, &str)]) -> Result<()> {
    println!("== {name}: cargo {arguments}");
    let status = Command::new(workspace::cargo())
        .args(arguments.split_whitespace())
        .envs(environment.iter().copied())
        .current_dir(workspace::root()?)
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("{name}: cargo {arguments} failed ({status})");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_step_is_the_readmes_test_command() {
        let readme = workspace::root().unwrap().join("README.md");
        let readme = std::fs::read_to_string(readme).unwrap();
        let commands = readme
            .lines()
            .map(|line| line.split('#').next().unwrap_or_default().trim());
        let tests: Vec<_> = commands
            .filter(|line| line.starts_with("cargo test"))
            .collect();
        let runs = |command: &str| {
            STEPS.iter().any(|step| match step.action {
                Action::Cargo { arguments, .. } => command == format!("cargo {arguments}"),
                Action::Check(_) => false,
            })
        };
        assert!(
            !tests.is_empty() && tests.iter().all(|command| runs(command)),
            "{tests:?}"
        );
    }
}
