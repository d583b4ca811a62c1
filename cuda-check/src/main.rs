//! `cuda-check`: records training steps and assembles their kernels.
//!
//! One line for each failure, with the kernel, the architecture and the first error; then a table.
//! Exit code 1 if there was a failure. `cargo xtask cuda-check` provides NVRTC and calls this.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use cuda_check::assemble::{Verdict, assemble};
use cuda_check::nvrtc::{Nvrtc, first_error};
use cuda_check::passed::Passed;
use cuda_check::properties::Architecture;
use cuda_check::record;

mod step;
mod operands;
mod scan;

#[derive(Parser)]
#[command(about = "Assembles every CUDA kernel of a training step, without a GPU")]
struct Arguments {
    /// Folder of the CUDA headers; libnvrtc is on LD_LIBRARY_PATH.
    #[arg(long)]
    include: PathBuf,
    /// Folder where sources that passed are remembered.
    #[arg(long)]
    passed: PathBuf,
    /// Folder for sources that failed, with their logs; emptied first.
    #[arg(long)]
    failed: PathBuf,
    /// Folder for all sources, to read what a kernel became.
    #[arg(long)]
    sources: Option<PathBuf>,
    /// One architecture instead of all.
    #[arg(long)]
    architecture: Option<Architecture>,
    /// Threads on which NVRTC runs.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// Launches kernels until everything is recorded.
type Launch = fn(Architecture) -> Result<()>;

/// What is launched, by name.
const LAUNCHES: [(&str, Launch); 4] = [
    ("a training step", step::record),
    ("a quantization", operands::quantizers),
    ("a block-scaled GEMM", operands::scaled_gemms),
    ("a scan", scan::record),
];

/// One row of the table.
#[derive(Default)]
struct Row {
    launches: usize,
    kernels: usize,
    assembled: usize,
    passed_before: usize,
    failed: usize,
    recording: f64,
    assembling: f64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the number of failures.
#[expect(clippy::print_stdout, reason = "a command line tool reports on stdout")]
fn run(arguments: &Arguments) -> Result<usize> {
    let nvrtc = Nvrtc::find(&arguments.include)?;
    let passed = Passed::open(&arguments.passed, nvrtc.version())?;
    if arguments.failed.exists() {
        fs::remove_dir_all(&arguments.failed)?;
    }
    let mut rows = Vec::new();
    let architectures = match arguments.architecture {
        Some(one) => vec![one],
        None => Architecture::ALL.to_vec(),
    };
    for architecture in architectures {
        rows.push((
            architecture,
            check(&nvrtc, &passed, architecture, arguments)?,
        ));
    }
    println!(
        "NVRTC {} {:>8} {:>8} {:>10} {:>9} {:>7} {:>10} {:>11}",
        nvrtc.version(),
        "launches",
        "kernels",
        "assembled",
        "by cache",
        "failed",
        "recorded",
        "assembled"
    );
    for (architecture, row) in &rows {
        println!(
            "{architecture:<10} {:>8} {:>8} {:>10} {:>9} {:>7} {:>8.1} s {:>9.1} s",
            row.launches,
            row.kernels,
            row.assembled,
            row.passed_before,
            row.failed,
            row.recording,
            row.assembling,
        );
    }
    let failed = rows.iter().map(|(_, row)| row.failed).sum();
    if arguments.failed.exists() {
        println!(
            "sources and logs of failures: {}",
            arguments.failed.display()
        );
    }
    Ok(failed)
}

/// Writes the source and the log of a failure.
fn keep(
    folder: &Path,
    architecture: Architecture,
    index: usize,
    source: &str,
    log: &str,
) -> Result<()> {
    let file = format!("{architecture}-{index}.cu");
    write(folder, &file, &format!("{source}\n/*\n{log}\n*/\n"))
}

fn write(folder: &Path, file: &str, text: &str) -> Result<()> {
    let file = folder.join(file);
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&file, text))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// Records and assembles for one architecture, and prints what failed.
#[expect(clippy::print_stdout, reason = "a command line tool reports on stdout")]
fn check(
    nvrtc: &Nvrtc,
    passed: &Passed,
    architecture: Architecture,
    arguments: &Arguments,
) -> Result<Row> {
    let start = Instant::now();
    let mut row = Row::default();
    let mut fail = |name: &str, reason: &str| {
        row.failed += 1;
        println!("FAILED {name} on {architecture}: {reason}");
    };
    for (name, launch) in LAUNCHES {
        if let Err(error) = launch(architecture) {
            fail(name, &format!("{error:#}"));
        }
    }
    let recording = record::take(architecture);
    for refusal in &recording.refused {
        fail(&refusal.name, &refusal.reason);
    }
    let recorded = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let outcomes = assemble(nvrtc, passed, architecture, &recording, arguments.threads)?;
    let (mut assembled, mut passed_before) = (0, 0);
    for (index, outcome) in outcomes.iter().enumerate() {
        if let Some(folder) = &arguments.sources {
            // Path in Rust, then the name in the source in parentheses.
            let name = outcome.kernel.name.rsplit('(').next().unwrap_or_default();
            let file = format!("{architecture}-{}-{index}.cu", name.trim_end_matches(')'));
            write(folder, &file, &outcome.kernel.source)?;
        }
        match &outcome.verdict {
            Verdict::Assembled => assembled += 1,
            Verdict::PassedBefore => passed_before += 1,
            Verdict::Failed(log) => {
                fail(&outcome.kernel.name, &first_error(log));
                keep(
                    &arguments.failed,
                    architecture,
                    index,
                    &outcome.kernel.source,
                    log,
                )?;
            }
        }
    }
    Ok(Row {
        launches: recording.launches,
        kernels: recording.kernels.len() + recording.refused.len(),
        assembled,
        passed_before,
        recording: recorded,
        assembling: start.elapsed().as_secs_f64(),
        ..row
    })
}
