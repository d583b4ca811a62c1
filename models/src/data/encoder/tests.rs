//! Ids by words against ids of the whole text.

use std::path::Path;

use super::super::order::mix;
use super::super::tokenizer::tests::{byte_level_bpe, from_json};
use super::*;

/// Llama 3's pattern, as its tokenizer.json has it.
const LLAMA: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// GPT-4's pattern, as tiktoken has it.
const GPT4: &str = concat!(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
);

/// What texts are drawn from: what patterns tell apart, and what they must not.
const PARTS: [&str; 26] = [
    "the", "th", "other", "a", "Zebra", "é", "中文", "٣", "7", "1234", " ", " ", " ", "  ", "\n",
    "\n\n", "\r\n", "\t", "\u{a0}", "\u{3000}", "'s", "'LL", "!?", "<|end|>", "<extra>", "😀",
];

fn text(seed: u64, parts: u64) -> String {
    let part = |number| PARTS[usize::try_from(mix(seed << 32 | number) % 26).unwrap()];
    (0..parts).map(part).collect()
}

/// A tokenizer of two merges: with this pattern, or with GPT-2's, and with these added tokens.
fn tokenizer(pattern: Option<&str>, added: &[(&str, bool)]) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    from_json(folder.path(), &file(pattern, added).to_string())
}

/// The file of such a tokenizer.
fn file(pattern: Option<&str>, added: &[(&str, bool)]) -> serde_json::Value {
    let mut json: serde_json::Value = serde_json::from_str(&byte_level_bpe()).unwrap();
    if let Some(pattern) = pattern {
        json["pre_tokenizer"] = serde_json::json!({
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
                 "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                 "use_regex": false},
            ],
        });
    }
    let token = |(index, &(content, normalized)): (usize, &(&str, bool))| {
        serde_json::json!({
            "id": 258 + index, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": normalized, "special": !normalized,
        })
    };
    json["added_tokens"] = added.iter().enumerate().map(token).collect();
    json
}

/// The ids of a text in pieces of about this size, put together as `tokenize` does.
fn in_pieces(tokenizer: &Tokenizer, text: &str, piece: usize) -> (Vec<u32>, usize) {
    let mut encoder = Encoder::new(tokenizer);
    encoder.piece = piece;
    let path: Arc<Path> = Path::new("text").into();
    let text = Arc::new(Text::read(text.to_owned(), &path));
    let mut worker = encoder.worker();
    let (mut ids, mut reached, mut wrong) = (Vec::new(), 0, 0);
    for piece in encoder.cut(&text, 0..text.len()) {
        if piece.range.start == piece.whole.start {
            reached = piece.whole.start;
        }
        // Every piece is encoded where it was guessed to begin, as by another thread.
        let mut guess = Vec::new();
        let encoded = worker
            .encode(&piece, piece.range.start, &mut guess)
            .unwrap();
        assert_eq!(encoded.ids, guess.len());
        if reached == piece.range.start {
            reached = encoded.reached;
            ids.extend(guess);
        } else {
            wrong += 1;
            reached = worker.encode(&piece, reached, &mut ids).unwrap().reached;
        }
    }
    (ids, wrong)
}

fn whole(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let Tokenizer::File(file) = tokenizer else {
        panic!("a tokenizer file")
    };
    file.inner().encode(text, false).unwrap().get_ids().to_vec()
}

#[test]
fn ids_by_words_are_those_of_the_crate_wherever_a_text_is_cut() {
    let added = [("<|end|>", false), ("<extra>", true)];
    let mut wrong = 0;
    for tokenizer in [
        tokenizer(None, &[]),
        tokenizer(Some(LLAMA), &[]),
        tokenizer(None, &added[..1]),
        tokenizer(None, &added[1..]),
        tokenizer(Some(LLAMA), &added),
        // A pattern that leaves gaps, and one whose words may hold spaces.
        tokenizer(Some(r"\p{L}+|\p{N}"), &added),
        tokenizer(Some(r"\p{L}+( \p{L}+)*|[^\p{L}]"), &[]),
    ] {
        assert_eq!(Encoder::new(&tokenizer).way(), "word by word");
        for seed in 0..60 {
            let text = text(seed, 1 + seed * 5);
            let expected = whole(&tokenizer, &text);
            for piece in [1, 2, 3, 7, 50, 1 << 20] {
                let (ids, again) = in_pieces(&tokenizer, &text, piece);
                assert_eq!(ids, expected, "seed {seed}, pieces of {piece}: {text:?}");
                wrong += again;
            }
        }
    }
    assert!(
        wrong > 1000,
        "only {wrong} pieces began within a word: that is not tested"
    );
}

