//! The maps, by the names under which they are pinned. Sizes here are the defaults; the loader sets those of the flags.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use isthmus_abi::{
    ABI_VERSION, AffinityKey, AffinityRow, BackendFailuresRow, BackendHealthRow, BackendRow,
    CLIENT_MARKS, ClientWord, Counter, EVENTS_BYTES, FlowKey, FlowRow, Frontend4Key, Frontend6Key,
    FrontendValue, Ring, SOCKET_SLOTS, ServiceHealthRow, ServiceLimitsRow, Settings, Slot,
    SocketRow, SpillKey, WATCHES_PER_CLIENT, WatchRow,
};

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

#[map(name = "rings")]
pub static RINGS: Array<Ring> = Array::with_max_entries(65536, MMAPABLE);

#[map(name = "slots")]
pub static SLOTS: Array<Slot> = Array::with_max_entries(262_144, MMAPABLE);

#[map(name = "backends")]
pub static BACKENDS: Array<BackendRow> = Array::with_max_entries(65536, MMAPABLE);

#[map(name = "backend_health")]
pub static BACKEND_HEALTH: Array<BackendHealthRow> = Array::with_max_entries(65536, MMAPABLE);

#[map(name = "backend_failures")]
pub static BACKEND_FAILURES: Array<BackendFailuresRow> = Array::with_max_entries(65536, MMAPABLE);

#[map(name = "service_health")]
pub static SERVICE_HEALTH: Array<ServiceHealthRow> = Array::with_max_entries(65536, MMAPABLE);

#[map(name = "service_limits")]
pub static SERVICE_LIMITS: Array<ServiceLimitsRow> = Array::with_max_entries(65536, MMAPABLE);

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

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a per-CPU row; programs of this kind do not interrupt each other on one CPU.
        unsafe { *value += 1 };
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
