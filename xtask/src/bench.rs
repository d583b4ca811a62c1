//! `cargo xtask bench`: the library's benchmarks, with what a figure is worth nothing without.

use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{fs, thread};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Those that need no GPU, which is what the package's default features build.
const CPU: &[&str] = &["bench", "-p", "burn-nvfp4"];
/// The one that needs a CUDA device.
const GPU: &[&str] = &[
    "bench",
    "-p",
    "burn-nvfp4",
    "--features",
    "cuda",
    "--bench",
    "gpu",
];

/// Runs the benchmarks that match `filter`, after a line on machine, date, commit and command.
#[expect(clippy::print_stdout, reason = "a command line tool reports on stdout")]
pub(crate) fn run(gpu: bool, filter: &[String]) -> Result<()> {
    let chosen = if gpu { GPU } else { CPU };
    let mut arguments: Vec<_> = chosen.iter().map(|&argument| argument.to_owned()).collect();
    if !filter.is_empty() {
        arguments.push("--".to_owned());
        arguments.extend_from_slice(filter);
    }
    println!("machine: {}", machine());
    println!(
        "date:    {}",
        date(SystemTime::now().duration_since(UNIX_EPOCH)?)
    );
    println!("commit:  {}", commit()?);
    println!("command: cargo {}", arguments.join(" "));
    let status = Command::new(workspace::cargo())
        .args(&arguments)
        .current_dir(workspace::root()?)
        .status()
        .context("cannot start cargo bench")?;
    if !status.success() {
        bail!("cargo bench failed ({status})");
    }
    Ok(())
}

/// Processor, threads and operating system, as far as they can be told.
fn machine() -> String {
    let processor = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    let processor = processor.unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let threads = thread::available_parallelism().map_or(0, usize::from);
    format!("{processor}, {threads} threads, {}", std::env::consts::OS)
}

/// The commit of the working tree, with `+` if it has changes.
fn commit() -> Result<String> {
    let git = |arguments: &[&str]| -> Result<String> {
        let output = Command::new("git")
            .args(arguments)
            .current_dir(workspace::root()?)
            .output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short", "HEAD"])?;
    let changed = !git(&["status", "--porcelain"])?.is_empty();
    Ok(if changed {
        format!("{commit}+")
    } else {
        commit
    })
}

/// The UTC date of a time since 1970, as `2026-01-31`.
fn date(since_1970: Duration) -> String {
    let mut days = since_1970.as_secs() / 86_400;
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        for (days, expected) in [
            (0, "1970-01-01"),
            (58, "1970-02-28"),
            (59, "1970-03-01"),
            (789, "1972-02-29"),
            (11_016, "2000-02-29"),
            (11_017, "2000-03-01"),
            (20_453, "2025-12-31"),
            (20_454, "2026-01-01"),
        ] {
            assert_eq!(date(Duration::from_secs(days * 86_400 + 86_399)), expected);
        }
    }
}
