use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use isthmus_abi::{
    BackendFailuresRow, BackendHealthRow, BackendRow, Frontend4Key, Frontend6Key, FrontendValue,
    Ring, ServiceHealthRow, ServiceLimitsRow, Slot,
};

use super::{TableBackend, TableError, Tables};

/// How many rows each map holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// Of each family.
    pub frontends: u32,
    pub services: u32,
    pub slots: u32,
    pub backends: u32,
}

/// One write, as a kernel would have seen it. `None` removes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Write {
    Frontend4(Frontend4Key, Option<FrontendValue>),
    Frontend6(Frontend6Key, Option<FrontendValue>),
    Ring(u32, Ring),
    Slot(u32, Slot),
    Backend(u32, BackendRow),
    BackendHealth(u32, BackendHealthRow),
    BackendFailures(u32, BackendFailuresRow),
    ServiceHealth(u32, ServiceHealthRow),
    ServiceLimits(u32, ServiceLimitsRow),
}

/// All maps in memory, with the list of writes that made them: any prefix of it is a crash.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryMaps {
    pub sizes: Sizes,
    pub frontends4: HashMap<Frontend4Key, FrontendValue>,
    pub frontends6: HashMap<Frontend6Key, FrontendValue>,
    pub rings: Vec<Ring>,
    pub slots: Vec<Slot>,
    pub backends: Vec<BackendRow>,
    pub backend_health: Vec<BackendHealthRow>,
    pub backend_failures: Vec<BackendFailuresRow>,
    pub service_health: Vec<ServiceHealthRow>,
    pub service_limits: Vec<ServiceLimitsRow>,
    /// In order; those that failed left out.
    pub writes: Vec<Write>,
}

/// A view of [`MemoryMaps`] as one map. The same value serves as any of them.
#[derive(Clone, Debug)]
pub struct MemoryTable {
    maps: Arc<Mutex<MemoryMaps>>,
}

impl MemoryMaps {
    /// Empty maps: arrays of zeros, as a kernel makes them.
    #[must_use]
    pub fn new(sizes: Sizes) -> Self {
        Self {
            sizes,
            frontends4: HashMap::new(),
            frontends6: HashMap::new(),
            rings: vec![Ring::EMPTY; sizes.services as usize],
            slots: vec![Slot::default(); sizes.slots as usize],
            backends: vec![BackendRow::default(); sizes.backends as usize],
            backend_health: vec![BackendHealthRow::default(); sizes.backends as usize],
            backend_failures: vec![BackendFailuresRow::default(); sizes.backends as usize],
            service_health: vec![ServiceHealthRow::default(); sizes.services as usize],
            service_limits: vec![ServiceLimitsRow::default(); sizes.services as usize],
            writes: Vec::new(),
        }
    }

    /// Does one write.
    ///
    /// # Errors
    /// [`TableError::Full`] if a hash has no room, [`TableError::KernelRefused`] for an index out of range, and for a
    /// hash's key that is there already: see [`FrontendValue`].
    pub fn write(&mut self, write: Write) -> Result<(), TableError> {
        let capacity = self.sizes.frontends;
        match write {
            Write::Frontend4(key, value) => {
                put_hash(&mut self.frontends4, "frontends4", capacity, key, value)
            }
            Write::Frontend6(key, value) => {
                put_hash(&mut self.frontends6, "frontends6", capacity, key, value)
            }
            Write::Ring(index, ring) => put_array(&mut self.rings, "services", index, ring),
            Write::Slot(at, slot) => put_array(&mut self.slots, "slots", at, slot),
            Write::Backend(id, row) => put_array(&mut self.backends, "backends", id, row),
            Write::BackendHealth(id, row) => {
                put_array(&mut self.backend_health, "backends", id, row)
            }
            Write::BackendFailures(id, row) => {
                put_array(&mut self.backend_failures, "backend_failures", id, row)
            }
            Write::ServiceHealth(index, row) => {
                put_array(&mut self.service_health, "services", index, row)
            }
            Write::ServiceLimits(index, row) => {
                put_array(&mut self.service_limits, "services", index, row)
            }
        }?;
        self.writes.push(write);
        Ok(())
    }
}

