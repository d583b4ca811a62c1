//! What a panic looks like to the user: one line, whichever thread it happens on.

use std::io::Write;
use std::panic::{PanicHookInfo, UnwindSafe, catch_unwind, set_hook};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Where messages go while [`attempt`] runs; `None` at other times.
static CAPTURED: Mutex<Option<Vec<String>>> = Mutex::new(None);

/// A panic is a bug, but its report is one line too, and only the first one: a worker's panic makes
/// others.
pub(super) fn report_in_one_line() {
    let seen = AtomicBool::new(false);
    set_hook(Box::new(move |info| {
        let mut captured = CAPTURED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(messages) = captured.as_mut() {
            messages.push(message(info));
            return;
        }
        drop(captured);
        if !seen.swap(true, Ordering::SeqCst) {
            let place = info
                .location()
                .map(|at| format!(" ({}:{})", at.file(), at.line()));
            // Nobody is left to tell if writing fails.
            let _ = writeln!(
                std::io::stderr(),
                "error: internal error: {}{}",
                message(info),
                place.unwrap_or_default()
            );
        }
    }));
}

fn message(info: &PanicHookInfo<'_>) -> String {
    let message = info.payload_as_str().unwrap_or("no message");
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Runs what a library may answer with a panic: opening a device. The first message is the error.
pub(super) fn attempt<T>(work: impl FnOnce() -> T + UnwindSafe) -> Result<T, String> {
    let start = || *CAPTURED.lock().unwrap_or_else(PoisonError::into_inner) = Some(vec![]);
    start();
    let result = catch_unwind(work);
    let mut captured = CAPTURED.lock().unwrap_or_else(PoisonError::into_inner);
    let messages = captured.take().unwrap_or_default();
    result.map_err(|_| {
        let first = messages.into_iter().next();
        first.unwrap_or_else(|| "no reason is given".to_owned())
    })
}
