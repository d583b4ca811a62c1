//! Whole jobs: threads, interruptions, other inputs.

use std::path::PathBuf;

use super::super::documents::TextDocuments;
use super::super::tokenizer::tests::{byte_level_bpe, from_json};
use super::*;

/// A folder with a text of some documents in it.
struct Case {
    folder: tempfile::TempDir,
    inputs: Vec<PathBuf>,
    layout: Layout,
}

impl Case {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.txt");
        fs::write(&path, text).unwrap();
        Self {
            folder,
            inputs: vec![path],
            layout: Layout {
                text: TextDocuments::BlankLine,
                field: "text".to_owned(),
            },
        }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(
        &self,
        tokenizer: &Tokenizer,
        out: &Path,
        full: u64,
        threads: usize,
        existing: Existing,
    ) -> Result<Report, DataError> {
        let inputs = Inputs::find(&self.inputs)?;
        let job = Job {
            inputs: &inputs,
            layout: &self.layout,
            tokenizer,
            folder: out,
            shard_tokens: NonZeroU64::new(full).unwrap(),
            threads: NonZeroUsize::new(threads).unwrap(),
            existing,
        };
        let mut last = Progress::default();
        let report = tokenize(job, &mut |now| last = now)?;
        assert_eq!(last, report.added);
        Ok(report)
    }
}

fn ids(folder: &Path) -> Vec<u32> {
    let shards = Shards::open(folder).unwrap();
    shards.verify(|_| {}).unwrap();
    let mut ids = vec![0; usize::try_from(shards.tokens()).unwrap()];
    shards.read(0, &mut ids).unwrap();
    ids.into_iter().map(i32::cast_unsigned).collect()
}

/// Every file of a folder but the lock.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries
        .filter(|path| !path.ends_with(LOCK))
        .map(|path| {
            (
                path.strip_prefix(folder).unwrap().to_owned(),
                fs::read(&path).unwrap(),
            )
        })
        .collect();
    files.sort_unstable();
    files
}

/// Documents of one to twenty words.
fn text(documents: usize) -> String {
    let document = |index: usize| format!("document {index}\n{}", "the other ".repeat(index % 20));
    (0..documents)
        .map(document)
        .collect::<Vec<_>>()
        .join("\n\n")
}

/// A byte-level tokenizer with an end-of-document token.
fn bpe(folder: &Path) -> Tokenizer {
    let mut json: serde_json::Value = serde_json::from_str(&byte_level_bpe()).unwrap();
    json["added_tokens"] = serde_json::json!([{
        "id": 258, "content": "<|endoftext|>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true,
    }]);
    from_json(folder, &json.to_string())
}

#[test]
fn shards_hold_every_document_with_a_separator_behind_it() {
    let case = Case::new("naïve the\n\nthe other\n\n\n\nend");
    let out = case.out("bytes");
    let report = case
        .run(&Tokenizer::Bytes, &out, 8, 2, Existing::Keep)
        .unwrap();
    assert_eq!(
        ids(&out),
        b"na\xc3\xafve the\0the other\0end\0".map(u32::from)
    );
    let manifest = report.manifest;
    assert_eq!((manifest.shards, manifest.documents), (3, 3));
    assert_eq!((manifest.tokens, manifest.bytes), (25, 25));
    let tokenizer = bpe(case.folder.path());
    let out = case.out("bpe");
    case.run(&tokenizer, &out, 1 << 20, 1, Existing::Keep)
        .unwrap();
    let mut expected = Vec::new();
    for document in ["naïve the", "the other", "end"] {
        expected.extend(tokenizer.encode_prompt(document).unwrap());
        expected.push(258);
    }
    assert_eq!(ids(&out), expected);
}

#[test]
fn any_number_of_threads_writes_the_same_files() {
    let case = Case::new(&text(5000));
    let tokenizer = bpe(case.folder.path());
    let run = |threads: usize| {
        let out = case.out(&threads.to_string());
        case.run(&tokenizer, &out, 20_000, threads, Existing::Keep)
            .unwrap();
        files(&out)
    };
    let one = run(1);
    assert!(one.len() > 3, "{} files", one.len());
    assert_eq!(run(2), one);
    assert_eq!(run(7), one);
}

#[test]
fn one_long_document_is_cut_without_a_trace() {
    // A word longer than a piece, words that straddle pieces, and no space to cut at.
    let long = format!(
        "{} {}",
        "the".repeat(200_000),
        "thé<|endoftext|>\u{3000}".repeat(40_000)
    );
    let case = Case::new(&long);
    let tokenizer = bpe(case.folder.path());
    let out = case.out("out");
    let report = case.run(&tokenizer, &out, 1000, 3, Existing::Keep).unwrap();
    let mut expected = tokenizer.encode_prompt(&long).unwrap();
    expected.push(258);
    assert!(ids(&out) == expected, "other ids");
    assert_eq!((report.manifest.shards, report.manifest.documents), (1, 1));
}

