#![expect(
    clippy::cast_possible_truncation,
    reason = "fields are cut out of packed words"
)]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{BackendHealthRow, NetPort, ServiceHealthRow, ServiceLimitsRow};

/// Where a service's span lies. One aligned 64-bit word, so a reader sees the old ring or the new one, never a mixture.
///
/// A span of `tiers` tiers starts with `tiers - 1` [`TierHead`]s, those of the second tier and on; the first tier's
/// slots follow at once. The commonest ring, of one tier, has no head at all. `Ring::EMPTY` has no tier.
#[repr(transparent)]
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Ring(pub u64);

impl Ring {
    pub const EMPTY: Self = Self(0);
    /// Most slots in a first tier (24 bits).
    pub const LEN_MAX: u32 = (1 << 24) - 1;

    /// Most tiers that the word can say (7 bits).
    const TIERS_MASK: u8 = 0x7f;
    /// The service asks for session affinity.
    const STICKY: u64 = 1 << 31;

    /// `len` slots in the first tier, at most [`Self::LEN_MAX`]; `tiers` at most 127.
    #[must_use]
    pub const fn new(span: u32, tiers: u8, len: u32) -> Self {
        Self(
            (span as u64) << 32
                | ((tiers & Self::TIERS_MASK) as u64) << 24
                | (len & Self::LEN_MAX) as u64,
        )
    }
    /// The same ring, of a service that asks for session affinity or does not.
    #[must_use]
    pub const fn with_affinity(self, sticky: bool) -> Self {
        Self(if sticky {
            self.0 | Self::STICKY
        } else {
            self.0 & !Self::STICKY
        })
    }
    /// Whether clients come back to their backend: then [`crate::ServiceLimitsRow::affinity_seconds`] says for how long.
    #[inline(always)]
    #[must_use]
    pub const fn is_sticky(self) -> bool {
        self.0 & Self::STICKY != 0
    }
    /// First slot of the span, heads included.
    #[must_use]
    pub const fn span(self) -> u32 {
        (self.0 >> 32) as u32
    }
    #[must_use]
    pub const fn tiers(self) -> u8 {
        (self.0 >> 24) as u8 & Self::TIERS_MASK
    }
    /// Slots in the first tier.
    #[must_use]
    pub const fn len(self) -> u32 {
        self.0 as u32 & Self::LEN_MAX
    }
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }
    /// Index of the first tier's first slot; of a ring that has one.
    #[must_use]
    pub const fn first(self) -> u32 {
        // No branch: it would be one more way for the verifier to walk all that follows a draw.
        let heads = self.tiers().wrapping_sub(1) & Self::TIERS_MASK;
        self.span().wrapping_add(heads as u32)
    }
}

/// Value of `slots` in a tier: one share of the service's connections. One aligned 64-bit word.
#[repr(transparent)]
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Slot(pub u64);

impl Slot {
    /// Names no service: what a free slot holds.
    pub const FREE: Self = Self(u64::MAX);

    #[must_use]
    pub const fn new(backend: u32, service: u32) -> Self {
        Self((service as u64) << 32 | backend as u64)
    }
    #[must_use]
    pub const fn backend(self) -> u32 {
        self.0 as u32
    }
    /// The service that drew this slot must be this one: a draw that finds another starts again.
    #[must_use]
    pub const fn service(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Value of `slots` at the head of a span: a later tier's place. `offset` counts from the span's first slot.
#[repr(transparent)]
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TierHead(pub u64);

impl TierHead {
    #[must_use]
    pub const fn new(offset: u32, len: u32) -> Self {
        Self((offset as u64) << 32 | len as u64)
    }
    #[must_use]
    pub const fn offset(self) -> u32 {
        (self.0 >> 32) as u32
    }
    #[must_use]
    pub const fn len(self) -> u32 {
        self.0 as u32
    }
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// Values of [`BackendRow::state`].
pub mod backend_state {
    /// The id is free; no slot may name it.
    pub const FREE: u8 = 0;
    /// The row is complete and slots may name it.
    pub const LIVE: u8 = 1;
}

/// One endpoint of one service. But for `state` it never changes while a slot names it, so that a program can read it without a
/// lock.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct BackendRow {
    /// IPv6, or IPv4 mapped; four words in network order.
    pub address: [u32; 4],
    /// Network order; 0 in a free row.
    pub port: u16,
    /// Cluster id, 1..=511.
    pub cluster: u16,
    pub service: u32,
    /// Counts the lives of this id, so that what is known of an earlier life is not charged to this one.
    pub generation: u32,
    pub state: u8,
    /// A [`crate::ScopeProtocol`] protocol number.
    pub protocol: u8,
    pub reserved: [u8; 2],
}

impl BackendRow {
    #[must_use]
    pub const fn net_port(&self) -> NetPort {
        NetPort::from_net(self.port)
    }
}

/// Value of `services`, indexed by service: all that a draw, and health at a draw, need of it, on one cache line. Its parts have
/// a writer each.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ServiceRow {
    pub ring: Ring,
    pub health: ServiceHealthRow,
    pub limits: ServiceLimitsRow,
}

/// Value of `backends`, indexed by backend id: what a draw reads and counts, on one cache line. Its parts have a writer each.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct EndpointRow {
    pub backend: BackendRow,
    pub health: BackendHealthRow,
}

const _: () = {
    assert!(size_of::<ServiceRow>() == 64 && size_of::<EndpointRow>() == 64);
    assert!(size_of::<Ring>() == 8 && align_of::<Ring>() == 8);
    assert!(size_of::<Slot>() == 8 && align_of::<Slot>() == 8);
    assert!(size_of::<TierHead>() == 8);
    assert!(size_of::<BackendRow>() == 32);
};
