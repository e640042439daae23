//! What the frontends know of an address and port.

use isthmus_abi::{CIDRS_MAX, Frontend4Key, Frontend6Key, NetPort, ScopeProtocol};
use isthmus_datapath::{in_cidr4, in_cidr6, mapped_v4};

use crate::maps::{FRONTENDS4, FRONTENDS6, SETTINGS};

pub enum Known {
    Service,
    /// The address is a service's, the port is not.
    UnknownPort,
    Nothing,
}

/// What the frontends know, and of which service: 0 where there is none. Not a payload of [`Known`]: compilers copy one also
/// where it was never written, and the verifier takes no such copy.
pub struct Hit {
    pub known: Known,
    pub service: u32,
}

impl Hit {
    const UNKNOWN_PORT: Self = Self {
        known: Known::UnknownPort,
        service: 0,
    };
    const NOTHING: Self = Self {
        known: Known::Nothing,
        service: 0,
    };
    #[inline(always)]
    const fn service(service: u32) -> Self {
        Self {
            known: Known::Service,
            service,
        }
    }
}

#[inline(always)]
pub fn look_up4(address: u32, port: NetPort, protocol: u16) -> Hit {
    let key = Frontend4Key {
        address,
        port,
        scope_protocol: ScopeProtocol::new(0, protocol),
    };
    // SAFETY: a frontend's row is never replaced, and its place is not used again before every program that could
    // hold it has ended: the agent waits for that.
    if let Some(value) = unsafe { FRONTENDS4.get(&key) } {
        return Hit::service(value.service);
    }
    let Some(settings) = SETTINGS.get(0) else {
        return Hit::NOTHING;
    };
    if settings.refuse_unknown_port == 0
        || !(0..CIDRS_MAX).any(|i| in_cidr4(&settings.service_cidrs4[i], address))
    {
        return Hit::NOTHING;
    }
    let own = Frontend4Key {
        address,
        port: NetPort::from_net(0),
        scope_protocol: ScopeProtocol::new(0, ScopeProtocol::ADDRESS_ONLY),
    };
    if FRONTENDS4.get_ptr(&own).is_some() {
        Hit::UNKNOWN_PORT
    } else {
        Hit::NOTHING
    }
}

#[inline(always)]
pub fn look_up6(address: [u32; 4], port: NetPort, protocol: u16) -> Hit {
    let key = Frontend6Key {
        address,
        port,
        scope_protocol: ScopeProtocol::new(0, protocol),
    };
    // SAFETY: as in `look_up4`.
    if let Some(value) = unsafe { FRONTENDS6.get(&key) } {
        return Hit::service(value.service);
    }
    let Some(settings) = SETTINGS.get(0) else {
        return Hit::NOTHING;
    };
    if settings.refuse_unknown_port == 0
        || !(0..CIDRS_MAX).any(|i| in_cidr6(&settings.service_cidrs6[i], address))
    {
        return Hit::NOTHING;
    }
    let own = Frontend6Key {
        address,
        port: NetPort::from_net(0),
        scope_protocol: ScopeProtocol::new(0, ScopeProtocol::ADDRESS_ONLY),
    };
    if FRONTENDS6.get_ptr(&own).is_some() {
        Hit::UNKNOWN_PORT
    } else {
        Hit::NOTHING
    }
}

/// A mapped address (`::ffff:a.b.c.d`) is an IPv4 frontend's.
#[inline(always)]
pub fn look_up(address: [u32; 4], port: NetPort, protocol: u16) -> Hit {
    match look_up_any(&address, port, protocol) {
        UNKNOWN_PORT => Hit::UNKNOWN_PORT,
        NOTHING => Hit::NOTHING,
        service => Hit::service(service as u32),
    }
}

/// No service's index is so large.
const UNKNOWN_PORT: u64 = u64::MAX;
const NOTHING: u64 = u64::MAX - 1;

/// A function of its own, so that to the verifier both families look alike when it returns.
#[inline(never)]
fn look_up_any(address: &[u32; 4], port: NetPort, protocol: u16) -> u64 {
    let hit = match mapped_v4(*address) {
        Some(v4) => look_up4(v4, port, protocol),
        None => look_up6(*address, port, protocol),
    };
    match hit.known {
        Known::Service => hit.service.into(),
        Known::UnknownPort => UNKNOWN_PORT,
        Known::Nothing => NOTHING,
    }
}
