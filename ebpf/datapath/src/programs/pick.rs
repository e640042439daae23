//! Which backend a client of a service gets.

use core::mem::MaybeUninit;
use core::ptr::{addr_of, addr_of_mut, read_volatile};

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32};
use aya_ebpf::programs::SockAddrContext;
use isthmus_abi::{
    BackendRow, Counter, DRAW_TRIES, EPOCH_SHIFT, EventKind, HealthState, NO_MARK, Refusal, Ring,
    ScopeProtocol, Settings, Standing, client, client_mark,
};
use isthmus_datapath::{Drawn, doubts, draw, judge};

use super::affinity;
use super::health::{self, Request};
use crate::atomic;
use crate::event::tell_seldom;
use crate::maps::{
    CLIENTS, SETTINGS, SLOTS, backend_at, backend_health_at, count, opaque, ring_at,
    service_health_at,
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
    /// 1 if a later connect asks what became of this one.
    pub watched: u32,
}

/// Chooses a backend of `service` for this client.
#[inline(always)]
pub fn pick(ctx: &SockAddrContext, service: u32, protocol: u16) -> Pick {
    let mut chosen = MaybeUninit::uninit();
    match choose(ctx, service, protocol.into(), &mut chosen) {
        CHOSEN => {}
        OUT_OF_SCOPE => return Pick::Pass,
        GAVE_UP => return Pick::Refuse(Refusal::DrawGaveUp),
        _ => return Pick::Refuse(Refusal::NoBackend),
    }
    // SAFETY: it was chosen.
    let Chosen { id, mark, watched } = unsafe { chosen.assume_init() };
    let Some(row) = backend_at(id) else {
        return Pick::Refuse(Refusal::NoBackend);
    };
    Pick::Backend(Picked {
        id,
        row,
        mark,
        watched,
    })
}

/// A backend for a client, as in [`Picked`].
struct Chosen {
    id: u32,
    mark: u32,
    watched: u32,
}

/// What [`choose`] and [`draw_once`] say.
const CHOSEN: u32 = 0;
const EMPTY: u32 = 1;
const GAVE_UP: u32 = 2;
const OUT_OF_SCOPE: u32 = 3;

/// A function of its own, so that to the verifier all ways to a backend look alike when it returns.
#[inline(never)]
fn choose(
    ctx: &SockAddrContext,
    service: u32,
    protocol: u32,
    chosen: &mut MaybeUninit<Chosen>,
) -> u32 {
    let Some(settings) = SETTINGS.get(0) else {
        return OUT_OF_SCOPE;
    };
    if client_scope(ctx, settings) != client::TRANSLATE {
        count(Counter::ClientOutOfScope);
        return OUT_OF_SCOPE;
    }
    let mut drawn = MaybeUninit::uninit();
    let outcome = draw_once(service, &mut drawn);
    if outcome != CHOSEN {
        return outcome;
    }
    // SAFETY: it was drawn.
    let drawn = unsafe { drawn.assume_init_mut() };
    if is_sticky(service) {
        affinity::keep(ctx, service, drawn);
    }
    let mut id = drawn.place.id();
    let mut mark = NO_MARK;
    let mut watched = 0;
    if heeds_health(protocol) {
        // SAFETY: the helper takes this program type's context.
        mark = client_mark(unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) });
        if doubts_of(service, id, mark) != 0 {
            let mut request = Request::new(service, mark, id, drawn.ring);
            id = health::choose(ctx, &mut request);
            watched = request.watched();
            drawn.tier = request.tier();
        }
    }
    if is_sticky(service) {
        let settled = affinity::settle(ctx, service, drawn, id);
        // What becomes of this connect says nothing of the backend that health chose.
        watched *= u32::from(settled == id);
        id = settled;
    }
    if let Some(health) = backend_health_at(id) {
        // SAFETY: an aligned word that programs change by atomic addition only.
        unsafe { atomic::add(addr_of_mut!((*health).connects), 1) };
    }
    chosen.write(Chosen { id, mark, watched });
    CHOSEN
}

