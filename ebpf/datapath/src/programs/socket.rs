//! What a socket remembers of its service, without a word on the success path that a lock or a hash would cost.
//!
//! A row is found by where the socket lies in memory: the kernel hands a closed socket's memory to the next one, so a
//! busy client finds its own, warm row again and again. Only if two live sockets meet in one row does the older one's
//! record move to a hash.
//!
//! Everybody who reads or writes a record is here, so that what makes it exact can be seen in one place: hence its length.

use core::ffi::c_void;
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::helpers::{bpf_get_socket_cookie, bpf_skc_to_mptcp_sock};
use aya_ebpf::programs::SockAddrContext;
use isthmus_abi::{
    Counter, NetPort, SOCKET_VERSION, ScopeProtocol, SocketRow, SpillKey, socket_slot, socket_tag,
};

use isthmus_datapath::{CLOSE, Fate, difference, fate};

use super::flow;
use super::health;
use super::pick::Picked;
use super::search::NOWHERE;
use crate::atomic;
use crate::kernel::Sock;
use crate::maps::{SCRATCH, SOCKETS, SOCKETS_SPILLED, count, opaque};

/// In [`SocketRow::socket`]: nobody's.
const FREE: u64 = 0;
/// In [`SocketRow::socket`]: being written. No distance is odd.
const CLAIMED: u64 = 1;

/// 1 where the kernel has MPTCP; set before loading, so that the verifier drops what cannot be called.
#[unsafe(no_mangle)]
static MPTCP: u8 = 0;

/// `IPPROTO_MPTCP`: what the owner's end of an MPTCP connection is.
const PROTOCOL_MPTCP: u32 = 262;
const AF_INET: u32 = 2;

/// Word of `scratch`: where a pointer becomes a number.
const POINTER: usize = 1;

/// `IPPROTO_UDP`.
const UDP: u16 = 17;

#[inline(always)]
fn has_mptcp() -> bool {
    // SAFETY: a constant of the loaded object; volatile, since its value here is not the one it is loaded with.
    unsafe { read_volatile(&raw const MPTCP) != 0 }
}

/// The row at which a socket's record stands, if it has one.
#[derive(Clone, Copy)]
struct Place {
    row: *mut SocketRow,
    /// By which the row is this socket's.
    distance: u64,
}

#[inline(always)]
fn place(socket: *const c_void) -> Option<Place> {
    let base = SOCKETS.get_ptr(0)?;
    // A difference of two pointers is a plain number to the verifier; it stays the same as long as the map lives.
    place_at((socket as u64).wrapping_sub(base as u64))
}

#[inline(always)]
fn place_at(distance: u64) -> Option<Place> {
    Some(Place {
        row: SOCKETS.get_ptr_mut(socket_slot(distance))?,
        distance,
    })
}

/// Where a socket at this distance lies, as a plain number: to the verifier, what was a pointer is none when a map gives it back.
/// What goes through the map is its own first row, for every program the same: one that interrupts another changes nothing.
#[inline(always)]
fn number(distance: u64) -> Option<u64> {
    let base = SOCKETS.get_ptr(0)?;
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: a per-CPU row.
    unsafe {
        write_volatile(addr_of_mut!((*scratch)[POINTER]), base as u64);
        Some(read_volatile(addr_of!((*scratch)[POINTER])).wrapping_add(distance))
    }
}

/// A socket, as its rows know it.
pub(super) struct Owner {
    place: Place,
    pub(super) cookie: u64,
    /// Its record's key in the hash.
    spill: SpillKey,
}

