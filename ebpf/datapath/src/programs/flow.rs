//! Sockets that send without a connect. Each keeps, for each service, the backend that it was given, while that one is the
//! service's.
//!
//! The first service stands in the socket's own row of `sockets`, as with a connect: most sockets, a resolver's say, have
//! only one. Further ones go to `flows`.

use core::ffi::c_void;
use core::ptr::{addr_of, read_volatile};

use aya_ebpf::helpers::generated::bpf_loop;
use aya_ebpf::programs::SockAddrContext;
use isthmus_abi::{
    Counter, FLOW_VERSION, FlowKey, FlowRow, NO_MARK, NetPort, Ring, ScopeProtocol,
    TierHead, flow_side,
};
use isthmus_datapath::{Drawn, difference, is_at, judge};

use super::connect::{Verdict, refuse, refuses_unknown_port};
use super::lookup::{Hit, Known};
use super::pick::{Pick, Picked, note_refusal, pick};
use super::socket::{self, NOWHERE, Owner, Sent, own};
use crate::maps::{BACKENDS, FLOWS, RINGS, SLOTS, count};

/// Most slots of a ring that are searched for a backend under another id.
const SEARCH_MAX: u32 = 4096;

/// A datagram to a service.
struct Datagram<'a> {
    owner: &'a Owner,
    asked: &'a [u32; 4],
    /// Network order.
    port: u32,
    service: u32,
}

/// Decides where a datagram to `asked` goes, of which the frontends know `hit`.
///
/// Each step is a function of its own that gives back a number, so that the verifier does not walk the next one for each
/// way through it.
#[inline(always)]
pub fn send(ctx: &SockAddrContext, hit: Hit, asked: [u32; 4], port: NetPort) -> Verdict {
    match hit.known {
        Known::Service => {}
        Known::UnknownPort if refuses_unknown_port(ctx) => return Verdict::Refuse,
        Known::UnknownPort | Known::Nothing => return Verdict::Pass,
    }
    let socket = socket::of_context(ctx);
    let Some(owner) = Owner::of(ctx, socket) else {
        return Verdict::Pass;
    };
    let datagram = Datagram {
        owner: &owner,
        asked: &asked,
        port: u32::from(port.net()),
        service: hit.service,
    };
    let mut sent = Sent::NOWHERE;
    let known = kept(&datagram, &mut sent);
    if let Some(row) = BACKENDS.get(known) {
        return Verdict::To(row);
    }
    let mut id = NOWHERE;
    if known == GONE {
        id = search(&datagram, &sent);
    }
    let picked = match BACKENDS.get(id) {
        Some(row) => Picked {
            id,
            row,
            mark: NO_MARK,
            watched: false,
        },
        None => match pick(ctx, hit.service, ScopeProtocol::UDP) {
            Pick::Backend(picked) => picked,
            Pick::Pass => return Verdict::Pass,
            Pick::Refuse(refusal) => {
                note_refusal(refusal, Some(hit.service));
                refuse();
                return Verdict::Refuse;
            }
        },
    };
    keep(socket, &datagram, &picked);
    Verdict::To(picked.row)
}

/// The service's datagrams went to a backend that is no more the service's under the id that is noted.
const GONE: u32 = NOWHERE - 1;

/// The backend that the service's datagrams went to, if it still is the service's under this id; else [`GONE`], or
/// [`NOWHERE`] if they went nowhere yet.
#[inline(never)]
fn kept(datagram: &Datagram, sent: &mut Sent) -> u32 {
    let cookie = datagram.owner.cookie;
    let spilled = datagram.owner.may_have_spilled();
    let own = socket::own(datagram.owner, datagram.asked, datagram.port, sent);
    if own == own::SAME {
        let id = still_there(datagram.service, sent);
        if spilled && id != GONE {
            let_go(cookie, &sent.address, sent.port as u16);
        }
        return id;
    }
    // A connect may have made the row another's, or nobody's, after this service came to stand in `flows`.
    if !spilled || destination(cookie, datagram.asked, datagram.port as u16, sent) == 0 {
        return NOWHERE;
    }
    let id = still_there(datagram.service, sent);
    if id != GONE {
        show(cookie, datagram.asked, datagram.port as u16, sent);
    }
    id
}

