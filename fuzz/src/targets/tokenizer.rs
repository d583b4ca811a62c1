//! `tokenizer.json`, and the `tokenizer_config.json` beside it.

use std::path::Path;

use burn_nvfp4_models::data::{TextStream, Tokenizer};

use crate::bundle::{Bundle, Desk};

/// Loads a tokenizer, encodes a text with it and decodes the ids. No id is beyond the vocabulary.
pub(super) fn encode(desk: &Desk, bundle: &Bundle<'_>) -> bool {
    desk.lay(bundle, &["tokenizer.json", "tokenizer_config.json"]);
    let tokenizer = match Tokenizer::from_file(&desk.path("tokenizer.json")) {
        Ok(tokenizer) => tokenizer,
        Err(error) => {
            let message = error.to_string();
            assert_eq!(message.lines().count(), 1, "{message}");
            return false;
        }
    };
    let text = bundle.text("text");
    let mut ids = Vec::new();
    let appended = tokenizer.encode_into(&text, Path::new("a text"), &mut ids);
    let prompt = tokenizer.encode_prompt(&text);
    let accepted = appended.is_ok() && prompt.is_ok();
    ids.extend(prompt.unwrap_or_default());
    ids.extend(tokenizer.begin());
    let outside = ids
        .iter()
        .find(|&&id| id as usize >= tokenizer.vocab_size());
    assert_eq!(outside, None, "of {}", tokenizer.vocab_size());
    tokenizer.decode(&ids);
    let mut stream = TextStream::after(&tokenizer, &ids[..ids.len() / 2]);
    for &id in &ids[ids.len() / 2..] {
        stream.push(id);
    }
    stream.finish();
    accepted
}
