//! Passive health: who may be drawn, whose word counts, and what becomes of a backend that fails.
//!
//! A success costs nothing when it happens: the next connect of the same client looks at an earlier one's socket, and
//! only while the client does not stand, or the backend is suspect. A failure comes from [`super::failure`].

mod ejection;
mod trial;
mod walk;
mod watch;

use core::ptr::{addr_of, addr_of_mut};

use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::programs::SockAddrContext;
use isthmus_abi::{
    BackendHealthRow, Counter, EPOCH_SHIFT, EventKind, HealthState, Ring, TICK_SHIFT, client_mark,
    health_kind, service_flags,
};
use isthmus_datapath::{Stance, stance, standing};

use crate::atomic;
use crate::event::tell_seldom;
use crate::maps::{backend_health_at, count, opaque, service_health_at, service_limits_at};

use super::affinity::TRIAL;

pub use ejection::{Failure, hold_against};
pub use watch::note_end;

use trial::{begin_trial, join_trial};
use walk::walk;
use watch::{look_back, watch};

/// Tries of an exchange that others may win.
const TRIES: usize = 4;
/// In [`WatchRow::socket`]: being written. No socket lies at an odd address.
const CLAIMED: u64 = 1;
/// No backend.
const NONE: u32 = u32::MAX;

/// A connect, as health sees it.
#[repr(C)]
pub struct Request {
    pub service: u32,
    pub mark: u32,
    /// The backend that was drawn.
    pub drawn: u32,
    /// 1 if the connect is a trial.
    trial: u16,
    /// 1 if a later connect asks what became of it.
    watched: u16,
    /// Of how many tiers another backend may be.
    tiers: u16,
    reserved: u16,
    pub ring: Ring,
    /// In ticks.
    now: u64,
    epoch: u64,
    /// Of the backend that was chosen, if another than the drawn one had to be.
    tier: u32,
}

impl Request {
    #[inline(always)]
    pub fn new(service: u32, mark: u32, drawn: u32, ring: Ring) -> Self {
        let (now, epoch) = clock();
        Self {
            service,
            mark,
            drawn,
            trial: 0,
            watched: 0,
            tiers: ring.tiers().into(),
            reserved: 0,
            ring,
            now,
            epoch,
            tier: 0,
        }
    }
    #[inline(always)]
    pub fn watched(&self) -> u32 {
        self.watched.into()
    }
    /// As [`super::pick::Draw`] has it.
    #[inline(always)]
    pub fn tier(&self) -> u32 {
        let tier = if self.trial != 0 { TRIAL } else { self.tier };
        opaque(tier.into()) as u32
    }
    #[inline(always)]
    fn bit(&self) -> u64 {
        1 << (self.mark & 63)
    }
}

/// Now, in ticks and in epochs.
#[inline(always)]
fn clock() -> (u64, u64) {
    // SAFETY: a helper without arguments.
    let nanoseconds = unsafe { bpf_ktime_get_ns() };
    (nanoseconds >> TICK_SHIFT, nanoseconds >> EPOCH_SHIFT)
}

#[inline(always)]
fn random() -> u32 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_prandom_u32() }
}

#[inline(always)]
fn state_of(health: *const BackendHealthRow) -> HealthState {
    // SAFETY: an aligned word of a map's row.
    HealthState(unsafe { atomic::load(addr_of!((*health).state)) })
}

/// Takes the state from `seen` to `new`, unless another was faster.
#[inline(always)]
fn change(health: *mut BackendHealthRow, seen: HealthState, new: HealthState) -> bool {
    // SAFETY: an aligned word of a map's row that is changed by exchange only.
    unsafe { atomic::exchange_if(addr_of_mut!((*health).state), seen.0, new.0) }
}

