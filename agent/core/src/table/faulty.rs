use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Table, TableBackend, TableError, Tables};

/// Decides which writes fail. Clones share one script, so that it can be changed while the tables are in use.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    plan: Arc<Mutex<Plan>>,
}

#[derive(Debug, Default)]
struct Plan {
    /// For the next writes, whichever their table: does it fail? Used up first.
    script: VecDeque<bool>,
    /// Every write to this table fails.
    broken: Option<&'static str>,
    /// Of 1,000 writes so many fail, drawn from `state`.
    per_mille: u32,
    state: u64,
}

/// A table whose writes fail as [`Faults`] say; a failed write changes nothing.
pub struct FaultyTable<K, V> {
    inner: Table<K, V>,
    /// Which of [`Tables`] it is; several can be parts of one map.
    table: &'static str,
    faults: Faults,
}

impl<K, V> fmt::Debug for FaultyTable<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyTable")
            .field("table", &self.table)
            .field("faults", &self.faults)
            .finish()
    }
}

impl Faults {
    /// None until told otherwise.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Of 1,000 writes `per_mille` fail, the same ones for the same seed.
    pub fn seed(&self, seed: u64, per_mille: u32) {
        let mut plan = self.plan();
        (plan.state, plan.per_mille) = (seed, per_mille);
    }

    /// The next writes fail where the script says so.
    pub fn script(&self, script: impl IntoIterator<Item = bool>) {
        self.plan().script.extend(script);
    }

    /// Every write to this one of [`Tables`] fails, by its field's name; `None` ends it.
    pub fn break_table(&self, name: Option<&'static str>) {
        self.plan().broken = name;
    }

    /// The tables, with these faults in front of them.
    #[must_use]
    pub fn tables(&self, tables: Tables) -> Tables {
        Tables {
            frontends4: self.table("frontends4", tables.frontends4),
            frontends6: self.table("frontends6", tables.frontends6),
            rings: self.table("rings", tables.rings),
            slots: self.table("slots", tables.slots),
            backends: self.table("backends", tables.backends),
            backend_health: self.table("backend_health", tables.backend_health),
            backend_failures: self.table("backend_failures", tables.backend_failures),
            service_health: self.table("service_health", tables.service_health),
            service_limits: self.table("service_limits", tables.service_limits),
        }
    }

    fn table<K: 'static, V: 'static>(
        &self,
        table: &'static str,
        inner: Table<K, V>,
    ) -> Table<K, V> {
        Box::new(FaultyTable {
            inner,
            table,
            faults: self.clone(),
        })
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn strike(&self, table: &'static str, operation: &'static str) -> Result<(), TableError> {
        let mut plan = self.plan();
        let scripted = plan.script.pop_front().unwrap_or(false);
        let drawn = plan.per_mille > 0 && plan.draw() % 1000 < u64::from(plan.per_mille);
        if scripted || drawn || plan.broken == Some(table) {
            return Err(TableError::KernelRefused {
                table,
                operation,
                cause: "a fault was asked for".to_owned(),
            });
        }
        Ok(())
    }
}

impl Plan {
    /// `SplitMix64` (Steele, Lea and Flood, 2014).
    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ self.state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

impl<K, V> TableBackend<K, V> for FaultyTable<K, V> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn capacity(&self) -> u32 {
        self.inner.capacity()
    }
    fn put(&mut self, key: K, value: V) -> Result<(), TableError> {
        self.faults.strike(self.table, "put")?;
        self.inner.put(key, value)
    }
    fn remove(&mut self, key: K) -> Result<(), TableError> {
        self.faults.strike(self.table, "remove")?;
        self.inner.remove(key)
    }
    fn for_each(&self, visit: &mut dyn FnMut(K, V)) -> Result<(), TableError> {
        self.inner.for_each(visit)
    }
}
