//! The command as a user meets it: exit codes, one line per error, nothing overwritten, Ctrl-C.
//! Every test runs the binary in a folder of its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::Duration;

use burn_nvfp4_models::config::HybridConfig;
use burn_nvfp4_models::config::hf::StoredFloat;
use tempfile::TempDir;

#[path = "command/shelf.rs"]
mod shelf;
#[path = "command/compare.rs"]
mod compare;
#[path = "command/report.rs"]
mod report;
#[path = "command/resume.rs"]
mod resume;
#[cfg(unix)]
#[path = "command/kill.rs"]
mod kill;
#[path = "command/tokenize.rs"]
mod tokenize;
#[path = "command/generate.rs"]
mod generate;
#[path = "command/serve.rs"]
mod serve;
#[path = "command/eval.rs"]
mod eval;
#[cfg(feature = "wgpu")]
#[path = "command/wgpu.rs"]
mod wgpu;

/// A folder with a text, a small model, and a configuration that uses both.
struct Desk {
    dir: TempDir,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let desk = Self { dir };
        let line = |i: u64| format!("{} and {} make {}\n", i % 17, i % 11, i % 17 + i % 11);
        desk.write(
            "text.txt",
            (0..500).map(line).collect::<String>().as_bytes(),
        );
        let mut model = HybridConfig::preset("tiny-1m", 256).unwrap();
        model.pattern = "M-*-".parse().unwrap();
        (model.d_model, model.d_ffn) = (32, 64);
        model.validate().unwrap();
        desk.write("model.json", model.to_hf_json(StoredFloat::F32).as_bytes());
        let config = include_str!("../../configs/default.toml")
            .replace("preset = \"tiny-1m\"", "config = \"model.json\"")
            .replace("[data]", "[data]\npath = \"text.txt\"")
            .replace("steps = 400", "steps = 6")
            .replace("sequences = 8", "sequences = 2")
            .replace("length = 128", "length = 32")
            .replace("every = 100", "every = 3")
            .replace("windows = 64", "windows = 4")
            .replace("tokens = 200", "tokens = 5");
        assert!(config.contains("steps = 6") && config.contains("tokens = 5"));
        desk.write("run.toml", config.as_bytes());
        desk
    }

    /// A folder in which a run has finished in `runs/done`; made once and copied.
    fn after_a_run() -> Self {
        static DONE: OnceLock<Desk> = OnceLock::new();
        let done = DONE.get_or_init(|| {
            let desk = Self::new();
            let output = desk.train("--out runs/done");
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            desk
        });
        let desk = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for (path, bytes) in done.snapshot() {
            desk.write(path.to_str().unwrap(), &bytes);
        }
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nvfp4"));
        command
            .current_dir(self.dir.path())
            .args(arguments.split_whitespace());
        command
    }

    /// A process that a test talks to, with its output in pipes.
    fn spawn(&self, arguments: &str) -> Child {
        let mut command = self.command(arguments);
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// `nvfp4 train --config run.toml` with more arguments.
    fn train(&self, arguments: &str) -> Output {
        self.command(&format!(
            "train --config run.toml --log-every 1 {arguments}"
        ))
        .output()
        .unwrap()
    }

    /// Every file and its bytes.
    fn snapshot(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        fn walk(folder: &Path, root: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, root, found);
                } else {
                    let name = path.strip_prefix(root).unwrap().to_owned();
                    found.insert(name, fs::read(&path).unwrap());
                }
            }
        }
        let mut found = BTreeMap::new();
        walk(self.dir.path(), self.dir.path(), &mut found);
        found
    }
}

/// Checks that a command failed with this code and one line that holds all of these words.
fn check_error(output: &Output, code: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "one line expected:\n{stderr}");
    assert!(stderr.starts_with("error: "), "{stderr}");
    assert!(
        !stderr.contains("panicked") && !stderr.contains("internal error"),
        "{stderr}"
    );
    for word in words {
        assert!(stderr.contains(word), "{word:?} expected in: {stderr}");
    }
}

