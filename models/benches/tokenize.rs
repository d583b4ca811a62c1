//! How fast texts become shards: `cargo bench -p burn-nvfp4-models --bench tokenize -- TEXT
//! TOKENIZER [THREADS]`, with a text file and a `tokenizer.json`, or `bytes`.
//!
//! Documents end with four newlines. Prints megabytes of text per second, and per second of
//! processor time where the system tells it.

use std::fs;
use std::io::{Write, stdout};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Instant;

use burn_nvfp4_models::data::Tokenizer;
use burn_nvfp4_models::data::documents::{Inputs, Layout, TextDocuments};
use burn_nvfp4_models::data::tokenize::{Existing, Job, tokenize};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|it| it != "--bench")
        .collect();
    let [text, tokenizer, rest @ ..] = &arguments[..] else {
        writeln!(stdout(), "nothing to do: pass -- TEXT TOKENIZER [THREADS]")?;
        return Ok(());
    };
    let tokenizer = match &tokenizer[..] {
        "bytes" => Tokenizer::Bytes,
        path => Tokenizer::from_file(Path::new(path))?,
    };
    let threads = match rest.first() {
        Some(threads) => threads.parse()?,
        None => available_parallelism()?,
    };
    let inputs = Inputs::find(&[PathBuf::from(text)])?;
    let folder = tempfile::tempdir()?;
    let job = Job {
        inputs: &inputs,
        layout: &Layout {
            text: TextDocuments::Mark("\n\n\n\n".to_owned()),
            field: "text".to_owned(),
        },
        tokenizer: &tokenizer,
        folder: folder.path(),
        shard_tokens: NonZeroU64::MIN.saturating_add(1 << 26),
        threads,
        existing: Existing::Keep,
    };
    let (start, before) = (Instant::now(), processor_seconds());
    let report = tokenize(job, &mut |_| {})?;
    let seconds = start.elapsed().as_secs_f64();
    let megabytes = report.manifest.bytes as f64 / 1e6;
    let processor = match (before, processor_seconds()) {
        (Some(before), Some(after)) => {
            let seconds = after - before;
            format!(
                ", {seconds:.1} s of processor time: {:.1} MB each",
                megabytes / seconds
            )
        }
        _ => String::new(),
    };
    writeln!(
        stdout(),
        "{megabytes:.0} MB, {} tokens, {} documents, {threads} threads, {}: {seconds:.1} s, \
         {:.1} MB/s{processor}",
        report.manifest.tokens,
        report.manifest.documents,
        report.way,
        megabytes / seconds,
    )?;
    Ok(())
}

/// Processor time of this process, user and system, from Linux; absent elsewhere.
fn processor_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    // Fields 14 and 15 of proc(5), in hundredths of a second.
    Some((ticks(11)? + ticks(12)?) / 100.0)
}
