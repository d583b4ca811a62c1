//! `nvfp4 eval` as a user meets it.

use serde_json::{Value, json};

use super::shelf::Shelf;
use super::*;

/// A line per object.
fn lines(objects: &[Value]) -> String {
    objects.iter().map(|object| format!("{object}\n")).collect()
}

/// A shelf with a few items of some tasks in `data`.
fn shelf() -> Shelf {
    let shelf = Shelf::new();
    let piqa = |goal: &str, label: usize| {
        let (first, second) = ("with it", "without");
        json!({"goal": goal, "sol1": first, "sol2": second, "label": label})
    };
    let piqa = [piqa("open a jar", 0), piqa("close it", 1), piqa("eat", 0)];
    shelf.write("data/piqa/valid.jsonl", &lines(&piqa));
    let blimp = |verb: &str| {
        let (good, bad) = (format!("It {verb}s."), format!("It {verb}."));
        json!({"sentence_good": good, "sentence_bad": bad})
    };
    shelf.write(
        "data/blimp/agreement.jsonl",
        &lines(&[blimp("run"), blimp("sing")]),
    );
    shelf.write(
        "data/blimp/others.jsonl",
        &lines(&[blimp("eat"), blimp("drink")]),
    );
    let lambada = json!({"context": "one two three one two", "continuation": "three"});
    shelf.write("data/lambada/lambada_openai_test.jsonl", &lines(&[lambada]));
    let gsm8k = |n: usize| {
        let answer = format!("So.\n#### {}", n + 1);
        json!({"question": format!("{n} and 1?"), "answer": answer})
    };
    shelf.write("data/gsm8k/test.jsonl", &lines(&[gsm8k(1), gsm8k(2)]));
    shelf.write(
        "data/gsm8k/train.jsonl",
        &lines(&(3..9).map(gsm8k).collect::<Vec<_>>()),
    );
    let python = json!({"task_id": "HumanEval/0", "prompt": "def f():\n"});
    shelf.write("data/humaneval/HumanEval.jsonl", &lines(&[python]));
    shelf.write("text.txt", "Some words to be predicted, and some more.\n");
    shelf
}

/// `nvfp4 eval --tokenizer bytes --backend flex` with more arguments.
fn eval(shelf: &Shelf, arguments: &str) -> Output {
    let mut command = shelf.command(&["eval", "--tokenizer", "bytes", "--backend", "flex"]);
    command.args(arguments.split_whitespace()).output().unwrap()
}