#[test]
fn what_is_wrong_with_the_command_line_or_a_configuration_exits_with_2() {
    let desk = Desk::new();
    let config = fs::read_to_string(desk.path("run.toml")).unwrap();
    desk.write(
        "unknown.toml",
        config.replace("seed =", "sead =").as_bytes(),
    );
    desk.write("syntax.toml", b"name = ");
    let precision = config.replace(
        "[validation]",
        "[[precision.overrides]]\nlayers = \"*.no_such_proj\"\nrecipe = \"fp8\"\n\n[validation]",
    );
    desk.write("pattern.toml", precision.as_bytes());
    let model = fs::read_to_string(desk.path("model.json")).unwrap();
    let change = |name: &str, from: &str, to: &str| {
        assert!(model.contains(from), "{from} in {model}");
        desk.write(name, model.replacen(from, to, 1).as_bytes());
    };
    change("zero.json", "\"hidden_size\": 32", "\"hidden_size\": 0");
    change(
        "huge.json",
        "\"hidden_size\": 32",
        "\"hidden_size\": 1099511627776",
    );
    change("letter.json", "\"linear_attention\"", "\"wavelet\"");
    change("missing.json", "\"head_dim\"", "\"no_head_dim\"");
    desk.write("half.json", &model.as_bytes()[..model.len() / 2]);
    let before = desk.snapshot();
    let cases: [(&str, &[&str]); 21] = [
        ("", &["a command is needed"]),
        ("train --no-such-flag", &["--no-such-flag"]),
        ("trian", &["trian"]),
        ("train --steps many", &["many", "--steps"]),
        (
            "train --steps 0 --config run.toml",
            &["steps is 0", "from 1 to"],
        ),
        ("train --batch-size 0", &["--batch-size"]),
        (
            "train --batch-size 1099511627776 --config run.toml",
            &["batch.sequences"],
        ),
        ("train --lr -1 --config run.toml", &["schedule.peak is -1"]),
        (
            "train --lr=nan --config run.toml",
            &["schedule.peak is NaN"],
        ),
        (
            "train --recipe nvfp5 --config run.toml",
            &["`nvfp5`", "nvidia", "high_precision"],
        ),
        (
            "train --policy most --config run.toml",
            &["`most`", "paper", "nemotron3"],
        ),
        ("train --backend tpu", &["tpu", "ndarray", "flex"]),
        (
            "train --model tiny-2m --config run.toml",
            &["tiny-2m", "tiny-1m"],
        ),
        ("train --config none.toml", &["none.toml", "cannot read"]),
        (
            "train --config unknown.toml",
            &["unknown.toml: line ", "unknown field `sead`"],
        ),
        ("train --config syntax.toml", &["syntax.toml: line 1"]),
        (
            "train --config pattern.toml",
            &["*.no_such_proj", "matches no layer"],
        ),
        (
            "train --config run.toml --model-config zero.json",
            &["zero.json"],
        ),
        (
            "train --config run.toml --model-config huge.json",
            &["huge.json"],
        ),
        (
            "train --config run.toml --model-config letter.json",
            &["letter.json", "wavelet"],
        ),
        (
            "train --config run.toml --model-config missing.json",
            &["missing.json", "head_dim"],
        ),
    ];
    for (arguments, words) in cases {
        check_error(&desk.command(arguments).output().unwrap(), 2, words);
    }
    let half = desk
        .command("train --config run.toml --model-config half.json")
        .output()
        .unwrap();
    check_error(&half, 2, &["half.json"]);
    assert_eq!(desk.snapshot(), before, "nothing was written");
}

