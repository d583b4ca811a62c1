//! What a run survives: damaged checkpoints, an early end, a full disk, a second process.

use super::*;

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_is_taken() {
    let desk = Desk::after_a_run();
    check_error(
        &desk.train("--out runs/none --resume"),
        1,
        &["runs/none", "no checkpoint"],
    );
    check_error(
        &desk.train("--out runs/done --resume=5"),
        1,
        &["step 5", "there are 3, 6"],
    );
    let [newest, before] = ["6", "3"].map(|step| {
        desk.path("runs/done/checkpoints")
            .join(format!("step-0000000{step}/parameters.safetensors"))
    });
    let intact = fs::read(&newest).unwrap();
    let mut flipped = intact.clone();
    flipped[intact.len() / 2] ^= 4;
    for (damage, words, aside) in [
        (&flipped[..], "the checksum does not hold", "aside-00000006"),
        (&intact[..1000], "1000 bytes instead of", "aside-00000006-2"),
    ] {
        fs::write(&newest, damage).unwrap();
        let asked_for = desk.train("--out runs/done --resume=6");
        check_error(&asked_for, 1, &["step-00000006", words, "--resume=STEP"]);
        let output = desk.train("--out runs/done --resume");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        for words in ["warning: ", "step-00000006", words, "that of step 3"] {
            assert!(stderr.contains(words), "{words:?} expected in: {stderr}");
        }
        assert_eq!(fs::read(&newest).unwrap(), intact, "the same bits again");
        let aside = newest.to_string_lossy().replace("step-00000006", aside);
        assert_eq!(fs::read(aside).unwrap(), damage, "put aside, not removed");
        let log = fs::read_to_string(desk.path("runs/done/log.jsonl")).unwrap();
        assert!(log.contains("\"event\":\"resume\",\"step\":3,\"damaged\":[\"runs"));
    }
    fs::write(&newest, b"").unwrap();
    fs::write(&before, b"").unwrap();
    let output = desk.train("--out runs/done --resume");
    check_error(
        &output,
        1,
        &["every checkpoint is damaged", "-00000003", "-00000006"],
    );
}

#[test]
fn a_run_that_came_to_no_checkpoint_begins_again_with_its_configuration() {
    let desk = Desk::after_a_run();
    let log = |name: &str| {
        let log = fs::read_to_string(desk.path(name).join("log.jsonl")).unwrap();
        let steps = log
            .lines()
            .filter(|line| line.contains("\"event\":\"step\""));
        let loss = |line: &str| line.split("\"tokens_per").next().map(str::to_owned);
        steps.map(loss).collect::<Vec<_>>()
    };
    let before = log("runs/done");
    fs::remove_dir_all(desk.path("runs/done/checkpoints")).unwrap();
    let arguments = "train --resume --plain --out runs/done";
    // A log is all that is left of it.
    let text = fs::read_to_string(desk.path("runs/done/log.jsonl")).unwrap();
    let output = desk.command(arguments).output().unwrap();
    check_error(
        &output,
        1,
        &["runs/done", "complete", "checkpoints are gone"],
    );
    let unchanged = fs::read_to_string(desk.path("runs/done/log.jsonl")).unwrap();
    assert_eq!(unchanged, text);
    // One that was killed has no last line.
    let lines: Vec<_> = text
        .lines()
        .filter(|it| !it.contains("\"final\""))
        .collect();
    desk.write("runs/done/log.jsonl", (lines.join("\n") + "\n").as_bytes());
    let output = desk.command(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(
        stderr.contains("no checkpoint yet, the run begins again"),
        "{stderr}"
    );
    assert_eq!((log("runs/done"), before.len()), (before, 6));
}

#[test]
fn a_number_with_seventeen_digits_survives_the_way_through_a_checkpoint() {
    // The last learning rate keeps its ratio to the peak: 0.000011000000000000001 here, of which a
    // JSON reader may lose the last bit. The run was then refused, or went on with another rate.
    let desk = Desk::new();
    let rates = |run: &str| {
        let log = fs::read_to_string(desk.path(run).join("log.jsonl")).unwrap();
        let rate = |line: &str| {
            let rest = line.split_once("\"learning_rate\":")?.1;
            Some(rest.split(',').next()?.to_owned())
        };
        log.lines().filter_map(rate).collect::<Vec<_>>()
    };
    assert!(desk.train("--lr 0.0011 --out run").status.success());
    let whole = rates("run");
    assert_eq!(whole[5], "0.000011000000000000001");
    for arguments in ["--config run.toml --lr 0.0011", ""] {
        let resume = format!("train --plain --out run --resume=3 {arguments}");
        let output = desk.command(&resume).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments}: {stderr}");
        assert_eq!(rates("run"), whole, "{arguments}");
    }
}

