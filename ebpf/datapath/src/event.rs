//! What user space hears of: rare changes always, what can come with every connect at a bounded rate.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use isthmus_abi::{Counter, EventKind, EventRow, FailureCause, HealthState, NO_MARK, TICK_SHIFT};

use crate::maps::{EVENTS, SCRATCH, count};

/// Word of `scratch`: the tick in which this CPU last told of something that may come with every connect.
const LAST_TICK: usize = 0;

/// Whom an event is about.
#[derive(Clone, Copy)]
pub struct About {
    pub service: u32,
    pub backend: u32,
    pub generation: u32,
    pub mark: u32,
}

/// Tells of a change of a backend's health. `state` gives the time and the doublings.
#[inline(always)]
pub fn tell(kind: EventKind, about: About, cause: FailureCause, state: HealthState) {
    output(&EventRow {
        // SAFETY: a helper without arguments.
        at: unsafe { bpf_ktime_get_ns() },
        until: state.time(),
        service: about.service,
        backend: about.backend,
        generation: about.generation,
        kind: kind as u8,
        cause: cause as u8,
        doublings: state.doublings() as u8,
        mark: about.mark as u8,
    });
}

/// Tells of what may happen at every connect, once a tick and CPU.
#[inline(never)]
pub fn tell_seldom(kind: u32, service: u32, cause: u32) {
    // SAFETY: a helper without arguments.
    let at = unsafe { bpf_ktime_get_ns() };
    let tick = at >> TICK_SHIFT;
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a per-CPU row.
    unsafe {
        if (*scratch)[LAST_TICK] == tick {
            count(Counter::EventLost);
            return;
        }
        (*scratch)[LAST_TICK] = tick;
    }
    output(&EventRow {
        at,
        until: 0,
        service,
        backend: 0,
        generation: 0,
        kind: kind as u8,
        cause: cause as u8,
        doublings: 0,
        mark: NO_MARK as u8,
    });
}

#[inline(never)]
fn output(row: &EventRow) -> u32 {
    if EVENTS.output::<EventRow>(row, 0).is_err() {
        count(Counter::EventLost);
    }
    0
}
