//! An allocator that counts, and refuses what no input of a few kilobytes can be worth.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes that are allocated, and the most that were since [`peak`] began.
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// Most bytes at once. Beyond it an allocation fails, which ends the process with its size: better
/// than a machine without memory.
const CEILING: usize = 1 << 31;

/// The system's allocator, counted.
#[derive(Debug)]
pub struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Counts `bytes` more; false if there may not be so many.
fn take(bytes: usize) -> bool {
    let live = LIVE.fetch_add(bytes, Relaxed).saturating_add(bytes);
    if live > CEILING {
        give_back(bytes);
        return false;
    }
    PEAK.fetch_max(live, Relaxed);
    true
}

fn give_back(bytes: usize) {
    LIVE.fetch_sub(bytes, Relaxed);
}

// SAFETY: every method is the system allocator's of the same name and arguments, or answers null,
// which says that there is no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !take(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's duties are the same.
        let pointer = unsafe { System.alloc(layout) };
        if pointer.is_null() {
            give_back(layout.size());
        }
        pointer
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !take(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's duties are the same.
        let pointer = unsafe { System.alloc_zeroed(layout) };
        if pointer.is_null() {
            give_back(layout.size());
        }
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's duties are the same.
        unsafe { System.dealloc(pointer, layout) };
        give_back(layout.size());
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !take(size) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's duties are the same.
        let moved = unsafe { System.realloc(pointer, layout, size) };
        // Both blocks were counted, as if the old one had been copied and then freed.
        give_back(if moved.is_null() { size } else { layout.size() });
        moved
    }
}

/// Runs `work`; its result, and the most bytes that were allocated beyond those before it.
///
/// Other threads count too: nothing else may run meanwhile.
pub fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = work();
    (result, PEAK.load(Relaxed).saturating_sub(before))
}
