//! What a socket remembers of its service, without a word on the success path that a lock or a hash would cost.
//!
//! A row is found by where the socket lies in memory: the kernel hands a closed socket's memory to the next one, so a
//! busy client finds its own, warm row again and again. Only if two live sockets meet in one row does the older one's
//! record move to a hash.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::helpers::bpf_get_socket_cookie;
use aya_ebpf::programs::SockAddrContext;
use isthmus_abi::{BackendRow, Counter, NetPort, SOCKET_VERSION, SocketRow, SpillKey, socket_slot};

use crate::atomic;
use crate::maps::{SOCKETS, SOCKETS_SPILLED, count};

/// In [`SocketRow::socket`]: nobody's.
const FREE: u64 = 0;
/// In [`SocketRow::socket`]: being written. No distance is odd.
const CLAIMED: u64 = 1;

/// The socket's row, and the distance by which it is the socket's.
#[inline(always)]
fn row(ctx: &SockAddrContext) -> Option<(*mut SocketRow, u64)> {
    // SAFETY: a readable field of a valid context, read once: the verifier takes two reads for two pointers.
    let socket = unsafe { read_volatile(addr_of!((*ctx.sock_addr).__bindgen_anon_1.sk)) };
    let base = SOCKETS.get_ptr(0)?;
    // A difference of two pointers is a plain number to the verifier; it stays the same as long as the map lives.
    let distance = (socket as u64).wrapping_sub(base as u64);
    Some((SOCKETS.get_ptr_mut(socket_slot(distance))?, distance))
}

#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes this program type's context.
    unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) }
}

/// Notes that this socket asked for a service and was sent to `backend`.
#[inline(always)]
pub fn remember(ctx: &SockAddrContext, address: [u32; 4], port: NetPort, id: u32, backend: &BackendRow) {
    let Some((row, distance)) = row(ctx) else { return };
    let cookie = cookie(ctx);
    // SAFETY: an aligned word inside the map's row; a plain read, confirmed by the exchange.
    let seen = unsafe { read_volatile(addr_of!((*row).socket)) };
    // SAFETY: as above; programs take a row by exchanging this word.
    let taken = seen != CLAIMED && unsafe { atomic::exchange_if(addr_of_mut!((*row).socket), seen, CLAIMED) };
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
    let (key, value) = unsafe { (SpillKey { cookie: (*row).cookie }, &*row) };
    let stored = SOCKETS_SPILLED.insert(&key, value, 0).is_ok();
    // SAFETY: as above.
    unsafe { (*row).spilled = 1 };
    count(if stored { Counter::SocketSpilled } else { Counter::SocketLost });
}

/// The row is being written on another CPU: this socket's record goes to the hash.
#[inline(always)]
fn spill_own(row: *mut SocketRow, cookie: u64, address: [u32; 4], port: NetPort, id: u32, backend: &BackendRow) {
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
    let stored = SOCKETS_SPILLED.insert(&SpillKey { cookie }, &own, 0).is_ok();
    // SAFETY: a byte that is only ever set.
    unsafe { write_volatile(addr_of_mut!((*row).spilled), 1) };
    count(if stored { Counter::SocketSpilled } else { Counter::SocketLost });
}

/// Drops what the socket remembers, if anything: its new peer is nobody's backend by us.
#[inline(always)]
pub fn forget(ctx: &SockAddrContext) {
    let Some((row, distance)) = row(ctx) else { return };
    // SAFETY: aligned words inside the map's row. Only this socket's own thread of calls writes its distance there.
    unsafe {
        if read_volatile(addr_of!((*row).socket)) == distance {
            write_volatile(addr_of_mut!((*row).socket), FREE);
        }
        if read_volatile(addr_of!((*row).spilled)) != 0 {
            let _ = SOCKETS_SPILLED.remove(&SpillKey { cookie: cookie(ctx) });
        }
    }
}

/// The service's address and port (network order), if the socket's peer is still the backend it was sent to.
#[inline(always)]
pub fn recall(ctx: &SockAddrContext, peer: [u32; 4], port: NetPort) -> Option<([u32; 4], u16)> {
    let (row, distance) = row(ctx)?;
    let cookie = cookie(ctx);
    // SAFETY: the row is inside the map.
    let (owner, spilled) = unsafe { (read_volatile(addr_of!((*row).socket)), read_volatile(addr_of!((*row).spilled))) };
    // SAFETY: as above; while `socket` is this socket's, nobody else writes the row.
    let mut found = unsafe { &*row };
    if owner != distance || found.cookie != cookie {
        if spilled == 0 {
            return None;
        }
        // SAFETY: a row of this socket, written by its own connect and by nobody after it.
        found = unsafe { SOCKETS_SPILLED.get(&SpillKey { cookie }) }?;
    }
    let same = found.backend_port == port.net()
        && found.backend_address[0] == peer[0]
        && found.backend_address[1] == peer[1]
        && found.backend_address[2] == peer[2]
        && found.backend_address[3] == peer[3];
    same.then_some((found.service_address, found.service_port))
}
