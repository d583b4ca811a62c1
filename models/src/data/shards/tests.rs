//! What is written is read, and what is damaged is found.

use super::*;

const VOCAB: u64 = 70_000;

/// A folder of shards with these documents, of at least `full` ids each.
fn folder(documents: &[&[u32]], vocab: u64, full: u64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let first = ShardHeader {
        width: width_of(vocab).unwrap(),
        vocab,
        tokenizer: 1,
        source: 2,
        ..ShardHeader::default()
    };
    let mut writer = ShardWriter::new(folder.path(), first, full);
    let mut headers = Vec::new();
    for document in documents {
        for part in document.chunks(2) {
            writer.push(part).unwrap();
        }
        headers.extend(writer.end_document(document.len() as u64 * 3).unwrap());
    }
    headers.extend(writer.close().unwrap());
    Manifest::of("test".to_owned(), &headers)
        .write(folder.path())
        .unwrap();
    folder
}

const DOCUMENTS: [&[u32]; 5] = [&[1, 2, 3], &[4], &[5, 6, 7, 8, 69_999], &[9, 10], &[11]];

#[test]
fn ids_are_read_across_shards_whatever_their_width() {
    let narrow = DOCUMENTS.map(|document| document.iter().map(|id| id % 999).collect::<Vec<_>>());
    let narrow = narrow.each_ref().map(|document| &document[..]);
    for (documents, vocab) in [(DOCUMENTS, VOCAB), (narrow, 1000)] {
        let expected: Vec<i32> = documents
            .concat()
            .iter()
            .map(|id| id.cast_signed())
            .collect();
        for full in [1, 3, 4, 100] {
            let folder = folder(&documents, vocab, full);
            let shards = Shards::open(folder.path()).unwrap();
            shards.verify(|_| {}).unwrap();
            assert_eq!((shards.tokens(), shards.manifest().bytes), (12, 36));
            for start in 0..12usize {
                for end in start..=12 {
                    let mut ids = vec![0; end - start];
                    shards.read(start as u64, &mut ids).unwrap();
                    assert_eq!(
                        ids,
                        expected[start..end],
                        "{start}..{end}, shards of {full}"
                    );
                }
            }
            for (start, length) in [(12, 1), (0, 13), (u64::MAX, 1), (u64::MAX - 1, 2)] {
                let error = shards.read(start, &mut vec![0; length]).unwrap_err();
                assert!(matches!(error, DataError::Shard { .. }), "{error}");
            }
        }
    }
}

#[test]
fn documents_are_found_by_their_start() {
    for full in [1, 4, 100] {
        let folder = folder(&DOCUMENTS, VOCAB, full);
        let shards = Shards::open(folder.path()).unwrap();
        let starts = [0, 3, 4, 9, 11, 12];
        for token in 0..=12 {
            let next = starts.into_iter().find(|&start| start >= token).unwrap();
            assert_eq!(
                shards.document_start(token),
                next,
                "from {token}, shards of {full}"
            );
        }
    }
}

#[test]
fn every_changed_byte_and_every_cut_is_found() {
    let folder = folder(&DOCUMENTS, VOCAB, 100);
    let path = folder.path().join(file_name(0));
    let bytes = fs::read(&path).unwrap();
    let damaged = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        Shards::open(folder.path())
            .and_then(|shards| shards.verify(|_| {}))
            .is_err()
    };
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        assert!(damaged(&changed), "byte {at}");
        assert!(damaged(&bytes[..at]), "cut at {at}");
    }
    assert!(!damaged(&bytes));
}

#[test]
fn an_id_outside_the_vocabulary_is_found_when_it_is_read() {
    let folder = folder(&DOCUMENTS, VOCAB, 100);
    let path = folder.path().join(file_name(0));
    let mut bytes = fs::read(&path).unwrap();
    bytes[header::SIZE + 4 * 4 + 3] = 0xff;
    fs::write(&path, bytes).unwrap();
    let shards = Shards::open(folder.path()).unwrap();
    let mut ids = [0; 4];
    shards.read(0, &mut ids).unwrap();
    assert_eq!(ids, [1, 2, 3, 4]);
    let error = shards.read(2, &mut ids).unwrap_err().to_string();
    assert!(error.contains("id 4278190085 at 4"), "{error}");
}

#[test]
fn shards_that_do_not_belong_together_are_refused() {
    let ours = folder(&DOCUMENTS, VOCAB, 4);
    let open = || Shards::open(ours.path()).unwrap_err().to_string();
    let (first, second) = (
        ours.path().join(file_name(0)),
        ours.path().join(file_name(1)),
    );
    let keep = fs::read(&second).unwrap();
    fs::copy(&first, &second).unwrap();
    assert!(
        open().contains("it is shard 0 from document 0 on, not 1 from 2"),
        "{}",
        open()
    );
    fs::remove_file(&second).unwrap();
    assert!(open().contains("00001.tokens: no such file"), "{}", open());
    let other = folder(&[&[1, 2, 3], &[4], &[5, 6, 7, 8, 3]], 99_999, 4);
    fs::copy(other.path().join(file_name(1)), &second).unwrap();
    assert!(
        open().contains("other inputs or by another tokenizer"),
        "{}",
        open()
    );
    fs::write(&second, keep).unwrap();
    Shards::open(ours.path()).unwrap();
    let manifest = ours.path().join(MANIFEST);
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("\"tokens\": 12", "\"tokens\": 13")).unwrap();
    assert!(open().contains("instead of"), "{}", open());
    fs::write(&manifest, "x".repeat(1 << 17)).unwrap();
    assert!(open().contains("too many for a manifest"), "{}", open());
    fs::remove_file(&manifest).unwrap();
    assert!(open().contains("no finished tokens"), "{}", open());
}

#[test]
fn a_document_index_that_lies_leads_nowhere_else() {
    let folder = folder(&DOCUMENTS, VOCAB, 100);
    let path = folder.path().join(file_name(0));
    let mut bytes = fs::read(&path).unwrap();
    let length = bytes.len();
    bytes[length - 16..].fill(0xff);
    fs::write(&path, bytes).unwrap();
    let shards = Shards::open(folder.path()).unwrap();
    for token in 0..=12 {
        assert!(shards.document_start(token) <= 12);
    }
    assert!(shards.verify(|_| {}).is_err());
}
