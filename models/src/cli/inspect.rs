//! `nvfp4 inspect`: a table of the tensors of a directory, or of what a run measured.

mod run;

use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _, stdout};

use burn_nvfp4_models::serving::{Inspected, InspectedTensor, inspect_directory, is_quantized};

use super::args::InspectArgs;
use super::{Failure, Success, serve};

/// Runs `nvfp4 inspect`.
///
/// # Errors
/// [`Failure`], one line each.
pub(crate) fn inspect(arguments: &InspectArgs) -> Result<Success, Failure> {
    if run::is_run(&arguments.directory) {
        return print(&of_run(arguments)?);
    }
    let selection = serve::selection(&arguments.selection)?;
    let what = match &arguments.against {
        Some(original) => Inspected::Against(original),
        None if is_quantized(&arguments.directory).map_err(Failure::error)? => Inspected::Alone,
        None => Inspected::Planned {
            rule: serve::rule(arguments.rule),
            selection: &selection,
        },
    };
    let mut rows = Vec::new();
    inspect_directory(&arguments.directory, &what, &mut |tensor| rows.push(tensor))
        .map_err(Failure::error)?;
    print(&table(&rows))
}

fn of_run(arguments: &InspectArgs) -> Result<String, Failure> {
    if arguments.against.is_some() {
        let message = "--against is for quantized weights, and DIR is a run".to_owned();
        return Err(Failure::Usage(message));
    }
    run::tables(&arguments.directory)
}

fn print(text: &str) -> Result<Success, Failure> {
    let mut out = stdout().lock();
    let written = out.write_all(text.as_bytes());
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Error(format!("stdout: cannot write: {error}")))
        }
        Ok(()) | Err(_) => Ok(Success::Done),
    }
}

/// One line for each tensor.
fn table(rows: &[InspectedTensor]) -> String {
    let width = |cell: &dyn Fn(&InspectedTensor) -> usize, heading: &str| {
        rows.iter().map(cell).max().unwrap_or(0).max(heading.len())
    };
    let names = width(&|row| row.key.len(), "tensor");
    let formats = width(&|row| row.format.len(), "format");
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:names$}  {:formats$}  {:>15}  {:>13}  {:>9}  {:>10}  {:>10}  {:>11}",
        "tensor", "format", "shape", "bytes", "rel error", "underflow", "saturation", "zero blocks"
    );
    let percent = |share: Option<f64>| {
        share.map_or_else(|| "-".to_owned(), |s| format!("{:.3} %", s * 100.0))
    };
    for row in rows {
        let statistics = row.statistics;
        let shape: Vec<_> = row.shape.iter().map(usize::to_string).collect();
        let _ = writeln!(
            out,
            "{:names$}  {:formats$}  {:>15}  {:>13}  {:>9}  {:>10}  {:>10}  {:>11}",
            row.key,
            row.format,
            shape.join("x"),
            row.bytes,
            statistics.map_or_else(|| "-".to_owned(), |s| format!("{:.5}", s.relative_error)),
            percent(statistics.map(|s| s.underflow)),
            percent(statistics.map(|s| s.saturation)),
            percent(row.zero_blocks),
        );
    }
    let bytes: u64 = rows.iter().map(|row| row.bytes).sum();
    let in_4_bits = rows.iter().filter(|row| row.zero_blocks.is_some()).count();
    let _ = writeln!(
        out,
        "{} tensors, {bytes} bytes; {in_4_bits} weights in NVFP4, or that `nvfp4 quantize` takes \
         there",
        rows.len()
    );
    out
}
