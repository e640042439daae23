//! The one connect that tries a backend whose time is over, and what comes of it.

use core::ptr::{addr_of, addr_of_mut, read_volatile};

use isthmus_abi::{BackendHealthRow, EventKind, FailureCause, HealthState, watch_slot};
use isthmus_datapath::{CLOSE, Fate, TRIAL, back_off, fate, may_try};

use super::{CLAIMED, Request, change, is_closed, random, service_standing};
use crate::atomic;
use crate::event::{About, tell};
use crate::kernel::Sock;
use crate::maps::{BACKEND_FAILURES, WATCHES, backend_at};

/// Makes this connect the trial of a backend whose time is over, if the client stands and nobody is faster.
#[inline(always)]
pub(super) fn begin_trial(
    request: &mut Request,
    health: *mut BackendHealthRow,
    seen: HealthState,
) -> bool {
    let standing = service_standing(request.service, request.epoch);
    let may = may_try(seen, standing, request.mark, request.now);
    if !may || is_closed(request.drawn, request.bit(), request.now) {
        return false;
    }
    let trial = HealthState::trial(request.now + TRIAL, seen.doublings(), request.mark);
    if !change(health, seen, trial) {
        return false;
    }
    request.trial = 1;
    tell(
        EventKind::TrialBegan,
        about(request),
        FailureCause::None,
        trial,
    );
    true
}

#[inline(always)]
fn about(request: &Request) -> About {
    let generation = backend_at(request.drawn).map_or(0, |backend| backend.generation);
    About {
        service: request.service,
        backend: request.drawn,
        generation,
        mark: request.mark,
    }
}

/// Looks at the connect that tries the drawn backend.
#[inline(always)]
pub(super) fn join_trial(
    request: &mut Request,
    health: *mut BackendHealthRow,
    seen: HealthState,
) -> bool {
    let over = request.now >= seen.time();
    let fate = match WATCHES.get_ptr(watch_slot(seen.mark() & 63, request.service)) {
        // SAFETY: words of a map's row; a torn read is found out by the cookie.
        Some(watch) => unsafe {
            let socket = atomic::load(addr_of!((*watch).socket));
            // Else the trial is between draw and watch: what is there is of an earlier connect. Or another CPU has taken the
            // watch out, and draws the conclusions.
            let ours = socket != 0
                && read_volatile(addr_of!((*watch).backend)) == request.drawn
                && read_volatile(addr_of!((*watch).service)) == request.service
                && read_volatile(addr_of!((*watch).since)) + TRIAL >= seen.time();
            if ours {
                look(
                    request.drawn,
                    socket,
                    read_volatile(addr_of!((*watch).cookie)),
                    atomic::load(addr_of!((*watch).ended)),
                )
            } else {
                Fate::Waiting
            }
        },
        None => Fate::Gone,
    };
    match fate {
        Fate::Established => {
            readmit(request.drawn, health, seen, request.service);
            true
        }
        Fate::Waiting if !over => false,
        Fate::Waiting => {
            fail_trial(
                request.drawn,
                health,
                seen,
                request.service,
                FailureCause::Unanswered,
                request.now,
            );
            false
        }
        Fate::Gone => begin_trial(request, health, seen),
    }
}

/// What became of a watched socket that was sent to `backend`. One that was connected elsewhere since tells nothing.
#[inline(never)]
pub(super) fn look(backend: u32, socket: u64, cookie: u64, ended: u64) -> Fate {
    if socket == 0 {
        return Fate::Gone;
    }
    if socket == CLAIMED {
        return Fate::Waiting;
    }
    // Closed: its memory may hold it still, or the next socket by now.
    if ended == cookie {
        return Fate::Established;
    }
    let sock = Sock(socket);
    if sock.cookie() != cookie {
        return Fate::Gone;
    }
    let state = sock.state();
    let seen = fate(state, sock.heard(), sock.is_busy());
    let Some(row) = backend_at(backend) else {
        return Fate::Gone;
    };
    // One that has not left `CLOSE` has no peer yet.
    let there = (seen == Fate::Waiting && state == CLOSE) || sock.peer_is(&row.address, row.port);
    if !there || sock.cookie() != cookie {
        return Fate::Gone;
    }
    seen
}

#[inline(always)]
pub(super) fn readmit(
    backend: u32,
    health: *mut BackendHealthRow,
    seen: HealthState,
    service: u32,
) {
    if !change(health, seen, HealthState::HEALTHY) {
        return;
    }
    if let Some(failures) = BACKEND_FAILURES.get_ptr_mut(backend) {
        // SAFETY: aligned words of maps' rows.
        unsafe {
            atomic::store(addr_of_mut!((*failures).run), 0);
            atomic::store(addr_of_mut!((*failures).doubted), 0);
            atomic::store(addr_of_mut!((*health).closed), 0);
        }
    }
    let generation = backend_at(backend).map_or(0, |row| row.generation);
    tell(
        EventKind::Returned,
        About {
            service,
            backend,
            generation,
            mark: seen.mark(),
        },
        FailureCause::None,
        seen,
    );
}

#[inline(always)]
pub(super) fn fail_trial(
    backend: u32,
    health: *mut BackendHealthRow,
    seen: HealthState,
    service: u32,
    cause: FailureCause,
    now: u64,
) {
    let doublings = seen.doublings() + 1;
    let until = now + back_off(doublings, random());
    let ejected = HealthState::ejected_by(until, doublings, seen.mark());
    if !change(health, seen, ejected) {
        return;
    }
    let generation = backend_at(backend).map_or(0, |row| row.generation);
    tell(
        EventKind::TrialFailed,
        About {
            service,
            backend,
            generation,
            mark: seen.mark(),
        },
        cause,
        ejected,
    );
}