#[test]
fn an_interrupted_run_goes_on_behind_its_last_whole_shard() {
    let case = Case::new(&text(2000));
    let tokenizer = bpe(case.folder.path());
    let out = case.out("out");
    let run = |existing| case.run(&tokenizer, &out, 10_000, 2, existing);
    run(Existing::Keep).unwrap();
    let whole = files(&out);
    let shards = whole.len() - 1;
    for kept in [0, 1, shards - 1] {
        fs::remove_file(out.join(shards::MANIFEST)).unwrap();
        for index in kept..shards {
            fs::remove_file(out.join(file_name(index as u64))).unwrap();
        }
        // What a killed process leaves of the shard in hand.
        fs::write(
            out.join(format!("{}.part", file_name(kept as u64))),
            b"half",
        )
        .unwrap();
        assert!(matches!(
            Shards::open(&out),
            Err(DataError::Incomplete { .. })
        ));
        let report = run(Existing::Keep).unwrap();
        assert!(files(&out) == whole, "other files after {kept} shards");
        let documents = report.manifest.documents;
        assert_eq!(
            report.added.documents < documents,
            kept > 0,
            "{kept} shards"
        );
    }
    // Once more, and there is nothing to do.
    assert_eq!(run(Existing::Keep).unwrap().added, Progress::default());
}

#[test]
fn other_inputs_are_refused_or_replaced() {
    let case = Case::new(&text(100));
    let out = case.out("out");
    case.run(&Tokenizer::Bytes, &out, 1000, 2, Existing::Keep)
        .unwrap();
    let whole = files(&out);
    let error = case
        .run(&Tokenizer::Bytes, &out, 2000, 2, Existing::Keep)
        .unwrap_err();
    assert!(
        error.to_string().contains("tokens of other inputs"),
        "{error}"
    );
    fs::remove_file(out.join(shards::MANIFEST)).unwrap();
    let error = case
        .run(&Tokenizer::Bytes, &out, 2000, 2, Existing::Keep)
        .unwrap_err();
    assert!(
        error.to_string().contains("tokens of other inputs"),
        "{error}"
    );
    case.run(&Tokenizer::Bytes, &out, 2000, 2, Existing::Replace)
        .unwrap();
    assert!(files(&out).len() < whole.len());
    ids(&out);
    // A damaged shard is named, and replaced on request.
    let path = out.join(file_name(0));
    let mut bytes = fs::read(&path).unwrap();
    bytes.pop();
    fs::write(&path, bytes).unwrap();
    let error = case
        .run(&Tokenizer::Bytes, &out, 2000, 2, Existing::Keep)
        .unwrap_err();
    assert!(matches!(error, DataError::Shard { .. }), "{error}");
    case.run(&Tokenizer::Bytes, &out, 2000, 2, Existing::Replace)
        .unwrap();
    ids(&out);
}

/// Two processes wrote shards of the same names, and each took those of the other for its own.
#[test]
fn a_folder_that_another_process_writes_to_is_left_alone() {
    let case = Case::new(&text(100));
    let out = case.out("out");
    let run = |full, existing| case.run(&Tokenizer::Bytes, &out, full, 2, existing);
    // At first there is nothing in it, then the tokens of other parameters.
    for full in [1000, 2000] {
        let other = lock(&out).unwrap();
        let before = files(&out);
        for existing in [Existing::Keep, Existing::Replace] {
            let error = run(full, existing).unwrap_err();
            assert!(matches!(error, DataError::Busy { .. }), "{error}");
            let expected = format!("{}: another process writes tokens there", out.display());
            assert!(error.to_string().starts_with(&expected), "{error}");
        }
        assert_eq!(files(&out), before);
        drop(other);
        run(full, Existing::Replace).unwrap();
    }
    // The lock is no text.
    let skipped = Inputs::find(std::slice::from_ref(&out)).unwrap().skipped;
    assert_eq!((skipped.hidden, skipped.binary, skipped.empty), (1, 0, 0));
}

#[test]
fn a_failure_in_the_middle_leaves_whole_shards_alone() {
    let mut case = Case::new(&text(20_000));
    let bad = case.out("bad.jsonl");
    fs::write(&bad, "{\"text\": \"x\"}\nno object\n").unwrap();
    case.inputs.push(bad);
    let out = case.out("out");
    let error = case
        .run(&Tokenizer::Bytes, &out, 50_000, 2, Existing::Keep)
        .unwrap_err();
    assert!(error.to_string().contains("bad.jsonl: line 2"), "{error}");
    let left = files(&out);
    assert!(!left.is_empty());
    for (name, _) in left {
        assert_eq!(name.extension().unwrap(), "tokens");
        shards::Shard::open(&out.join(name))
            .unwrap()
            .verify()
            .unwrap();
    }
}

#[test]
fn text_that_holds_the_byte_separator_is_passed_over() {
    let mut case = Case::new("unused");
    let path = case.out("a.jsonl");
    fs::write(&path, "{\"text\": \"a\\u0000b\"}\n{\"text\": \"c\"}\n").unwrap();
    case.inputs = vec![path];
    let out = case.out("out");
    let report = case
        .run(&Tokenizer::Bytes, &out, 100, 1, Existing::Keep)
        .unwrap();
    assert_eq!(report.skipped.binary, 1);
    assert_eq!(ids(&out), [u32::from(b'c'), 0]);
    let error = case.run(&Tokenizer::Bytes, &out, 100, 1, Existing::Keep);
    assert_eq!(error.unwrap().added, Progress::default());
}
