//! `recvfrom(2)` and `recvmsg(2)` that ask for the sender: who sent to a service is shown the service.
//!
//! A socket of AF_INET6 comes to `recvmsg6` with everything, IPv4 mapped: what a socket remembers is the same for both.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use super::connect::{user_ip6, user_port, write_user_ip6};
use super::socket;

/// These hooks cannot refuse: the kernel wants 1.
const SHOW: i32 = 1;

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    // SAFETY: readable fields of a valid context.
    let (address, port) = unsafe { (read_volatile(addr_of!((*call).user_ip4)), user_port(call)) };
    let from = [0, 0, 0xffff_u32.to_be(), address];
    if let Some((address, port)) = socket::source(&ctx, from, port) {
        // SAFETY: writable fields of this context.
        unsafe {
            write_volatile(addr_of_mut!((*call).user_ip4), address[3]);
            write_volatile(addr_of_mut!((*call).user_port), u32::from(port));
        }
    }
    SHOW
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    // SAFETY: readable fields of a valid context.
    let (from, port) = unsafe { (user_ip6(call), user_port(call)) };
    if let Some((address, port)) = socket::source(&ctx, from, port) {
        // SAFETY: writable fields of this context.
        unsafe {
            write_user_ip6(call, &address);
            write_volatile(addr_of_mut!((*call).user_port), u32::from(port));
        }
    }
    SHOW
}
