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

/// A folder of files that hold their numbers, but for those that hold a NUL byte.
fn numbered(folder: &Path, count: usize, binary: &[usize]) -> Corpus {
    fs::create_dir(folder).unwrap();
    for index in 0..count {
        let name = format!("{index:02}");
        let text = if binary.contains(&index) {
            "\0"
        } else {
            name.as_str()
        };
        fs::write(folder.join(&name), text).unwrap();
    }
    Corpus::at(folder).unwrap()
}

/// All ids of a part, which are bytes.
fn ids(file: &TokenFile, split: Split) -> Vec<u8> {
    let mut ids = vec![0; usize::try_from(file.tokens(split)).unwrap()];
    file.read(split, 0, &mut ids);
    ids.into_iter()
        .map(|id| u8::try_from(id).unwrap())
        .collect()
}

/// The fingerprint that texts had when files that are passed over still counted in the split.
fn first_fingerprint(texts: &[String]) -> u64 {
    let mut hash = Fingerprint::default();
    for word in [1_u64, 20, Tokenizer::Bytes.fingerprint()] {
        hash.update(&word.to_le_bytes());
    }
    for text in texts {
        hash.update(&Fingerprint::of(text.as_bytes()).to_le_bytes());
    }
    hash.finish()
}

#[test]
fn one_file_is_split_at_a_line_start_near_95_percent() {
    let dir = tempfile::tempdir().unwrap();
    let text = lines(1000);
    let file =
        TokenFile::prepare(&corpus(dir.path(), &text), &Tokenizer::Bytes, dir.path()).unwrap();
    let held_out = ids(&file, Split::Validation);
    let held_out = held_out.strip_suffix(&[0]).unwrap();
    assert!(text.as_bytes().ends_with(held_out));
    assert!(held_out.starts_with(b"line "));
    let share = held_out.len() as f64 / text.len() as f64;
    assert!((0.05..0.06).contains(&share), "{share}");
    assert_eq!(
        file.bytes(Split::Training) + file.bytes(Split::Validation),
        text.len() as u64 + 2
    );
    assert_eq!(file.fingerprint(), first_fingerprint(&[text]));
}

/// The cut went back to the last line start however far away: of a title and one long line, all of
/// the line was held out.
#[test]
fn a_long_line_is_cut_at_95_percent() {
    let dir = tempfile::tempdir().unwrap();
    for letter in ["x", "é"] {
        let text = format!("title\n{}", letter.repeat(9010));
        let corpus = corpus(dir.path(), &text);
        let file = TokenFile::prepare(&corpus, &Tokenizer::Bytes, dir.path()).unwrap();
        let share = file.bytes(Split::Validation) as f64 / text.len() as f64;
        assert!((0.05..0.051).contains(&share), "{letter}: {share}");
        assert_ne!(file.fingerprint(), first_fingerprint(&[text]), "{letter}");
    }
    // Just before the aim, as far from it as may be, and one byte further.
    for (line_end, cut) in [(949, 950), (899, 900), (898, 950)] {
        let text = format!("{}\n{}", "x".repeat(line_end), "x".repeat(999 - line_end));
        let parts = [Split::Training, Split::Validation].map(|split| part_of(&text, split).len());
        assert_eq!(parts, [cut, 1000 - cut], "{line_end}");
    }
}

#[test]
fn twenty_files_hold_out_the_twentieth() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = numbered(&dir.path().join("texts"), 20, &[]);
    let file = TokenFile::prepare(&corpus, &Tokenizer::Bytes, dir.path()).unwrap();
    assert_eq!(file.tokens(Split::Training), 57);
    assert_eq!(ids(&file, Split::Validation), b"19\0");
    assert_eq!(file.files(), 20);
}

/// They counted: of 21 files whose twentieth was an image, none was held out.
#[test]
fn files_that_are_passed_over_do_not_count_in_the_split() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = numbered(&dir.path().join("twenty"), 21, &[19]);
    let file = TokenFile::prepare(&corpus, &Tokenizer::Bytes, dir.path()).unwrap();
    assert_eq!(ids(&file, Split::Validation), b"20\0");
    assert_eq!((file.files(), file.skipped().binary), (20, 1));
    // Nineteen texts are too few to hold out one of them; of each, nothing but the separator is.
    let corpus = numbered(&dir.path().join("nineteen"), 20, &[3]);
    let file = TokenFile::prepare(&corpus, &Tokenizer::Bytes, dir.path()).unwrap();
    assert_eq!(ids(&file, Split::Validation), [0_u8; 19]);
    assert_eq!((file.files(), file.skipped().binary), (19, 1));
}

/// Token files from then are used again where the split is the same, and nowhere else.
#[test]
fn texts_alone_keep_their_fingerprint_and_those_among_other_files_get_another() {
    let dir = tempfile::tempdir().unwrap();
    let clean = numbered(&dir.path().join("clean"), 20, &[]);
    let texts: Vec<_> = (0..20).map(|index| format!("{index:02}")).collect();
    let prepare =
        |corpus: &Corpus| TokenFile::prepare(corpus, &Tokenizer::Bytes, dir.path()).unwrap();
    let first = first_fingerprint(&texts);
    assert_eq!(prepare(&clean).fingerprint(), first);
    fs::write(dir.path().join("clean/05.png"), b"\0").unwrap();
    let mixed = Corpus::at(&dir.path().join("clean")).unwrap();
    assert_ne!(prepare(&mixed).fingerprint(), first);
    assert_eq!(prepare(&mixed).skipped().binary, 1);
    // What was made of the texts and the image when that counted has the fingerprint of the texts.
    let path = dir.path().join(format!("{first:016x}.tokens"));
    let right = fs::read(&path).unwrap();
    let mut header = Header::from_bytes(&right).unwrap();
    header.skipped[1] = 1;
    let old = [&header.to_bytes()[..], &right[HEADER..]].concat();
    fs::write(&path, old).unwrap();
    assert!(TokenFile::open(&path, PathBuf::new()).is_ok());
    assert_eq!(prepare(&clean).skipped().binary, 0);
    assert_eq!(fs::read(&path).unwrap(), right);
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
