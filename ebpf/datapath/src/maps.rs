//! The maps, by the names under which they are pinned. Sizes here are the defaults; the loader sets those of the flags.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray};
use isthmus_abi::{
    BackendRow, ClientWord, Counter, Frontend4Key, Frontend6Key, FrontendValue, Ring, SOCKET_SLOTS,
    Settings, Slot, SocketRow, SpillKey,
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

#[map(name = "backend_connects")]
pub static BACKEND_CONNECTS: Array<u64> = Array::with_max_entries(65536, MMAPABLE);

#[map(name = "counters")]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);

#[map(name = "sockets")]
pub static SOCKETS: Array<SocketRow> = Array::with_max_entries(SOCKET_SLOTS, MMAPABLE);

#[map(name = "sockets_spilled")]
pub static SOCKETS_SPILLED: LruHashMap<SpillKey, SocketRow> =
    LruHashMap::with_max_entries(16384, 0);

/// Adds one to a counter of this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a per-CPU row; programs of this kind do not interrupt each other on one CPU.
        unsafe { *value += 1 };
    }
}
