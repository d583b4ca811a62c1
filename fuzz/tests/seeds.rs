//! Every seed, and every input that ever failed, once more.

use std::fs;
use std::path::Path;

use fuzz::bundle::Desk;
use fuzz::targets::TARGETS;

/// One test, not several at once: memory is counted for the whole process.
#[test]
fn no_seed_panics_or_takes_more_memory_than_its_target_may() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let mut names: Vec<_> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let mut known = TARGETS.map(|target| target.name.to_owned());
    known.sort();
    assert_eq!(names, known, "every target has a folder of seeds");
    for target in TARGETS {
        // What is allocated once for the process is not of the first seed.
        let desk = Desk::new();
        let mut accepted = 0;
        for entry in fs::read_dir(root.join(target.name)).unwrap() {
            let path = entry.unwrap().path();
            match target.check(&desk, &fs::read(&path).unwrap()) {
                Ok(all) => accepted += usize::from(all),
                Err(reason) => panic!("{}: {reason}", path.display()),
            }
        }
        // Otherwise nothing behind the first check would be fuzzed.
        assert!(accepted > 0, "no seed of {} is accepted whole", target.name);
    }
}
