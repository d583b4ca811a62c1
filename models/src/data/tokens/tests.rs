//! Token files: reuse, damage, and the split.

use super::*;

fn corpus(dir: &Path, text: &str) -> Corpus {
    let path = dir.join("text.txt");
    fs::write(&path, text).unwrap();
    Corpus::at(&path).unwrap()
}

fn lines(count: usize) -> String {
    (0..count).map(|i| format!("line {i}\n")).collect()
}

#[test]
fn one_file_is_split_at_a_line_start_near_95_percent() {
    let dir = tempfile::tempdir().unwrap();
    let text = lines(1000);
    let file =
        TokenFile::prepare(&corpus(dir.path(), &text), &Tokenizer::Bytes, dir.path()).unwrap();
    let mut ids = vec![0; usize::try_from(file.tokens(Split::Validation)).unwrap()];
    file.read(Split::Validation, 0, &mut ids);
    let held_out: Vec<u8> = ids.iter().map(|&id| u8::try_from(id).unwrap()).collect();
    let held_out = held_out.strip_suffix(&[0]).unwrap();
    assert!(text.as_bytes().ends_with(held_out));
    assert!(held_out.starts_with(b"line "));
    let share = held_out.len() as f64 / text.len() as f64;
    assert!((0.05..0.06).contains(&share), "{share}");
    assert_eq!(
        file.bytes(Split::Training) + file.bytes(Split::Validation),
        text.len() as u64 + 2
    );
}

#[test]
fn twenty_files_hold_out_the_twentieth() {
    let dir = tempfile::tempdir().unwrap();
    let texts = dir.path().join("texts");
    fs::create_dir(&texts).unwrap();
    for index in 0..20 {
        fs::write(texts.join(format!("{index:02}")), format!("{index:02}")).unwrap();
    }
    let corpus = Corpus::at(&texts).unwrap();
    let file = TokenFile::prepare(&corpus, &Tokenizer::Bytes, dir.path()).unwrap();
    assert_eq!(
        (file.tokens(Split::Training), file.tokens(Split::Validation)),
        (57, 3)
    );
    let mut ids = [0; 3];
    file.read(Split::Validation, 0, &mut ids);
    assert_eq!(ids, [i32::from(b'1'), i32::from(b'9'), 0]);
    assert_eq!(file.files(), 20);
}

#[test]
fn an_unchanged_corpus_is_not_tokenised_again_and_a_changed_one_is() {
    let dir = tempfile::tempdir().unwrap();
    let modified = || {
        let entries = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap());
        let tokens =
            entries.filter(|entry| entry.file_name().to_string_lossy().ends_with("tokens"));
        tokens
            .map(|entry| entry.metadata().unwrap().modified().unwrap())
            .collect::<Vec<_>>()
    };
    let first = corpus(dir.path(), &lines(100));
    TokenFile::prepare(&first, &Tokenizer::Bytes, dir.path()).unwrap();
    let before = modified();
    TokenFile::prepare(&first, &Tokenizer::Bytes, dir.path()).unwrap();
    assert_eq!(modified(), before);
    let second = corpus(dir.path(), &lines(101));
    TokenFile::prepare(&second, &Tokenizer::Bytes, dir.path()).unwrap();
    assert_eq!(modified().len(), 2);
}

#[test]
fn a_damaged_token_file_is_named_and_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = corpus(dir.path(), &lines(100));
    let file = TokenFile::prepare(&corpus, &Tokenizer::Bytes, dir.path()).unwrap();
    let path = dir
        .path()
        .join(format!("{:016x}.tokens", file.fingerprint()));
    drop(file);
    let intact = fs::read(&path).unwrap();
    let mut flipped = intact.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut wrong_header = intact.clone();
    wrong_header[20] ^= 1;
    for (damage, reason) in [
        (&flipped[..], "the checksum does not hold"),
        (&wrong_header, "the header's checksum does not hold"),
        (&intact[..intact.len() - 1], "bytes long instead of"),
        (&intact[..10], "10 bytes are too few for a header"),
        (
            b"something else that is long enough to be a header................................\
           ..................................................",
            "does not begin like one",
        ),
    ] {
        fs::write(&path, damage).unwrap();
        let error = TokenFile::open(&path, PathBuf::new())
            .unwrap_err()
            .to_string();
        assert!(error.contains(reason), "{error}");
        TokenFile::prepare(&corpus, &Tokenizer::Bytes, dir.path()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), intact);
    }
}
