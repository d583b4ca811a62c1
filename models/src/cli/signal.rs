//! Ctrl-C: the first one asks the run to stop at the next step, the second one ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

use burn::train::Interrupter;

use super::Failure;

/// Exit code after an interrupt: 128 + SIGINT, as shells report it.
pub const INTERRUPTED: i32 = 130;

/// Lets SIGINT, SIGTERM and SIGHUP stop the run through `interrupter`.
///
/// # Errors
/// If the process has a handler already.
pub fn install(interrupter: &Interrupter) -> Result<(), Failure> {
    let asked = AtomicBool::new(false);
    let interrupter = interrupter.clone();
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::SeqCst) {
            std::process::exit(INTERRUPTED);
        }
        interrupter.stop(Some("interrupted"));
        super::say("stopping after this step with a checkpoint; once more to stop at once");
    })
    .map_err(|error| Failure::Error(format!("cannot listen for Ctrl-C: {error}")))
}
