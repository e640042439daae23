//! What the eBPF programs and user space agree on: every map's key and value, the reasons of refusals, the limits.
//!
//! Rules. Layouts are `repr(C)`, integers only, padding is written out, and sizes are asserted when this compiles.
//! Addresses and ports are in network order, in types that say so. A row, or each named part of one, has one writer: what programs
//! write ([`BackendHealthRow`], [`BackendFailuresRow`], [`ServiceHealthRow`], and the rows of `watches`, `affinity`, `counters`,
//! `sockets`, `sockets_spilled` and `flows`) is never written by the agent while a program can reach the row, and the rest is never
//! written by a program.
//!
//! A draw goes `frontends` → `services[service]` → `slots[span + draw]` → `backends[slot.backend]`: a cache line each but for the
//! first, which is a hash.
#![no_std]

mod affinity;
mod event;
mod flow;
mod frontend;
mod health;
mod ring;
mod settings;
mod socket;

pub use affinity::{AffinityKey, AffinityRow};
pub use event::{EVENTS_BYTES, EVENTS_PER_TICK, EventKind, EventRow, FailureCause};
pub use flow::{FLOW_VERSION, FlowKey, FlowRow, flow_side};
pub use frontend::{Frontend4Key, Frontend6Key, FrontendValue, NetPort, ScopeProtocol};
pub use health::{
    BackendFailuresRow, BackendHealthRow, CLIENT_MARKS, EPOCH_SHIFT, HealthState, MARKS, NO_MARK,
    ServiceHealthRow, ServiceLimitsRow, Standing, TICK_SHIFT, WATCHES_PER_CLIENT, WatchRow,
    client_mark, health_kind, service_flags, ticks, watch_slot,
};
pub use ring::{BackendRow, EndpointRow, Ring, ServiceRow, Slot, TierHead, backend_state};
pub use settings::{CIDRS_MAX, Cidr4, Cidr6, ClientWord, Counter, Refusal, Settings, client};
pub use socket::{SOCKET_SLOTS, SOCKET_VERSION, SocketRow, SpillKey, socket_slot, socket_tag};

/// Names a layout of all maps but `sockets`, `sockets_spilled` and `flows`. Any change to a key, a value or a meaning in this
/// crate raises it, unless programs and agents of before would do the same by it and only show it otherwise; an agent adopts maps of its own version only, and fills new ones beside those of another.
pub const ABI_VERSION: u32 = 5;

/// How often a draw that met a slot of another service starts again from the ring. Such a slot is seen only by a program
/// that was interrupted while its ring moved; one retry finds the new ring, the others are for a storm of changes.
pub const DRAW_TRIES: u32 = 4;

/// Slots that a draw looks at in a tier when the first one cannot be had.
pub const WALK_MAX: u32 = 64;

/// Tiers that a ring can hold: local and remote ready, local and remote serving-terminating, stale peers'. Three spare.
pub const TIERS_MAX: usize = 8;