#[test]
fn what_is_wrong_with_the_data_exits_with_1() {
    let desk = Desk::new();
    desk.write("empty.txt", b"");
    desk.write("binary.dat", b"text\0more");
    desk.write("latin.txt", b"caf\xe9");
    desk.write("short.txt", b"a few words\n");
    desk.write("folder/one.bin", b"\0");
    desk.write("folder/.hidden", b"text");
    desk.write("tokenizer.json", b"{\"model\": 3}");
    let model = fs::read_to_string(desk.path("model.json")).unwrap();
    let small = model.replace("\"vocab_size\": 256", "\"vocab_size\": 100");
    assert_ne!(small, model);
    desk.write("small.json", small.as_bytes());
    let cases: [(&str, &[&str]); 11] = [
        ("--data none.txt", &["none.txt", "no such file or folder"]),
        (
            "--data text.txt/inside",
            &["text.txt/inside", "cannot read"],
        ),
        ("--data empty.txt", &["empty.txt", "empty"]),
        ("--data binary.dat", &["binary.dat", "a NUL byte at byte 4"]),
        (
            "--data latin.txt",
            &["latin.txt", "invalid UTF-8 at byte 3"],
        ),
        ("--data folder", &["folder", "1 hidden, 1 binary, 0 empty"]),
        ("--data short.txt", &["short.txt", "one sequence needs 33"]),
        (
            "--seq-len 100000",
            &["text.txt", "one sequence needs 100001"],
        ),
        ("--tokenizer none.json", &["none.json", "no such file"]),
        (
            "--tokenizer tokenizer.json",
            &["tokenizer.json", "not a usable tokenizer.json"],
        ),
        (
            "--model-config small.json",
            &["256 ids", "vocabulary of 100"],
        ),
    ];
    for (arguments, words) in cases {
        check_error(&desk.train(arguments), 1, words);
    }
    assert!(!desk.path("runs/default").exists(), "no run was begun");
}

#[test]
fn a_finished_run_leaves_its_files_and_says_where() {
    let desk = Desk::after_a_run();
    for name in [
        "log.jsonl",
        "loss.svg",
        "sample.txt",
        "checkpoints/step-00000006/SUMS",
    ] {
        assert!(desk.path("runs/done").join(name).is_file(), "{name}");
    }
    let log = fs::read_to_string(desk.path("runs/done/log.jsonl")).unwrap();
    let events: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(events[0]["event"], "start");
    assert_eq!(events[0]["config"]["steps"], 6);
    assert_eq!(events[0]["config"]["precision"]["recipe"], "nvidia");
    let steps = events
        .iter()
        .filter(|event| event["event"] == "step")
        .count();
    assert_eq!(steps, 6);
    let last = events.last().unwrap();
    assert_eq!(last["event"], "final");
    assert!(last["order1_bits_per_byte"].as_f64() < last["order0_bits_per_byte"].as_f64());
}

#[test]
fn an_existing_run_is_not_overwritten() {
    let desk = Desk::after_a_run();
    let before = desk.snapshot();
    check_error(
        &desk.train("--out runs/done"),
        1,
        &["runs/done", "--resume", "--out"],
    );
    desk.write("a-file", b"mine");
    check_error(&desk.train("--out a-file"), 1, &["a-file"]);
    fs::remove_file(desk.path("a-file")).unwrap();
    assert_eq!(desk.snapshot(), before);
}

