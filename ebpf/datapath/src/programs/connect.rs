//! `connect(2)`: a service's address becomes a backend's, before the socket knows either.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::bpf_set_retval;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use isthmus_abi::{BackendRow, NetPort, Refusal, client};
use isthmus_datapath::protocol;

use super::lookup::{Hit, Known, look_up, look_up4};
use super::pick::{Pick, client_scope, note_refusal, pick};
use super::socket;
use crate::maps::SETTINGS;

/// What a cgroup program returns to let the call go on.
pub(super) const ALLOW: i32 = 1;
/// What it returns to fail the call, with the errno of `bpf_set_retval`.
pub(super) const DENY: i32 = 0;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    // SAFETY: the kernel hands the program a valid context; these fields are readable in this program type.
    let (address, port, ip_protocol) = unsafe {
        (
            read_volatile(addr_of!((*call).user_ip4)),
            user_port(call),
            read_volatile(addr_of!((*call).protocol)),
        )
    };
    let Some(protocol) = protocol(ip_protocol) else {
        return ALLOW;
    };
    let asked = [0, 0, 0xffff_u32.to_be(), address];
    match connect(
        &ctx,
        look_up4(address, port, protocol),
        asked,
        port,
        protocol,
    ) {
        Verdict::To(backend) => {
            // SAFETY: writable fields of this context; the verifier checks offset and width.
            unsafe {
                write_volatile(addr_of_mut!((*call).user_ip4), backend.address[3]);
                write_volatile(addr_of_mut!((*call).user_port), u32::from(backend.port));
            }
            ALLOW
        }
        Verdict::Pass => ALLOW,
        Verdict::Refuse => DENY,
    }
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    // SAFETY: as in `connect4`.
    let (address, port, ip_protocol) = unsafe {
        (
            user_ip6(call),
            user_port(call),
            read_volatile(addr_of!((*call).protocol)),
        )
    };
    let Some(protocol) = protocol(ip_protocol) else {
        return ALLOW;
    };
    match connect(
        &ctx,
        look_up(address, port, protocol),
        address,
        port,
        protocol,
    ) {
        Verdict::To(backend) => {
            // SAFETY: as in `connect4`. A ring holds backends of its frontend's family only, so a mapped address stays
            // mapped.
            unsafe {
                write_user_ip6(call, &backend.address);
                write_volatile(addr_of_mut!((*call).user_port), u32::from(backend.port));
            }
            ALLOW
        }
        Verdict::Pass => ALLOW,
        Verdict::Refuse => DENY,
    }
}

/// What becomes of a call that names an address.
pub(super) enum Verdict {
    To(&'static BackendRow),
    Pass,
    Refuse,
}

/// Decides what becomes of a connect to `asked`, of which the frontends know `hit`.
#[inline(always)]
fn connect(
    ctx: &SockAddrContext,
    hit: Hit,
    asked: [u32; 4],
    port: NetPort,
    protocol: u16,
) -> Verdict {
    let service = hit.service;
    match hit.known {
        Known::Service => match pick(ctx, service, protocol) {
            Pick::Backend(picked) => {
                socket::remember(ctx, protocol, asked, port, &picked);
                say!(ctx, "connect to service {}: backend {}", service, picked.id);
                return Verdict::To(picked.row);
            }
            Pick::Pass => {}
            Pick::Refuse(refusal) => {
                note_refusal(refusal, Some(service));
                say!(
                    ctx,
                    "connect to service {}: refused, reason {}",
                    service,
                    refusal as u32
                );
                refuse();
                return Verdict::Refuse;
            }
        },
        Known::UnknownPort => {
            if refuses_unknown_port(ctx) {
                return Verdict::Refuse;
            }
        }
        Known::Nothing => {}
    }
    // The socket may have been a service's before (`AF_UNSPEC`, then another address).
    socket::forget(ctx, protocol, asked, port);
    Verdict::Pass
}

/// Refuses, unless the client is out of scope: who is, is let alone here too.
#[inline(always)]
pub(super) fn refuses_unknown_port(ctx: &SockAddrContext) -> bool {
    let ours = SETTINGS
        .get(0)
        .is_some_and(|settings| client_scope(ctx, settings) == client::TRANSLATE);
    if ours {
        note_refusal(Refusal::UnknownPort, None);
        say!(ctx, "refused: no such port of the service");
        refuse();
    }
    ours
}

/// Sets the errno of the call.
#[inline(always)]
pub(super) fn refuse() {
    let errno = SETTINGS
        .get(0)
        .map_or(111, |settings| settings.refuse_errno);
    // SAFETY: sets the errno of the refused call; a helper of this program type since Linux 5.18.
    unsafe { bpf_set_retval(-(errno as i32)) };
}

/// # Safety
/// `call` is a valid context.
#[inline(always)]
pub(super) unsafe fn user_port(call: *const bpf_sock_addr) -> NetPort {
    // SAFETY: the caller's promise. The port is the low half, in network order.
    NetPort::from_net(unsafe { read_volatile(addr_of!((*call).user_port)) } as u16)
}

/// # Safety
/// `call` is a valid context of an IPv6 hook.
#[inline(always)]
pub(super) unsafe fn user_ip6(call: *const bpf_sock_addr) -> [u32; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        [
            read_volatile(addr_of!((*call).user_ip6[0])),
            read_volatile(addr_of!((*call).user_ip6[1])),
            read_volatile(addr_of!((*call).user_ip6[2])),
            read_volatile(addr_of!((*call).user_ip6[3])),
        ]
    }
}

/// # Safety
/// `call` is a valid context of an IPv6 hook.
#[inline(always)]
pub(super) unsafe fn write_user_ip6(call: *mut bpf_sock_addr, address: &[u32; 4]) {
    // SAFETY: the caller's promise.
    unsafe {
        write_volatile(addr_of_mut!((*call).user_ip6[0]), address[0]);
        write_volatile(addr_of_mut!((*call).user_ip6[1]), address[1]);
        write_volatile(addr_of_mut!((*call).user_ip6[2]), address[2]);
        write_volatile(addr_of_mut!((*call).user_ip6[3]), address[3]);
    }
}
