//! `nvfp4 generate` as a user meets it.

use std::io::Read;

use serde_json::json;

use super::shelf::Shelf;
use super::*;

/// `nvfp4 generate` on a shelf.
trait Generate {
    /// `nvfp4 generate` with these arguments.
    fn run(&self, arguments: &[&str]) -> Command;

    /// The output of `nvfp4 generate --tokenizer bytes --prompt "ab cd"` with more arguments.
    fn generate(&self, arguments: &str) -> Output;

    /// The same, which has to succeed: the text, and why it ended.
    fn text(&self, arguments: &str) -> (String, String);
}

impl Generate for Shelf {
    fn run(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(&["generate"]);
        command.args(arguments);
        command
    }

    fn generate(&self, arguments: &str) -> Output {
        let mut command = self.run(&["--tokenizer", "bytes", "--prompt", "ab cd"]);
        command.args(arguments.split_whitespace()).output().unwrap()
    }

    fn text(&self, arguments: &str) -> (String, String) {
        let output = self.generate(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        let text = String::from_utf8(output.stdout).expect("whole characters only");
        (text, stderr)
    }
}

#[test]
fn the_seed_decides_the_text_and_the_top_token_is_the_greedy_one() {
    let shelf = Shelf::new();
    let text = |arguments: &str| {
        let arguments = format!("--model model --max-tokens 12 {arguments}");
        shelf.text(&arguments).0
    };
    let drawn = "--temperature 1.2 --top-k 100 --top-p 0.95 --seed";
    assert_eq!(text(&format!("{drawn} 3")), text(&format!("{drawn} 3")));
    assert_ne!(text(&format!("{drawn} 3")), text(&format!("{drawn} 4")));
    let greedy = text("");
    assert!(greedy.ends_with('\n'));
    assert_eq!(text("--temperature 2 --top-k 1 --seed 8"), greedy);
    assert_eq!(text("--temperature 2 --top-p 1e-9 --seed 9"), greedy);
    assert_eq!(text("--backend flex"), greedy);
}

#[test]
fn a_text_ends_at_its_limit_at_an_end_of_text_token_or_with_the_window() {
    let shelf = Shelf::new();
    shelf.add("short", |config| config.context_len = 8);
    shelf.add("mute", |config| {
        config.special_tokens.eos = (0..256).collect();
    });
    let (_, end) = shelf.text("--model model --max-tokens 3");
    assert!(
        end.contains("text: 3 tokens") && end.contains("--max-tokens"),
        "{end}"
    );
    let (_, end) = shelf.text("--model short --max-tokens 100");
    // Five ids of the prompt, three more that are read, and one that is not.
    assert!(
        end.contains("text: 4 tokens") && end.contains("window"),
        "{end}"
    );
    let (text, end) = shelf.text("--model mute");
    assert_eq!(text, "\n");
    assert!(
        end.contains("text: 1 tokens") && end.contains("end-of-text"),
        "{end}"
    );
}

/// A tokenizer of whole words.
fn words<'a>(vocab: impl IntoIterator<Item = (&'a str, u32)>) -> String {
    let vocab: serde_json::Map<_, _> = vocab
        .into_iter()
        .map(|(word, id)| (word.to_owned(), json!(id)))
        .collect();
    json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "?"},
    })
    .to_string()
}

/// Reads a few bytes while the command runs, and closes the pipe on it.
#[cfg(unix)]
#[test]
fn text_comes_while_it_is_made_and_a_closed_pipe_ends_it() {
    let shelf = Shelf::new();
    // No id ends a text: the tokenizer knows no separator, and the model's is out of reach.
    shelf.add("endless", |config| config.special_tokens.eos = vec![999]);
    let names: Vec<String> = (0..256).map(|id| format!("w{id}")).collect();
    let vocab = (0..).zip(&names).map(|(id, name)| (name.as_str(), id));
    fs::write(shelf.path("endless/tokenizer.json"), words(vocab)).unwrap();
    let mut child = shelf
        .run(&["--model", "endless", "--prompt", "w1 w2"])
        .args(["--max-tokens", "1000000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 4]).unwrap();
    assert!(child.try_wait().unwrap().is_none(), "still writing");
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("stdout was closed"), "{stderr}");
}

#[test]
fn the_tokenizer_of_the_folder_is_taken() {
    let shelf = Shelf::new();
    fs::write(
        shelf.path("model/tokenizer.json"),
        words([("?", 0), ("ab", 1), ("cd", 2)]),
    )
    .unwrap();
    let output = shelf
        .run(&["--model", "model", "--prompt", "ab cd", "--max-tokens", "2"])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.starts_with("prompt: 2 tokens"), "{stderr}");
}