#[inline(never)]
fn still_there(service: u32, sent: &Sent) -> u32 {
    match BACKENDS.get(sent.id) {
        Some(row) if is_at(row, service, &sent.address, sent.port as u16) => sent.id,
        _ => GONE,
    }
}

/// 1 if the socket's own row is another service's: this one's record stands in `flows`, or is to.
#[inline(never)]
fn belongs_in_flows(datagram: &Datagram) -> u32 {
    let owner = datagram.owner;
    let mut sent = Sent::NOWHERE;
    match socket::own(owner, datagram.asked, datagram.port, &mut sent) {
        own::SAME => 0,
        own::NONE if owner.may_have_spilled() => destination(
            owner.cookie,
            datagram.asked,
            datagram.port as u16,
            &mut sent,
        ),
        own::NONE => 0,
        _ => 1,
    }
}

/// A search over the slots of a ring, tier by tier.
#[repr(C)]
struct Search {
    ring: Ring,
    address: [u32; 4],
    service: u32,
    /// The slot to look at, and how many the tier still has.
    next: u32,
    left: u32,
    tier: u32,
    found: u32,
    /// Network order.
    port: u32,
}

/// Under which other id the service has the backend that its datagrams went to; [`NOWHERE`] if it has it no more. Ids change
/// with the maps' version, and when a backend goes and comes back.
#[inline(never)]
fn search(datagram: &Datagram, sent: &Sent) -> u32 {
    let service = datagram.service;
    let Some(ring) = RINGS.get_ptr(service) else {
        return NOWHERE;
    };
    // SAFETY: one aligned word, written whole.
    let ring: Ring = unsafe { read_volatile(ring) };
    let mut search = Search {
        ring,
        address: sent.address,
        service,
        next: ring.first(),
        left: ring.len(),
        tier: 0,
        found: NOWHERE,
        port: sent.port,
    };
    // SAFETY: the helper calls `step` with this frame's `search`, as long as this call lasts.
    unsafe {
        let step: unsafe extern "C" fn(u64, *mut c_void) -> i64 = step;
        bpf_loop(SEARCH_MAX, step as *mut c_void, (&raw mut search).cast(), 0)
    };
    search.found
}

/// What a step returns to be called again, or not.
const GO_ON: i64 = 0;
const END: i64 = 1;

unsafe extern "C" fn step(_: u64, search: *mut c_void) -> i64 {
    // SAFETY: the search is the frame's that called `bpf_loop`.
    let search = unsafe { &mut *search.cast::<Search>() };
    if search.left == 0 {
        search.tier = search.tier.wrapping_add(1);
        if search.tier >= u32::from(search.ring.tiers()) {
            return END;
        }
        let head = search.ring.span().wrapping_add(search.tier).wrapping_sub(1);
        let Some(head) = SLOTS.get_ptr(head) else {
            return END;
        };
        // SAFETY: one aligned word, written whole.
        let head = TierHead(unsafe { read_volatile(head) }.0);
        search.next = search.ring.span().wrapping_add(head.offset());
        search.left = head.len();
        return GO_ON;
    }
    let Some(slot) = SLOTS.get_ptr(search.next) else {
        return END;
    };
    // SAFETY: as above.
    let slot = unsafe { read_volatile(slot) };
    search.next = search.next.wrapping_add(1);
    search.left = search.left.wrapping_sub(1);
    if let Some(row) = BACKENDS.get(slot.backend())
        && judge(search.service, slot, row) == Drawn::Ours
        && is_at(row, search.service, &search.address, search.port as u16)
    {
        search.found = slot.backend();
        return END;
    }
    GO_ON
}

