//! `connect(2)`: a service's address becomes a backend's, before the socket knows either.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use isthmus_abi::{
    BackendRow, CIDRS_MAX, Counter, DRAW_TRIES, Frontend4Key, Frontend6Key, NetPort, Refusal,
    ScopeProtocol, Settings, client,
};
use isthmus_datapath::{Drawn, draw, in_cidr4, in_cidr6, judge, mapped_v4, protocol};

use super::socket;
use crate::atomic;
use crate::maps::{
    BACKEND_CONNECTS, BACKENDS, CLIENTS, FRONTENDS4, FRONTENDS6, RINGS, SETTINGS, SLOTS, count,
};

/// What a cgroup program returns to let the call go on.
const ALLOW: i32 = 1;
/// What it returns to fail the call, with the errno of `bpf_set_retval`.
const DENY: i32 = 0;

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
    let peer = [0, 0, 0xffff_u32.to_be(), address];
    match look_up4(address, port, protocol) {
        Hit::Service(service) => match pick(&ctx, service) {
            Pick::Backend(id, backend) => {
                socket::remember(&ctx, peer, port, id, backend);
                // SAFETY: writable fields of this context; the verifier checks offset and width.
                unsafe {
                    write_volatile(addr_of_mut!((*call).user_ip4), backend.address[3]);
                    write_volatile(addr_of_mut!((*call).user_port), u32::from(backend.port));
                }
                ALLOW
            }
            Pick::Pass => pass(&ctx),
            Pick::Refuse(refusal) => refuse(refusal),
        },
        Hit::UnknownPort => refuse(Refusal::UnknownPort),
        Hit::None => pass(&ctx),
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
    let hit = match mapped_v4(address) {
        Some(v4) => look_up4(v4, port, protocol),
        None => look_up6(address, port, protocol),
    };
    match hit {
        Hit::Service(service) => match pick(&ctx, service) {
            Pick::Backend(id, backend) => {
                socket::remember(&ctx, address, port, id, backend);
                // SAFETY: as in `connect4`. A ring holds backends of its frontend's family only, so a mapped address
                // stays mapped.
                unsafe {
                    write_user_ip6(call, &backend.address);
                    write_volatile(addr_of_mut!((*call).user_port), u32::from(backend.port));
                }
                ALLOW
            }
            Pick::Pass => pass(&ctx),
            Pick::Refuse(refusal) => refuse(refusal),
        },
        Hit::UnknownPort => refuse(Refusal::UnknownPort),
        Hit::None => pass(&ctx),
    }
}

/// What the frontends know of an address and port.
enum Hit {
    Service(u32),
    /// The address is a service's, the port is not.
    UnknownPort,
    None,
}

#[inline(always)]
fn look_up4(address: u32, port: NetPort, protocol: u16) -> Hit {
    let key = Frontend4Key {
        address,
        port,
        scope_protocol: ScopeProtocol::new(0, protocol),
    };
    // SAFETY: a frontend's row is never replaced, and its place is not used again before every program that could
    // hold it has ended: the agent waits for that.
    if let Some(value) = unsafe { FRONTENDS4.get(&key) } {
        return Hit::Service(value.service);
    }
    let Some(settings) = SETTINGS.get(0) else {
        return Hit::None;
    };
    if settings.refuse_unknown_port == 0
        || !(0..CIDRS_MAX).any(|i| in_cidr4(&settings.service_cidrs4[i], address))
    {
        return Hit::None;
    }
    let own = Frontend4Key {
        address,
        port: NetPort::from_net(0),
        scope_protocol: ScopeProtocol::new(0, ScopeProtocol::ADDRESS_ONLY),
    };
    if FRONTENDS4.get_ptr(&own).is_some() {
        Hit::UnknownPort
    } else {
        Hit::None
    }
}

