//! Studies: runs as any other, resumed, shared, never mixed; and what is written of them.

use super::*;

const STUDY: &str = r#"
name = "s"
base = "run.toml"
seeds = [1, 2]
reference = "plain"

[[arm]]
name = "plain"
recipe = "high_precision"

[[arm]]
name = "fp4"
recipe = "nvidia"
policy = "uniform"
"#;

fn desk() -> Desk {
    let desk = Desk::new();
    desk.write("s.toml", STUDY.as_bytes());
    desk
}

fn compare(desk: &Desk, arguments: &str) -> Output {
    desk.command(&format!("compare s.toml --out out {arguments}"))
        .output()
        .unwrap()
}

fn succeeds(desk: &Desk, arguments: &str) -> String {
    let output = compare(desk, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn results(desk: &Desk) -> serde_json::Value {
    let text = fs::read_to_string(desk.path("out/results.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_study_trains_each_arm_and_seed_as_train_does_and_says_how_far_apart_they_are() {
    let desk = desk();
    let text = succeeds(&desk, "");
    assert!(text.contains("[4/4] fp4 seed 2"), "{text}");
    for name in ["results.md", "results.json", "gap.svg", "plan.toml"] {
        assert!(desk.path("out").join(name).is_file(), "{name}");
    }
    let outcome = results(&desk);
    let [plain, fp4] = outcome["arms"].as_array().unwrap().as_slice() else {
        panic!("{outcome}")
    };
    assert_eq!(plain["gap_nats"]["mean"], 0.0);
    // Quantization changes the bits, so the gap is not exactly none.
    assert_ne!(fp4["gap_nats"]["mean"], 0.0);
    assert_eq!(fp4["gap_nats"]["seeds"], 2);
    assert_eq!(fp4["runs"][1]["state"], "finished");
    assert!(text.contains("fp4") && text.contains("± "), "{text}");
    // The same run by itself has the same losses, bit for bit.
    let alone = desk.train("--out alone --seed 2 --recipe nvidia --policy uniform");
    assert!(alone.status.success());
    let losses = |log: &str| {
        let text = fs::read_to_string(desk.path(log)).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        let steps = lines.filter(|line: &serde_json::Value| line["event"] == "step");
        steps.map(|line| line["loss"].clone()).collect::<Vec<_>>()
    };
    let alone = losses("alone/log.jsonl");
    assert_eq!(alone.len(), 6);
    assert_eq!(losses("out/fp4/seed-2/log.jsonl"), alone);
    // Of a finished run the last checkpoint stays.
    let checkpoints = fs::read_dir(desk.path("out/fp4/seed-2/checkpoints")).unwrap();
    let names: Vec<_> = checkpoints
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["step-00000006"]);
    let runs = desk.command("runs out").output().unwrap();
    let listed = String::from_utf8_lossy(&runs.stdout).into_owned();
    assert!(
        listed.contains("fp4/seed-1") && listed.contains("plain/seed-2"),
        "{listed}"
    );
    // Again: nothing to do, and the same outcome, also from a copy without checkpoints.
    let before = results(&desk);
    assert!(succeeds(&desk, "").contains("[1/4] plain seed 1: finished"));
    assert_eq!(results(&desk), before);
    for run in ["plain/seed-1", "plain/seed-2", "fp4/seed-1", "fp4/seed-2"] {
        fs::remove_dir_all(desk.path(&format!("out/{run}/checkpoints"))).unwrap();
    }
    fs::remove_file(desk.path("out/plan.toml")).unwrap();
    succeeds(&desk, "--table");
    assert_eq!(results(&desk), before);
    // What `--table` ends with, as it says.
    let page = desk.command("report out").output().unwrap();
    assert!(page.status.success() && desk.path("out/report.html").is_file());
    // The other way round, for the eye alone.
    let text = succeeds(&desk, "--table --against fp4");
    let row = |name| text.lines().find(|line: &&str| line.starts_with(name));
    assert_eq!(row("fp4").unwrap().matches("reference").count(), 4);
    assert!(text.contains("Gaps are to fp4 of the same seed"), "{text}");
    assert_eq!(results(&desk), before);
}

#[test]
fn a_call_can_be_for_some_arms_and_seeds_and_the_table_is_of_what_is_there() {
    let desk = desk();
    let text = succeeds(&desk, "--only f* --seeds 2");
    assert!(
        text.contains("[1/1] fp4 seed 2") && text.contains("3 of 4 runs are not"),
        "{text}"
    );
    assert!(!desk.path("out/plain").exists());
    assert_eq!(
        results(&desk)["arms"][1]["gap_nats"],
        serde_json::Value::Null
    );
    check_error(
        &compare(&desk, "--only x*"),
        2,
        &["--only x*", "plain, fp4"],
    );
    check_error(
        &compare(&desk, "--table --against x"),
        2,
        &["--against x", "plain, fp4"],
    );
    check_error(&compare(&desk, "--seeds 7"), 2, &["--seeds 7", "[1, 2]"]);
    let empty = desk
        .command("compare s.toml --out none --table")
        .output()
        .unwrap();
    check_error(&empty, 1, &["none: there is no run"]);
}

#[test]
fn a_run_of_another_study_is_refused_and_never_mixed_in() {
    let desk = desk();
    succeeds(&desk, "--only plain --seeds 1");
    let before = desk.snapshot();
    let other = STUDY.replace("reference", "steps = 7\nreference");
    desk.write("s.toml", other.as_bytes());
    for arguments in ["", "--table", "--only fp4"] {
        let output = compare(&desk, arguments);
        check_error(&output, 1, &["plain/seed-1", "steps is 6 there and 7 here"]);
    }
    desk.write("s.toml", STUDY.as_bytes());
    // Other tokens under the same configuration.
    desk.write(
        "text.txt",
        "another text, and long enough\n".repeat(400).as_bytes(),
    );
    let output = compare(&desk, "--only fp4 --seeds 1");
    check_error(
        &output,
        1,
        &["fp4/seed-1: tokens ", "plain/seed-1 has tokens"],
    );
    assert_eq!(
        desk.snapshot()[Path::new("out/plain/seed-1/log.jsonl")],
        before[Path::new("out/plain/seed-1/log.jsonl")]
    );
}

/// Only parameters were counted, and the model that this makes has as many.
#[test]
fn a_model_file_that_was_changed_between_runs_is_not_mixed_in() {
    let desk = desk();
    succeeds(&desk, "--only plain --seeds 1");
    let model = fs::read_to_string(desk.path("model.json")).unwrap();
    let mut model: serde_json::Value = serde_json::from_str(&model).unwrap();
    assert!(model["layer_norm_epsilon"].is_number(), "{model}");
    model["layer_norm_epsilon"] = serde_json::json!(0.25);
    desk.write("model.json", model.to_string().as_bytes());
    let output = compare(&desk, "--only fp4 --seeds 1");
    check_error(
        &output,
        1,
        &[
            "fp4/seed-1: this run",
            "model.norm_eps is ",
            "plain/seed-1 and 0.25 here",
        ],
    );
}

/// The tokens of a folder for validation were in no fingerprint.
#[test]
fn a_run_validated_on_tokens_that_were_replaced_is_not_mixed_in() {
    let desk = desk();
    let config = fs::read_to_string(desk.path("run.toml")).unwrap();
    let folders = "path = \"tokens/train\"\nvalidation = { path = \"tokens/val\" }";
    let config = config.replace("path = \"text.txt\"", folders);
    desk.write("run.toml", config.as_bytes());
    let tokenize = |line: &str, folder: &str| {
        desk.write("new.txt", line.repeat(400).as_bytes());
        let command = format!("tokenize new.txt --tokenizer bytes --force --out tokens/{folder}");
        let output = desk.command(&command).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
    };
    tokenize("one and two make three\n", "train");
    tokenize("four and five make nine\n", "val");
    succeeds(&desk, "--only plain");
    tokenize("six and seven make thirteen\n", "val");
    let output = compare(&desk, "--only fp4 --seeds 1");
    check_error(
        &output,
        1,
        &[
            "fp4/seed-1: validation tokens ",
            "plain/seed-1 has validation tokens",
        ],
    );
}

#[test]
fn a_wrong_arm_is_named_before_anything_runs() {
    let desk = desk();
    desk.write(
        "s.toml",
        STUDY.replace("\"uniform\"", "\"most\"").as_bytes(),
    );
    check_error(&compare(&desk, ""), 2, &["arm \"fp4\"", "`most`"]);
    desk.write("s.toml", STUDY.replace("policy", "polcy").as_bytes());
    check_error(
        &compare(&desk, ""),
        2,
        &["arm \"fp4\"", "unknown field `polcy`"],
    );
    assert!(!desk.path("out").exists());
}

/// A run that gives up is an outcome: the study goes on, and does not try it again.
#[test]
fn an_arm_that_gives_up_is_in_the_table_and_does_not_stop_the_study() {
    let desk = desk();
    let config = fs::read_to_string(desk.path("run.toml")).unwrap();
    let config = config
        .replace("peak = 4e-3", "peak = 1e30")
        .replace("last = 4e-5", "last = 1e30");
    let config = config.replace("non_finite_in_a_row = 5", "non_finite_in_a_row = 1");
    desk.write("run.toml", config.as_bytes());
    let text = succeeds(&desk, "--seeds 1");
    assert!(text.contains("[2/2] fp4 seed 1"), "{text}");
    assert!(
        text.contains("1 of 2") && text.contains("Diverged"),
        "{text}"
    );
    let log = fs::read(desk.path("out/plain/seed-1/log.jsonl")).unwrap();
    succeeds(&desk, "--seeds 1");
    assert_eq!(
        fs::read(desk.path("out/plain/seed-1/log.jsonl")).unwrap(),
        log
    );
}

#[cfg(unix)]
#[test]
fn an_interrupted_study_goes_on_to_the_same_bits() {
    let desk = desk();
    let long = STUDY
        .replace("reference", "steps = 60\nreference")
        .replace("[1, 2]", "[1]");
    desk.write("s.toml", long.as_bytes());
    let command = "compare s.toml --out out --log-every 1";
    let mut child = desk.spawn(command);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut is_in_second = false;
    for line in lines.by_ref().map_while(Result::ok) {
        is_in_second |= line.starts_with("[2/2]");
        if is_in_second && line.contains("step") && line.contains("loss") {
            break;
        }
    }
    interrupt(&child);
    let rest: Vec<_> = lines.map_while(Result::ok).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert!(!desk.path("out/results.json").exists());
    succeeds(&desk, "");
    let interrupted = results(&desk);
    let whole = desk.command("compare s.toml --out whole").output().unwrap();
    assert!(whole.status.success());
    let text = fs::read_to_string(desk.path("whole/results.json")).unwrap();
    let whole: serde_json::Value = serde_json::from_str(&text).unwrap();
    for arm in 0..2 {
        assert_eq!(interrupted["arms"][arm]["loss"], whole["arms"][arm]["loss"]);
    }
    assert_eq!(interrupted["gaps"], whole["gaps"]);
    let log = fs::read_to_string(desk.path("out/fp4/seed-1/log.jsonl")).unwrap();
    assert!(
        log.contains("\"event\":\"resume\""),
        "it was resumed, not begun again"
    );
}

/// Two processes on one study take different runs.
#[test]
fn a_run_that_another_process_trains_is_left_to_it() {
    use burn_nvfp4_models::checkpoint::run::RunDirectory;

    let desk = desk();
    let run = RunDirectory::create(&desk.path("out/plain/seed-1")).unwrap();
    let lock = run.lock().unwrap();
    let text = succeeds(&desk, "--seeds 1");
    assert!(
        text.contains("plain seed 1: another process trains it"),
        "{text}"
    );
    assert!(desk.path("out/fp4/seed-1/sample.txt").is_file());
    assert!(!run.log().exists());
    drop(lock);
    assert!(succeeds(&desk, "--seeds 1").contains("[1/2] plain seed 1: into"));
}
