//! `cargo xtask <command>`: repository automation that is not part of the product.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod workspace;
mod forwards;
mod tidy;
mod cuda_check;
mod ci;
mod bench;
mod fuzz;
mod interop;

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
    /// Check what the compiler does not see: layers, headers, lengths, licences, golden hashes.
    Tidy {
        /// Write the hashes of the golden files as they are now, and check nothing.
        #[arg(long)]
        write_golden_hashes: bool,
    },
    /// Assemble every CUDA kernel of a training step with NVRTC, which is fetched if need be.
    CudaCheck,
    /// Compare checkpoints, weights in 4 bits and evaluation with the Python packages that they are
    /// made for, in a virtual environment of several gigabytes that is made if need be.
    Interop {
        /// The folder of the evaluation sets, for the comparison with lm_eval.
        #[arg(long, value_name = "DIR")]
        eval_data: Option<PathBuf>,
        /// Only scripts whose name contains this.
        #[arg(default_value = "")]
        filter: String,
    },
    /// Fuzz the loaders of everything that comes from outside, until an input fails.
    Fuzz {
        /// Minutes of the processor, in all.
        #[arg(long, default_value_t = 60)]
        minutes: u64,
        /// Only targets whose name contains this.
        #[arg(default_value = "")]
        target: String,
    },
    /// Run everything that CI runs.
    Ci,
    /// Run the library's benchmarks and print machine, date, commit and command with them.
    Bench {
        /// The benchmark of the CUDA kernels and GEMMs, in place of those of the CPU.
        #[arg(long)]
        gpu: bool,
        /// Only benchmarks whose name contains this.
        filter: Vec<String>,
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
        Command::Tidy {
            write_golden_hashes: true,
        } => println!("{}", tidy::write_golden_hashes()?),
        Command::Tidy {
            write_golden_hashes: false,
        } => println!("tidy: {}", tidy::check()?),
        Command::CudaCheck => println!("cuda-check: {}", cuda_check::check()?),
        Command::Interop { eval_data, filter } => {
            println!("interop: {}", interop::run(filter, eval_data.as_deref())?);
        }
        Command::Fuzz { minutes, target } => println!("fuzz: {}", fuzz::run(target, *minutes)?),
        Command::Ci => ci::run()?,
        Command::Bench { gpu, filter } => bench::run(*gpu, filter)?,
    }
    Ok(())
}
