//! Sockets that send without a connect. Each keeps, for each service, the backend that it was given, while that one is the
//! service's.
//!
//! The first service stands in the socket's own row of `sockets`, as with a connect: most sockets, a resolver's say, have
//! only one. Further ones go to `flows`.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::programs::SockAddrContext;
use isthmus_abi::{
    Counter, FLOW_VERSION, FlowKey, FlowRow, NO_MARK, NetPort, ScopeProtocol, flow_side,
};
use isthmus_datapath::{difference, is_at};

use super::connect::{refuse, refuses_unknown_port};
use super::lookup::{Hit, Known};
use super::pick::{Pick, Picked, note_refusal, pick};
use super::search::{self, NOWHERE, Search};
use super::socket::{self, Owner, Sent, own};
use crate::maps::{FLOWS, backend_at, count, opaque, ring_at};

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
pub fn send(
    ctx: &SockAddrContext,
    hit: Hit,
    asked: [u32; 4],
    port: NetPort,
    to: &mut Sent,
) -> Outcome {
    match hit.known {
        Known::Service => {}
        Known::UnknownPort if refuses_unknown_port(ctx) => return Outcome::Refuse,
        Known::UnknownPort | Known::Nothing => return Outcome::Pass,
    }
    let socket = socket::of_context(ctx);
    let Some(owner) = Owner::of(ctx, socket) else {
        return Outcome::Pass;
    };
    let datagram = Datagram {
        owner: &owner,
        asked: &asked,
        port: u32::from(port.net()),
        service: hit.service,
    };
    let known = known(&datagram, to);
    let mut id = known as u32;
    if id == NOWHERE {
        match pick(ctx, hit.service, ScopeProtocol::UDP) {
            Pick::Backend(picked) => {
                id = picked.id;
                to.id = id;
                to.address = picked.row.address;
                to.port = picked.row.port.into();
            }
            Pick::Pass => return Outcome::Pass,
            Pick::Refuse(refusal) => {
                note_refusal(refusal, Some(hit.service));
                refuse();
                return Outcome::Refuse;
            }
        }
    } else if known >> 32 == 0 {
        return Outcome::To;
    }
    keep(&datagram, id);
    say!(ctx, "datagram to service {}: backend {}", hit.service, id);
    Outcome::To
}

/// What becomes of a datagram.
pub(super) enum Outcome {
    /// It goes where the socket's record, or the draw, says. Not where a row says when it is read again: a record may name a
    /// backend that goes just now, and nothing keeps that one's row from the next.
    To,
    Pass,
    Refuse,
}

/// Added to an id: the backend has it since the service's last datagram.
const MOVED: u64 = 1 << 32;

/// The backend that the service's datagrams went to, if it is the service's still, perhaps [`MOVED`]; else [`NOWHERE`].
#[inline(never)]
fn known(datagram: &Datagram, sent: &mut Sent) -> u64 {
    let mut known = u64::from(kept(datagram, sent));
    if known == GONE.into() {
        known = MOVED | u64::from(search(datagram, sent));
    }
    opaque(known)
}

/// The service's datagrams went to a backend that is no more the service's under the id that is noted.
const GONE: u32 = NOWHERE - 1;

/// The backend that the service's datagrams went to, if it still is the service's under this id; else [`GONE`], or
/// [`NOWHERE`] if they went nowhere yet.
#[inline(never)]
fn kept(datagram: &Datagram, sent: &mut Sent) -> u32 {
    let cookie = datagram.owner.cookie;
    let spilled = datagram.owner.may_have_spilled();
    let seen = own(datagram.owner, datagram.asked, datagram.port, sent);
    if seen == own::SAME {
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
    match backend_at(sent.id) {
        Some(row) if is_at(row, service, &sent.address, sent.port as u16) => sent.id,
        _ => GONE,
    }
}

/// 1 if the socket's own row is another service's: this one's record stands in `flows`, or is to.
#[inline(never)]
fn belongs_in_flows(datagram: &Datagram) -> u32 {
    let owner = datagram.owner;
    let mut sent = Sent::NOWHERE;
    match own(owner, datagram.asked, datagram.port, &mut sent) {
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

/// Under which other id the service has the backend that its datagrams went to; [`NOWHERE`] if it has it no more. Ids change
/// with the maps' version, and when a backend goes and comes back.
#[inline(never)]
fn search(datagram: &Datagram, sent: &Sent) -> u32 {
    let service = datagram.service;
    let Some(ring) = ring_at(service) else {
        return NOWHERE;
    };
    // SAFETY: one aligned word, written whole.
    let ring = unsafe { read_volatile(ring) };
    let mut search = Search::by_address(ring, service, sent.address, sent.port);
    search::run_by_address(&mut search)
}

/// Notes where the socket's datagrams to the service go.
#[inline(never)]
fn keep(datagram: &Datagram, id: u32) -> u32 {
    let owner = datagram.owner;
    if belongs_in_flows(datagram) != 0 {
        owner.mark_spilled();
        return put(owner.cookie, datagram.asked, datagram.port as u16, id);
    }
    let Some(row) = backend_at(id) else {
        return 0;
    };
    let picked = Picked {
        id,
        row,
        mark: NO_MARK,
        watched: 0,
    };
    let port = NetPort::from_net(datagram.port as u16);
    socket::note(owner, *datagram.asked, port, &picked);
    if owner.may_have_spilled() {
        let_go(owner.cookie, &row.address, row.port);
    }
    0
}

#[inline(never)]
fn put(cookie: u64, asked: &[u32; 4], port: u16, id: u32) -> u32 {
    let Some(backend) = backend_at(id) else {
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
