//! `cargo xtask ci`: everything that a change has to pass, in the order of what fails fastest.
//!
//! `.ci/run` calls this, so that a contributor runs what CI runs. Clippy and rustdoc share the
//! metadata of the dependencies, the tests need their code: each is built once.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{forwards, tidy, workspace};

/// One step of the run.
struct Step {
    /// What it is called in the output.
    name: &'static str,
    /// What it does.
    action: Action,
}

/// What a step does.
enum Action {
    /// Runs cargo with these arguments.
    Cargo(&'static str),
    /// Runs cargo with rustdoc's warnings denied.
    Docs(&'static str),
    /// Calls a check of ours, which returns the line to print.
    Check(fn() -> Result<String>),
}

/// The steps. A test compares the test command with the README's.
const STEPS: [Step; 8] = [
    Step {
        name: "format",
        action: Action::Cargo("fmt --all --check"),
    },
    Step {
        name: "forwards",
        action: Action::Check(forwards::check),
    },
    Step {
        name: "tidy",
        action: Action::Check(tidy::check),
    },
    Step {
        name: "clippy",
        action: Action::Cargo("clippy --workspace --all-targets --locked -- -D warnings"),
    },
    Step {
        // Burn's own CPU autodiff does not compile with `distributed`, so the library without it.
        name: "clippy of the other features",
        action: Action::Cargo(
            "clippy -p burn-nvfp4 --lib --no-default-features --features cubecl,distributed \
             --locked -- -D warnings",
        ),
    },
    Step {
        name: "test",
        action: Action::Cargo("test"),
    },
    Step {
        name: "test of xtask",
        action: Action::Cargo("test -p xtask"),
    },
    Step {
        name: "docs",
        action: Action::Docs("doc --workspace --no-deps --locked"),
    },
];

/// Runs every step; stops at the first that fails.
#[expect(clippy::print_stdout, reason = "a command line tool reports on stdout")]
pub(crate) fn run() -> Result<()> {
    let start = Instant::now();
    for Step { name, action } in &STEPS {
        let begin = Instant::now();
        match action {
            Action::Cargo(arguments) => cargo(name, arguments, None)?,
            Action::Docs(arguments) => {
                cargo(name, arguments, Some(("RUSTDOCFLAGS", "-D warnings")))?;
            }
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
fn cargo(name: &str, arguments: &str, environment: Option<(&str, &str)>) -> Result<()> {
    println!("== {name}: cargo {arguments}");
    let status = Command::new(workspace::cargo())
        .args(arguments.split_whitespace())
        .envs(environment)
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
                Action::Cargo(arguments) => command == format!("cargo {arguments}"),
                Action::Docs(_) | Action::Check(_) => false,
            })
        };
        assert!(
            !tests.is_empty() && tests.iter().all(|command| runs(command)),
            "{tests:?}"
        );
    }
}