impl Owner {
    /// The end of an MPTCP connection that its program holds. Its cookie cannot be had from a subflow; such rows hold 0.
    #[inline(always)]
    fn whole(socket: *const c_void) -> Option<Self> {
        Some(Self::whole_at(place(socket)?))
    }
    #[inline(always)]
    fn whole_at(place: Place) -> Self {
        Self {
            place,
            cookie: 0,
            // Cookies are counted up from 1; a distance is far above any.
            spill: SpillKey {
                cookie: place.distance,
            },
        }
    }
    /// The socket of a call, which is no part of a greater one.
    #[inline(always)]
    pub(super) fn of(ctx: &SockAddrContext, socket: *const c_void) -> Option<Self> {
        // SAFETY: the helper takes this program type's context.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) };
        Some(Self::at(place(socket)?, cookie))
    }
    #[inline(always)]
    fn at(place: Place, cookie: u64) -> Self {
        Self {
            place,
            cookie,
            spill: SpillKey { cookie },
        }
    }
    /// Whether records of sockets of this place may stand in a hash.
    #[inline(always)]
    pub(super) fn may_have_spilled(&self) -> bool {
        // SAFETY: a byte of a row inside the map.
        unsafe { read_volatile(addr_of!((*self.place.row).spilled)) != 0 }
    }
    #[inline(always)]
    pub(super) fn mark_spilled(&self) {
        // SAFETY: a byte that is only ever set.
        unsafe { write_volatile(addr_of_mut!((*self.place.row).spilled), 1) };
    }
}

/// The context's socket. The verifier takes two reads of the field for two pointers: read it once.
#[inline(always)]
pub fn of_context(ctx: &SockAddrContext) -> *const c_void {
    // SAFETY: a readable field of a valid context.
    unsafe { read_volatile(addr_of!((*ctx.sock_addr).__bindgen_anon_1.sk)) as *const c_void }
}

/// Notes that this socket asked for a service and was sent to the picked backend.
///
/// A connect of MPTCP comes here by its first subflow, `getpeername` by the owner's end: the row is the latter's.
#[inline(always)]
pub fn remember(
    ctx: &SockAddrContext,
    protocol: u16,
    address: [u32; 4],
    port: NetPort,
    picked: &Picked,
) {
    if let Some(owner) = owner_at_connect(ctx, protocol) {
        note(&owner, address, port, picked);
        if protocol == ScopeProtocol::UDP && owner.may_have_spilled() {
            flow::let_go(owner.cookie, &picked.row.address, picked.row.port);
        }
    }
}

/// Writes the record of `owner`.
#[inline(always)]
pub(super) fn note(owner: &Owner, address: [u32; 4], port: NetPort, picked: &Picked) {
    let backend = picked.row;
    let Place { row, distance } = owner.place;
    // SAFETY: an aligned word inside the map's row; a plain read, confirmed by the exchange.
    let seen = unsafe { read_volatile(addr_of!((*row).socket)) };
    // SAFETY: as above; programs take a row by exchanging this word.
    let taken = seen != CLAIMED
        && unsafe { atomic::exchange_if(addr_of_mut!((*row).socket), seen, CLAIMED) };
    if !taken {
        spill_own(owner, &address, port.net().into(), picked);
        return;
    }
    if seen != FREE && seen != distance {
        spill_other(row, seen);
    }
    // SAFETY: the exchange made the row ours alone until `socket` is written.
    unsafe {
        (*row).cookie = owner.cookie;
        copy(addr_of_mut!((*row).service_address), &address);
        copy(addr_of_mut!((*row).backend_address), &backend.address);
        (*row).service_port = port.net();
        (*row).backend_port = backend.port;
        (*row).version = SOCKET_VERSION;
        (*row).tag = tag(picked);
        (*row).mark = picked.mark as u8;
        (*row).backend = picked.id;
        (*row).service = backend.service;
        write_volatile(addr_of_mut!((*row).socket), distance);
    }
}

/// Word by word: what the compiler makes of an assignment between places that might overlap is a call that copies bytes.
///
/// # Safety
/// `to` is in a map's row that is the program's alone.
#[inline(always)]
unsafe fn copy(to: *mut [u32; 4], from: &[u32; 4]) {
    // SAFETY: the caller's promise.
    unsafe {
        write_volatile(addr_of_mut!((*to)[0]), from[0]);
        write_volatile(addr_of_mut!((*to)[1]), from[1]);
        write_volatile(addr_of_mut!((*to)[2]), from[2]);
        write_volatile(addr_of_mut!((*to)[3]), from[3]);
    }
}

#[inline(always)]
fn tag(picked: &Picked) -> u8 {
    // No branch: the verifier would walk all that follows twice.
    picked.row.generation as u8 & socket_tag::GENERATION
        | picked.watched as u8 * socket_tag::WATCHED
}

