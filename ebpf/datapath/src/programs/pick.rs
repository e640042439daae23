//! Which backend a client of a service gets.

use core::ptr::{addr_of, addr_of_mut, read_volatile};

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32};
use aya_ebpf::programs::SockAddrContext;
use isthmus_abi::{
    BackendRow, Counter, DRAW_TRIES, EPOCH_SHIFT, EventKind, NO_MARK, Refusal, Ring, ScopeProtocol,
    Settings, Standing, client, client_mark,
};
use isthmus_datapath::{Drawn, draw, judge};

use super::health::{self, Request};
use crate::atomic;
use crate::event::tell_seldom;
use crate::maps::{
    BACKEND_HEALTH, BACKENDS, CLIENTS, RINGS, SERVICE_HEALTH, SETTINGS, SLOTS, count,
};

pub enum Pick {
    Backend(Picked),
    Pass,
    Refuse(Refusal),
}

pub struct Picked {
    pub id: u32,
    pub row: &'static BackendRow,
    /// The client's, or [`NO_MARK`] where health does not look.
    pub mark: u32,
    /// A later connect asks what became of this one.
    pub watched: bool,
}

/// Chooses a backend of `service` for this client.
#[inline(always)]
pub fn pick(ctx: &SockAddrContext, service: u32, protocol: u16) -> Pick {
    let Some(settings) = SETTINGS.get(0) else {
        return Pick::Pass;
    };
    if client_scope(ctx, settings) != client::TRANSLATE {
        count(Counter::ClientOutOfScope);
        return Pick::Pass;
    }
    let mut drawn = Draw {
        ring: Ring::EMPTY,
        id: 0,
    };
    let refusal = draw_once(service, &mut drawn);
    if refusal != DRAWN {
        return Pick::Refuse(if refusal == GAVE_UP {
            Refusal::DrawGaveUp
        } else {
            Refusal::NoBackend
        });
    }
    let Some(row) = BACKENDS.get(drawn.id) else {
        return Pick::Refuse(Refusal::NoBackend);
    };
    let mut picked = Picked {
        id: drawn.id,
        row,
        mark: NO_MARK,
        watched: false,
    };
    if settings.passive_health != 0 && protocol == ScopeProtocol::TCP {
        heed_health(ctx, service, &drawn, &mut picked);
    }
    if let Some(health) = BACKEND_HEALTH.get_ptr_mut(picked.id) {
        // SAFETY: an aligned word that programs change by atomic addition only.
        unsafe { atomic::add(addr_of_mut!((*health).connects), 1) };
    }
    Pick::Backend(picked)
}

/// A backend of the first tier, and the ring that it was drawn from.
struct Draw {
    ring: Ring,
    id: u32,
}

/// What [`draw_once`] says.
const DRAWN: u32 = 0;
const EMPTY: u32 = 1;
const GAVE_UP: u32 = 2;

/// A function of its own, so that to the verifier all tries look alike when it returns.
#[inline(never)]
fn draw_once(service: u32, drawn: &mut Draw) -> u32 {
    for _ in 0..DRAW_TRIES {
        let Some(ring) = RINGS.get_ptr(service) else {
            return EMPTY;
        };
        // SAFETY: one aligned word, written whole.
        let ring = unsafe { read_volatile(ring) };
        // SAFETY: a helper without arguments.
        let random = unsafe { bpf_get_prandom_u32() };
        let Some(index) = draw(ring, random) else {
            return EMPTY;
        };
        if let Some(slot) = SLOTS.get_ptr(index) {
            // SAFETY: one aligned word, written whole.
            let slot = unsafe { read_volatile(slot) };
            if let Some(row) = BACKENDS.get(slot.backend())
                && judge(service, slot, row) == Drawn::Ours
            {
                drawn.ring = ring;
                drawn.id = slot.backend();
                return DRAWN;
            }
        }
        count(Counter::DrawRetried);
    }
    GAVE_UP
}

/// Leaves it at the drawn backend if nothing is held against that and the client stands there; the count and these words
/// share a cache line.
#[inline(always)]
fn heed_health(ctx: &SockAddrContext, service: u32, drawn: &Draw, picked: &mut Picked) {
    // SAFETY: the helper takes this program type's context.
    let mark = client_mark(unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) });
    picked.mark = mark;
    let Some(health) = BACKEND_HEALTH.get_ptr_mut(picked.id) else {
        return;
    };
    // SAFETY: a helper without arguments. The last tick's time is good enough to tell epochs apart.
    let epoch = unsafe { bpf_ktime_get_coarse_ns() } >> EPOCH_SHIFT;
    // SAFETY: aligned words of a map's row.
    let (state, standing) = unsafe {
        (
            atomic::load(addr_of!((*health).state)),
            Standing(atomic::load(addr_of!(
                (*health).standing[(epoch & 1) as usize]
            ))),
        )
    };
    if state != 0 || standing.of(epoch) >> mark & 1 == 0 {
        let mut request = Request::new(service, mark, picked.id, drawn.ring);
        let id = health::choose(ctx, &mut request);
        picked.watched = request.watched();
        if let Some(row) = BACKENDS.get(id) {
            picked.id = id;
            picked.row = row;
        }
    }
}

/// Whether this client's connections are ours to translate. Asked after a hit only.
#[inline(always)]
pub fn client_scope(ctx: &SockAddrContext, settings: &Settings) -> u32 {
    if settings.client_rows != 0 {
        // SAFETY: the helper takes this program type's context.
        let cookie = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
        // SAFETY: a word without meaning beyond itself; rows are never replaced.
        if let Some(word) = unsafe { CLIENTS.get(&cookie) } {
            return word.scope;
        }
    }
    settings.client_default
}

/// Counts a refusal, of a service if it is one's.
#[inline(always)]
pub fn note_refusal(refusal: Refusal, service: Option<u32>) {
    count(refusal.counter());
    if let Some(service) = service {
        if let Some(row) = SERVICE_HEALTH.get_ptr_mut(service) {
            // SAFETY: an aligned word of a map's row, changed by addition only.
            unsafe { atomic::add(addr_of_mut!((*row).refused), 1) };
        }
        tell_seldom(EventKind::Refused as u32, service, refusal as u32);
    }
}
