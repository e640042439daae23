//! `close(2)`: the last moment at which a watched socket can say whether it was established.

use core::ffi::c_void;
use core::ptr::{addr_of, read_volatile};

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;
use isthmus_abi::ScopeProtocol;

use super::socket;

/// These hooks cannot refuse: the kernel wants 1.
const GO_ON: i32 = 1;

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    let socket: *const c_void = ctx.as_ptr();
    // SAFETY: a readable field of a valid context.
    let protocol = unsafe { read_volatile(addr_of!((*ctx.sock).protocol)) };
    // Nobody asks how a datagram socket ended, and its row is mostly cold.
    if protocol != u32::from(ScopeProtocol::UDP) {
        socket::note_end(socket);
    }
    GO_ON
}