#[inline(always)]
fn look_up6(address: [u32; 4], port: NetPort, protocol: u16) -> Hit {
    let key = Frontend6Key {
        address,
        port,
        scope_protocol: ScopeProtocol::new(0, protocol),
    };
    // SAFETY: as in `look_up4`.
    if let Some(value) = unsafe { FRONTENDS6.get(&key) } {
        return Hit::Service(value.service);
    }
    let Some(settings) = SETTINGS.get(0) else {
        return Hit::None;
    };
    if settings.refuse_unknown_port == 0
        || !(0..CIDRS_MAX).any(|i| in_cidr6(&settings.service_cidrs6[i], address))
    {
        return Hit::None;
    }
    let own = Frontend6Key {
        address,
        port: NetPort::from_net(0),
        scope_protocol: ScopeProtocol::new(0, ScopeProtocol::ADDRESS_ONLY),
    };
    if FRONTENDS6.get_ptr(&own).is_some() {
        Hit::UnknownPort
    } else {
        Hit::None
    }
}

enum Pick {
    Backend(u32, &'static BackendRow),
    Pass,
    Refuse(Refusal),
}

/// Chooses a backend of `service` for this client.
#[inline(always)]
fn pick(ctx: &SockAddrContext, service: u32) -> Pick {
    let Some(settings) = SETTINGS.get(0) else {
        return Pick::Pass;
    };
    if client_scope(ctx, settings) != client::TRANSLATE {
        count(Counter::ClientOutOfScope);
        return Pick::Pass;
    }
    for _ in 0..DRAW_TRIES {
        let Some(ring) = RINGS.get_ptr(service) else {
            return Pick::Refuse(Refusal::NoBackend);
        };
        // SAFETY: one aligned word, written whole.
        let ring = unsafe { read_volatile(ring) };
        // SAFETY: a helper without arguments.
        let random = unsafe { bpf_get_prandom_u32() };
        let Some(index) = draw(ring, random) else {
            return Pick::Refuse(Refusal::NoBackend);
        };
        if let Some(slot) = SLOTS.get_ptr(index) {
            // SAFETY: one aligned word, written whole.
            let slot = unsafe { read_volatile(slot) };
            if let Some(backend) = BACKENDS.get(slot.backend())
                && judge(service, slot, backend) == Drawn::Ours
            {
                if let Some(connects) = BACKEND_CONNECTS.get_ptr_mut(slot.backend()) {
                    // SAFETY: an aligned word that programs change by atomic addition only.
                    unsafe { atomic::add(connects, 1) };
                }
                return Pick::Backend(slot.backend(), backend);
            }
        }
        count(Counter::DrawRetried);
    }
    Pick::Refuse(Refusal::DrawGaveUp)
}

/// Whether this client's connections are ours to translate. Asked after a hit only.
#[inline(always)]
fn client_scope(ctx: &SockAddrContext, settings: &Settings) -> u32 {
    if settings.client_rows != 0 {
        // SAFETY: the helper takes this program type's context.
        let cookie = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
        // SAFETY: a word without meaning beyond itself; rows are never replaced.
        if let Some(word) = unsafe { CLIENTS.get(&cookie) } {
            return word.scope;
        }
    }
    settings.client_default
}

#[inline(always)]
fn refuse(refusal: Refusal) -> i32 {
    count(refusal.counter());
    let errno = SETTINGS
        .get(0)
        .map_or(111, |settings| settings.refuse_errno);
    // SAFETY: sets the errno of the refused call; a helper of this program type since Linux 5.18.
    unsafe { bpf_set_retval(-(errno as i32)) };
    DENY
}

/// Leaves the call as it is. The socket may have been a service's before (`AF_UNSPEC`, then another address).
#[inline(always)]
fn pass(ctx: &SockAddrContext) -> i32 {
    socket::forget(ctx);
    ALLOW
}

/// # Safety
/// `call` is a valid context.
#[inline(always)]
unsafe fn user_port(call: *const bpf_sock_addr) -> NetPort {
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
