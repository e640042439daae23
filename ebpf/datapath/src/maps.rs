//! The maps, by the names under which they are pinned. Sizes here are the defaults; the loader sets those of the flags.

use core::ptr::{addr_of, addr_of_mut, read_volatile};

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use isthmus_abi::{
    ABI_VERSION, AffinityKey, AffinityRow, BackendFailuresRow, BackendHealthRow, BackendRow,
    CLIENT_MARKS, ClientWord, Counter, EVENTS_BYTES, EndpointRow, FlowKey, FlowRow, Frontend4Key,
    Frontend6Key, FrontendValue, Ring, SOCKET_SLOTS, ServiceHealthRow, ServiceLimitsRow,
    ServiceRow, Settings, Slot, SocketRow, SpillKey, WATCHES_PER_CLIENT, WatchRow,
};

use crate::atomic;

/// Lets user space map an array into its memory (`BPF_F_MMAPABLE`), and puts its first row on a page's start.
const MMAPABLE: u32 = 1 << 10;

#[map(name = "settings")]
pub static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

#[map(name = "clients")]
pub static CLIENTS: HashMap<u64, ClientWord> = HashMap::with_max_entries(4096, 0);

#[map(name = "frontends4")]
pub static FRONTENDS4: HashMap<Frontend4Key, FrontendValue> = HashMap::with_max_entries(65536, 0);

#[map(name = "frontends6")]
pub static FRONTENDS6: HashMap<Frontend6Key, FrontendValue> = HashMap::with_max_entries(65536, 0);

#[map(name = "services")]
static SERVICES: Array<ServiceRow> = Array::with_max_entries(65536, MMAPABLE);

#[map(name = "slots")]
pub static SLOTS: Array<Slot> = Array::with_max_entries(262_144, MMAPABLE);

#[map(name = "backends")]
static BACKENDS: Array<EndpointRow> = Array::with_max_entries(65536, MMAPABLE);

#[map(name = "backend_failures")]
pub static BACKEND_FAILURES: Array<BackendFailuresRow> = Array::with_max_entries(65536, MMAPABLE);

#[map(name = "watches")]
pub static WATCHES: Array<WatchRow> = Array::with_max_entries(CLIENT_MARKS * WATCHES_PER_CLIENT, 0);

#[map(name = "affinity")]
pub static AFFINITY: LruHashMap<AffinityKey, AffinityRow> = LruHashMap::with_max_entries(65536, 0);

#[map(name = "events")]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_BYTES, 0);

/// A CPU's own words: see [`crate::event`] and [`crate::programs::socket`].
#[map(name = "scratch")]
pub static SCRATCH: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);

#[map(name = "counters")]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);

#[map(name = "sockets")]
pub static SOCKETS: Array<SocketRow> = Array::with_max_entries(SOCKET_SLOTS, MMAPABLE);

#[map(name = "sockets_spilled")]
pub static SOCKETS_SPILLED: LruHashMap<SpillKey, SocketRow> =
    LruHashMap::with_max_entries(16384, 0);

#[map(name = "flows")]
pub static FLOWS: LruHashMap<FlowKey, FlowRow> = LruHashMap::with_max_entries(32768, 0);

/// Where a service's ring is told: one aligned word, written whole.
#[inline(always)]
pub fn ring_at(service: u32) -> Option<*const Ring> {
    // SAFETY: a part of a row inside the map.
    SERVICES
        .get_ptr(service)
        .map(|row| unsafe { addr_of!((*row).ring) })
}

#[inline(always)]
pub fn service_health_at(service: u32) -> Option<*mut ServiceHealthRow> {
    // SAFETY: as above.
    SERVICES
        .get_ptr_mut(service)
        .map(|row| unsafe { addr_of_mut!((*row).health) })
}

#[inline(always)]
pub fn service_limits_at(service: u32) -> Option<&'static ServiceLimitsRow> {
    // SAFETY: a part of a row inside the map, of which the rest is changed by others.
    SERVICES
        .get_ptr(service)
        .map(|row| unsafe { &*addr_of!((*row).limits) })
}

#[inline(always)]
pub fn backend_at(id: u32) -> Option<&'static BackendRow> {
    // SAFETY: a part of a row inside the map, which does not change while a slot names it.
    BACKENDS
        .get_ptr(id)
        .map(|row| unsafe { &*addr_of!((*row).backend) })
}

#[inline(always)]
pub fn backend_health_at(id: u32) -> Option<*mut BackendHealthRow> {
    // SAFETY: a part of a row inside the map.
    BACKENDS
        .get_ptr_mut(id)
        .map(|row| unsafe { addr_of_mut!((*row).health) })
}

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: an aligned word of a map's row. Atomic, since a program may be put aside for another one on its CPU.
        unsafe { atomic::add(value, 1) };
    }
}

/// The same number, of which the verifier knows nothing any more. It walks what follows once for each constant that it
/// knows of; what it reads from a map may be anything.
#[inline(always)]
pub fn opaque(number: u64) -> u64 {
    let Some(settings) = SETTINGS.get(0) else {
        return number;
    };
    // SAFETY: a word of a map's row. Volatile, so that nobody concludes what it is.
    let version = unsafe { read_volatile(addr_of!(settings.abi_version)) };
    number ^ u64::from(version ^ ABI_VERSION) * 0x1_0000_0001
}
