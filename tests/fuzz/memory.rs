//! Counts what the thread that looks has allocated.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn add(bytes: usize) {
    let now = NOW.with(|now| {
        now.set(now.get().wrapping_add(bytes));
        now.get()
    });
    // Below zero where another thread's memory was freed here: no peak.
    if now <= isize::MAX.cast_unsigned() {
        PEAK.with(|peak| peak.set(peak.get().max(now)));
    }
}

// SAFETY: everything is handed to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        NOW.with(|now| now.set(now.get().wrapping_sub(layout.size())));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What is allocated now; the peak starts over.
pub fn start() -> usize {
    let now = NOW.with(Cell::get);
    PEAK.with(|peak| peak.set(now));
    now
}

/// The most that was allocated at once since then, beyond what was there.
pub fn peak_since(before: usize) -> usize {
    PEAK.with(Cell::get).wrapping_sub(before)
}