#[inline(always)]
fn owner_at_connect(ctx: &SockAddrContext, protocol: u16) -> Option<Owner> {
    let socket = of_context(ctx);
    if protocol == ScopeProtocol::TCP && has_mptcp() {
        // SAFETY: the helper takes any socket, and returns null for one that is no subflow.
        let whole = unsafe { bpf_skc_to_mptcp_sock(socket.cast_mut()) };
        if !whole.is_null() {
            return Some(Owner {
                // To the verifier a cookie like others: it walks what follows once for both.
                cookie: opaque(0),
                ..Owner::whole(whole.cast())?
            });
        }
    }
    Owner::of(ctx, socket)
}

/// Moves the row of another socket to the hash, if that socket lives: closed ones leave their records behind, and nobody
/// asks for those.
#[inline(never)]
fn spill_other(row: *mut SocketRow, seen: u64) {
    let Some(other) = number(seen) else {
        return;
    };
    let other = Sock(other);
    // SAFETY: the caller has taken the row.
    let cookie = unsafe { (*row).cookie };
    let same = cookie == 0 || other.cookie() == cookie;
    // A datagram socket without a peer is in CLOSE all its life.
    let lives = if other.protocol() == UDP {
        same && other.is_held()
    } else {
        same && other.state() != CLOSE
    };
    if !lives {
        return;
    }
    let key = SpillKey {
        cookie: if cookie == 0 { seen } else { cookie },
    };
    // SAFETY: as above.
    let stored = SOCKETS_SPILLED.insert(&key, unsafe { &*row }, 0).is_ok();
    // SAFETY: as above.
    unsafe { (*row).spilled = 1 };
    count(if stored {
        Counter::SocketSpilled
    } else {
        Counter::SocketLost
    });
}

/// The row is being written on another CPU: this socket's record goes to the hash.
#[inline(never)]
fn spill_own(owner: &Owner, address: &[u32; 4], port: u32, picked: &Picked) -> u32 {
    let backend = picked.row;
    let own = SocketRow {
        socket: FREE,
        cookie: owner.cookie,
        service_address: *address,
        backend_address: backend.address,
        service_port: port as u16,
        backend_port: backend.port,
        version: SOCKET_VERSION,
        spilled: 0,
        tag: tag(picked),
        mark: picked.mark as u8,
        backend: picked.id,
        service: backend.service,
    };
    let stored = SOCKETS_SPILLED.insert(&owner.spill, &own, 0).is_ok();
    owner.mark_spilled();
    count(if stored {
        Counter::SocketSpilled
    } else {
        Counter::SocketLost
    });
    0
}

/// Drops what the socket remembers, if anything: its new peer is nobody's backend by us. A later subflow of MPTCP takes
/// nothing from the connection that it joins.
///
/// Most sockets that come here never were a service's. Those of TCP pay for a look at one row, and for no helper. Of datagram sockets
/// that row is mostly cold, since the kernel gives their memory back late; but who has no cookie yet was never remembered.
#[inline(always)]
pub fn forget(ctx: &SockAddrContext, protocol: u16, address: [u32; 4], port: NetPort) {
    let socket = of_context(ctx);
    let mut key = 0;
    let Some(mut at) = place(socket) else {
        return;
    };
    if protocol == ScopeProtocol::TCP && has_mptcp() {
        // SAFETY: as in `owner_at_connect`.
        let whole = unsafe { bpf_skc_to_mptcp_sock(socket.cast_mut()) };
        if !whole.is_null() {
            if joins(ctx) {
                return;
            }
            let Some(owners) = place(whole.cast()) else {
                return;
            };
            at = owners;
            key = at.distance;
        }
    }
    if protocol == ScopeProtocol::UDP {
        match number(at.distance) {
            Some(own) if Sock(own).cookie() != 0 => {}
            _ => return,
        }
    }
    let Place { row, distance } = at;
    // SAFETY: aligned words inside the map's row. A row that another CPU takes meanwhile stays as that one writes it.
    unsafe {
        if read_volatile(addr_of!((*row).socket)) == distance {
            let _ = atomic::exchange_if(addr_of_mut!((*row).socket), distance, FREE);
        }
        if read_volatile(addr_of!((*row).spilled)) != 0 {
            if key == 0 {
                key = bpf_get_socket_cookie(ctx.sock_addr.cast());
            }
            let _ = SOCKETS_SPILLED.remove(&SpillKey { cookie: key });
            // Who connects there itself is to see it as itself.
            if protocol == ScopeProtocol::UDP {
                flow::let_go(key, &address, port.net());
            }
        }
    }
}

