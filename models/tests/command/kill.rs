//! SIGKILL at random moments, some of them inside a save: whatever a run was doing, it resumes to
//! the losses of one that nobody disturbed.

use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use super::*;

/// How often a process is killed.
const KILLS: u64 = 30;
/// Longest time that a process gets.
const LONGEST: Duration = Duration::from_millis(1500);
/// Longest time between a save's first file and the kill: about what a save takes.
const INSIDE_A_SAVE: Duration = Duration::from_millis(12);

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    fn below(&mut self, limit: Duration) -> Duration {
        let limit = u64::try_from(limit.as_micros()).unwrap();
        Duration::from_micros(self.next() % limit)
    }
}

/// What a step or a validation left in the log, digit by digit, but for times.
fn trace(desk: &Desk, run: &str) -> Vec<(u64, String)> {
    let log = fs::read(desk.path(run).join("log.jsonl")).unwrap_or_default();
    let lines = log.split(|byte| *byte == b'\n');
    let mut trace = Vec::new();
    for line in lines {
        let Ok(line) = serde_json::from_slice::<serde_json::Value>(line) else {
            continue;
        };
        let fields = match line["event"].as_str() {
            Some("step") => ["loss", "learning_rate", "grad_norm", "tokens"],
            Some("validation") => ["forward", "loss", "bits_per_byte", "event"],
            _ => continue,
        };
        let fields = fields.map(|field| line[field].to_string());
        trace.push((line["step"].as_u64().unwrap(), fields.join(" ")));
    }
    trace
}

/// The files of the last checkpoint that hold tensors.
fn tensors(desk: &Desk, run: &str) -> [Vec<u8>; 2] {
    let folder = desk.path(run).join("checkpoints/step-00000030");
    ["parameters.safetensors", "moments.safetensors"]
        .map(|name| fs::read(folder.join(name)).unwrap())
}

/// True while a process that began at `begin` saves, or was saving when it was killed. What an
/// earlier one left behind is older.
fn is_saving(desk: &Desk, run: &str, begin: SystemTime) -> bool {
    let Ok(mut names) = fs::read_dir(desk.path(run).join("checkpoints")) else {
        return false;
    };
    names.any(|entry| {
        let Ok(entry) = entry else { return false };
        let changed = entry.metadata().and_then(|entry| entry.modified());
        let is_new = changed.is_ok_and(|at| at > begin);
        is_new && entry.file_name().to_string_lossy().ends_with(".part")
    })
}

/// Begins or continues a run.
fn start(desk: &Desk, run: &str) -> Child {
    let resume = if desk.path(run).exists() {
        "--resume"
    } else {
        ""
    };
    let arguments = format!(
        "train --config run.toml --steps 30 --save-every 2 --eval-every 5 --log-every 1000 \
         --out {run} {resume}"
    );
    let mut command = desk.command(&arguments);
    let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Waits for the end of a process; true if it came to one by itself before `until` says so.
fn ends_before(child: &mut Child, mut until: impl FnMut() -> bool) -> bool {
    loop {
        if child.try_wait().unwrap().is_some() {
            return true;
        }
        if until() {
            return false;
        }
        sleep(Duration::from_micros(200));
    }
}

#[test]
fn a_run_killed_at_thirty_random_moments_comes_to_the_same_losses() {
    let seed = match std::env::var("NVFP4_KILL_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            u64::from(now.unwrap().subsec_nanos())
        }
    };
    println!("moments of seed {seed}; NVFP4_KILL_SEED={seed} gives them again");
    let mut random = Random(seed);
    let desk = Desk::new();
    let whole = start(&desk, "whole").wait_with_output().unwrap();
    assert!(whole.status.success(), "{whole:?}");
    let (expected, state) = (trace(&desk, "whole"), tensors(&desk, "whole"));
    assert_eq!(expected.len(), 30 + 6 + 1);

    let finished = |run: &str| {
        assert_eq!(trace(&desk, run), expected, "{run}, seed {seed}");
        assert!(tensors(&desk, run) == state, "{run}, seed {seed}");
    };
    let (mut kills, mut inside, mut number) = (0, 0, 0);
    while kills < KILLS {
        let run = format!("killed-{number}");
        let born = SystemTime::now();
        let mut child = start(&desk, &run);
        let (begin, moment) = (Instant::now(), random.below(LONGEST));
        let mut ended = ends_before(&mut child, || begin.elapsed() >= moment);
        if !ended && kills % 2 == 1 {
            ended = ends_before(&mut child, || is_saving(&desk, &run, born));
            sleep(random.below(INSIDE_A_SAVE));
        }
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        if ended {
            assert!(output.status.success(), "seed {seed}: {output:?}");
            finished(&run);
            number += 1;
            continue;
        }
        kills += 1;
        inside += u64::from(is_saving(&desk, &run, born));
        let so_far = trace(&desk, &run);
        let same = expected.get(..so_far.len()) == Some(&so_far[..]);
        assert!(same, "{run}, kill {kills}, seed {seed}: {so_far:?}");
    }
    let run = format!("killed-{number}");
    let last = start(&desk, &run).wait_with_output().unwrap();
    assert!(last.status.success(), "seed {seed}: {last:?}");
    finished(&run);
    println!(
        "{kills} kills, {inside} of them inside a save, in {} runs",
        number + 1
    );
    assert!(inside > 0, "no kill was inside a save, seed {seed}");
}
