//! What a failure does to its backend, and to the client whose word it is.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use isthmus_abi::{
    BackendHealthRow, Counter, EventKind, FailureCause, HealthState, Standing, service_flags,
    watch_slot,
};
use isthmus_datapath::{
    FIRST_EJECTION, Judgement, Stance, WEIGHT_FAILED, WEIGHT_UNANSWERED, add_failure, back_off,
    has_vote, is_grave, is_live, judge_run, stance,
};

use super::super::search::{self, NOWHERE, Search};
use super::trial::fail_trial;
use super::walk::{Walk, run, step};
use super::watch::stand;
use super::{NONE, TRIES, change, clock, random, service_standing, state_of};
use crate::atomic;
use crate::event::{About, tell, tell_seldom};
use crate::maps::{
    BACKEND_FAILURES, SETTINGS, WATCHES, backend_at, backend_health_at, count, opaque, ring_at,
    service_health_at, service_limits_at,
};

/// For a place: no slot of the first tier that is known.
const UNKNOWN: u64 = NOWHERE as u64;

/// A connect that failed, and may count against its backend.
#[repr(C)]
pub struct Failure {
    pub id: u32,
    pub service: u32,
    pub generation: u32,
    pub mark: u32,
    /// A [`FailureCause`].
    pub cause: u8,
    /// 1 if the socket's first time-out was held against the backend already.
    pub again: u8,
    pub reserved: [u8; 6],
    pub cookie: u64,
}

impl Failure {
    #[inline(always)]
    fn bit(&self) -> u64 {
        1 << (self.mark & 63)
    }
    #[inline(always)]
    fn is_unanswered(&self) -> bool {
        self.cause == FailureCause::Unanswered as u8 || self.cause == FailureCause::TimedOut as u8
    }
    /// What of it counts that did not yet.
    #[inline(always)]
    fn weight(&self) -> u64 {
        let whole = if self.is_unanswered() {
            WEIGHT_UNANSWERED
        } else {
            WEIGHT_FAILED
        };
        if self.again != 0 {
            whole - WEIGHT_UNANSWERED
        } else {
            whole
        }
    }
    #[inline(always)]
    fn cause(&self) -> FailureCause {
        match self.cause {
            1 => FailureCause::Refused,
            2 => FailureCause::Unreachable,
            _ => FailureCause::Unanswered,
        }
    }
    #[inline(always)]
    fn about(&self) -> About {
        About {
            service: self.service,
            backend: self.id,
            generation: self.generation,
            mark: self.mark,
        }
    }
}

/// Holds a failure against a backend.
#[inline(never)]
pub fn hold_against(failure: &Failure) -> u32 {
    let Some(settings) = SETTINGS.get(0) else {
        return 0;
    };
    let Some(limits) = service_limits_at(failure.service) else {
        return 0;
    };
    if settings.passive_health == 0 || limits.flags & service_flags::NO_PASSIVE_HEALTH != 0 {
        return 0;
    }
    let (now, epoch) = clock();
    let place = opaque(place(failure, epoch));
    let Some(health) = backend_health_at(failure.id) else {
        return 0;
    };
    let Some(failures) = BACKEND_FAILURES.get_ptr_mut(failure.id) else {
        return 0;
    };
    let state = state_of(health);
    match stance(state, now) {
        Stance::Trial => {
            if is_trial(failure, state) {
                fail_trial(
                    failure.id,
                    health,
                    state,
                    failure.service,
                    failure.cause(),
                    now,
                );
            }
            return 0;
        }
        // On its way when the backend was ejected.
        Stance::Ejected | Stance::Due => return 0,
        Stance::Open | Stance::Suspect => {}
    }
    if failure.weight() == 0 {
        return 0;
    }
    let standing = service_standing(failure.service, epoch);
    if !failure.is_unanswered() {
        // SAFETY: aligned words of a map's row.
        let before = unsafe { atomic::load(addr_of!((*failures).doubted)) };
        // Who alone has a vote ejects by it.
        if before & failure.bit() != 0 && standing != failure.bit() {
            close(failure, now);
        } else {
            // SAFETY: as above.
            unsafe { atomic::set(addr_of_mut!((*failures).doubted), failure.bit()) };
        }
    }
    let suspect = HealthState::suspect(now);
    let voted = has_vote(standing, failure.bit());
    if !voted {
        count(Counter::FailureNotCounted);
    }
    if !voted || disbelieve(failure, now) {
        // For the sake of the client to which it may be closed. Who has no vote takes nothing from what others found.
        if state == HealthState::HEALTHY {
            change(health, state, suspect);
        }
        return 0;
    }
    watch_again(failure, epoch);
    let at_once = failure.cause == FailureCause::Refused as u8 && failure.again == 0;
    if at_once && limits.affinity_seconds == 0 {
        note_retry(failure, place);
    }
    let run = add_to_run(failure);
    // The later of two failures at once may lose; the backend is suspect either way.
    change(health, state, suspect.accused(is_grave(run)));
    match judge_run(run, standing) {
        Judgement::Keep => {}
        Judgement::Close => close(failure, now),
        Judgement::Eject => {
            // Silence may be the network's: never leave a service without a backend for it.
            if !failure.is_unanswered() || another_lives(failure, place, now) {
                eject(failure, health, limits.allowed_total, now);
            }
        }
    }
    0
}