/// Whether this subflow joins a connection: the kernel binds such to a source address before it connects.
#[inline(always)]
fn joins(ctx: &SockAddrContext) -> bool {
    // SAFETY: a readable field of a valid context, and readable fields of a socket. Both families' words are read, since the
    // verifier takes no choice of one; those of the other family hold whatever was there before.
    unsafe {
        let socket = read_volatile(addr_of!((*ctx.sock_addr).__bindgen_anon_1.sk));
        let family = read_volatile(addr_of!((*socket).family));
        let source4 = read_volatile(addr_of!((*socket).src_ip4));
        let source6 = read_volatile(addr_of!((*socket).src_ip6[3]));
        (if family == AF_INET { source4 } else { source6 }) != 0
    }
}

/// The service's address and port (network order), if the socket's peer is still the backend it was sent to.
#[inline(always)]
pub fn recall(ctx: &SockAddrContext, peer: [u32; 4], port: NetPort) -> Option<([u32; 4], u16)> {
    let socket = of_context(ctx);
    // SAFETY: a readable field of a valid context.
    let protocol = unsafe { read_volatile(addr_of!((*ctx.sock_addr).protocol)) };
    let owner = if protocol == PROTOCOL_MPTCP {
        Owner::whole(socket)?
    } else {
        Owner::of(ctx, socket)?
    };
    shown_as(&owner, &peer, port)
}

/// As whose a socket sees what comes from `from`: the service's address and port (network order) that it sent to, if that
/// went there.
#[inline(always)]
pub fn source(ctx: &SockAddrContext, from: [u32; 4], port: NetPort) -> Option<([u32; 4], u16)> {
    let socket = of_context(ctx);
    let Place { row, distance } = place(socket)?;
    // SAFETY: aligned words of a row inside the map.
    let (own, spilled) = unsafe {
        (
            read_volatile(addr_of!((*row).socket)) == distance,
            read_volatile(addr_of!((*row).spilled)) != 0,
        )
    };
    // Most sockets that receive are a server's, and never sent to a service.
    if !own && !spilled {
        return None;
    }
    let owner = Owner::of(ctx, socket)?;
    if spilled && let Some(service) = flow::source(owner.cookie, &from, port.net()) {
        return Some(service);
    }
    shown_as(&owner, &from, port)
}

/// The service's address and port (network order) of the record, if that leads to `peer`.
#[inline(always)]
fn shown_as(owner: &Owner, peer: &[u32; 4], port: NetPort) -> Option<([u32; 4], u16)> {
    let row = record(owner)?;
    // SAFETY: the row is inside a map. What is read is believed only if the row was this socket's before and after.
    let (socket, address, service_port, backend, backend_port) = unsafe {
        (
            read_volatile(addr_of!((*row).socket)),
            read_volatile(addr_of!((*row).service_address)),
            read_volatile(addr_of!((*row).service_port)),
            read_volatile(addr_of!((*row).backend_address)),
            read_volatile(addr_of!((*row).backend_port)),
        )
    };
    let still = u32::from(backend_port ^ port.net()) | difference(&backend, peer) == 0;
    (still && still_of(owner, row, socket)).then_some((address, service_port))
}

/// Whose a socket's record is.
pub(super) mod own {
    /// The service's that was asked for.
    pub const SAME: u32 = 0;
    pub const OTHER: u32 = 1;
    pub const NONE: u32 = 2;
}

/// Where datagrams to a service go. Programs move it about whole, so it has no part that was never written.
pub(super) struct Sent {
    /// [`NOWHERE`] if they go nowhere yet.
    pub(super) id: u32,
    /// Network order.
    pub(super) port: u32,
    pub(super) address: [u32; 4],
}

impl Sent {
    pub(super) const NOWHERE: Self = Self {
        id: NOWHERE,
        port: 0,
        address: [0; 4],
    };
}

