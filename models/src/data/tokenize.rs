//! Texts into a folder of shards, on all cores, with bounded memory.
//!
//! 1. A thread reads documents and cuts them into pieces (`Reader`, `Encoder::cut`).
//! 2. Threads encode batches of pieces (`Worker::encode`).
//! 3. This thread takes the batches in the order in which they were read, puts the separator behind
//!    each document, and writes shards (`ShardWriter`).
//!
//! The queues between them are short, so memory does not grow with the input: what is held is some
//! batches and the largest document that does not lie in a mapped file. The shards are the same for
//! any number of threads.
//!
//! A run that was interrupted leaves whole shards and no manifest. The next one with the same
//! inputs goes on behind the last whole shard, and the shards come out as if nothing had happened.
//! A run holds the lock of a file in the folder, so that no other one writes there meanwhile.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::SystemTime;

use super::documents::{Document, Inputs, Layout, Reader};
use super::encoder::{Encoded, Encoder, Piece, Worker};
use super::fingerprint::Fingerprint;
use super::shards::{Manifest, ShardHeader, ShardWriter, Shards, file_name, width_of};
use super::source::Skipped;
use super::{DataError, Tokenizer, shards};

/// Bytes of text that are encoded at a time.
const BATCH: usize = 1 << 19;
/// Documents and parts of documents that are encoded at a time.
const PARTS: usize = 1 << 12;
/// The file whose lock a run holds. It is hidden: among texts it is none.
const LOCK: &str = ".tokens.lock";

/// What to tokenise.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// The files.
    pub inputs: &'a Inputs,
    /// Which documents they hold.
    pub layout: &'a Layout,
    /// How text becomes ids.
    pub tokenizer: &'a Tokenizer,
    /// Where the shards go.
    pub folder: &'a Path,
    /// A shard closes behind the document that reaches this many ids.
    pub shard_tokens: NonZeroU64,
    /// Threads that encode.
    pub threads: NonZeroUsize,
    /// What to do with other tokens in the folder.
    pub existing: Existing,
}

/// What to do with tokens of other inputs in the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// They stay, and the job is refused.
    Keep,
    /// They are removed.
    Replace,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the input files.
    pub read: u64,
    /// Documents.
    pub documents: u64,
    /// Ids.
    pub tokens: u64,
    /// Bytes of text that the ids stand for.
    pub bytes: u64,
}

/// What a job did.
#[derive(Clone, Debug)]
pub struct Report {
    /// What the folder holds.
    pub manifest: Manifest,
    /// What this run added to it.
    pub added: Progress,
    /// What was passed over.
    pub skipped: Skipped,
    /// How text was encoded.
    pub way: String,
}

/// Some pieces that are encoded together.
#[derive(Debug, Default)]
struct Batch {
    pieces: Vec<Piece>,
    /// The pieces that documents end with, and the size of each document.
    ends: Vec<(usize, u64)>,
    bytes: usize,
    read: u64,
}

/// A batch and its ids.
#[derive(Debug)]
struct Done {
    batch: Batch,
    ids: Vec<u32>,
    encoded: Vec<Encoded>,
}

/// A batch, and where its ids are waited for.
type Order = (Batch, SyncSender<Result<Done, DataError>>);

