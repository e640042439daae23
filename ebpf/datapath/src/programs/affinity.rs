//! Session affinity: a client (a network namespace) comes back to the backend that it had, while its last connect is not
//! longer ago than the service says, and while that backend is in the tier in use.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_ktime_get_ns};
use aya_ebpf::programs::SockAddrContext;
use isthmus_abi::{
    AffinityKey, AffinityRow, Counter, HealthState, Ring, Slot, TICK_SHIFT, backend_state,
};
use isthmus_datapath::{Stance, stance};

use super::health;
use super::pick::{Draw, Place};
use super::search::{self, NOWHERE, Search};
use crate::atomic;
use crate::maps::{AFFINITY, SLOTS, backend_at, backend_health_at, count, service_limits_at};

#[inline(always)]
fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() >> TICK_SHIFT }
}

#[inline(always)]
fn key(ctx: &SockAddrContext, service: u32) -> AffinityKey {
    AffinityKey {
        // SAFETY: the helper takes this program type's context.
        client: unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) },
        service,
        reserved: 0,
    }
}

/// The client's row, if its time is not over and its backend lives.
#[inline(always)]
fn row_of(key: &AffinityKey, now: u64) -> Option<*mut AffinityRow> {
    let limits = service_limits_at(key.service)?;
    let lasts = (u64::from(limits.affinity_seconds) * 1_000_000_000) >> TICK_SHIFT;
    let row = AFFINITY.get_ptr_mut(key)?;
    // SAFETY: words of an element, which stays memory of this map. If it is another's by now, its backend is at worst
    // another one of some service, and what follows asks for this one's.
    let (used, id, generation) = unsafe {
        (
            read_volatile(addr_of!((*row).used)),
            read_volatile(addr_of!((*row).backend)),
            read_volatile(addr_of!((*row).generation)),
        )
    };
    // Another CPU may have written a later time than ours.
    if now.saturating_sub(used) > lasts {
        return None;
    }
    let backend = backend_at(id)?;
    (backend.service == key.service
        && backend.state == backend_state::LIVE
        && backend.generation == generation)
        .then_some(row)
}

/// Puts the client's backend in the place of the drawn one, if the first tier has it.
#[inline(never)]
pub fn keep(ctx: &SockAddrContext, service: u32, drawn: &mut Draw) -> u32 {
    // A backend's trial begins and ends with whoever draws it, wherever that client comes back to else.
    if health::awaits_trial_by(ctx, service, drawn.place.id()) {
        return 0;
    }
    let Some(row) = row_of(&key(ctx, service), now()) else {
        return 0;
    };
    // SAFETY: as in `row_of`.
    let (id, at) = unsafe {
        (
            read_volatile(addr_of!((*row).backend)),
            read_volatile(addr_of!((*row).slot)),
        )
    };
    if at.wrapping_sub(drawn.ring.first()) < drawn.ring.len()
        && let Some(slot) = SLOTS.get_ptr(at)
    {
        // SAFETY: one aligned word, written whole.
        if unsafe { read_volatile(slot) } == Slot::new(id, service) {
            drawn.place = Place::new(id, at);
            return 0;
        }
    }
    let mut search = Search::in_first_tier(drawn.ring, service, id);
    if search::run(&mut search) != NOWHERE {
        drawn.place = Place::new(search.found, search.slot).opaque();
    }
    0
}

/// For a tier: the connect is a backend's trial, and no reason to come back there.
pub const TRIAL: u32 = u32::MAX;

/// Notes to which backend the client comes back, and returns it: `picked`, or where that one's tier is in use because the
/// first has no backend to be had, the client's own one there.
#[inline(never)]
pub fn settle(ctx: &SockAddrContext, service: u32, drawn: &Draw, picked: u32) -> u32 {
    if drawn.tier == TRIAL {
        return picked;
    }
    let key = key(ctx, service);
    let now = now();
    let slot = if picked == drawn.place.id() {
        drawn.place.slot()
    } else {
        NOWHERE
    };
    if let Some(row) = row_of(&key, now) {
        // SAFETY: as in `row_of`; if it is another's by now, that one is kept a little longer.
        unsafe {
            let known = read_volatile(addr_of!((*row).backend));
            let in_use = known != picked
                && is_open(known, now)
                && tier_of(drawn.ring, service, known) == drawn.tier;
            // The draw stood for the sake of a trial.
            if in_use && drawn.tier == 0 {
                return picked;
            }
            if known == picked || in_use {
                write_volatile(addr_of_mut!((*row).used), now);
                if known == picked && slot != NOWHERE {
                    write_volatile(addr_of_mut!((*row).slot), slot);
                }
                return known;
            }
        }
    }
    let Some(backend) = backend_at(picked) else {
        return picked;
    };
    let row = AffinityRow {
        used: now,
        backend: picked,
        generation: backend.generation,
        slot,
        reserved: 0,
    };
    if AFFINITY.insert(&key, &row, 0).is_err() {
        count(Counter::AffinityLost);
    }
    picked
}

#[inline(always)]
fn is_open(backend: u32, now: u64) -> bool {
    let Some(health) = backend_health_at(backend) else {
        return false;
    };
    // SAFETY: an aligned word of a map's row.
    let state = HealthState(unsafe { atomic::load(addr_of!((*health).state)) });
    matches!(stance(state, now), Stance::Open)
}

/// [`NOWHERE`] for a backend that is not in the ring.
#[inline(always)]
fn tier_of(ring: Ring, service: u32, id: u32) -> u32 {
    let mut search = Search::by_id(ring, service, id);
    if search::run(&mut search) == NOWHERE {
        return NOWHERE;
    }
    search.tier
}
