//! What became of a client's earlier connect: how it comes to stand, and how a trial ends.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::helpers::bpf_get_socket_cookie;
use aya_ebpf::programs::SockAddrContext;
use isthmus_abi::{EventKind, FailureCause, HealthState, MARKS, Standing, WatchRow, watch_slot};
use isthmus_datapath::{Fate, Stance, TRIAL, stance};

use super::super::socket;
use super::trial::{fail_trial, look, readmit};
use super::{CLAIMED, Request, TRIES, change, is_closed, random, state_of};
use crate::atomic;
use crate::event::{About, tell};
use crate::maps::{
    BACKEND_FAILURES, SLOTS, WATCHES, backend_at, backend_health_at, opaque, service_health_at,
};

/// Draws conclusions from the client's earlier connect, if one is watched, and returns which backend is drawn after them. A function of its
/// own, so that to the verifier it makes no difference which.
#[inline(never)]
pub(super) fn look_back(request: &Request) -> u32 {
    if review(request) == 0 {
        return opaque(request.drawn.into()) as u32;
    }
    retry(request)
}

/// Looks at the client's earlier connect, if one is watched, and draws the conclusions. Returns 1 if that one, to the same service, was
/// established, and began no earlier than the client's last failure: an older one says nothing of what came after it.
#[inline(never)]
fn review(request: &Request) -> u32 {
    let Some(row) = WATCHES.get_ptr_mut(watch_slot(request.mark & 63, request.service)) else {
        return 0;
    };
    // SAFETY: words of a map's row; a torn read is found out by the cookie and by the exchange at the end.
    let (socket, cookie, since, service, backend, generation, ended) = unsafe {
        (
            atomic::load(addr_of!((*row).socket)),
            read_volatile(addr_of!((*row).cookie)),
            read_volatile(addr_of!((*row).since)),
            read_volatile(addr_of!((*row).service)),
            read_volatile(addr_of!((*row).backend)),
            read_volatile(addr_of!((*row).generation)),
            atomic::load(addr_of!((*row).ended)),
        )
    };
    if socket == 0 || socket == CLAIMED {
        return 0;
    }
    let fate = look(backend, socket, cookie, ended);
    if fate == Fate::Waiting && request.now.wrapping_sub(since) < TRIAL {
        return 0;
    }
    // SAFETY: an aligned word; whoever takes the watch out draws the conclusions.
    if !unsafe { atomic::exchange_if(addr_of_mut!((*row).socket), socket, 0) } {
        return 0;
    }
    let Some(known) = backend_at(backend) else {
        return 0;
    };
    if known.service != service || known.generation != generation {
        return 0;
    }
    let Some(health) = backend_health_at(backend) else {
        return 0;
    };
    let state = state_of(health);
    // The watch is of the trial if it began no earlier.
    let tries = stance(state, request.now) == Stance::Trial
        && state.mark() == request.mark
        && since + TRIAL >= state.time();
    match fate {
        Fate::Established => {
            if tries {
                readmit(backend, health, state, service);
            }
            succeed_at(request, backend, since);
            let trusted = is_trusted(row, since);
            stand_again(request, service, trusted);
            if trusted != 0 && service == request.service {
                return 1;
            }
        }
        Fate::Waiting if tries => {
            fail_trial(
                backend,
                health,
                state,
                service,
                FailureCause::Unanswered,
                request.now,
            );
        }
        Fate::Gone if tries => {
            // The next standing client tries at once.
            let due = HealthState::ejected(request.now, state.doublings());
            if change(health, state, due) {
                tell(
                    EventKind::TrialAbandoned,
                    About {
                        service,
                        backend,
                        generation,
                        mark: request.mark,
                    },
                    FailureCause::None,
                    due,
                );
            }
        }
        Fate::Waiting | Fate::Gone => {}
    }
    0
}

/// 1 if a success of `since` came after the client's last failure, which is forgotten then; else 0: an older connect says nothing of what
/// came after it. Without a branch, for the verifier's sake.
///
/// Where the success is to lead back, it does so at once or a connect later, by chance: else a client with a trouble of its own at
/// every second connect met the same backend each time.
#[inline(always)]
fn is_trusted(row: *mut WatchRow, since: u64) -> u32 {
    // SAFETY: words of a client's row that only hint.
    unsafe {
        let fresh = u32::from(since >= read_volatile(addr_of!((*row).failed_time)));
        let failed_at = read_volatile(addr_of!((*row).failed_at));
        write_volatile(addr_of_mut!((*row).failed_at), failed_at * (fresh ^ 1));
        let leads = u32::from(read_volatile(addr_of!((*row).retry_slot)) != 0);
        fresh & !(leads & random())
    }
}

/// The client was seen established at the service. One that is not trusted yet stands by the last epoch's word, and its next connect is
/// watched.
#[inline(always)]
fn stand_again(request: &Request, service: u32, trusted: u32) {
    let Some(row) = service_health_at(service) else {
        return;
    };
    let epoch = request.epoch.wrapping_sub(u64::from(trusted ^ 1));
    // SAFETY: a word of a map's row, the epoch's own.
    unsafe {
        stand(
            addr_of_mut!((*row).standing[(epoch & 1) as usize]),
            epoch,
            request.bit(),
        )
    };
}

