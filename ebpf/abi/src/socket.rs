use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Rows of `sockets`. A power of two.
pub const SOCKET_SLOTS: u32 = 65536;

/// Version of [`SocketRow`]. The map is older than any `ABI_VERSION`: fields are added in `reserved` and never moved.
pub const SOCKET_VERSION: u8 = 1;

/// What a translated socket remembers: value of `sockets` (by [`socket_slot`]) and `sockets_spilled` (by [`SpillKey`]).
/// One cache line.
///
/// A row belongs to a socket if both `socket` and `cookie` are the socket's: the kernel gives memory of a closed socket
/// to the next one, but never a cookie twice.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SocketRow {
    /// The socket's place in the kernel's memory, as its distance in bytes from this map's first row; 0 in a free row,
    /// 1 while a program writes it.
    pub socket: u64,
    pub cookie: u64,
    /// Where the client wanted to go: IPv6 or IPv4 mapped, network order.
    pub service_address: [u32; 4],
    /// Where it was sent.
    pub backend_address: [u32; 4],
    pub service_port: u16,
    pub backend_port: u16,
    pub version: u8,
    /// 1 once a record of a socket of this place may be in `sockets_spilled` or in `flows`.
    pub spilled: u8,
    /// Bits of [`socket_tag`], and below them the low bits of the backend's generation at the time.
    pub tag: u8,
    /// The client's mark, [`crate::NO_MARK`] if health does not look.
    pub mark: u8,
    /// Backend id and service at the time, for accounts.
    pub backend: u32,
    pub service: u32,
}

/// Bits of [`SocketRow::tag`].
pub mod socket_tag {
    pub const GENERATION: u8 = 0x0f;
    /// A later connect asks what became of this one.
    pub const WATCHED: u8 = 0x10;
    // 0x20 was ABI 2's.
    /// Its first time-out without an answer is counted.
    pub const UNANSWERED: u8 = 0x40;
    /// Its failure is counted.
    pub const FAILED: u8 = 0x80;
}

/// Key of `sockets_spilled`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SpillKey {
    pub cookie: u64,
}

/// The row of a socket whose distance from `sockets`' first row is `distance` bytes. Sockets are cache-line aligned, so
/// the low six bits say nothing; a multiplicative hash (Knuth, TAOCP 6.4) spreads neighbours.
#[inline(always)]
#[must_use]
pub const fn socket_slot(distance: u64) -> u32 {
    ((distance >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u32 & (SOCKET_SLOTS - 1)
}

const _: () = assert!(size_of::<SocketRow>() == 64);