#[test]
fn runs_are_listed_with_their_state_steps_and_losses() {
    let desk = Desk::after_a_run();
    let listed = |folder: &str| {
        let output = desk.command(&format!("runs {folder}")).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    fs::create_dir_all(desk.path("runs/broken/checkpoints")).unwrap();
    let text = listed("");
    let done = text.lines().find(|line| line.starts_with("done")).unwrap();
    for words in ["finished", "6/6", "nvidia", "ago"] {
        assert!(done.contains(words), "{text}");
    }
    assert!(text.contains("unreadable") && text.contains("broken: log.jsonl: "));
    assert_eq!(text.lines().count(), 4, "{text}");
    assert_eq!(listed("runs/done"), "no runs in runs/done\n");
    let output = desk.command("runs nowhere").output().unwrap();
    check_error(&output, 1, &["nowhere: cannot list"]);
}

#[test]
fn two_processes_do_not_train_one_run() {
    let desk = Desk::after_a_run();
    let lock = fs::File::open(desk.path("runs/done/run.lock")).unwrap();
    lock.lock().unwrap();
    let before = desk.snapshot();
    let output = desk.train("--out runs/done --resume=3");
    check_error(&output, 1, &["runs/done: another process trains this run"]);
    assert_eq!(desk.snapshot(), before);
    let output = desk.command("runs").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("running"));
    // Nor is read what the other one may be about to write anew.
    let newest = "runs/done/checkpoints/step-00000006/parameters.safetensors";
    desk.write(newest, b"");
    let output = desk.train("--out runs/done --resume");
    check_error(&output, 1, &["runs/done: another process trains this run"]);
}

#[cfg(unix)]
#[test]
fn a_full_disk_stops_the_saves_and_not_the_run_and_leaves_the_last_checkpoint_intact() {
    let desk = Desk::after_a_run();
    fs::remove_dir_all(desk.path("runs/done/checkpoints/step-00000006")).unwrap();
    let kept = |(path, _): &(&PathBuf, &Vec<u8>)| path.to_string_lossy().contains("step-00000003");
    let before = desk.snapshot();
    let before: BTreeMap<_, _> = before.iter().filter(kept).collect();
    assert_eq!(before.len(), 4);
    // No file may grow beyond 64 blocks: the parameters do not fit, the log does.
    let script = format!(
        "trap '' XFSZ; ulimit -f 64; exec {} train --config run.toml --out runs/done --resume \
         --save-every 1",
        env!("CARGO_BIN_EXE_nvfp4")
    );
    let output = Command::new("sh")
        .arg("-c")
        .arg(script)
        .current_dir(desk.dir.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let lines: Vec<&str> = stderr.lines().collect();
    assert_eq!(lines.len(), 4, "{stderr}");
    for (line, step) in lines.iter().zip(4..=6) {
        let begin = format!("warning: step {step}: runs/done/checkpoints/step-0000000{step}: ");
        assert!(line.starts_with(&begin), "{line}");
        assert!(line.contains("cannot write the checkpoint"), "{line}");
        assert!(line.ends_with("the run goes on, earlier checkpoints are intact"));
    }
    assert!(lines[3].starts_with("error: the state of step 6 could not be saved: "));
    let log = fs::read_to_string(desk.path("runs/done/log.jsonl")).unwrap();
    let count = |event: &str| log.matches(&format!("\"event\":\"{event}\"")).count();
    assert_eq!(
        (count("step"), count("save_failed"), count("final")),
        (6, 3, 1)
    );
    let after = desk.snapshot();
    assert_eq!(
        after.iter().filter(kept).collect::<BTreeMap<_, _>>(),
        before
    );
    assert!(
        !after
            .keys()
            .any(|path| path.to_string_lossy().contains("step-00000006"))
    );
    let output = desk.train("--out runs/done --resume");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
