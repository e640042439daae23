//! What a socket remembers of its service, without a word on the success path that a lock or a hash would cost.
//!
//! A row is found by where the socket lies in memory: the kernel hands a closed socket's memory to the next one, so a
//! busy client finds its own, warm row again and again. Only if two live sockets meet in one row does the older one's
//! record move to a hash.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::helpers::{bpf_get_socket_cookie, bpf_skc_to_mptcp_sock};
use aya_ebpf::programs::SockAddrContext;
use isthmus_abi::{BackendRow, Counter, NetPort, SOCKET_VERSION, SocketRow, SpillKey, socket_slot};

use crate::atomic;
use crate::maps::{SOCKETS, SOCKETS_SPILLED, count};

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

/// A socket, as its rows know it.
struct Owner {
    row: *mut SocketRow,
    /// By which the row is this socket's.
    distance: u64,
    cookie: u64,
    /// A later subflow of an MPTCP connection, which the kernel binds to a source address before it connects.
    joins: bool,
}

/// Finds the socket's row.
///
/// A connect of MPTCP comes here by its first subflow, `getpeername` by the owner's end: the row is the latter's. Its
/// cookie cannot be had from the subflow; such rows hold 0.
#[inline(always)]
fn owner(ctx: &SockAddrContext) -> Option<Owner> {
    // SAFETY: a readable field of a valid context, read once: the verifier takes two reads for two pointers.
    let socket = unsafe { read_volatile(addr_of!((*ctx.sock_addr).__bindgen_anon_1.sk)) };
    // SAFETY: a constant of the loaded object; volatile, since its value here is not the one it is loaded with.
    if unsafe { read_volatile(&raw const MPTCP) } != 0 {
        // SAFETY: the helper takes any socket, and returns null for one that is no subflow.
        let whole = unsafe { bpf_skc_to_mptcp_sock(socket.cast()) };
        if !whole.is_null() {
            // SAFETY: readable fields of a socket. The words of the other family hold whatever was there before.
            let (family, source4, source6) = unsafe {
                (
                    read_volatile(addr_of!((*socket).family)),
                    read_volatile(addr_of!((*socket).src_ip4)),
                    read_volatile(addr_of!((*socket).src_ip6[3])),
                )
            };
            let source = if family == AF_INET { source4 } else { source6 };
            return at(whole as u64, 0, source != 0);
        }
        // SAFETY: a readable field of a valid context.
        if unsafe { read_volatile(addr_of!((*ctx.sock_addr).protocol)) } == PROTOCOL_MPTCP {
            return at(socket as u64, 0, false);
        }
    }
    // SAFETY: the helper takes this program type's context.
    at(
        socket as u64,
        unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) },
        false,
    )
}

#[inline(always)]
fn at(socket: u64, cookie: u64, joins: bool) -> Option<Owner> {
    let base = SOCKETS.get_ptr(0)?;
    // A difference of two pointers is a plain number to the verifier; it stays the same as long as the map lives.
    let distance = socket.wrapping_sub(base as u64);
    Some(Owner {
        row: SOCKETS.get_ptr_mut(socket_slot(distance))?,
        distance,
        cookie,
        joins,
    })
}

/// Notes that this socket asked for a service and was sent to `backend`.
#[inline(always)]
pub fn remember(
    ctx: &SockAddrContext,
    address: [u32; 4],
    port: NetPort,
    id: u32,
    backend: &BackendRow,
) {
    let Some(Owner {
        row,
        distance,
        cookie,
        ..
    }) = owner(ctx)
    else {
        return;
    };
    // SAFETY: an aligned word inside the map's row; a plain read, confirmed by the exchange.
    let seen = unsafe { read_volatile(addr_of!((*row).socket)) };
    // SAFETY: as above; programs take a row by exchanging this word.
    let taken = seen != CLAIMED
        && unsafe { atomic::exchange_if(addr_of_mut!((*row).socket), seen, CLAIMED) };
    if !taken {
        spill_own(row, cookie, address, port, id, backend);
        return;
    }
    if seen != FREE && seen != distance {
        spill_other(row);
    }
    // SAFETY: the exchange made the row ours alone until `socket` is written.
    unsafe {
        (*row).cookie = cookie;
        (*row).service_address = address;
        (*row).backend_address = backend.address;
        (*row).service_port = port.net();
        (*row).backend_port = backend.port;
        (*row).version = SOCKET_VERSION;
        (*row).backend = id;
        (*row).service = backend.service;
        write_volatile(addr_of_mut!((*row).socket), distance);
    }
}

