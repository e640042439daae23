//! The seam below which the kernel begins. Everything above it can run against memory, and against faults.

use isthmus_abi::{
    BackendFailuresRow, BackendHealthRow, BackendRow, Frontend4Key, Frontend6Key, FrontendValue,
    Ring, ServiceHealthRow, ServiceLimitsRow, Slot,
};

mod faulty;
mod memory;

pub use faulty::{Faults, FaultyTable};
pub use memory::{MemoryMaps, MemoryTable, Sizes, Write};

/// Why a table refused a write or a read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TableError {
    #[error("{table} map full: {capacity} of {capacity} entries; raise {flag}")]
    Full {
        table: &'static str,
        capacity: u32,
        flag: &'static str,
    },
    #[error("{table}: {operation} refused by the kernel: {cause}")]
    KernelRefused {
        table: &'static str,
        operation: &'static str,
        cause: String,
    },
}

/// One map: a hash, or an array whose key is the index. Every operation is atomic for a reader of that row where
/// the ABI says the row is one word; wider rows are written while nothing refers to them.
pub trait TableBackend<K, V> {
    /// The map's name, as pinned.
    fn name(&self) -> &'static str;
    /// Most rows that it can hold; for an array, its length.
    fn capacity(&self) -> u32;
    /// Writes a row. The caller never puts an existing key of a hash (see [`FrontendValue`]).
    ///
    /// # Errors
    /// [`TableError::Full`] if a hash has no room; [`TableError::KernelRefused`] otherwise. Nothing is written then.
    fn put(&mut self, key: K, value: V) -> Result<(), TableError>;
    /// Removes a hash's row, or zeroes an array's. A missing row is no error.
    ///
    /// # Errors
    /// [`TableError::KernelRefused`]; nothing is removed then.
    fn remove(&mut self, key: K) -> Result<(), TableError>;
    /// Shows every row; an array's in the order of indices, zeroed ones left out.
    ///
    /// # Errors
    /// [`TableError::KernelRefused`]; `visit` may have seen a part.
    fn for_each(&self, visit: &mut dyn FnMut(K, V)) -> Result<(), TableError>;
}

pub type Table<K, V> = Box<dyn TableBackend<K, V> + Send>;

/// The maps that reconciliation writes. All of one kind: of the kernel, in memory, or faulty.
pub struct Tables {
    pub frontends4: Table<Frontend4Key, FrontendValue>,
    pub frontends6: Table<Frontend6Key, FrontendValue>,
    /// By service.
    pub rings: Table<u32, Ring>,
    /// Spans of slots and tier heads.
    pub slots: Table<u32, Slot>,
    /// By backend id.
    pub backends: Table<u32, BackendRow>,
    /// By backend id: what programs count and learn. Reconciliation zeroes a row only while no slot names its id.
    pub backend_health: Table<u32, BackendHealthRow>,
    /// By backend id, as `backend_health`.
    pub backend_failures: Table<u32, BackendFailuresRow>,
    /// By service: what programs count and learn. Reconciliation zeroes a row only while no frontend leads there.
    pub service_health: Table<u32, ServiceHealthRow>,
    /// By service: how far programs may go.
    pub service_limits: Table<u32, ServiceLimitsRow>,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tables").finish_non_exhaustive()
    }
}