/// Tokenises. `progress` hears of every batch.
///
/// # Errors
/// Any [`DataError`] about the inputs, the tokenizer, or the folder, [`DataError::Busy`] while
/// another process writes there. Whole shards stay and are used by the next run.
pub fn tokenize(job: Job<'_>, progress: &mut dyn FnMut(Progress)) -> Result<Report, DataError> {
    let like = header(job)?;
    let encoder = Encoder::new(job.tokenizer);
    let mut report = Report {
        manifest: Manifest::of(job.tokenizer.name(), []),
        added: Progress::default(),
        skipped: job.inputs.skipped,
        way: encoder.way(),
    };
    let _lock = lock(job.folder)?;
    let headers = match earlier(job, &like)? {
        Earlier::Complete(manifest) => {
            report.manifest = manifest;
            return Ok(report);
        }
        Earlier::Shards(headers) => headers,
    };
    let first = headers.last().map_or(like, |last| ShardHeader {
        index: last.index + 1,
        first_document: last.first_document + last.documents,
        ..like
    });
    let mut assembler = Assembler {
        worker: encoder.worker(),
        writer: ShardWriter::new(job.folder, first, job.shard_tokens.get()),
        separator: like.separator,
        separator_bytes: u64::from(matches!(job.tokenizer, Tokenizer::Bytes)),
        headers,
        reached: 0,
        scratch: Vec::new(),
    };
    let threads = job.threads.get();
    thread::scope(|scope| {
        let (work, works) = sync_channel::<Order>(threads);
        let (promise, promises) = sync_channel(4 * threads);
        let works = Arc::new(Mutex::new(works));
        let encoder = &encoder;
        for _ in 0..threads {
            let works = works.clone();
            scope.spawn(move || encode(encoder, &works));
        }
        drop(works);
        let reader = scope.spawn(move || {
            let mut reader = Reader::new(job.inputs, job.layout);
            let skip = first.first_document;
            let result = read(&mut reader, encoder, skip, &|batch| {
                let (done, waiting) = sync_channel(1);
                promise.send(waiting).is_ok() && work.send((batch, done)).is_ok()
            });
            result.map(|()| reader.skipped)
        });
        for waiting in promises {
            // A thread that does not answer has panicked, and the scope says so.
            let Ok(done) = waiting.recv() else { break };
            assembler.take(&done?, &mut report.added)?;
            progress(report.added);
        }
        report.skipped = match reader.join() {
            Ok(skipped) => skipped?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        Ok::<_, DataError>(())
    })?;
    let headers = assembler.finish()?;
    if headers.is_empty() {
        return Err(DataError::NoText {
            path: job
                .inputs
                .files
                .first()
                .map(|file| file.path.clone())
                .unwrap_or_default(),
            skipped: report.skipped,
        });
    }
    report.manifest = Manifest::of(job.tokenizer.name(), &headers);
    report.manifest.write(job.folder)?;
    Ok(report)
}

/// Step 1: hands out batches until the inputs end, or nobody takes them.
fn read(
    reader: &mut Reader<'_>,
    encoder: &Encoder<'_>,
    mut skip: u64,
    hand_out: &dyn Fn(Batch) -> bool,
) -> Result<(), DataError> {
    let mut batch = Batch::default();
    while let Some(document) = reader.next() {
        let Document { text, range, read } = document?;
        batch.read += read;
        if encoder.refuses(text.bytes(range.clone())) {
            reader.skipped.binary += 1;
            continue;
        }
        if skip > 0 {
            skip -= 1;
            continue;
        }
        let size = range.len() as u64;
        let pieces = encoder.cut(&text, range);
        let last = pieces.len().saturating_sub(1);
        for (index, piece) in pieces.into_iter().enumerate() {
            batch.bytes += piece.range.len();
            batch.pieces.push(piece);
            if index == last {
                batch.ends.push((batch.pieces.len() - 1, size));
            }
            if (batch.bytes >= BATCH || batch.pieces.len() >= PARTS)
                && !hand_out(std::mem::take(&mut batch))
            {
                return Ok(());
            }
        }
    }
    hand_out(batch);
    Ok(())
}

/// Step 2: encodes batches until there are no more.
fn encode(encoder: &Encoder<'_>, works: &Mutex<Receiver<Order>>) {
    let mut worker = encoder.worker();
    loop {
        // Nothing can panic while the lock is held, so it is never poisoned.
        let Ok(order) = works.lock().map(|works| works.recv()) else {
            return;
        };
        let Ok((batch, done)) = order else { return };
        let mut ids = Vec::with_capacity(batch.bytes / 3);
        let encoded = batch.pieces.iter();
        let encoded = encoded
            .map(|piece| worker.encode(piece, piece.range.start, &mut ids))
            .collect::<Result<Vec<_>, _>>();
        let result = encoded.map(|encoded| Done {
            batch,
            ids,
            encoded,
        });
        // If nobody waits, the job has failed elsewhere.
        let _ = done.send(result);
    }
}

/// Step 3.
struct Assembler<'a> {
    worker: Worker<'a>,
    writer: ShardWriter,
    separator: Option<u32>,
    /// Bytes that a separator stands for: one among bytes, none among tokens.
    separator_bytes: u64,
    headers: Vec<ShardHeader>,
    /// Where the words of the text in hand have got to.
    reached: usize,
    scratch: Vec<u32>,
}

impl Assembler<'_> {
    /// Writes the ids of a batch.
    fn take(&mut self, done: &Done, progress: &mut Progress) -> Result<(), DataError> {
        let mut ids = &done.ids[..];
        let mut ends = done.batch.ends.iter().peekable();
        for (index, (piece, encoded)) in done.batch.pieces.iter().zip(&done.encoded).enumerate() {
            let (own, rest) = ids.split_at(encoded.ids);
            ids = rest;
            if piece.range.start == piece.whole.start {
                self.reached = piece.whole.start;
            }
            if self.reached == piece.range.start {
                self.writer.push(own)?;
                self.reached = encoded.reached;
                progress.tokens += own.len() as u64;
            } else {
                // The guess where a word begins was wrong.
                self.scratch.clear();
                let again = self.worker.encode(piece, self.reached, &mut self.scratch)?;
                self.writer.push(&self.scratch)?;
                self.reached = again.reached;
                progress.tokens += again.ids as u64;
            }
            if let Some((_, bytes)) = ends.next_if(|(end, _)| *end == index) {
                self.writer.push(self.separator.as_slice())?;
                self.headers
                    .extend(self.writer.end_document(bytes + self.separator_bytes)?);
                progress.tokens += self.separator.as_slice().len() as u64;
                progress.documents += 1;
                progress.bytes += bytes;
            }
        }
        progress.read += done.batch.read;
        Ok(())
    }

    /// Closes the last shard; the headers of all.
    fn finish(mut self) -> Result<Vec<ShardHeader>, DataError> {
        self.headers.extend(self.writer.close()?);
        Ok(self.headers)
    }
}

