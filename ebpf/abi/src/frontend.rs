use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A port in network order, as `sock_addr` contexts and packets carry it.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NetPort(u16);

impl NetPort {
    #[must_use]
    pub const fn from_host(port: u16) -> Self {
        Self(port.to_be())
    }
    /// Wraps the bytes of a packet or context, already in network order.
    #[must_use]
    pub const fn from_net(bits: u16) -> Self {
        Self(bits)
    }
    #[must_use]
    pub const fn to_host(self) -> u16 {
        u16::from_be(self.0)
    }
    #[must_use]
    pub const fn net(self) -> u16 {
        self.0
    }
}

/// Cluster scope and layer-4 protocol in one word: `scope << 5 | protocol`, host order. The protocol is the low five bits
/// of its number (IANA), so that a program needs no branch to tell it, and the verifier walks it once for all.
///
/// Scope 0 is the node's own network, in which every address is unique. Others (1..=511) are cluster ids, for addresses
/// that mean something in that cluster only.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ScopeProtocol(u16);

impl ScopeProtocol {
    /// Port and protocol 0: the row that marks an address as a service's own, whatever the port.
    pub const ADDRESS_ONLY: u16 = 0;
    pub const TCP: u16 = 6;
    pub const UDP: u16 = 17;
    pub const SCTP: u16 = 132 & Self::PROTOCOL_MASK;

    const PROTOCOL_BITS: u32 = 5;
    const PROTOCOL_MASK: u16 = (1 << Self::PROTOCOL_BITS) - 1;

    /// `protocol` is one of this type's constants; `scope` must be below 2048.
    #[must_use]
    pub const fn new(scope: u16, protocol: u16) -> Self {
        Self(scope << Self::PROTOCOL_BITS | protocol & Self::PROTOCOL_MASK)
    }
    #[must_use]
    pub const fn scope(self) -> u16 {
        self.0 >> Self::PROTOCOL_BITS
    }
    #[must_use]
    pub const fn protocol(self) -> u16 {
        self.0 & Self::PROTOCOL_MASK
    }
}

/// Key of `frontends4`: eight bytes, because the hash is the dearest part of a draw.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Frontend4Key {
    /// IPv4 address, network order.
    pub address: u32,
    pub port: NetPort,
    pub scope_protocol: ScopeProtocol,
}

/// Key of `frontends6`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Frontend6Key {
    /// IPv6 address as four words, each in network order.
    pub address: [u32; 4],
    pub port: NetPort,
    pub scope_protocol: ScopeProtocol,
}

/// Value of `frontends4` and `frontends6`. Written once with its key and never replaced: replacing a hash entry in
/// place lets a concurrent lookup miss it, or read a neighbour's value.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FrontendValue {
    /// Index into `services`.
    pub service: u32,
    pub reserved: u32,
}

const _: () = {
    assert!(size_of::<Frontend4Key>() == 8);
    assert!(size_of::<Frontend6Key>() == 20);
    assert!(size_of::<FrontendValue>() == 8);
};