/// The client is trusted again: the backend that refused it is drawn once more, if it stands where it did, is suspect still, and no other
/// connect is on its way there.
#[inline(never)]
fn retry(request: &Request) -> u32 {
    let Some(row) = WATCHES.get_ptr_mut(watch_slot(request.mark & 63, request.service)) else {
        return request.drawn;
    };
    // SAFETY: a word of this client's row that only hints.
    let slot = unsafe {
        let noted = read_volatile(addr_of!((*row).retry_slot));
        write_volatile(addr_of_mut!((*row).retry_slot), 0);
        noted.wrapping_sub(1)
    };
    if slot.wrapping_sub(request.ring.first()) >= request.ring.len() {
        return request.drawn;
    }
    let Some(slot) = SLOTS.get_ptr(slot) else {
        return request.drawn;
    };
    // SAFETY: one aligned word, written whole.
    let slot = unsafe { read_volatile(slot) };
    let Some(health) = backend_health_at(slot.backend()) else {
        return request.drawn;
    };
    let state = state_of(health);
    if slot.service() != request.service
        || stance(state, request.now) != Stance::Suspect
        || state.is_gated(request.now)
        || is_closed(slot.backend(), request.bit(), request.now)
    {
        return request.drawn;
    }
    slot.backend()
}

/// The client was seen established at `backend` by a connect begun at `since`.
#[inline(always)]
fn succeed_at(request: &Request, backend: u32, since: u64) {
    let bit = request.bit();
    let Some(health) = backend_health_at(backend) else {
        return;
    };
    let state = state_of(health);
    if stance(state, request.now) != Stance::Suspect {
        return;
    }
    let Some(failures) = BACKEND_FAILURES.get_ptr_mut(backend) else {
        return;
    };
    // SAFETY: aligned words of a map's row.
    unsafe {
        atomic::clear(addr_of_mut!((*failures).doubted), bit);
        atomic::clear(addr_of_mut!((*health).closed), bit);
        // A connect that began before the last failure says nothing of what came after it.
        if since <= state.time() {
            return;
        }
        atomic::store(addr_of_mut!((*failures).run), 0);
        // While it is closed to somebody, draws have to look; that is all that is left of the suspicion.
        let mut now = HealthState::suspect(state.time());
        if atomic::load(addr_of!((*health).closed)) == 0
            || request.now >= atomic::load(addr_of!((*health).closed_until))
        {
            atomic::store(addr_of_mut!((*health).closed), 0);
            now = HealthState::HEALTHY;
        }
        change(health, state, now);
    }
}

/// Adds a client to those of an epoch.
///
/// # Safety
/// `word` is an aligned word of a map's row that is the epoch's own.
#[inline(always)]
pub(super) unsafe fn stand(word: *mut u64, epoch: u64, bit: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        let seen = atomic::load(word);
        if Standing(seen).of(epoch) & bit != 0 {
            return;
        }
        let fresh = Standing::new(epoch, bit).0;
        if seen >> MARKS.count_ones() == fresh >> MARKS.count_ones()
            || !atomic::exchange_if(word, seen, fresh)
        {
            // The word is this epoch's, or another CPU has just made it so.
            atomic::set(word, bit);
        }
    }
}

/// Notes this connect in the client's watch, unless an earlier one there still waits for its answer; a trial goes first.
#[inline(never)]
pub(super) fn watch(ctx: &SockAddrContext, request: &mut Request, chosen: u32) -> u32 {
    let Some(row) = WATCHES.get_ptr_mut(watch_slot(request.mark & 63, request.service)) else {
        return 0;
    };
    // All that takes time comes before the claim, so that a trial on another CPU finds the watch free again.
    let generation = backend_at(chosen).map_or(0, |backend| backend.generation);
    // SAFETY: the helper takes this program type's context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) };
    let socket = socket::of_context(ctx);
    // SAFETY: an aligned word of a map's row, taken by exchange.
    unsafe {
        if !claim(addr_of_mut!((*row).socket), request.trial != 0) {
            return 0;
        }
        if (*row).service != request.service {
            (*row).failed_at = 0;
            (*row).retry_slot = 0;
        }
        (*row).cookie = cookie;
        (*row).since = request.now;
        (*row).service = request.service;
        (*row).backend = chosen;
        (*row).generation = generation;
        (*row).ended = 0;
        request.watched = 1;
        // What was a pointer is a number when it is read back.
        write_volatile(addr_of_mut!((*row).socket), socket as u64);
    }
    0
}

/// Takes a watch to write it. One that nobody sees could not succeed: so a trial tries again where another CPU is at it.
///
/// # Safety
/// `socket` is an aligned word of a map's row.
#[inline(always)]
unsafe fn claim(socket: *mut u64, trial: bool) -> bool {
    for _ in 0..TRIES {
        // SAFETY: the caller's promise.
        let seen = unsafe { atomic::load(socket) };
        if seen != 0 && !trial {
            return false;
        }
        // SAFETY: as above.
        if seen != CLAIMED && unsafe { atomic::exchange_if(socket, seen, CLAIMED) } {
            return true;
        }
    }
    false
}

/// Notes that a watched socket of this client at the service was closed established.
#[inline(always)]
pub fn note_end(mark: u32, service: u32, cookie: u64) {
    let Some(row) = WATCHES.get_ptr_mut(watch_slot(mark & 63, service)) else {
        return;
    };
    // SAFETY: aligned words of a map's row. If the watch is another socket's by now, that one's cookie is another.
    unsafe {
        if read_volatile(addr_of!((*row).cookie)) == cookie {
            atomic::store(addr_of_mut!((*row).ended), cookie);
        }
    }
}