/// Notes where the socket's datagrams to the service go.
#[inline(always)]
fn keep(socket: *const c_void, datagram: &Datagram, picked: &Picked) {
    let owner = datagram.owner;
    if belongs_in_flows(datagram) != 0 {
        owner.mark_spilled();
        put(owner.cookie, datagram.asked, datagram.port as u16, picked.id);
        return;
    }
    let port = NetPort::from_net(datagram.port as u16);
    socket::note(socket, owner, *datagram.asked, port, picked);
    if owner.may_have_spilled() {
        let_go(owner.cookie, &picked.row.address, picked.row.port);
    }
}

#[inline(never)]
fn put(cookie: u64, asked: &[u32; 4], port: u16, id: u32) -> u32 {
    let Some(backend) = BACKENDS.get(id) else {
        return 0;
    };
    let sent = Sent {
        id,
        address: backend.address,
        port: u32::from(backend.port),
    };
    let row = FlowRow {
        cookie,
        address: sent.address,
        port: backend.port,
        version: FLOW_VERSION,
        reserved: 0,
        backend: sent.id,
    };
    let stored = FLOWS.insert(&key(cookie, asked, port, flow_side::SERVICE), &row, 0);
    if stored.is_err() {
        // The next datagram may go to another backend.
        count(Counter::SocketLost);
    }
    show(cookie, asked, port, &sent)
}

#[inline(always)]
fn key(cookie: u64, address: &[u32; 4], port: u16, side: u16) -> FlowKey {
    FlowKey {
        cookie,
        address: *address,
        port,
        side,
        reserved: 0,
    }
}

/// Has the socket see as the service's what comes from the backend: of several services that use it, the one that it last
/// sent to.
#[inline(never)]
fn show(cookie: u64, service: &[u32; 4], port: u16, sent: &Sent) -> u32 {
    let key = key(cookie, &sent.address, sent.port as u16, flow_side::BACKEND);
    let mut seen = Sent::NOWHERE;
    if look_up(&key, &mut seen)
        && (seen.port ^ u32::from(port)) | difference(&seen.address, service) == 0
    {
        return 0;
    }
    let row = FlowRow {
        cookie,
        address: *service,
        port,
        version: FLOW_VERSION,
        reserved: 0,
        backend: sent.id,
    };
    if FLOWS.insert(&key, &row, 0).is_err() {
        count(Counter::SocketLost);
    }
    0
}

/// The socket's own row, or a connect of its owner's, speaks for this backend from now on.
#[inline(never)]
pub fn let_go(cookie: u64, address: &[u32; 4], port: u16) -> u32 {
    let key = key(cookie, address, port, flow_side::BACKEND);
    if FLOWS.get_ptr(&key).is_some() {
        let _ = FLOWS.remove(&key);
    }
    0
}

/// The element's other side; false if there is none.
#[inline(always)]
fn look_up(key: &FlowKey, sent: &mut Sent) -> bool {
    let Some(row) = FLOWS.get_ptr(key) else {
        return false;
    };
    // SAFETY: words of an element, which stays memory of this map whoever's it is; the cookie is read last.
    unsafe {
        sent.id = read_volatile(addr_of!((*row).backend));
        sent.port = u32::from(read_volatile(addr_of!((*row).port)));
        sent.address = read_volatile(addr_of!((*row).address));
        read_volatile(addr_of!((*row).cookie)) == key.cookie
    }
}

/// 1 if `flows` says where the service's datagrams go.
#[inline(never)]
fn destination(cookie: u64, service: &[u32; 4], port: u16, sent: &mut Sent) -> u32 {
    look_up(&key(cookie, service, port, flow_side::SERVICE), sent).into()
}

/// The service's address and port, if what comes from here is to be seen as its.
#[inline(always)]
pub fn source(cookie: u64, from: &[u32; 4], port: u16) -> Option<([u32; 4], u16)> {
    let mut seen = Sent::NOWHERE;
    look_up(&key(cookie, from, port, flow_side::BACKEND), &mut seen)
        .then_some((seen.address, seen.port as u16))
}