#[test]
fn resuming_another_run_is_refused_with_every_difference() {
    let desk = Desk::after_a_run();
    desk.write("other.txt", "another text\n".repeat(500).as_bytes());
    let before = desk.snapshot();
    let cases: [(&str, &[&str]); 6] = [
        (
            "--recipe mxfp8",
            &["precision.recipe is \"nvidia\"", "\"mxfp8\" here"],
        ),
        (
            "--model tiny-1m",
            &["model.d_model is 32", "128 here", "model.pattern"],
        ),
        (
            "--seed 5 --lr 0.5",
            &["seed is 1234 in the checkpoint and 5 here", "schedule.peak"],
        ),
        ("--backend flex", &["precision.backend"]),
        ("--steps 60", &["steps is 6"]),
        ("--data other.txt", &["data is "]),
    ];
    for (arguments, words) in cases {
        let output = desk.train(&format!("--out runs/done --resume {arguments}"));
        check_error(&output, 1, words);
        check_error(&output, 1, &["nothing was changed"]);
    }
    let mut after = desk.snapshot();
    // The other text was tokenised; that is a cache.
    after.retain(|path, _| !path.starts_with("runs/tokens"));
    let mut before = before;
    before.retain(|path, _| !path.starts_with("runs/tokens"));
    assert_eq!(after, before);
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_a_checkpoint_and_the_run_can_be_continued() {
    let desk = Desk::new();
    let command = "train --config run.toml --log-every 1 --steps 100000 --out runs/stopped";
    let mut child = desk.spawn(command);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let second = lines
        .by_ref()
        .map(Result::unwrap)
        .filter(|line| line.starts_with("step"))
        .nth(1);
    assert!(second.is_some());
    // Twice, as `timeout` does: to the process and to its group.
    interrupt(&child);
    interrupt(&child);
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(!stderr.contains("error"), "{stderr}");
    assert!(
        rest.iter()
            .any(|line| line.contains("continue with: nvfp4 train --resume")),
        "{rest:?}"
    );
    let checkpoints = fs::read_dir(desk.path("runs/stopped/checkpoints"))
        .unwrap()
        .count();
    assert!(checkpoints >= 1);
    // The configuration comes from the checkpoint; as one step of it is asked for, it differs.
    let output = desk
        .command("train --resume --out runs/stopped --steps 7")
        .output()
        .unwrap();
    check_error(
        &output,
        1,
        &["steps is 100000 in the checkpoint and 7 here"],
    );
}

#[cfg(unix)]
fn interrupt(child: &Child) {
    send("-INT", child);
}

#[cfg(unix)]
fn send(signal: &str, child: &Child) {
    let mut kill = Command::new("kill");
    let killed = kill.args([signal, &child.id().to_string()]).status();
    assert!(killed.unwrap().success());
}

#[cfg(unix)]
#[test]
fn a_run_under_nohup_outlives_its_terminal() {
    let desk = Desk::new();
    let command = "train --config run.toml --log-every 1 --steps 100000 --plain --out runs/out";
    let mut child = Command::new("nohup")
        .current_dir(desk.path(""))
        .arg(env!("CARGO_BIN_EXE_nvfp4"))
        .args(command.split_whitespace())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut step = || {
        let next = lines.by_ref().map(Result::unwrap);
        next.filter(|line| line.starts_with("step")).nth(1)
    };
    assert!(step().is_some());
    send("-HUP", &child);
    // A handler would have ended the run by then.
    sleep(Duration::from_secs(1));
    assert!(step().is_some());
    assert_eq!(child.try_wait().unwrap(), None);
    interrupt(&child);
    while step().is_some() {}
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[cfg(unix)]
#[test]
fn a_second_ctrl_c_ends_a_run_inside_of_a_step() {
    let desk = Desk::new();
    // A step of hours.
    let command = "train --config run.toml --accumulate 1000000 --out runs/stopped";
    let mut child = desk
        .command(command)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    while !desk.path("runs/stopped/log.jsonl").exists() {
        assert_eq!(child.try_wait().unwrap(), None);
        sleep(Duration::from_millis(10));
    }
    interrupt(&child);
    let mut said = String::new();
    stderr.read_line(&mut said).unwrap();
    assert!(said.contains("once more to stop at once"), "{said}");
    // A second one is one that a person sends, not the same again.
    sleep(Duration::from_secs(1));
    assert_eq!(child.try_wait().unwrap(), None);
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}

#[test]
fn help_says_what_ctrl_c_does() {
    let desk = Desk::new();
    let output = desk.command("train --help").output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("Ctrl-C saves a checkpoint"));
}