/// Moves the row of another socket, perhaps long closed, to the hash.
#[inline(never)]
fn spill_other(row: *mut SocketRow) {
    // SAFETY: the caller has taken the row.
    let (key, value) = unsafe {
        (
            SpillKey {
                cookie: (*row).cookie,
            },
            &*row,
        )
    };
    let stored = SOCKETS_SPILLED.insert(&key, value, 0).is_ok();
    // SAFETY: as above.
    unsafe { (*row).spilled = 1 };
    count(if stored {
        Counter::SocketSpilled
    } else {
        Counter::SocketLost
    });
}

/// The row is being written on another CPU: this socket's record goes to the hash.
#[inline(always)]
fn spill_own(
    row: *mut SocketRow,
    cookie: u64,
    address: [u32; 4],
    port: NetPort,
    id: u32,
    backend: &BackendRow,
) {
    let own = SocketRow {
        socket: FREE,
        cookie,
        service_address: address,
        backend_address: backend.address,
        service_port: port.net(),
        backend_port: backend.port,
        version: SOCKET_VERSION,
        spilled: 0,
        reserved: 0,
        backend: id,
        service: backend.service,
    };
    let stored = SOCKETS_SPILLED
        .insert(&SpillKey { cookie }, &own, 0)
        .is_ok();
    // SAFETY: a byte that is only ever set.
    unsafe { write_volatile(addr_of_mut!((*row).spilled), 1) };
    count(if stored {
        Counter::SocketSpilled
    } else {
        Counter::SocketLost
    });
}

/// Drops what the socket remembers, if anything: its new peer is nobody's backend by us. A later subflow of MPTCP takes
/// nothing from the connection that it joins.
#[inline(always)]
pub fn forget(ctx: &SockAddrContext) {
    let Some(Owner {
        row,
        distance,
        cookie,
        joins,
    }) = owner(ctx)
    else {
        return;
    };
    if joins {
        return;
    }
    // SAFETY: aligned words inside the map's row. Only this socket's own thread of calls writes its distance there.
    unsafe {
        if read_volatile(addr_of!((*row).socket)) == distance {
            write_volatile(addr_of_mut!((*row).socket), FREE);
        }
        if read_volatile(addr_of!((*row).spilled)) != 0 {
            let _ = SOCKETS_SPILLED.remove(&SpillKey { cookie });
        }
    }
}

/// The service's address and port (network order), if the socket's peer is still the backend it was sent to.
#[inline(always)]
pub fn recall(ctx: &SockAddrContext, peer: [u32; 4], port: NetPort) -> Option<([u32; 4], u16)> {
    let Owner {
        row,
        distance,
        cookie,
        ..
    } = owner(ctx)?;
    // SAFETY: the row is inside the map.
    let (owner, spilled) = unsafe {
        (
            read_volatile(addr_of!((*row).socket)),
            read_volatile(addr_of!((*row).spilled)),
        )
    };
    // SAFETY: as above; while `socket` is this socket's, nobody else writes the row.
    let mut found = unsafe { &*row };
    if owner != distance || found.cookie != cookie {
        if spilled == 0 {
            return None;
        }
        // SAFETY: a row of this socket, written by its own connect and by nobody after it.
        found = unsafe { SOCKETS_SPILLED.get(&SpillKey { cookie }) }?;
    }
    let still = found.backend_port == port.net()
        && found.backend_address[0] == peer[0]
        && found.backend_address[1] == peer[1]
        && found.backend_address[2] == peer[2]
        && found.backend_address[3] == peer[3];
    still.then_some((found.service_address, found.service_port))
}
