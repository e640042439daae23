use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// CIDRs of each family that `settings` holds: the bound of `--service-cidr`.
pub const CIDRS_MAX: usize = 4;

/// A range of IPv4 addresses: those with `address & mask == base`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cidr4 {
    /// Network order.
    pub base: u32,
    pub mask: u32,
}

impl Cidr4 {
    /// Matches no address.
    pub const UNUSED: Self = Self {
        base: u32::MAX,
        mask: 0,
    };
}

/// A range of IPv6 addresses, like [`Cidr4`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cidr6 {
    /// Network order.
    pub base: [u32; 4],
    pub mask: [u32; 4],
}

impl Cidr6 {
    /// Matches no address.
    pub const UNUSED: Self = Self {
        base: [u32::MAX; 4],
        mask: [0; 4],
    };
}

/// Value 0 of `settings`: what programs need to know besides services.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Settings {
    pub abi_version: u32,
    /// Errno of a refused connect, positive: 111 `ECONNREFUSED` or 113 `EHOSTUNREACH`.
    pub refuse_errno: u32,
    /// What a client without a row in `clients` gets: a [`client`] word.
    pub client_default: u32,
    /// 1 if `clients` has rows, so that a hit without any saves the look-up.
    pub client_rows: u32,
    /// 1 if an unknown port of a service address inside the CIDRs is refused (`--services=all`).
    pub refuse_unknown_port: u32,
    /// 1 if failures eject backends (`--passive-health`).
    pub passive_health: u32,
    pub service_cidrs4: [Cidr4; CIDRS_MAX],
    pub service_cidrs6: [Cidr6; CIDRS_MAX],
}

/// Meanings of a client's word.
pub mod client {
    /// Let the connection go to the address the client named.
    pub const PASS: u32 = 0;
    /// Translate services for this client.
    pub const TRANSLATE: u32 = 1;
}

/// Value of `clients`, keyed by the cookie of the client's network namespace.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ClientWord {
    /// A [`client`] word.
    pub scope: u32,
    pub reserved: u32,
}

/// Rows of `counters` (per CPU). A new one is added at the end.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counter {
    /// Service without any backend: refused.
    RefusedNoBackend = 0,
    /// Unknown port of a service address of ours: refused.
    RefusedUnknownPort = 1,
    /// A service's frontend was named by a client that is out of scope: passed unchanged.
    ClientOutOfScope = 2,
    /// A draw met a slot of another service and began again.
    DrawRetried = 3,
    /// A draw met such slots until its tries were used up: refused, so that nothing goes to another's backend.
    RefusedDrawGaveUp = 4,
    /// `sockets` was busy, or held another socket: the record went to `sockets_spilled`.
    SocketSpilled = 5,
    /// `sockets_spilled` refused the record: `getpeername` shows the backend's address for this socket.
    SocketLost = 6,
    /// Every backend of every tier was ejected: drawn as if none were.
    AllEjected = 7,
    /// A connect failed at a backend by a client whose failures do not count.
    FailureNotCounted = 8,
    /// An ejection was due, and the service's limit did not allow it.
    EjectionCapped = 9,
    /// `events` was full, or too many came at once: what happened is counted only.
    EventLost = 10,
    /// `affinity` refused the row: the client's next connect is drawn anew.
    AffinityLost = 11,
}

impl Counter {
    pub const COUNT: u32 = 12;
    /// In the order of their numbers.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::RefusedNoBackend,
        Self::RefusedUnknownPort,
        Self::ClientOutOfScope,
        Self::DrawRetried,
        Self::RefusedDrawGaveUp,
        Self::SocketSpilled,
        Self::SocketLost,
        Self::AllEjected,
        Self::FailureNotCounted,
        Self::EjectionCapped,
        Self::EventLost,
        Self::AffinityLost,
    ];

    /// As metrics and `agentctl` name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RefusedNoBackend => "refused_no_backend",
            Self::RefusedUnknownPort => "refused_unknown_port",
            Self::ClientOutOfScope => "client_out_of_scope",
            Self::DrawRetried => "draw_retried",
            Self::RefusedDrawGaveUp => "refused_draw_gave_up",
            Self::SocketSpilled => "socket_spilled",
            Self::SocketLost => "socket_lost",
            Self::AllEjected => "all_ejected",
            Self::FailureNotCounted => "failure_not_counted",
            Self::EjectionCapped => "ejection_capped",
            Self::EventLost => "event_lost",
            Self::AffinityLost => "affinity_lost",
        }
    }
}

/// Why a connect was refused by us, each counted by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    NoBackend,
    UnknownPort,
    DrawGaveUp,
}

impl Refusal {
    pub const ALL: [Self; 3] = [Self::NoBackend, Self::UnknownPort, Self::DrawGaveUp];

    #[must_use]
    pub const fn counter(self) -> Counter {
        match self {
            Self::NoBackend => Counter::RefusedNoBackend,
            Self::UnknownPort => Counter::RefusedUnknownPort,
            Self::DrawGaveUp => Counter::RefusedDrawGaveUp,
        }
    }
    /// As metrics and `agentctl` name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoBackend => "no_backend",
            Self::UnknownPort => "unknown_port",
            Self::DrawGaveUp => "draw_gave_up",
        }
    }
}

const _: () = {
    assert!(size_of::<Settings>() == 24 + CIDRS_MAX * 8 + CIDRS_MAX * 32);
    assert!(size_of::<ClientWord>() == 8);
};