#[inline(always)]
fn add_to_run(failure: &Failure) -> u64 {
    let Some(failures) = BACKEND_FAILURES.get_ptr_mut(failure.id) else {
        return 0;
    };
    let mut run = 0;
    for _ in 0..TRIES {
        // SAFETY: an aligned word of a map's row, changed by exchange.
        unsafe {
            let seen = atomic::load(addr_of!((*failures).run));
            run = add_failure(seen, failure.bit(), failure.weight());
            if atomic::exchange_if(addr_of_mut!((*failures).run), seen, run) {
                break;
            }
        }
    }
    run
}

/// Whether the failed socket is the one that tries the backend.
#[inline(always)]
fn is_trial(failure: &Failure, state: HealthState) -> bool {
    if state.mark() != failure.mark {
        return false;
    }
    let Some(watch) = WATCHES.get_ptr(watch_slot(failure.mark & 63, failure.service)) else {
        return false;
    };
    // SAFETY: words of a map's row. Rows of MPTCP hold no cookie: there the client and the backend must do.
    unsafe {
        read_volatile(addr_of!((*watch).backend)) == failure.id
            && (failure.cookie == 0 || read_volatile(addr_of!((*watch).cookie)) == failure.cookie)
    }
}

/// Closes the backend to this client alone. That needs no quorum, and hurts nobody else: while it is closed to somebody, that one's time
/// is everybody's.
#[inline(always)]
fn close(failure: &Failure, now: u64) {
    let Some(health) = backend_health_at(failure.id) else {
        return;
    };
    let until = now + FIRST_EJECTION;
    // SAFETY: aligned words of a map's row.
    let before = unsafe {
        let before = atomic::load(addr_of!((*health).closed));
        // Those to whom it was closed earlier, and whose time is over, are not shut out anew.
        if before == 0 || now >= atomic::load(addr_of!((*health).closed_until)) {
            atomic::store(addr_of_mut!((*health).closed), failure.bit());
            atomic::store(addr_of_mut!((*health).closed_until), until);
        } else {
            atomic::set(addr_of_mut!((*health).closed), failure.bit());
        }
        before
    };
    if before & failure.bit() == 0 {
        tell(
            EventKind::Closed,
            failure.about(),
            failure.cause(),
            HealthState::suspect(until),
        );
    }
}

/// A client that fails at two backends with no success between has a trouble of its own, more likely than they: its failures
/// do not count until it is seen established again: as it does not stand any more, its next connects are watched.
#[inline(always)]
fn disbelieve(failure: &Failure, now: u64) -> bool {
    let Some(watch) = WATCHES.get_ptr_mut(watch_slot(failure.mark & 63, failure.service)) else {
        return false;
    };
    // SAFETY: words of a map's row that is this client's own; a lost write costs a hint.
    let before = unsafe {
        if read_volatile(addr_of!((*watch).service)) != failure.service {
            // The slot is another service's while that one's connect is watched.
            if atomic::load(addr_of!((*watch).socket)) != 0 {
                return false;
            }
            write_volatile(addr_of_mut!((*watch).service), failure.service);
            write_volatile(addr_of_mut!((*watch).failed_at), 0);
        }
        write_volatile(addr_of_mut!((*watch).retry_slot), 0);
        write_volatile(addr_of_mut!((*watch).failed_time), now);
        let before = read_volatile(addr_of!((*watch).failed_at));
        write_volatile(addr_of_mut!((*watch).failed_at), failure.id.wrapping_add(1));
        before
    };
    if before == 0 || before == failure.id.wrapping_add(1) {
        return false;
    }
    // Of a backend that is gone nothing can be proven any more: its death was no trouble of the client's.
    let stands =
        backend_at(before.wrapping_sub(1)).is_some_and(|backend| is_live(backend, failure.service));
    if !stands {
        return false;
    }
    if let Some(row) = service_health_at(failure.service) {
        // SAFETY: aligned words of a map's row.
        unsafe {
            atomic::clear(addr_of_mut!((*row).standing[0]), failure.bit());
            atomic::clear(addr_of_mut!((*row).standing[1]), failure.bit());
        }
    }
    tell(
        EventKind::Disbelieved,
        failure.about(),
        failure.cause(),
        HealthState::HEALTHY,
    );
    true
}

