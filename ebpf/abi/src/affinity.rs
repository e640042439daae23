use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Key of `affinity`: a client of a service with session affinity.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AffinityKey {
    /// Cookie of the client's network namespace.
    pub client: u64,
    pub service: u32,
    pub reserved: u32,
}

/// Value of `affinity`: the backend to which the client comes back.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AffinityRow {
    /// Of the client's last connect or first datagram, in ticks.
    pub used: u64,
    /// Backend id, and its generation at the time.
    pub backend: u32,
    pub generation: u32,
    /// The slot that named it when last looked at: where to look first.
    pub slot: u32,
    pub reserved: u32,
}

const _: () = {
    assert!(size_of::<AffinityKey>() == 16);
    assert!(size_of::<AffinityRow>() == 24);
};