/// What the headers of a job's shards have in common.
fn header(job: Job<'_>) -> Result<ShardHeader, DataError> {
    let vocab = job.tokenizer.vocab_size() as u64;
    let width = width_of(vocab).ok_or_else(|| DataError::Encode {
        path: job.folder.to_owned(),
        reason: format!("ids up to {vocab} do not fit 31 bits"),
    })?;
    let mut source = Fingerprint::default();
    let mut add = |word: u64| source.update(&word.to_le_bytes());
    add(shards::header::VERSION);
    add(job.tokenizer.fingerprint());
    add(job.shard_tokens.get());
    for input in &job.inputs.files {
        let path = input.path.as_os_str().as_encoded_bytes();
        add(Fingerprint::of(path));
        add(input.size);
        let changed = fs::metadata(&input.path).and_then(|metadata| metadata.modified());
        let changed = changed.map_err(DataError::io(&input.path, "read"))?;
        let since = changed
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        add(since.as_secs());
        add(u64::from(since.subsec_nanos()));
    }
    source.update(format!("{:?}", job.layout).as_bytes());
    Ok(ShardHeader {
        width,
        vocab,
        tokenizer: job.tokenizer.fingerprint(),
        source: source.finish(),
        separator: job.tokenizer.separator(),
        ..ShardHeader::default()
    })
}

/// Makes a folder and takes the right to write there, until the file is closed. The system gives it
/// back when a process ends, however it does. None where nothing can be written.
fn lock(folder: &Path) -> Result<Option<File>, DataError> {
    fs::create_dir_all(folder).map_err(DataError::io(folder, "create"))?;
    // It stays when the run is over: removed, it could be locked under its name by one process and
    // without it by another.
    let path = folder.join(LOCK);
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).open(&path);
    let file = match file {
        Ok(file) => file,
        Err(error) if is_read_only(&error) => return Ok(None),
        Err(error) => return Err(DataError::io(path, "open")(error)),
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(DataError::Busy {
            path: folder.to_owned(),
        }),
        // Some network file systems have no locks; tokens there are worth more than the guard.
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
            Ok(Some(file))
        }
        Err(TryLockError::Error(error)) => Err(DataError::io(path, "lock")(error)),
    }
}

/// True where a folder of finished tokens can be read and nothing else.
fn is_read_only(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
    )
}

/// What an earlier run of the same job left.
enum Earlier {
    /// Everything.
    Complete(Manifest),
    /// Some whole shards, or none.
    Shards(Vec<ShardHeader>),
}

/// Finds what an earlier run left in the folder.
fn earlier(job: Job<'_>, like: &ShardHeader) -> Result<Earlier, DataError> {
    let folder = job.folder;
    let complete = Manifest::read(folder);
    let found = match &complete {
        Ok(Some(_)) => Shards::open(folder).map(|shards| {
            let same = shards.header().source == like.source;
            same.then(|| Earlier::Complete(shards.manifest().clone()))
        }),
        _ => Shards::whole_ones(folder, like).map(|headers| headers.map(Earlier::Shards)),
    };
    match (found, job.existing) {
        (Ok(Some(earlier)), _) => Ok(earlier),
        (Ok(None) | Err(_), Existing::Replace) => {
            remove(folder)?;
            Ok(Earlier::Shards(Vec::new()))
        }
        (Ok(None), Existing::Keep) => Err(DataError::Occupied {
            path: folder.to_owned(),
            reason: "it holds tokens of other inputs; --force replaces them".to_owned(),
        }),
        (Err(error), Existing::Keep) => Err(error),
    }
}

/// Removes a manifest and shards, the manifest first: what is left is never taken for whole.
fn remove(folder: &Path) -> Result<(), DataError> {
    let manifest = folder.join(shards::MANIFEST);
    if manifest.exists() {
        fs::remove_file(&manifest).map_err(DataError::io(manifest, "remove"))?;
    }
    for path in (0..).map(|index| folder.join(file_name(index))) {
        if !path.exists() {
            return Ok(());
        }
        fs::remove_file(&path).map_err(DataError::io(path, "remove"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
