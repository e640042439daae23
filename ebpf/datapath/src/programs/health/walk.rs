//! A walk over the slots of a ring, tier by tier, for a backend that can be had.

use core::ffi::c_void;
use core::ptr::read_volatile;

use aya_ebpf::helpers::generated::bpf_loop;
use isthmus_abi::{Ring, TIERS_MAX, TierHead, WALK_MAX};
use isthmus_datapath::{Drawn, Stance, judge, nth, stance};

use super::trial::begin_trial;
use super::{NONE, Request, is_closed, random, state_of};
use crate::maps::{SLOTS, backend_at, backend_health_at};

/// A walk over the slots of a ring, tier by tier.
#[repr(C)]
pub(super) struct Walk {
    ring: Ring,
    bit: u64,
    now: u64,
    service: u32,
    /// Of the tier: its first slot, its slots, and where in it the walk began.
    first: u32,
    len: u32,
    start: u32,
    /// Never this one.
    but: u32,
    /// [`NONE`] until a backend is found, and its tier.
    pub(super) found: u32,
    tier: u32,
    /// One that met the walk and waits for a trial; [`NONE`] for none.
    due: u32,
}

impl Walk {
    #[inline(always)]
    pub(super) fn new(ring: Ring, service: u32, but: u32, bit: u64, now: u64) -> Self {
        // Nothing here is a constant that a step compares: verifiers before Linux 6.7 look at one step only, and would
        // take what they know of the first for true of all.
        Self {
            ring,
            bit,
            now,
            service,
            first: ring.first(),
            len: ring.len(),
            start: nth(ring.len(), random()),
            but,
            found: NONE,
            tier: 0,
            due: NONE,
        }
    }

    /// Comes to a later tier.
    #[inline(always)]
    pub(super) fn enter(&mut self, tier: u32) {
        let Some(slot) = SLOTS.get_ptr(self.ring.span().wrapping_add(tier.wrapping_sub(1))) else {
            return;
        };
        // SAFETY: one aligned word, written whole.
        let head = TierHead(unsafe { read_volatile(slot) }.0);
        self.first = self.ring.span().wrapping_add(head.offset());
        self.len = head.len();
        self.start = nth(self.len, random());
    }

    /// The backend in the slot of a step of a tier, if it is the service's. That the step alone says where the walk is keeps the
    /// verifier's own walk short.
    #[inline(always)]
    fn at(&self, at: u32) -> Option<u32> {
        if at >= self.len {
            return None;
        }
        let mut place = self.start.wrapping_add(at);
        if place >= self.len {
            place = place.wrapping_sub(self.len);
        }
        let slot = SLOTS.get_ptr(self.first.wrapping_add(place))?;
        // SAFETY: one aligned word, written whole.
        let slot = unsafe { read_volatile(slot) };
        let backend = backend_at(slot.backend())?;
        (judge(self.service, slot, backend) == Drawn::Ours).then_some(slot.backend())
    }
}

/// What a step returns to be called again, or not.
const GO_ON: i64 = 0;
const END: i64 = 1;

/// One comes to the tier, the others look at a slot each.
const STEPS_PER_TIER: u32 = WALK_MAX + 1;

/// Looks for a backend that can be had: in the first tier, then in the next ones. In each, at most [`WALK_MAX`] slots from a
/// random start, one after the other: few random redraws would leak onto the dead backend.
#[inline(never)]
pub(super) fn walk(request: &mut Request) -> u32 {
    let mut walk = Walk::new(
        request.ring,
        request.service,
        request.drawn,
        request.bit(),
        request.now,
    );
    run(request.tiers.into(), step, &mut walk);
    if walk.found != NONE {
        request.tier = walk.tier;
        return walk.found;
    }
    // With nothing better, the connect may be the trial of one whose time is over.
    if let Some(health) = backend_health_at(walk.due) {
        request.drawn = walk.due;
        let state = state_of(health);
        if stance(state, request.now) == Stance::Due && begin_trial(request, health, state) {
            return walk.due;
        }
    }
    NONE
}

type Step = unsafe extern "C" fn(u64, *mut c_void) -> i64;

/// Calls `step` for the slots of so many tiers, until it returns [`END`].
#[inline(always)]
pub(super) fn run(tiers: u32, step: Step, walk: &mut Walk) {
    let tiers = if tiers < TIERS_MAX as u32 {
        tiers
    } else {
        TIERS_MAX as u32
    };
    // SAFETY: the helper calls `step` with this frame's `walk`, as long as this call lasts.
    unsafe {
        bpf_loop(
            tiers * STEPS_PER_TIER,
            step as *mut c_void,
            core::ptr::from_mut(walk).cast(),
            0,
        )
    };
}

/// Takes the first backend that is healthy, or suspect and not closed to this client. A tier's first step comes to the tier.
pub(super) unsafe extern "C" fn step(index: u64, walk: *mut c_void) -> i64 {
    // SAFETY: `run` passes its walk.
    let walk = unsafe { &mut *walk.cast::<Walk>() };
    let tier = index as u32 / STEPS_PER_TIER;
    let at = index as u32 % STEPS_PER_TIER;
    if at == 0 {
        if tier != 0 {
            walk.enter(tier);
        }
        return GO_ON;
    }
    let Some(id) = walk.at(at - 1) else {
        return GO_ON;
    };
    if id == walk.but {
        return GO_ON;
    }
    let Some(health) = backend_health_at(id) else {
        return GO_ON;
    };
    let state = state_of(health);
    match stance(state, walk.now) {
        Stance::Open => {}
        Stance::Suspect if !is_closed(id, walk.bit, walk.now) => {}
        Stance::Due => {
            walk.due = id;
            return GO_ON;
        }
        Stance::Suspect | Stance::Ejected | Stance::Trial => return GO_ON,
    }
    walk.tier = tier;
    walk.found = id;
    END
}