#[test]
fn what_is_wrong_with_a_checkpoint_or_a_prompt_exits_with_1() {
    let shelf = Shelf::new();
    shelf.add("short", |config| config.context_len = 4);
    let copy = |name: &str| {
        fs::create_dir(shelf.path(name)).unwrap();
        for entry in fs::read_dir(shelf.path("model")).unwrap() {
            let path = entry.unwrap().path();
            let file = path.file_name().unwrap();
            fs::copy(&path, shelf.path(name).join(file)).unwrap();
        }
    };
    for name in ["headless", "truncated", "deeper", "large", "garbled"] {
        copy(name);
    }
    fs::remove_file(shelf.path("headless/model.safetensors")).unwrap();
    let weights = fs::read(shelf.path("model/model.safetensors")).unwrap();
    let half = &weights[..weights.len() / 2];
    fs::write(shelf.path("truncated/model.safetensors"), half).unwrap();
    let config = fs::read_to_string(shelf.path("model/config.json")).unwrap();
    let deeper = config.replacen("\"hidden_size\": 32", "\"hidden_size\": 48", 1);
    assert_ne!(config, deeper);
    fs::write(shelf.path("deeper/config.json"), deeper).unwrap();
    let tokenizer = words([("?", 0), ("ab", 1), ("cd", 999)]);
    fs::write(shelf.path("large/tokenizer.json"), tokenizer).unwrap();
    fs::write(shelf.path("garbled/tokenizer.json"), "{\"model\": 3}").unwrap();
    fs::write(shelf.path("file"), "").unwrap();
    fs::create_dir(shelf.path("empty")).unwrap();
    let bytes: [(&str, &[&str]); 7] = [
        ("none", &["none", "no such folder"]),
        ("file", &["file", "no such folder"]),
        ("empty", &["empty/config.json", "cannot read"]),
        ("headless", &["headless", "cannot read"]),
        (
            "truncated",
            &["truncated", "model.safetensors is unreadable"],
        ),
        (
            "deeper",
            &[
                "lm_head.weight has shape",
                "backbone.norm_f.weight has shape",
            ],
        ),
        (
            "short",
            &[
                "the prompt has 5 tokens",
                "window is 4",
                "max_position_embeddings",
            ],
        ),
    ];
    for (model, words) in bytes {
        check_error(&shelf.generate(&format!("--model {model}")), 1, words);
    }
    let files: [(&[&str], &[&str]); 5] = [
        (
            &["--model", "model"],
            &["model/tokenizer.json", "no such file", "bytes"],
        ),
        (
            &["--model", "model", "--tokenizer", "none.json"],
            &["none.json", "no such file"],
        ),
        (
            &["--model", "large"],
            &["large", "1000 ids", "vocabulary of 256"],
        ),
        (
            &["--model", "garbled"],
            &["tokenizer.json", "not a usable tokenizer.json"],
        ),
        (
            &["--model", "model", "--tokenizer", "bytes", "--prompt", ""],
            &["the prompt is empty"],
        ),
    ];
    for (arguments, words) in files {
        let mut command = shelf.run(arguments);
        if !arguments.contains(&"--prompt") {
            command.args(["--prompt", "ab"]);
        }
        check_error(&command.output().unwrap(), 1, words);
    }
}

#[test]
fn settings_that_choose_nothing_exit_with_2() {
    let shelf = Shelf::new();
    let cases: [(&str, &[&str]); 9] = [
        ("--temperature -1", &["temperature is -1"]),
        ("--temperature nan", &["temperature is NaN"]),
        ("--top-p 0", &["top-p is 0"]),
        ("--top-p 1.5", &["top-p is 1.5"]),
        ("--top-k 0", &["--top-k"]),
        ("--max-tokens 0", &["--max-tokens"]),
        ("--seed -1", &["-1"]),
        ("--backend tpu", &["tpu", "ndarray", "flex"]),
        ("--device 1", &["--device 1", "only device 0"]),
    ];
    for (arguments, words) in cases {
        let output = shelf.generate(&format!("--model model {arguments}"));
        check_error(&output, 2, words);
    }
    let missing = shelf.run(&["--model", "model"]).output().unwrap();
    check_error(&missing, 2, &["--prompt"]);
}
