//! The command line: arguments, backends, paths, the environment, the terminal.
//!
//! Exit codes: 0, 2 for what is wrong with the command line or a configuration, 130 after Ctrl-C
//! (with a checkpoint), 1 for the rest. An error is one line on stderr that begins with `error: `.

mod panics;
pub(crate) mod args;
pub(crate) mod sources;
pub(crate) mod signal;
pub(crate) mod memory;
pub(crate) mod table;
pub(crate) mod measured;
pub(crate) mod chart;
pub(crate) mod plot;
pub(crate) mod report;
pub(crate) mod prepare;
pub(crate) mod backend;
pub(crate) mod model_folder;
pub(crate) mod train;
pub(crate) mod runs;
pub(crate) mod compare;
pub(crate) mod page;
pub(crate) mod generate;
pub(crate) mod progress;
pub(crate) mod tokenize;
pub(crate) mod serve;
pub(crate) mod inspect;
pub(crate) mod eval;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use args::{Arguments, Command};

/// How a command ended, other than well.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line or a configuration is wrong.
    Usage(String),
    /// Anything else.
    Error(String),
}

impl Failure {
    /// A failure of the second kind from any error, causes included.
    pub(crate) fn error(error: impl Into<anyhow::Error>) -> Self {
        Self::Error(format!("{:#}", error.into()))
    }

    /// A failure of the first kind from any error, causes included.
    pub(crate) fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self::Usage(format!("{:#}", error.into()))
    }
}

/// How a command ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Success {
    /// It did everything.
    Done,
    /// It was interrupted and saved its state.
    Interrupted,
}

/// Runs the command with the arguments of the process.
pub(crate) fn main() -> ExitCode {
    panics::report_in_one_line();
    match std::panic::catch_unwind(|| run(std::env::args_os())) {
        Ok(Ok(Success::Done)) => ExitCode::SUCCESS,
        Ok(Ok(Success::Interrupted)) => ExitCode::from(130),
        Ok(Err(Failure::Usage(message))) => {
            say(&format!("error: {}", one_line(&message)));
            ExitCode::from(2)
        }
        Ok(Err(Failure::Error(message))) => {
            say(&format!("error: {}", one_line(&message)));
            ExitCode::FAILURE
        }
        Err(_) => ExitCode::FAILURE,
    }
}

/// Runs the command with these arguments, program name first.
///
/// # Errors
/// [`Failure`], one line each.
pub(crate) fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<Success, Failure> {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            ) =>
        {
            // A closed stdout is no reason to fail.
            let _ = error.print();
            return Ok(Success::Done);
        }
        Err(error) => return Err(Failure::Usage(usage_line(&error))),
    };
    match arguments.command {
        Command::Train(arguments) => train::train(&arguments),
        Command::Runs(arguments) => runs::list(&arguments),
        Command::Compare(arguments) => compare::compare(&arguments),
        Command::Report(arguments) => page::report(&arguments),
        Command::Tokenize(arguments) => tokenize::tokenize(&arguments),
        Command::Generate(arguments) => generate::generate(&arguments),
        Command::Quantize(arguments) => serve::quantize(&arguments),
        Command::Dequantize(arguments) => serve::dequantize(&arguments),
        Command::Export(arguments) => serve::export(&arguments),
        Command::Inspect(arguments) => inspect::inspect(&arguments),
        Command::Eval(arguments) => eval::eval(&arguments),
    }
}

/// clap's message without its colours, its usage block and its line breaks.
fn usage_line(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let hint = "a command is needed, e.g. `nvfp4 train`; `nvfp4 --help` lists them";
        return hint.to_owned();
    }
    let text = error.render().to_string();
    let lines = text.lines().take_while(|line| {
        !line.starts_with("Usage:") && !line.starts_with("For more information")
    });
    let line = lines
        .flat_map(str::split_whitespace)
        .collect::<Vec<_>>()
        .join(" ");
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    format!("{line}; see `nvfp4 --help`")
}

/// A message that lists problems on lines of their own, as one line.
fn one_line(message: &str) -> String {
    let lines = message.lines().map(str::trim);
    lines.collect::<Vec<_>>().join("; ").replace(":; ", ": ")
}

/// Writes a line to stderr; nobody is left to tell if that fails.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
