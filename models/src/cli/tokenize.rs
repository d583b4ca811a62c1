//! `nvfp4 tokenize`: texts into a folder of shards.

use std::io::{Write, stdout};
use std::num::NonZeroUsize;
use std::path::Path;
use std::thread::available_parallelism;
use std::time::Instant;

use burn_nvfp4_models::data::documents::{Inputs, Layout, TextDocuments};
use burn_nvfp4_models::data::tokenize::{Existing, Job, Progress, Report, tokenize as run};
use burn_nvfp4_models::data::{Shards, Tokenizer};

use super::args::{DocumentsName, TokenizeArgs};
use super::{Failure, Success, progress};

/// Runs `nvfp4 tokenize`.
///
/// # Errors
/// [`Failure`], one line each.
pub(crate) fn tokenize(arguments: &TokenizeArgs) -> Result<Success, Failure> {
    if arguments.verify {
        return verify(&arguments.out);
    }
    let tokenizer = match &arguments.tokenizer {
        None => return Err(Failure::Usage("--tokenizer is needed".to_owned())),
        Some(path) if path.as_os_str() == "bytes" => Tokenizer::Bytes,
        Some(path) => Tokenizer::from_file(path).map_err(Failure::error)?,
    };
    let inputs = Inputs::find(&arguments.inputs).map_err(Failure::error)?;
    let layout = layout(arguments);
    let threads = match arguments.threads {
        Some(threads) => threads,
        None => available_parallelism().unwrap_or(NonZeroUsize::MIN),
    };
    let job = Job {
        inputs: &inputs,
        layout: &layout,
        tokenizer: &tokenizer,
        folder: &arguments.out,
        shard_tokens: arguments.shard_tokens,
        threads,
        existing: if arguments.force {
            Existing::Replace
        } else {
            Existing::Keep
        },
    };
    let bar = progress::bytes(inputs.bytes());
    let start = Instant::now();
    let report = run(job, &mut |now: Progress| {
        bar.set_position(now.read);
        let million = 1e6;
        bar.set_message(format!("{:.1} M tokens", now.tokens as f64 / million));
    });
    bar.finish_and_clear();
    let report = report.map_err(Failure::error)?;
    let seconds = start.elapsed().as_secs_f64();
    say(&summary(&report, &arguments.out, threads, seconds));
    if tokenizer.separator().is_none() {
        say("note   the tokenizer names no end-of-document token: documents follow directly");
    }
    Ok(Success::Done)
}

/// Reads everything that a folder holds, and checks it.
fn verify(folder: &Path) -> Result<Success, Failure> {
    let shards = Shards::open(folder).map_err(Failure::error)?;
    let bar = progress::bytes(shards.tokens().saturating_mul(shards.header().width));
    let checked = shards.verify(|bytes| bar.inc(bytes));
    bar.finish_and_clear();
    checked.map_err(Failure::error)?;
    let manifest = shards.manifest();
    say(&format!(
        "{}: {} shards, {} documents, {} tokens: every checksum holds",
        folder.display(),
        manifest.shards,
        manifest.documents,
        manifest.tokens
    ));
    Ok(Success::Done)
}

fn layout(arguments: &TokenizeArgs) -> Layout {
    let text = match (&arguments.separator, arguments.documents) {
        (Some(mark), _) => TextDocuments::Mark(unescape(mark)),
        (None, DocumentsName::File) => TextDocuments::File,
        (None, DocumentsName::BlankLine) => TextDocuments::BlankLine,
    };
    Layout {
        text,
        field: arguments.field.clone(),
    }
}

/// Takes `\n`, `\r`, `\t` and `\\` for what they stand for.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (character, character == '\\') {
            (_, true) => match characters.next() {
                Some('n') => out.push('\n'),
                Some('r') => out.push('\r'),
                Some('t') => out.push('\t'),
                Some('\\') | None => out.push('\\'),
                Some(other) => out.extend(['\\', other]),
            },
            (character, false) => out.push(character),
        }
    }
    out
}

/// What the folder holds, and how fast it came.
fn summary(report: &Report, folder: &Path, threads: NonZeroUsize, seconds: f64) -> String {
    let (manifest, added) = (&report.manifest, report.added);
    let megabytes = added.bytes as f64 / 1e6;
    let earlier = manifest.documents - added.documents;
    let earlier = if earlier > 0 {
        format!(" ({earlier} documents were there)")
    } else {
        String::new()
    };
    format!(
        "tokens {}: {} shards, {} documents, {} tokens of {:.2} bytes ({})\n\
         speed  {megabytes:.1} MB in {seconds:.1} s{earlier}: {:.1} MB/s on {threads} threads, {}",
        folder.display(),
        manifest.shards,
        manifest.documents,
        manifest.tokens,
        manifest.bytes as f64 / manifest.tokens.max(1) as f64,
        report.skipped,
        megabytes / seconds.max(1e-9),
        report.way,
    )
}

/// Writes to stdout; a closed pipe is no reason to fail.
fn say(text: &str) {
    let _ = writeln!(stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_written_with_escapes() {
        assert_eq!(unescape(r"\n\n\n\n"), "\n\n\n\n");
        assert_eq!(unescape(r"a\tb\\n\x\"), "a\tb\\n\\x\\");
        assert_eq!(unescape("<|end|>"), "<|end|>");
    }
}
