use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of [`FlowRow`]. `flows` is older than any `ABI_VERSION`, like `sockets`.
pub const FLOW_VERSION: u8 = 1;

/// What [`FlowKey::address`] and [`FlowKey::port`] are.
pub mod flow_side {
    /// A service's: the row says where the socket's datagrams to it go.
    pub const SERVICE: u16 = 0;
    /// A backend's: the row says as whose the socket is shown what comes from there.
    pub const BACKEND: u16 = 1;
}

/// Key of `flows`: of a socket that sends to services without a connect, those that its own row in `sockets` has no room
/// for. Each stands there twice, from both sides.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FlowKey {
    /// The socket's.
    pub cookie: u64,
    /// IPv6 or IPv4 mapped, network order.
    pub address: [u32; 4],
    /// Network order.
    pub port: u16,
    /// A [`flow_side`].
    pub side: u16,
    pub reserved: u32,
}

/// Value of `flows`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FlowRow {
    /// The key's. The kernel may give an element's memory to another key while a program looks at it.
    pub cookie: u64,
    /// The other side's address and port, as in the key.
    pub address: [u32; 4],
    pub port: u16,
    pub version: u8,
    pub reserved: u8,
    /// Backend id at the time.
    pub backend: u32,
}

const _: () = {
    assert!(size_of::<FlowKey>() == 32);
    assert!(size_of::<FlowRow>() == 32);
};
