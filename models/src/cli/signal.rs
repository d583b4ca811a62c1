//! Ctrl-C: the first one asks the run to stop at the next step, the second one ends the process.
//!
//! Programs that stop others may send one signal as two ([`ECHO`]). A process has one handler.
//! Where it trains several runs, the handler stops the present one, and one that begins after the
//! first Ctrl-C stops at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use burn::train::Interrupter;

use super::Failure;

/// How often [`keep_in_raw_mode`] looks at the terminal.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// For so long after the first signal others are that one again: `timeout` and job schedulers send
/// one to the process and one to its group.
const ECHO: Duration = Duration::from_millis(500);

/// Exit code after an interrupt: 128 + SIGINT, as shells report it.
pub(crate) const INTERRUPTED: i32 = 130;

/// When the first signal came.
static ASKED: OnceLock<Instant> = OnceLock::new();
/// True from the second signal on.
static LEAVING: AtomicBool = AtomicBool::new(false);
/// Stops the present run; `None` before the first one.
static PRESENT: Mutex<Option<Interrupter>> = Mutex::new(None);

/// True if the user asked the process to stop.
pub(crate) fn is_asked() -> bool {
    ASKED.get().is_some()
}

/// True while the process ends at once: a device goes from under threads that work with it, and
/// what they say of it is no error.
pub(super) fn is_leaving() -> bool {
    LEAVING.load(Ordering::SeqCst)
}

/// Lets SIGINT, SIGTERM and SIGHUP stop the run through `interrupter`, and no earlier one. SIGHUP
/// not under `nohup`, which says that the run is to outlive its terminal.
///
/// # Errors
/// If the process has a handler that is not this one.
pub(crate) fn install(interrupter: &Interrupter) -> Result<(), Failure> {
    let mut present = PRESENT.lock().unwrap_or_else(PoisonError::into_inner);
    let is_first = present.replace(interrupter.clone()).is_none();
    drop(present);
    if is_first {
        under_nohup(|| ctrlc::set_handler(stop))
            .map_err(|error| Failure::Error(format!("cannot listen for Ctrl-C: {error}")))?;
    }
    if is_asked() {
        interrupter.stop(Some("interrupted"));
    }
    Ok(())
}

/// Sets a handler for signals, and has SIGHUP ignored still if it was before.
#[cfg(unix)]
fn under_nohup<T>(set: impl FnOnce() -> T) -> T {
    // SAFETY: a signal that is ignored runs no code.
    let ignore = || unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    let was_ignored = ignore() == libc::SIG_IGN;
    let result = set();
    if was_ignored {
        ignore();
    }
    result
}

#[cfg(not(unix))]
fn under_nohup<T>(set: impl FnOnce() -> T) -> T {
    set()
}

fn stop() {
    // One thread calls this, a signal at a time.
    if let Some(first) = ASKED.get() {
        if first.elapsed() > ECHO {
            LEAVING.store(true, Ordering::SeqCst);
            std::process::exit(INTERRUPTED);
        }
        return;
    }
    ASKED.get_or_init(Instant::now);
    if let Some(present) = &*PRESENT.lock().unwrap_or_else(PoisonError::into_inner) {
        present.stop(Some("interrupted"));
    }
    super::say("stopping after this step with a checkpoint; once more to stop at once");
}

/// Lets Ctrl-C be a signal under burn-train's terminal interface too.
///
/// The interface puts the terminal into raw mode from a thread of its own, at a time that it does
/// not tell, and in raw mode Ctrl-C is a key that it ignores. This waits for raw mode and turns
/// signals on again; the interface restores the terminal to what it was.
pub(crate) fn keep_in_raw_mode() {
    #[cfg(unix)]
    std::thread::spawn(|| {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

        while let Ok(mut terminal) = tcgetattr(std::io::stdin()) {
            if !terminal.local_modes.contains(LocalModes::ISIG) {
                terminal.local_modes.insert(LocalModes::ISIG);
                // Where it fails, the interface's own keys are left.
                let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &terminal);
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    });
}
