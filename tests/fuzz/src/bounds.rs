//! Memory that a decoder may take for its input: what a peer or a file can make us hold is a multiple of what it sends.

use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Does the work, which must never hold more than `most` bytes beside what was held before it. No other thread may be at
/// work meanwhile.
///
/// # Panics
/// It held more.
pub(crate) fn bounded<T>(most: usize, work: impl FnOnce() -> T) -> T {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let outcome = work();
    let held = ALLOCATOR.peak_usage().saturating_sub(before);
    assert!(
        held <= most,
        "{held} bytes were held, and {most} are allowed"
    );
    outcome
}