fn put_hash<K: Eq + Hash, V>(
    hash: &mut HashMap<K, V>,
    table: &'static str,
    capacity: u32,
    key: K,
    value: Option<V>,
) -> Result<(), TableError> {
    let Some(value) = value else {
        hash.remove(&key);
        return Ok(());
    };
    if hash.contains_key(&key) {
        return Err(TableError::KernelRefused {
            table,
            operation: "put",
            cause: "the key is there already".to_owned(),
        });
    }
    if hash.len() >= capacity as usize {
        return Err(TableError::Full {
            table,
            capacity,
            flag: "--lb-services-max",
        });
    }
    hash.insert(key, value);
    Ok(())
}

fn put_array<V>(array: &mut [V], table: &'static str, at: u32, value: V) -> Result<(), TableError> {
    let capacity = array.len();
    let row = array
        .get_mut(at as usize)
        .ok_or_else(|| TableError::KernelRefused {
            table,
            operation: "put",
            cause: format!("index {at} is not below {capacity}"),
        })?;
    *row = value;
    Ok(())
}

impl MemoryTable {
    #[must_use]
    pub fn new(maps: MemoryMaps) -> Self {
        Self {
            maps: Arc::new(Mutex::new(maps)),
        }
    }

    /// This memory as a full set of tables. Several sets share it, as processes share a kernel's maps.
    #[must_use]
    pub fn tables(&self) -> Tables {
        Tables {
            frontends4: Box::new(self.clone()),
            frontends6: Box::new(self.clone()),
            rings: Box::new(self.clone()),
            slots: Box::new(self.clone()),
            backends: Box::new(self.clone()),
            backend_health: Box::new(self.clone()),
            backend_failures: Box::new(self.clone()),
            service_health: Box::new(self.clone()),
            service_limits: Box::new(self.clone()),
        }
    }

    /// Looks at, or changes, the memory. Do not keep it while tables are in use: they wait.
    pub fn maps(&self) -> MutexGuard<'_, MemoryMaps> {
        // A write is whole or did not happen, so a panic elsewhere leaves nothing half done.
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

macro_rules! hash_table {
    ($key:ty, $field:ident, $write:ident) => {
        impl TableBackend<$key, FrontendValue> for MemoryTable {
            fn name(&self) -> &'static str {
                stringify!($field)
            }
            fn capacity(&self) -> u32 {
                self.maps().sizes.frontends
            }
            fn put(&mut self, key: $key, value: FrontendValue) -> Result<(), TableError> {
                self.maps().write(Write::$write(key, Some(value)))
            }
            fn remove(&mut self, key: $key) -> Result<(), TableError> {
                self.maps().write(Write::$write(key, None))
            }
            fn for_each(
                &self,
                visit: &mut dyn FnMut($key, FrontendValue),
            ) -> Result<(), TableError> {
                self.maps()
                    .$field
                    .iter()
                    .for_each(|(key, value)| visit(*key, *value));
                Ok(())
            }
        }
    };
}

macro_rules! array_table {
    ($value:ty, $field:ident, $write:ident, $size:ident, $name:literal) => {
        impl TableBackend<u32, $value> for MemoryTable {
            fn name(&self) -> &'static str {
                $name
            }
            fn capacity(&self) -> u32 {
                self.maps().sizes.$size
            }
            fn put(&mut self, key: u32, value: $value) -> Result<(), TableError> {
                self.maps().write(Write::$write(key, value))
            }
            fn remove(&mut self, key: u32) -> Result<(), TableError> {
                self.maps().write(Write::$write(key, <$value>::default()))
            }
            fn for_each(&self, visit: &mut dyn FnMut(u32, $value)) -> Result<(), TableError> {
                let zero = <$value>::default();
                let maps = self.maps();
                let rows = (0..).zip(&maps.$field).filter(|(_, row)| **row != zero);
                rows.for_each(|(at, row)| visit(at, *row));
                Ok(())
            }
        }
    };
}

hash_table!(Frontend4Key, frontends4, Frontend4);
hash_table!(Frontend6Key, frontends6, Frontend6);
array_table!(Ring, rings, Ring, services, "services");
array_table!(Slot, slots, Slot, slots, "slots");
array_table!(BackendRow, backends, Backend, backends, "backends");
array_table!(
    BackendHealthRow,
    backend_health,
    BackendHealth,
    backends,
    "backends"
);
array_table!(
    BackendFailuresRow,
    backend_failures,
    BackendFailures,
    backends,
    "backend_failures"
);
array_table!(
    ServiceHealthRow,
    service_health,
    ServiceHealth,
    services,
    "services"
);
array_table!(
    ServiceLimitsRow,
    service_limits,
    ServiceLimits,
    services,
    "services"
);
