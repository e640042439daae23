//! `sendto(2)` and `sendmsg(2)` with an address. A connected socket that just sends does not come here; a mapped address
//! (`::ffff:a.b.c.d`) comes as IPv4.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use isthmus_abi::ScopeProtocol;
use isthmus_datapath::protocol;

use super::connect::{ALLOW, DENY, user_ip6, user_port, write_user_ip6};
use super::flow::{self, Outcome};
use super::lookup::{look_up4, look_up6};
use super::socket::Sent;

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    // SAFETY: the kernel hands the program a valid context; these fields are readable in this program type.
    let (address, port, ip_protocol) = unsafe {
        (
            read_volatile(addr_of!((*call).user_ip4)),
            user_port(call),
            read_volatile(addr_of!((*call).protocol)),
        )
    };
    if protocol(ip_protocol) != Some(ScopeProtocol::UDP) {
        return ALLOW;
    }
    let asked = [0, 0, 0xffff_u32.to_be(), address];
    let hit = look_up4(address, port, ScopeProtocol::UDP);
    let mut to = Sent::NOWHERE;
    match flow::send(&ctx, hit, asked, port, &mut to) {
        Outcome::To => {
            // SAFETY: writable fields of this context; the verifier checks offset and width.
            unsafe {
                write_volatile(addr_of_mut!((*call).user_ip4), to.address[3]);
                write_volatile(addr_of_mut!((*call).user_port), to.port);
            }
            ALLOW
        }
        Outcome::Pass => ALLOW,
        Outcome::Refuse => DENY,
    }
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    // SAFETY: as in `sendmsg4`.
    let (address, port, ip_protocol) = unsafe {
        (
            user_ip6(call),
            user_port(call),
            read_volatile(addr_of!((*call).protocol)),
        )
    };
    if protocol(ip_protocol) != Some(ScopeProtocol::UDP) {
        return ALLOW;
    }
    let hit = look_up6(address, port, ScopeProtocol::UDP);
    let mut to = Sent::NOWHERE;
    match flow::send(&ctx, hit, address, port, &mut to) {
        Outcome::To => {
            // SAFETY: as in `sendmsg4`.
            unsafe {
                write_user_ip6(call, &to.address);
                write_volatile(addr_of_mut!((*call).user_port), to.port);
            }
            ALLOW
        }
        Outcome::Pass => ALLOW,
        Outcome::Refuse => DENY,
    }
}
