//! What programs counted, summed over the lives of rows: for metrics, which never go back.
//!
//! A row is zeroed when its id is given again. So rows are looked at when somebody asks for metrics, and for the last time
//! just before their id is let go. What a socket to a removed backend fails at after that is not summed.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use isthmus_abi::{
    BackendFailuresRow, BackendHealthRow, BackendRow, HealthState, ServiceHealthRow, backend_state,
    health_kind,
};
use isthmus_core::model::ObjectName;
use isthmus_core::reconcile::LettingGo;
use isthmus_core::table::TableBackend;

use crate::datapath::{Datapath, DatapathError, MappedArray};
use crate::engine::PortIndex;

/// Pairs of service and cluster that have sums of their own, and services that have; the rest is summed together.
pub const SERIES_MAX: usize = 1024;

/// A service, and the cluster of the backends that its connects went to.
pub type Pair = (ObjectName, u16);

/// By backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Connects {
    pub sent: u64,
    pub refused: u64,
    pub unreachable: u64,
    pub timed_out: u64,
    pub unanswered: u64,
}

/// By service port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Draws {
    /// Connects that we refused.
    pub refused: u64,
    pub all_ejected: u64,
    pub ejections: u64,
}

/// Sums of one pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OfPair {
    pub connects: Connects,
    /// As of the last look at all rows.
    pub backends: u32,
    /// Of them, those left out of draws.
    pub ejected: u32,
}

/// Sums by key, a bounded number of keys; `other` is all that came when there was no room.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bounded<K, V> {
    pub own: BTreeMap<K, V>,
    pub other: V,
}

/// All sums.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sums {
    pub pairs: Bounded<Pair, OfPair>,
    pub services: Bounded<ObjectName, Draws>,
    /// What was last seen of each backend id, in its present life.
    backends: HashMap<u32, Life<Pair, Connects>>,
    /// The same of each service index.
    ports: HashMap<u32, Life<ObjectName, Draws>>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Life<K, V> {
    /// Tells the id's lives apart where rows say; else 0, and a last look does.
    generation: u32,
    /// What it counts for now: services exchange their places in the maps.
    key: K,
    /// Whether the key had room for sums of its own when this life began.
    own: bool,
    seen: V,
}

/// What a row says of one backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackendReading {
    pub id: u32,
    pub generation: u32,
    pub cluster: u16,
    pub connects: Connects,
    pub ejected: bool,
}

/// The rows, and what was made of them.
#[derive(Debug)]
pub struct Tally {
    backends: MappedArray<BackendRow>,
    health: MappedArray<BackendHealthRow>,
    failures: MappedArray<BackendFailuresRow>,
    services: MappedArray<ServiceHealthRow>,
    sums: Mutex<Sums>,
}

impl Tally {
    /// # Errors
    /// If the kernel does not map the rows into this process.
    pub fn new(datapath: &Datapath) -> Result<Self, DatapathError> {
        Ok(Self {
            backends: datapath.array()?,
            health: datapath.array()?,
            failures: datapath.array()?,
            services: datapath.array()?,
            sums: Mutex::default(),
        })
    }

    /// Looks at all rows in use, `backends` of them: beyond the last one no memory is touched.
    pub fn look(&self, ports: &PortIndex, backends: u32) -> Sums {
        let mut sums = self.lock();
        sums.begin();
        let mut left = backends;
        for id in 0..self.backends.capacity() {
            if left == 0 {
                break;
            }
            left -= u32::from(self.look_at_backend(&mut sums, id, ports, true));
        }
        for index in ports.keys() {
            self.look_at_port(&mut sums, *index, ports, true);
        }
        sums.end(ports);
        sums.clone()
    }

    /// Looks for the last time at what will be another's.
    pub fn look_at_last(&self, going: &LettingGo, ports: &PortIndex) {
        let mut sums = self.lock();
        for &id in &going.backends {
            self.look_at_backend(&mut sums, id, ports, false);
        }
        for &index in &going.services {
            self.look_at_port(&mut sums, index, ports, false);
        }
    }

    /// Whether the row is in use.
    fn look_at_backend(&self, sums: &mut Sums, id: u32, ports: &PortIndex, stays: bool) -> bool {
        let row = self.backends.get(id);
        if row.state == backend_state::FREE {
            return false;
        }
        let (health, failures) = (self.health.get(id), self.failures.get(id));
        let reading = BackendReading {
            id,
            generation: row.generation,
            cluster: row.cluster,
            connects: Connects {
                sent: health.connects,
                refused: failures.refused,
                unreachable: failures.unreachable,
                timed_out: failures.timed_out,
                unanswered: failures.unanswered,
            },
            ejected: matches!(
                HealthState(health.state).kind(),
                health_kind::EJECTED | health_kind::TRIAL
            ),
        };
        let service = ports.get(&row.service).map(|port| &port.service);
        sums.backend(&reading, service, stays);
        true
    }

    fn look_at_port(&self, sums: &mut Sums, index: u32, ports: &PortIndex, stays: bool) {
        let row = self.services.get(index);
        let draws = Draws {
            refused: row.refused,
            all_ejected: row.all_ejected,
            ejections: row.ejected_total,
        };
        let service = ports.get(&index).map(|port| &port.service);
        sums.port(index, service, draws, stays);
    }

