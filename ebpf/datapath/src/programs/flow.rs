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
    BackendRow, Counter, FLOW_VERSION, FlowKey, FlowRow, NO_MARK, NetPort, Ring, ScopeProtocol,
    TierHead, flow_side,
};
use isthmus_datapath::{Drawn, judge};

use super::connect::{Verdict, refuse, refuses_unknown_port};
use super::lookup::{Hit, Known};
use super::pick::{Pick, Picked, note_refusal, pick};
use super::socket::{self, NOWHERE, Own, Owner, Sent};
use crate::maps::{BACKENDS, FLOWS, RINGS, SLOTS, count};

/// Most slots of a ring that are searched for a backend under another id.
const SEARCH_MAX: u32 = 4096;
/// Decides where a datagram to `asked` goes, of which the frontends know `hit`.
#[inline(always)]
pub fn send(ctx: &SockAddrContext, hit: Hit, asked: [u32; 4], port: NetPort) -> Verdict {
    match hit.known {
        Known::Service => {}
        Known::UnknownPort if refuses_unknown_port(ctx) => return Verdict::Refuse,
        Known::UnknownPort | Known::Nothing => return Verdict::Pass,
    }
    let service = hit.service;
    let socket = socket::of_context(ctx);
    let Some(owner) = Owner::of(ctx, socket) else {
        return Verdict::Pass;
    };
    let spilled = owner.may_have_spilled();
    let mut sent = Sent::NOWHERE;
    let own = socket::own(&owner, &asked, port, &mut sent);
    // A connect may have made the row another's, or nobody's, after this service came to stand in `flows`.
    let mut in_flows = own == Own::Other;
    if own != Own::Same && spilled {
        destination(owner.cookie, &asked, port.net(), &mut sent);
        in_flows |= sent.id != NOWHERE;
    }
    let id = if sent.id == NOWHERE {
        NOWHERE
    } else {
        present(service, &sent)
    };
    if let Some(row) = BACKENDS.get(id) {
        if sent.id != id {
            keep(socket, &owner, in_flows, asked, port, &unwatched(id, row));
        } else if in_flows {
            show(owner.cookie, &asked, port.net(), &sent);
        } else if spilled {
            let_go(owner.cookie, &sent.address, sent.port as u16);
        }
        return Verdict::To(row);
    }
    match pick(ctx, service, ScopeProtocol::UDP) {
        Pick::Backend(picked) => {
            keep(socket, &owner, in_flows, asked, port, &picked);
            Verdict::To(picked.row)
        }
        Pick::Pass => Verdict::Pass,
        Pick::Refuse(refusal) => {
            note_refusal(refusal, Some(service));
            refuse();
            Verdict::Refuse
        }
    }
}

#[inline(always)]
fn unwatched(id: u32, row: &'static BackendRow) -> Picked {
    Picked {
        id,
        row,
        mark: NO_MARK,
        watched: false,
    }
}

/// Under which id the service still has this backend; [`NOWHERE`] if it has not. Ids change with the maps' version, and when a
/// backend goes and comes back.
#[inline(always)]
fn present(service: u32, sent: &Sent) -> u32 {
    if let Some(row) = BACKENDS.get(sent.id)
        && isthmus_datapath::is_at(row, service, &sent.address, sent.port as u16)
    {
        return sent.id;
    }
    search(service, sent)
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

#[inline(never)]
fn search(service: u32, sent: &Sent) -> u32 {
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
        && isthmus_datapath::is_at(row, search.service, &search.address, search.port as u16)
    {
        search.found = slot.backend();
        return END;
    }
    GO_ON
}

/// Notes where the socket's datagrams to the service go.
#[inline(always)]
fn keep(
    socket: *const c_void,
    owner: &Owner,
    in_flows: bool,
    asked: [u32; 4],
    port: NetPort,
    picked: &Picked,
) {
    if in_flows {
        owner.mark_spilled();
        put(owner.cookie, &asked, port.net(), picked.id);
        return;
    }
    socket::note(socket, owner, asked, port, picked);
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
        && seen.port == u32::from(port)
        && seen.address[0] == service[0]
        && seen.address[1] == service[1]
        && seen.address[2] == service[2]
        && seen.address[3] == service[3]
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

#[inline(never)]
fn destination(cookie: u64, service: &[u32; 4], port: u16, sent: &mut Sent) -> u32 {
    if !look_up(&key(cookie, service, port, flow_side::SERVICE), sent) {
        sent.id = NOWHERE;
    }
    0
}

/// The service's address and port, if what comes from here is to be seen as its.
#[inline(always)]
pub fn source(cookie: u64, from: &[u32; 4], port: u16) -> Option<([u32; 4], u16)> {
    let mut seen = Sent::NOWHERE;
    look_up(&key(cookie, from, port, flow_side::BACKEND), &mut seen)
        .then_some((seen.address, seen.port as u16))
}
