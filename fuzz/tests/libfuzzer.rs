//! libFuzzer on one target: what `cargo xtask fuzz` runs.
//!
//! `NVFP4_FUZZ_TARGET` names the target, `NVFP4_FUZZ_SECONDS` is the time of the processor after
//! which the run ends. libFuzzer measures its own limit by the clock, which says little on a
//! machine that does something else too.

#![no_main]

use std::process::abort;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use fuzz::bundle::Desk;
use fuzz::targets::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

struct Run {
    target: &'static Target,
    desk: Desk,
    seconds: i64,
    inputs: AtomicU64,
}

static RUN: OnceLock<Run> = OnceLock::new();

impl Run {
    fn start() -> Self {
        // The engine's own hook ends the process at any panic, also where it is an error of ours.
        std::panic::set_hook(Box::new(|_| {}));
        let name = std::env::var("NVFP4_FUZZ_TARGET").unwrap_or_default();
        let Some(target) = Target::by_name(&name) else {
            let names = TARGETS.map(|target| target.name).join(", ");
            eprintln!("NVFP4_FUZZ_TARGET is {name:?}, the targets are {names}");
            std::process::exit(2);
        };
        let seconds = std::env::var("NVFP4_FUZZ_SECONDS").ok();
        Self {
            target,
            desk: Desk::new(),
            seconds: seconds
                .and_then(|text| text.parse().ok())
                .unwrap_or(i64::MAX),
            inputs: AtomicU64::new(0),
        }
    }

    fn input(&self, data: &[u8]) {
        if let Err(reason) = self.target.check(&self.desk, data) {
            eprintln!("finding of {}: {reason}", self.target.name);
            abort();
        }
        let inputs = self.inputs.fetch_add(1, Relaxed) + 1;
        let seconds = processor_seconds();
        if seconds >= self.seconds {
            eprintln!("{}: {inputs} inputs in {seconds} s", self.target.name);
            // libFuzzer ends well at this signal, once the input is done.
            // SAFETY: it goes to this process, which has libFuzzer's handler for it.
            unsafe { libc::raise(libc::SIGUSR1) };
        }
    }
}

/// What this process has used of the processor.
fn processor_seconds() -> i64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the clock is one of POSIX, and the time is written to.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec
}

fuzz_target!(init: { RUN.get_or_init(Run::start); }, |data: &[u8]| {
    RUN.get_or_init(Run::start).input(data);
});