/// The same, which has to succeed: what it prints.
fn table(shelf: &Shelf, arguments: &str) -> String {
    let output = eval(shelf, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// The objects of a file of results.
fn results(shelf: &Shelf, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(shelf.path(name)).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn every_item_is_in_the_file_and_every_subject_in_the_table() {
    let shelf = shelf();
    let tasks = "--model model --data data --task piqa,blimp,lambada_openai --out out.jsonl";
    let printed = table(&shelf, tasks);
    for words in [
        "piqa",
        "acc_norm",
        "  agreement",
        "  others",
        "perplexity",
        "tokens/s",
    ] {
        assert!(printed.contains(words), "{words} in {printed}");
    }
    let found = results(&shelf, "out.jsonl");
    let of = |line: &str| found.iter().filter(|object| object["line"] == line).count();
    assert_eq!((of("run"), of("item"), of("summary")), (1, 3 + 4 + 1, 3));
    let item = found
        .iter()
        .find(|object| object["task"] == "piqa")
        .unwrap();
    assert_eq!(item["choice"]["gold"], 0);
    assert_eq!(
        item["choice"]["log_likelihoods"].as_array().unwrap().len(),
        2
    );
    assert_eq!(item["choice"]["chars"], json!([7, 7]));
    assert!(item["correct"]["acc"].is_boolean());
    let blimp = found
        .iter()
        .find(|object| object["line"] == "summary" && object["task"] == "blimp");
    assert_eq!(blimp.unwrap()["subjects"][1]["items"], 2);
}

#[test]
fn batches_do_not_change_results() {
    let shelf = shelf();
    let log_likelihoods = |batch_tokens: &str| -> Vec<f64> {
        let arguments = format!(
            "--model model --data data --task piqa,blimp --text text.txt --out out.jsonl --force \
             --batch-tokens {batch_tokens}"
        );
        table(&shelf, &arguments);
        let found = results(&shelf, "out.jsonl");
        let numbers = found.iter().flat_map(|object| {
            let choices = object["choice"]["log_likelihoods"].as_array().cloned();
            choices
                .unwrap_or_default()
                .into_iter()
                .chain([object["text"]["log_likelihood"].clone()])
        });
        numbers.filter_map(|number| number.as_f64()).collect()
    };
    let (one, all) = (log_likelihoods("1"), log_likelihoods("100000"));
    assert_eq!(one.len(), 6 + 8 + 1);
    for (a, b) in one.iter().zip(&all) {
        assert!((a - b).abs() < 1e-4, "{one:?} {all:?}");
    }
}

#[test]
fn a_text_has_bits_per_byte() {
    let shelf = shelf();
    let printed = table(&shelf, "--model model --text text.txt --out out.jsonl");
    assert!(printed.contains("bits_per_byte"), "{printed}");
    let found = results(&shelf, "out.jsonl");
    assert_eq!(found[1]["text"]["bytes"], 43);
    assert_eq!(found[1]["text"]["tokens"], 43);
    assert_eq!(found[1]["text"]["words"], 9);
    let bits = found[2]["figures"]["bits_per_byte"]["value"]
        .as_f64()
        .unwrap();
    let nats = -found[1]["text"]["log_likelihood"].as_f64().unwrap();
    assert!((bits - nats / 43.0 / std::f64::consts::LN_2).abs() < 1e-12);
    // Random weights know nothing: about 8 bits.
    assert!((7.0..9.0).contains(&bits), "{bits}");
}

/// Its perplexity per word is beyond every number, for which JSON has null: the file was refused.
#[test]
fn a_long_text_without_white_space_has_results_that_can_be_compared() {
    let shelf = shelf();
    shelf.write("long.txt", &"abcdefgh".repeat(200));
    let printed = table(&shelf, "--model model --text long.txt --out out.jsonl");
    let row = printed.lines().find(|line| line.starts_with("text  "));
    assert!(row.unwrap().trim_end().ends_with(" inf"), "{printed}");
    let figures = &results(&shelf, "out.jsonl")[2]["figures"];
    assert_eq!(figures["word_perplexity"], json!({"value": null}));
    let compared = ["eval", "compare", "out.jsonl", "out.jsonl"];
    let output = shelf.command(&compared).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains("bits_per_byte"), "{printed}");
}

/// Examples were in no fingerprint.
#[test]
fn results_with_other_examples_are_not_compared() {
    let shelf = shelf();
    let tasks = "--model model --data data --task piqa --shots 1";
    let example = |goal: &str| json!({"goal": goal, "sol1": "a", "sol2": "b", "label": 0});
    for (goal, out) in [("cut bread", "a.jsonl"), ("cut cheese", "b.jsonl")] {
        shelf.write("data/piqa/train.jsonl", &lines(&[example(goal)]));
        table(&shelf, &format!("{tasks} --out {out}"));
    }
    let compare = |a: &str, b: &str| shelf.command(&["eval", "compare", a, b]).output().unwrap();
    assert!(compare("a.jsonl", "a.jsonl").status.success());
    check_error(
        &compare("a.jsonl", "b.jsonl"),
        1,
        &["the questions of piqa or the examples before them were read from different files"],
    );
}

#[test]
fn generated_texts_are_kept_with_the_answers_that_were_found() {
    let shelf = shelf();
    let tasks = "--model model --data data --task gsm8k,humaneval --shots 0 --limit 1";
    table(&shelf, &format!("{tasks} --out out.jsonl"));
    let found = results(&shelf, "out.jsonl");
    assert_eq!(found[1]["generation"]["gold"], "So.\n#### 2");
    assert_eq!(
        found[1]["generation"]["answers"]["exact_match"],
        "[invalid]"
    );
    assert_eq!(found[1]["correct"]["exact_match"], false);
    assert_eq!(found[2]["id"], "HumanEval/0");
    assert!(found[2]["generation"]["text"].is_string());
    assert!(found[2].get("correct").is_none());
}

#[test]
fn two_results_are_compared_item_by_item() {
    let shelf = shelf();
    shelf.add_seeded("other", 4, |_| {});
    let tasks = "--data data --task piqa,lambada_openai --text text.txt";
    table(&shelf, &format!("--model model {tasks} --out a.jsonl"));
    table(&shelf, &format!("--model other {tasks} --out b.jsonl"));
    let compare = |a: &str, b: &str| shelf.command(&["eval", "compare", a, b]).output().unwrap();
    let output = compare("a.jsonl", "b.jsonl");
    assert!(output.status.success());
    let printed = String::from_utf8(output.stdout).unwrap();
    for words in ["McNemar", "piqa", "acc_norm", "perplexity", "bits_per_byte"] {
        assert!(printed.contains(words), "{words} in {printed}");
    }
    let printed = String::from_utf8(compare("a.jsonl", "a.jsonl").stdout).unwrap();
    let piqa = printed
        .lines()
        .find(|line| line.starts_with("piqa"))
        .unwrap();
    assert!(
        piqa.contains("0.0000 ± 0.0000") && piqa.contains("1.000e0"),
        "{piqa}"
    );

    table(
        &shelf,
        &format!("--model other {tasks} --batch-tokens 7 --out e.jsonl"),
    );
    let printed = String::from_utf8(compare("a.jsonl", "e.jsonl").stdout).unwrap();
    assert!(printed.contains(", B with 7: where a recipe"), "{printed}");

    table(
        &shelf,
        "--model other --data data --task piqa --out c.jsonl",
    );
    table(
        &shelf,
        "--model other --data data --task piqa --limit 1 --out d.jsonl",
    );
    let whole = fs::read_to_string(shelf.path("c.jsonl")).unwrap();
    shelf.write("cut.jsonl", &whole[..whole.len() / 2]);
    shelf.write("short.jsonl", whole.lines().next().unwrap());
    let cases: [(&str, &[&str]); 5] = [
        (
            "a.jsonl",
            &["the first has the tasks text, piqa, lambada_openai, the second piqa"],
        ),
        (
            "d.jsonl",
            &["piqa has 1 items in the first and 3 in the second"],
        ),
        ("none.jsonl", &["none.jsonl: cannot read"]),
        ("cut.jsonl", &["cut.jsonl: line 3: no line of results"]),
        (
            "short.jsonl",
            &["short.jsonl: 0 of 3 items; the run did not finish"],
        ),
    ];
    for (a, words) in cases {
        check_error(&compare(a, "c.jsonl"), 1, words);
    }
}

#[test]
fn a_recipe_changes_the_log_likelihoods() {
    let shelf = shelf();
    let tasks = "--model model --data data --task piqa";
    table(&shelf, &format!("{tasks} --out a.jsonl"));
    table(&shelf, &format!("{tasks} --recipe nvidia --out b.jsonl"));
    let (a, b) = (results(&shelf, "a.jsonl"), results(&shelf, "b.jsonl"));
    assert_eq!(a[0]["precision"], "high_precision");
    assert_eq!(b[0]["precision"], "nvidia, policy uniform");
    assert_ne!(
        a[1]["choice"]["log_likelihoods"],
        b[1]["choice"]["log_likelihoods"]
    );
}

#[test]
fn what_is_wrong_with_the_command_line_exits_with_2() {
    let shelf = shelf();
    let cases: [(&str, &[&str]); 10] = [
        ("--data data --task piqa", &["--model"]),
        (
            "--model model",
            &["nothing to evaluate", "--text", "piqa", "humaneval"],
        ),
        (
            "--model model --data data --task piqua",
            &["`piqua`", "hellaswag", "gsm8k"],
        ),
        (
            "--model model --data data --task piqa,piqa",
            &["piqa", "twice"],
        ),
        ("--model model --task piqa", &["--data", "piqa/valid.jsonl"]),
        (
            "--model model --data data --task blimp --shots 2",
            &["blimp takes no shots, 2"],
        ),
        (
            "--model model --data data --task humaneval",
            &["humaneval", "--out"],
        ),
        (
            "--model model --data data --task piqa --batch-tokens 0",
            &["--batch-tokens"],
        ),
        (
            "--model model --data data --task piqa --recipe nvfp5",
            &["`nvfp5`", "nvidia"],
        ),
        (
            "--model model --data data --task piqa --device 1",
            &["only device 0"],
        ),
    ];
    for (arguments, words) in cases {
        check_error(&eval(&shelf, arguments), 2, words);
    }
}

#[test]
fn what_is_wrong_with_model_or_data_exits_with_1() {
    let shelf = shelf();
    shelf.add("short", |config| config.context_len = 12);
    shelf.add("small", |config| config.vocab_size = 100);
    let piqa = fs::read_to_string(shelf.path("data/piqa/valid.jsonl")).unwrap();
    shelf.write(
        "broken/piqa/valid.jsonl",
        &piqa.replace("\"close it\"", "close it"),
    );
    shelf.write(
        "wrong/piqa/valid.jsonl",
        &piqa.replace("\"label\":1", "\"label\":7"),
    );
    shelf.write("empty/piqa/valid.jsonl", "\n");
    fs::create_dir(shelf.path("bare")).unwrap();
    shelf.write("empty.txt", "");
    fs::write(shelf.path("latin.txt"), b"caf\xe9").unwrap();
    shelf.write("kept.jsonl", "mine");
    let cases: [(&str, &[&str]); 14] = [
        (
            "--model none --data data --task piqa",
            &["none", "no such folder", "--model"],
        ),
        (
            "--model small --data data --task piqa",
            &["256 ids", "vocabulary of 100"],
        ),
        (
            "--model model --data none --task piqa",
            &["none: no such folder", "piqa/valid.jsonl"],
        ),
        (
            "--model model --data bare --task piqa",
            &["bare/piqa/valid.jsonl: no such file", "task piqa"],
        ),
        (
            "--model model --data broken --task piqa",
            &["broken/piqa/valid.jsonl: line 2: "],
        ),
        (
            "--model model --data wrong --task piqa",
            &["wrong/piqa/valid.jsonl: line 2: the right answer is number 7"],
        ),
        (
            "--model model --data empty --task piqa",
            &["empty/piqa/valid.jsonl: there is nothing"],
        ),
        (
            "--model model --data data --task gsm8k --shots 20",
            &["gsm8k/train.jsonl: 6 examples, 20 shots"],
        ),
        (
            "--model model --data data --task piqa --shots 1",
            &["piqa/train.jsonl: no such file"],
        ),
        (
            "--model short --data data --task gsm8k --shots 0",
            &[
                "item 1: the prompt has",
                "window is 12",
                "max_position_embeddings",
            ],
        ),
        ("--model model --text none.txt", &["none.txt: no such file"]),
        (
            "--model model --text empty.txt",
            &["empty.txt: there is nothing"],
        ),
        (
            "--model model --text latin.txt",
            &["latin.txt: not text: invalid UTF-8 at byte 3"],
        ),
        (
            "--model model --data data --task piqa --out kept.jsonl",
            &["kept.jsonl: the file exists", "--force"],
        ),
    ];
    for (arguments, words) in cases {
        check_error(&eval(&shelf, arguments), 1, words);
    }
    assert_eq!(
        fs::read_to_string(shelf.path("kept.jsonl")).unwrap(),
        "mine"
    );
    let output = eval(
        &shelf,
        "--model model --text text.txt --out nowhere/out.jsonl",
    );
    check_error(&output, 1, &["nowhere: no such folder"]);
    let output = shelf
        .command(&["eval", "--model", "model", "--text", "text.txt"])
        .output();
    check_error(
        &output.unwrap(),
        1,
        &["model/tokenizer.json", "no such file", "bytes"],
    );
}

#[test]
fn a_context_longer_than_the_window_loses_its_beginning() {
    let shelf = shelf();
    shelf.add("short", |config| config.context_len = 12);
    table(
        &shelf,
        "--model short --data data --task piqa --out out.jsonl",
    );
    assert_eq!(results(&shelf, "out.jsonl").len(), 1 + 3 + 1);
}
