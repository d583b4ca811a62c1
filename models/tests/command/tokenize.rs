//! Text into shards, by one process at a time.

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