/// What the socket's record says of a service, as one of [`own`]. `port` is in network order.
#[inline(never)]
pub(super) fn own(owner: &Owner, service: &[u32; 4], port: u32, sent: &mut Sent) -> u32 {
    let Some(row) = record(owner) else {
        return own::NONE;
    };
    // SAFETY: words of a row inside a map, believed only if it was this socket's before and after.
    let (socket, address, service_port) = unsafe {
        let socket = read_volatile(addr_of!((*row).socket));
        sent.id = read_volatile(addr_of!((*row).backend));
        sent.port = u32::from(read_volatile(addr_of!((*row).backend_port)));
        sent.address = read_volatile(addr_of!((*row).backend_address));
        (
            socket,
            read_volatile(addr_of!((*row).service_address)),
            read_volatile(addr_of!((*row).service_port)),
        )
    };
    if !still_of(owner, row, socket) {
        return own::NONE;
    }
    if (u32::from(service_port) ^ port) | difference(&address, service) == 0 {
        own::SAME
    } else {
        own::OTHER
    }
}

/// Whether the record at `row` is still the owner's, of which `socket` was read before the rest of it.
#[inline(always)]
fn still_of(owner: &Owner, row: *const SocketRow, socket: u64) -> bool {
    // SAFETY: aligned words of a row inside a map.
    let (now, cookie) = unsafe {
        (
            read_volatile(addr_of!((*row).socket)),
            read_volatile(addr_of!((*row).cookie)),
        )
    };
    (now ^ socket) | (cookie ^ owner.cookie) == 0
}

/// Where the socket's record stands now.
#[inline(always)]
fn record(owner: &Owner) -> Option<*mut SocketRow> {
    let Place { row, distance } = owner.place;
    // SAFETY: aligned words of a row inside the map.
    let (socket, cookie, spilled) = unsafe {
        (
            read_volatile(addr_of!((*row).socket)),
            read_volatile(addr_of!((*row).cookie)),
            read_volatile(addr_of!((*row).spilled)),
        )
    };
    if (socket ^ distance) | (cookie ^ owner.cookie) == 0 {
        return Some(row);
    }
    if spilled == 0 {
        return None;
    }
    SOCKETS_SPILLED.get_ptr_mut(&owner.spill)
}

/// The record of a socket that the kernel reports, if it was sent to a service's backend and this is about that connect:
/// a later subflow of MPTCP is not.
///
/// `tcp` says whether it is a TCP socket: what a TCP socket holds of MPTCP lies beyond another one's end.
#[inline(always)]
pub fn reported(socket: *const c_void, tcp: bool) -> Option<*mut SocketRow> {
    let at = place(socket)?;
    if tcp && has_mptcp() {
        let own = number(at.distance)?;
        if let Some(whole) = Sock(own).whole() {
            if whole.first() != own {
                return None;
            }
            let distance = at.distance.wrapping_add(whole.0.wrapping_sub(own));
            return record(&Owner::whole_at(place_at(distance)?));
        }
    }
    // SAFETY: the helper takes a socket in tracing programs.
    let cookie = unsafe { bpf_get_socket_cookie(socket.cast_mut()) };
    record(&Owner::at(at, cookie))
}

/// Notes how a socket ends that a later connect asks for. The context of this hook is the socket itself.
#[inline(always)]
pub fn note_end(socket: *const c_void) {
    let Some(Place { row, distance }) = place(socket) else {
        return;
    };
    // SAFETY: words of a row inside the map.
    let tag = unsafe {
        if read_volatile(addr_of!((*row).socket)) != distance {
            return;
        }
        read_volatile(addr_of!((*row).tag))
    };
    if tag & socket_tag::WATCHED == 0 {
        return;
    }
    let Some(own) = number(distance) else {
        return;
    };
    // SAFETY: the row is this socket's: it closes, so nobody connects it meanwhile.
    unsafe {
        let noted = read_volatile(addr_of!((*row).cookie));
        // Of MPTCP the owner's end closes, and the subflow by which it was connected is watched.
        let sock = if noted == 0 && has_mptcp() {
            Sock(Sock(own).first())
        } else {
            Sock(own)
        };
        let same = noted == 0 || sock.cookie() == noted;
        let address = read_volatile(addr_of!((*row).backend_address));
        let port = read_volatile(addr_of!((*row).backend_port));
        if same
            && fate(sock.state(), sock.heard(), false) == Fate::Established
            && sock.peer_is(&address, port)
        {
            health::note_end(
                u32::from(read_volatile(addr_of!((*row).mark))),
                read_volatile(addr_of!((*row).service)),
                sock.cookie(),
            );
        }
    }
}