/// regex-syntax reads `x?+` as `(?:x?)+`, and the crate as one that gives nothing back: `::vec` was
/// one word here and is two there.
#[test]
fn possessive_quantifiers_are_left_to_the_crate() {
    for pattern in [
        GPT4,
        "a?+",
        "a++",
        "a*+",
        "a{1,3}+",
        "a+?+",
        "[+]++",
        r"[a\]+]?+",
        "[]+]*+",
        r"\+++",
        r"\p{L}?+x",
        r"\d{2}+",
    ] {
        let reason = WordSplitter::new(pattern).unwrap_err();
        assert!(reason.contains("possessive"), "{pattern}: {reason}");
    }
    for pattern in [
        LLAMA,
        BYTE_LEVEL,
        r"\++",
        "[+]+",
        r"[a\]+]+",
        "[]+]+",
        "[^]+]+",
        "[a[?+]*+]+",
        "[{2}+]+",
        r"\p{L}+",
        r"\x{41}+",
        r"\\+",
        "a+?",
        "a??b",
        "(?:a?)+b",
        "a{2}b+",
    ] {
        let refused = WordSplitter::new(pattern).err();
        assert_eq!(refused, None, "{pattern}");
    }

    let mut json = file(Some(GPT4), &[]);
    // Merges across the places where only one of the readings cuts.
    let merges = [(":", "v"), ("\"", "h"), ("Ġ", "Ġ")];
    for (number, (left, right)) in merges.into_iter().enumerate() {
        json["model"]["vocab"][format!("{left}{right}")] = (258 + number).into();
        let list = json["model"]["merges"].as_array_mut().unwrap();
        list.push(serde_json::json!([left, right]));
    }
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = from_json(folder.path(), &json.to_string());
    let way = Encoder::new(&tokenizer).way();
    assert!(way.contains("possessive"), "{way}");
    for text in ["std::vec", "say (\"hello\")", "\n    return x"] {
        let (ids, _) = in_pieces(&tokenizer, text, 1 << 20);
        assert_eq!(ids, whole(&tokenizer, text), "{text:?}");
    }
}

#[test]
fn words_that_were_forgotten_come_back_the_same() {
    let tokenizer = tokenizer(None, &[]);
    let encoder = Encoder::new(&tokenizer);
    let mut worker = encoder.worker();
    let Way::Words(words) = &encoder.way else {
        panic!("by words")
    };
    let long = "the".repeat(100);
    let mut first = Vec::new();
    for word in ["the", " the", &long] {
        worker.word(words, word.as_bytes(), &mut first).unwrap();
    }
    assert_eq!(worker.known.len(), 2, "a long word is not remembered");
    worker.known.clear();
    worker.ids.clear();
    let mut again = Vec::new();
    for _ in 0..2 {
        again.clear();
        for word in ["the", " the", &long] {
            worker.word(words, word.as_bytes(), &mut again).unwrap();
        }
        assert_eq!(again, first);
    }
}

#[test]
fn what_does_not_work_by_words_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let way = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut json: serde_json::Value = serde_json::from_str(&byte_level_bpe()).unwrap();
        change(&mut json);
        Encoder::new(&from_json(folder.path(), &json.to_string())).way()
    };
    assert_eq!(way(&|_| {}), "word by word");
    type Change<'a> = &'a dyn Fn(&mut serde_json::Value);
    let cases: [(Change<'_>, &str); 4] = [
        (
            &|json| json["normalizer"] = serde_json::json!({"type": "NFC"}),
            "a normalizer",
        ),
        (
            &|json| json["pre_tokenizer"]["add_prefix_space"] = true.into(),
            "not one pattern",
        ),
        (
            &|json| json["pre_tokenizer"] = serde_json::Value::Null,
            "no pre-tokenizer",
        ),
        (&|json| json["model"]["dropout"] = 0.1.into(), "at random"),
    ];
    for (change, reason) in cases {
        let way = way(change);
        assert!(way.contains(reason), "{way}");
    }
}