#[inline(always)]
fn heeds_health(protocol: u32) -> bool {
    protocol == ScopeProtocol::TCP.into()
        && SETTINGS
            .get(0)
            .is_some_and(|settings| settings.passive_health != 0)
}

/// A backend's id, and the slot that names it. One word: to older verifiers, two halves are not always what they were.
#[derive(Clone, Copy)]
pub(super) struct Place(u64);

impl Place {
    #[inline(always)]
    pub(super) const fn new(id: u32, slot: u32) -> Self {
        Self((slot as u64) << 32 | id as u64)
    }
    /// See [`opaque`].
    #[inline(always)]
    pub(super) fn opaque(self) -> Self {
        Self(opaque(self.0))
    }
    #[inline(always)]
    pub(super) const fn id(self) -> u32 {
        self.0 as u32
    }
    #[inline(always)]
    pub(super) const fn slot(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// A backend of the first tier, and the ring that it was drawn from.
pub(super) struct Draw {
    pub(super) ring: Ring,
    pub(super) place: Place,
    /// Of the backend that health chose instead; 0 for one of the first, [`affinity::TRIAL`] if the connect is a trial.
    pub(super) tier: u32,
    _padding: u32,
}

/// Whether clients come back to their backend. Read from the map each time: of a word that it saw before, the verifier knows
/// the answer, and walks all that follows once for each.
#[inline(always)]
fn is_sticky(service: u32) -> bool {
    match ring_at(service) {
        // SAFETY: one aligned word, written whole.
        Some(ring) => unsafe { read_volatile(ring) }.is_sticky(),
        None => false,
    }
}

/// A function of its own, so that to the verifier all tries look alike when it returns.
#[inline(never)]
fn draw_once(service: u32, drawn: &mut MaybeUninit<Draw>) -> u32 {
    let Some(ring_at) = ring_at(service) else {
        return EMPTY;
    };
    for _ in 0..DRAW_TRIES {
        // SAFETY: one aligned word, written whole.
        let ring = unsafe { read_volatile(ring_at) };
        // SAFETY: a helper without arguments.
        let random = unsafe { bpf_get_prandom_u32() };
        let Some(index) = draw(ring, random) else {
            return EMPTY;
        };
        if let Some(slot) = SLOTS.get_ptr(index) {
            // SAFETY: one aligned word, written whole.
            let slot = unsafe { read_volatile(slot) };
            if let Some(row) = backend_at(slot.backend())
                && judge(service, slot, row) == Drawn::Ours
            {
                drawn.write(Draw {
                    ring: ring.with_affinity(false),
                    place: Place::new(slot.backend(), index),
                    tier: 0,
                    _padding: 0,
                });
                return CHOSEN;
            }
        }
        count(Counter::DrawRetried);
    }
    GAVE_UP
}

/// Why health is asked before the backend is taken; see [`doubts`]. The draw has read both cache lines.
#[inline(always)]
fn doubts_of(service: u32, id: u32, mark: u32) -> u64 {
    let (Some(row), Some(health)) = (service_health_at(service), backend_health_at(id)) else {
        return 0;
    };
    // SAFETY: a helper without arguments. The last tick's time is good enough to tell epochs apart.
    let epoch = unsafe { bpf_ktime_get_coarse_ns() } >> EPOCH_SHIFT;
    // SAFETY: aligned words of maps' rows.
    let (state, standing) = unsafe {
        (
            atomic::load(addr_of!((*health).state)),
            atomic::load(addr_of!((*row).standing[(epoch & 1) as usize])),
        )
    };
    doubts(HealthState(state), Standing(standing), epoch, mark)
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
        if let Some(row) = service_health_at(service) {
            // SAFETY: an aligned word of a map's row, changed by addition only.
            unsafe { atomic::add(addr_of_mut!((*row).refused), 1) };
        }
        tell_seldom(EventKind::Refused as u32, service, refusal as u32);
    }
}