/// The clients that stand at the service.
#[inline(always)]
fn service_standing(service: u32, epoch: u64) -> u64 {
    let Some(row) = service_health_at(service) else {
        return 0;
    };
    // SAFETY: aligned words of a map's row.
    let words = unsafe {
        [
            atomic::load(addr_of!((*row).standing[0])),
            atomic::load(addr_of!((*row).standing[1])),
        ]
    };
    standing(words, epoch)
}

/// Chooses when the drawn backend is not simply to be taken: the client does not stand at the service in this epoch, or the
/// backend is not healthy. Returns a backend's id.
#[inline(always)]
pub fn choose(ctx: &SockAddrContext, request: &mut Request) -> u32 {
    request.drawn = look_back(request);
    let drawn = request.drawn;
    let mut chosen = drawn;
    if !may_take(request) {
        chosen = walk(request);
        if chosen == NONE {
            if !is_suspect(drawn) {
                fall_open(request.service);
            }
            chosen = drawn;
        }
    }
    watch(ctx, request, chosen);
    chosen
}

/// Whether the backend waits for its trial, and this client may be it, or for the end of one.
#[inline(always)]
pub fn awaits_trial_by(ctx: &SockAddrContext, service: u32, backend: u32) -> bool {
    let Some(health) = backend_health_at(backend) else {
        return false;
    };
    let (now, epoch) = clock();
    let state = state_of(health);
    match stance(state, now) {
        Stance::Due => {}
        Stance::Trial => return now >= state.time(),
        _ => return false,
    }
    // SAFETY: the helper takes this program type's context.
    let mark = client_mark(unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) });
    let standing = service_standing(service, epoch);
    isthmus_datapath::may_try(state, standing, mark, now)
        && !is_closed(backend, 1 << (mark & 63), now)
}

/// One that is suspect is left for want of news only: where there is no other, it is taken all the same.
#[inline(always)]
fn is_suspect(backend: u32) -> bool {
    backend_health_at(backend).is_some_and(|health| state_of(health).kind() == health_kind::SUSPECT)
}

/// Every backend of every tier is out: belief never refuses, so the first draw stands.
#[inline(always)]
fn fall_open(service: u32) {
    count(Counter::AllEjected);
    if let Some(row) = service_health_at(service) {
        // SAFETY: an aligned word of a map's row, changed by addition only.
        unsafe { atomic::add(addr_of_mut!((*row).all_ejected), 1) };
    }
    tell_seldom(EventKind::AllEjected as u32, service, 0);
}

/// Whether the drawn backend may be taken, perhaps as its trial.
#[inline(never)]
fn may_take(request: &mut Request) -> bool {
    let Some(health) = backend_health_at(request.drawn) else {
        return true;
    };
    let state = state_of(health);
    let Some(limits) = service_limits_at(request.service) else {
        return true;
    };
    if limits.flags & service_flags::NO_PASSIVE_HEALTH != 0 {
        return true;
    }
    match stance(state, request.now) {
        Stance::Open => true,
        Stance::Suspect if is_closed(request.drawn, request.bit(), request.now) => false,
        // A client that comes back to its backend leaves it for an ejection only.
        Stance::Suspect if limits.affinity_seconds != 0 => true,
        Stance::Suspect => {
            if !state.is_gated(request.now) && change(health, state, state.probed(request.now)) {
                return true;
            }
            // One of a later tier is no better, unless one more failure ejects this one.
            if !state.is_grave() {
                request.tiers = opaque(1) as u16;
            }
            false
        }
        Stance::Ejected => false,
        Stance::Due => begin_trial(request, health, state),
        Stance::Trial => join_trial(request, health, state),
    }
}

#[inline(always)]
fn is_closed(backend: u32, bit: u64, now: u64) -> bool {
    let Some(health) = backend_health_at(backend) else {
        return false;
    };
    // SAFETY: aligned words of a map's row.
    unsafe {
        atomic::load(addr_of!((*health).closed)) & bit != 0
            && now < atomic::load(addr_of!((*health).closed_until))
    }
}
