//! `getpeername(2)`: the socket's owner sees the service that it asked for.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use isthmus_abi::NetPort;

use super::connect::{user_ip6, write_user_ip6};
use super::socket;

/// These hooks cannot refuse: the kernel wants 1.
const SHOW: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    // SAFETY: readable fields of a valid context.
    let (address, port) = unsafe {
        (
            read_volatile(addr_of!((*call).user_ip4)),
            read_volatile(addr_of!((*call).user_port)),
        )
    };
    let peer = [0, 0, 0xffff_u32.to_be(), address];
    if let Some((address, port)) = socket::recall(&ctx, peer, NetPort::from_net(port as u16)) {
        // SAFETY: writable fields of this context.
        unsafe {
            write_volatile(addr_of_mut!((*call).user_ip4), address[3]);
            write_volatile(addr_of_mut!((*call).user_port), u32::from(port));
        }
    }
    SHOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    // SAFETY: readable fields of a valid context.
    let (peer, port) = unsafe { (user_ip6(call), read_volatile(addr_of!((*call).user_port))) };
    if let Some((address, port)) = socket::recall(&ctx, peer, NetPort::from_net(port as u16)) {
        // SAFETY: writable fields of this context.
        unsafe {
            write_user_ip6(call, &address);
            write_volatile(addr_of_mut!((*call).user_port), u32::from(port));
        }
    }
    SHOW
}
