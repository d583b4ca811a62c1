//! Text into shards, by one process at a time, and shards that are damaged.

use super::*;

#[test]
fn a_second_process_is_refused_until_the_first_has_ended() {
    let desk = Desk::new();
    let tokenize = || {
        let command = "tokenize text.txt --tokenizer bytes --out tokens --force";
        desk.command(command).output().unwrap()
    };
    let first = tokenize();
    assert!(first.status.success(), "{first:?}");
    let before = desk.snapshot();
    // What a process holds while it writes.
    let lock = fs::File::open(desk.path("tokens/.tokens.lock")).unwrap();
    lock.lock().unwrap();
    let words = ["tokens: another process writes tokens there"];
    check_error(&tokenize(), 1, &words);
    drop(lock);
    assert_eq!(desk.snapshot(), before);
    let last = tokenize();
    assert!(last.status.success(), "{last:?}");
}

/// A panic said that the program was wrong, and what was trained before went with it.
#[cfg(unix)]
#[test]
fn an_id_that_is_none_ends_a_run_with_a_checkpoint_of_what_it_trained() {
    let desk = Desk::new();
    for out in ["tokens", "held_out"] {
        let command = format!("tokenize text.txt --tokenizer bytes --out {out}");
        assert!(desk.command(&command).output().unwrap().status.success());
    }
    let config = fs::read_to_string(desk.path("run.toml")).unwrap();
    let config = config.replace(
        "path = \"text.txt\"",
        "path = \"tokens\"\nvalidation = { path = \"held_out\" }",
    );
    desk.write("run.toml", config.as_bytes());
    let command = "train --config run.toml --steps 100000 --save-every 100000 --log-every 1 \
                   --plain --out runs/out";
    let mut child = desk.spawn(command);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut read = lines.by_ref().map(Result::unwrap);
    assert!(read.any(|line| line.starts_with("step")));
    // Not before, for a run counts bytes first. The second half, ids of two bytes each.
    let shard = desk.path("tokens/00000.tokens");
    let half = fs::metadata(&shard).unwrap().len() / 4;
    let ids = 60_000_u16
        .to_le_bytes()
        .repeat(usize::try_from(half).unwrap());
    let file = fs::OpenOptions::new().write(true).open(&shard).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &ids, half * 2).unwrap();
    lines.for_each(drop);
    let output = child.wait_with_output().unwrap();
    let words = ["00000.tokens", "id 60000", "in a vocabulary of 256"];
    check_error(&output, 1, &words);
    let log = fs::read_to_string(desk.path("runs/out/log.jsonl")).unwrap();
    let steps = log
        .lines()
        .filter(|line| line.contains("\"event\":\"step\""));
    let checkpoint = format!("runs/out/checkpoints/step-{:08}", steps.count());
    assert!(desk.path(&checkpoint).is_dir(), "{checkpoint}");
    assert!(
        log.lines()
            .last()
            .unwrap()
            .contains("\"event\":\"stopped\"")
    );
}
