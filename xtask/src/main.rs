//! `cargo xtask <command>`: repository automation that is not part of the product.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod workspace;
mod forwards;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Repository automation")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the decorator's forwarding impls, or compare them with burn-backend.
    Forwards {
        /// Compare, and fail with the names of what differs.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    match run(&Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // Without the backtrace that anyhow's `Debug` adds where RUST_BACKTRACE is set.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "a command line tool reports on stdout")]
fn run(command: &Command) -> Result<()> {
    match command {
        Command::Forwards { check: true } => println!("forwards: {}", forwards::check()?),
        Command::Forwards { check: false } => println!("{}", forwards::print()?),
    }
    Ok(())
}