    /// Sums are whole between calls.
    fn lock(&self) -> std::sync::MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sums {
    fn begin(&mut self) {
        let other = &mut self.pairs.other;
        for sum in self.pairs.own.values_mut().chain([other]) {
            (sum.backends, sum.ejected) = (0, 0);
        }
    }

    /// Forgets who is gone: neither in the maps nor with a backend there.
    fn end(&mut self, ports: &PortIndex) {
        let live: std::collections::BTreeSet<&ObjectName> =
            ports.values().map(|port| &port.service).collect();
        self.pairs
            .own
            .retain(|(service, _), sum| sum.backends > 0 || live.contains(service));
        self.services
            .own
            .retain(|service, _| live.contains(service));
    }

    /// `service` is its name, if it is known by now. A backend that does not stay counts among none.
    fn backend(&mut self, reading: &BackendReading, service: Option<&ObjectName>, stays: bool) {
        let now = reading.connects;
        let key = service.map(|service| (service.clone(), reading.cluster));
        let of_earlier = |life: &Life<_, _>| life.generation != reading.generation;
        if self.backends.get(&reading.id).is_some_and(of_earlier) {
            self.backends.remove(&reading.id);
        }
        let life = self.pairs.life(&mut self.backends, reading.id, key);
        let Some(life) = life else {
            return;
        };
        life.generation = reading.generation;
        let grown = now.since(&std::mem::replace(&mut life.seen, now));
        let sum = self.pairs.sum(&life.key, &mut life.own);
        sum.connects.add(&grown);
        sum.backends += u32::from(stays);
        sum.ejected += u32::from(stays && reading.ejected);
    }

    /// As [`Self::backend`]. One that does not stay is zeroed before it is seen again.
    fn port(&mut self, index: u32, service: Option<&ObjectName>, now: Draws, stays: bool) {
        let life = self.services.life(&mut self.ports, index, service.cloned());
        let Some(life) = life else {
            return;
        };
        let grown = now.since(&life.seen);
        life.seen = now.after(&life.seen);
        self.services.sum(&life.key, &mut life.own).add(&grown);
        if !stays {
            self.ports.remove(&index);
        }
    }
}

impl<K: Ord + Clone, V: Default> Bounded<K, V> {
    /// The present life of `id`, which counts for `key` from now on, if that is known; none of an id of which nothing is known.
    fn life<'a, S: Default>(
        &self,
        lives: &'a mut HashMap<u32, Life<K, S>>,
        id: u32,
        key: Option<K>,
    ) -> Option<&'a mut Life<K, S>> {
        let Some(key) = key else {
            return lives.get_mut(&id);
        };
        let own = self.has_room(&key);
        let life = lives.entry(id).or_insert_with(|| Life {
            generation: 0,
            key: key.clone(),
            own,
            seen: S::default(),
        });
        if life.key != key {
            (life.key, life.own) = (key, own);
        }
        Some(life)
    }

    fn has_room(&self, key: &K) -> bool {
        self.own.len() < SERIES_MAX || self.own.contains_key(key)
    }

    /// The sum of `key`: its own if it has one, and may.
    fn sum(&mut self, key: &K, own: &mut bool) -> &mut V {
        *own = *own && self.has_room(key);
        if *own {
            self.own.entry(key.clone()).or_default()
        } else {
            &mut self.other
        }
    }
}

impl<K, V: Default> Default for Bounded<K, V> {
    fn default() -> Self {
        Self {
            own: BTreeMap::new(),
            other: V::default(),
        }
    }
}

impl Connects {
    /// What came after `before`. A row that went back was zeroed for another life.
    fn since(&self, before: &Self) -> Self {
        if self.sent < before.sent {
            return *self;
        }
        Self {
            sent: self.sent - before.sent,
            refused: self.refused.saturating_sub(before.refused),
            unreachable: self.unreachable.saturating_sub(before.unreachable),
            timed_out: self.timed_out.saturating_sub(before.timed_out),
            unanswered: self.unanswered.saturating_sub(before.unanswered),
        }
    }

    fn add(&mut self, more: &Self) {
        self.sent += more.sent;
        self.refused += more.refused;
        self.unreachable += more.unreachable;
        self.timed_out += more.timed_out;
        self.unanswered += more.unanswered;
    }
}

impl Draws {
    /// By one, ejections may: one that another CPU was faster with is counted and taken back.
    fn went_back(&self, before: &Self) -> bool {
        self.refused < before.refused
            || self.all_ejected < before.all_ejected
            || self.ejections + 1 < before.ejections
    }

    /// As [`Connects::since`].
    fn since(&self, before: &Self) -> Self {
        if self.went_back(before) {
            return *self;
        }
        Self {
            refused: self.refused - before.refused,
            all_ejected: self.all_ejected - before.all_ejected,
            ejections: self.ejections.saturating_sub(before.ejections),
        }
    }

    /// What is taken as seen after `before`: an ejection that was summed is not summed again.
    fn after(self, before: &Self) -> Self {
        if self.went_back(before) {
            return self;
        }
        Self {
            ejections: self.ejections.max(before.ejections),
            ..self
        }
    }

    fn add(&mut self, more: &Self) {
        self.refused += more.refused;
        self.all_ejected += more.all_ejected;
        self.ejections += more.ejections;
    }
}