/// A standing client whose connect failed stands by its earlier word alone: so its next connect is watched, and a success shows that
/// another backend's failure is not its own trouble.
#[inline(never)]
fn watch_again(failure: &Failure, epoch: u64) -> u32 {
    let Some(row) = service_health_at(failure.service) else {
        return 0;
    };
    // SAFETY: aligned words of a map's row, each of an epoch.
    unsafe {
        let this = addr_of_mut!((*row).standing[(epoch & 1) as usize]);
        if Standing(atomic::load(this)).of(epoch) & failure.bit() != 0 {
            let last = addr_of_mut!((*row).standing[(epoch & 1 ^ 1) as usize]);
            stand(last, epoch.wrapping_sub(1), failure.bit());
            atomic::clear(this, failure.bit());
        }
    }
    0
}

/// Where the backend stands in its service's ring: `tier << 32 | slot`. In a ring of many thousand slots it may not be found
/// ([`UNKNOWN`]): it is taken for one of the first tier then. Nobody asks for it where the client has no vote.
///
/// A search has many steps, and so have the ways that lead to whoever needs it: it comes before they part.
#[inline(never)]
fn place(failure: &Failure, epoch: u64) -> u64 {
    if !has_vote(service_standing(failure.service, epoch), failure.bit()) {
        return UNKNOWN;
    }
    let Some(ring) = ring_at(failure.service) else {
        return UNKNOWN;
    };
    // SAFETY: one aligned word, written whole.
    let ring = unsafe { read_volatile(ring) };
    let mut search = Search::by_id(ring, failure.service, failure.id);
    if search::run(&mut search) == NOWHERE {
        return UNKNOWN;
    }
    u64::from(search.tier) << 32 | u64::from(search.slot)
}

/// Once the client has succeeded elsewhere, it comes back to this backend: so a dead one costs the time of a few connects, however
/// seldom it is drawn. Not after silence, which costs a connect a second or more. A slot of a later tier leads nowhere: who follows it asks
/// whether it is of the first.
#[inline(always)]
fn note_retry(failure: &Failure, place: u64) {
    let Some(watch) = WATCHES.get_ptr_mut(watch_slot(failure.mark & 63, failure.service)) else {
        return;
    };
    // SAFETY: words of a map's row that is this client's own; they are a hint, of which whoever follows it asks the ring.
    unsafe {
        if read_volatile(addr_of!((*watch).service)) == failure.service {
            write_volatile(
                addr_of_mut!((*watch).retry_slot),
                (place as u32).wrapping_add(1),
            );
        }
    }
}

/// Whether the backend's tier has another one that can be had.
#[inline(never)]
fn another_lives(failure: &Failure, place: u64, now: u64) -> bool {
    let Some(ring) = ring_at(failure.service) else {
        return false;
    };
    // SAFETY: one aligned word, written whole.
    let ring = unsafe { read_volatile(ring) };
    let mut walk = Walk::new(ring, failure.service, failure.id, failure.bit(), now);
    let tier = (place >> 32) as u32;
    if tier != 0 {
        walk.enter(tier);
    }
    run(1, step, &mut walk);
    walk.found != NONE
}

#[inline(always)]
fn eject(failure: &Failure, health: *mut BackendHealthRow, allowed: u64, now: u64) {
    let Some(service) = service_health_at(failure.service) else {
        return;
    };
    let ejected = HealthState::ejected(now + back_off(0, random()), 0);
    let mut counted = false;
    for _ in 0..TRIES {
        // SAFETY: an aligned word of a map's row; only programs write it.
        unsafe {
            let total = atomic::load(addr_of!((*service).ejected_total));
            if total >= allowed {
                break;
            }
            if atomic::exchange_if(addr_of_mut!((*service).ejected_total), total, total + 1) {
                counted = true;
                break;
            }
        }
    }
    if !counted {
        count(Counter::EjectionCapped);
        tell_seldom(EventKind::Capped as u32, failure.service, 0);
        close(failure, now);
        return;
    }
    for _ in 0..TRIES {
        let seen = state_of(health);
        match stance(seen, now) {
            Stance::Open | Stance::Suspect => {}
            Stance::Ejected | Stance::Due | Stance::Trial => break,
        }
        if change(health, seen, ejected) {
            if let Some(failures) = BACKEND_FAILURES.get_ptr_mut(failure.id) {
                // SAFETY: an aligned word of a map's row.
                unsafe { atomic::store(addr_of_mut!((*failures).run), now) };
            }
            tell(
                EventKind::Ejected,
                failure.about(),
                failure.cause(),
                ejected,
            );
            return;
        }
    }
    // Another CPU has ejected it.
    // SAFETY: as above.
    unsafe { atomic::add(addr_of_mut!((*service).ejected_total), u64::MAX) };
}
