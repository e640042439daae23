//! `close(2)`: the last moment at which a watched socket can say whether it was established.

use core::ffi::c_void;

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;

use super::socket;

/// These hooks cannot refuse: the kernel wants 1.
const GO_ON: i32 = 1;

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    let socket: *const c_void = ctx.as_ptr();
    socket::note_end(socket);
    GO_ON
}
