//! A node without a kernel: a store, a reconciler, maps in memory, and readers that may be slow.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_abi::{Frontend4Key, NetPort, ScopeProtocol, Slot, TierHead, backend_state};

use crate::desired::{BackendKey, Frontend, Here, Programmed, changes};
use crate::model::{
    Affinity, Batch, Condition, EndpointKey, EndpointPort, EndpointRow, ObjectName, PortRow,
    Protocol, RowChange, ServiceRow, ServiceRules,
};
use crate::reconcile::ring::backend_key;
use crate::reconcile::{GraceTicket, Reconciler};
use crate::store::{Dirty, Owner, PeerState, Store, Touched};
use crate::table::{Faults, MemoryMaps, MemoryTable, Sizes};

pub(super) const SIZES: Sizes = Sizes {
    frontends: 32,
    services: 16,
    slots: 256,
    backends: 64,
};
pub(super) const LOCAL: u16 = 1;
pub(super) const WEST: u16 = 2;

pub(super) struct World {
    pub(super) memory: MemoryTable,
    pub(super) faults: Faults,
    pub(super) store: Store,
    pub(super) reconciler: Reconciler,
    pub(super) now: Instant,
    /// How far addresses have gone round among services; see `random.rs`.
    pub(super) rotation: usize,
    /// Grace periods by the number of writes done when they began and when they passed.
    pub(super) graces: Vec<(usize, usize)>,
    begun: Option<(GraceTicket, usize)>,
}

/// What a connect to a frontend can come to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Answers {
    /// No frontend: it passes unchanged.
    Miss,
    /// No backend: refused.
    Refused,
    /// Any of these; all tiers, the first one drawn from.
    Tiers(Vec<BTreeSet<BackendKey>>),
}

impl Answers {
    pub(super) fn drawn(&self) -> BTreeSet<BackendKey> {
        match self {
            Self::Tiers(tiers) => tiers[0].clone(),
            _ => BTreeSet::new(),
        }
    }

    pub(super) fn all(&self) -> BTreeSet<BackendKey> {
        match self {
            Self::Tiers(tiers) => tiers.iter().flatten().copied().collect(),
            _ => BTreeSet::new(),
        }
    }
}

pub(super) fn cluster(id: u16) -> crate::model::ClusterId {
    id.try_into().unwrap()
}

pub(super) fn west() -> Owner {
    Owner::Peer(cluster(WEST))
}

pub(super) fn here() -> Here<'static> {
    Here {
        cluster: cluster(LOCAL),
        node: "",
        programmed: Programmed::All,
    }
}

pub(super) fn name(text: &str) -> ObjectName {
    ObjectName::new("default", text)
}

/// A global Service with one port, at an address that its name's last byte gives.
pub(super) fn service(text: &str, affinity: Affinity) -> RowChange {
    service_with(text, affinity, &[("http", 80)])
}

pub(super) fn address_of(text: &str) -> String {
    format!("10.96.0.{}", text.as_bytes().last().unwrap())
}

pub(super) fn service_with(text: &str, affinity: Affinity, ports: &[(&str, u16)]) -> RowChange {
    service_at(text, &address_of(text), affinity, ports)
}

/// The same at another address.
pub(super) fn service_at(
    text: &str,
    address: &str,
    affinity: Affinity,
    ports: &[(&str, u16)],
) -> RowChange {
    let port = |(name, port): &(&str, u16)| PortRow {
        name: (*name).into(),
        protocol: Protocol::Tcp,
        port: *port,
    };
    RowChange::Service(Arc::new(ServiceRow {
        name: name(text),
        addresses: vec![address.parse().unwrap()],
        ports: ports.iter().map(port).collect(),
        global: true,
        shared: true,
        affinity,
        rules: ServiceRules::default(),
    }))
}

pub(super) fn endpoint(service: &str, address: &str, condition: Condition) -> RowChange {
    let port = |name: &str, port| EndpointPort {
        name: name.into(),
        protocol: Protocol::Tcp,
        port,
    };
    RowChange::Endpoint(Arc::new(EndpointRow {
        service: name(service),
        address: address.parse().unwrap(),
        ports: vec![port("http", 8080), port("metrics", 9090), port("web", 8080)],
        condition,
        reason: "".into(),
        node: "".into(),
        zone: "".into(),
    }))
}

pub(super) fn ready(service: &str, address: &str) -> RowChange {
    endpoint(service, address, Condition::Ready)
}

pub(super) fn gone(service: &str, address: &str) -> RowChange {
    RowChange::EndpointGone(EndpointKey {
        service: name(service),
        address: address.parse().unwrap(),
    })
}

pub(super) fn frontend(service: &str, port: u16) -> Frontend {
    Frontend {
        address: address_of(service).parse().unwrap(),
        port,
        protocol: Some(Protocol::Tcp),
    }
}

pub(super) fn key4(frontend: Frontend) -> Frontend4Key {
    let protocol = frontend
        .protocol
        .map_or(ScopeProtocol::ADDRESS_ONLY, Protocol::abi);
    Frontend4Key {
        address: u32::from_ne_bytes(frontend.address.v4().unwrap().octets()),
        port: NetPort::from_host(frontend.port),
        scope_protocol: ScopeProtocol::new(0, protocol),
    }
}

/// Every outcome of a draw with these maps. Panics if a slot that can be drawn is not its service's.
pub(super) fn answers(maps: &MemoryMaps, frontend: Frontend) -> Answers {
    let Some(value) = maps.frontends4.get(&key4(frontend)) else {
        return Answers::Miss;
    };
    let ring = maps.rings[value.service as usize];
    if ring.is_empty() {
        return Answers::Refused;
    }
    let mut tiers = vec![(ring.first() - ring.span(), ring.len())];
    for head in 0..u32::from(ring.tiers()) - 1 {
        let head = TierHead(maps.slots[(ring.span() + head) as usize].0);
        tiers.push((head.offset(), head.len()));
    }
    let tiers = tiers.into_iter().map(|(offset, len)| {
        assert!(len > 0, "a tier that is empty is left out");
        let slots = (0..len).map(|nth| maps.slots[(ring.span() + offset + nth) as usize]);
        slots
            .map(|slot| {
                judge(maps, value.service, slot).unwrap_or_else(|| panic!("{frontend}: {slot:?}"))
            })
            .collect()
    });
    Answers::Tiers(tiers.collect())
}

/// As the programs do it: a slot is believed if it and its backend name the service.
pub(super) fn judge(maps: &MemoryMaps, service: u32, slot: Slot) -> Option<BackendKey> {
    let row = maps.backends.get(slot.backend() as usize)?;
    let ours =
        slot.service() == service && row.service == service && row.state == backend_state::LIVE;
    ours.then(|| backend_key(row).unwrap())
}

/// The maps as they were when `writes` of their writes were done.
pub(super) fn replay(from: &MemoryMaps, writes: &[crate::table::Write]) -> MemoryMaps {
    let mut maps = from.clone();
    writes.iter().for_each(|write| maps.write(*write).unwrap());
    maps
}

impl World {
    pub(super) fn new(sizes: Sizes) -> Self {
        Self::on(MemoryMaps::new(sizes), Store::new())
    }

    /// An agent that starts on these maps, before anybody said anything to it.
    pub(super) fn on(maps: MemoryMaps, store: Store) -> Self {
        Self::with_faults(maps, store, Faults::new())
    }

    pub(super) fn with_faults(maps: MemoryMaps, store: Store, faults: Faults) -> Self {
        let memory = MemoryTable::new(maps);
        let (reconciler, _) =
            Reconciler::adopt(faults.tables(memory.tables()), cluster(LOCAL)).unwrap();
        Self {
            memory,
            faults,
            store,
            reconciler,
            now: Instant::now(),
            rotation: 0,
            graces: Vec::new(),
            begun: None,
        }
    }

    pub(super) fn apply(&mut self, dirty: &Dirty) {
        for change in changes(here(), self.store.now(), dirty) {
            self.reconciler.apply(change);
        }
    }

    pub(super) fn say(&mut self, owner: Owner, changes: Vec<RowChange>) {
        let dirty = self.store.apply(
            owner,
            &Batch {
                changes,
                complete: false,
            },
        );
        self.apply(&dirty);
    }

    pub(super) fn complete(&mut self, owner: Owner) {
        let dirty = self.store.apply(
            owner,
            &Batch {
                changes: vec![],
                complete: true,
            },
        );
        self.apply(&dirty);
    }

    pub(super) fn stale(&mut self, id: u16, stale: bool) {
        let dirty = self.store.set_peer(
            cluster(id),
            PeerState {
                name: "west".parse().unwrap(),
                stale,
            },
        );
        self.apply(&dirty);
    }

    /// Everything that the store holds, said again, as after a restart.
    pub(super) fn say_all(&mut self) {
        let services = self
            .store
            .now()
            .names()
            .map(|name| (name.clone(), Touched::Whole))
            .collect();
        let owners = [Owner::Local, west()];
        let released = owners
            .into_iter()
            .filter(|owner| self.store.now().has_passport(*owner))
            .collect();
        self.apply(&Dirty { services, released });
    }

    pub(super) fn writes(&self) -> usize {
        self.memory.maps().writes.len()
    }

    pub(super) fn round(&mut self, max_writes: u32) -> bool {
        let progress = self.reconciler.step(self.now, max_writes);
        if let Some(ticket) = progress.want_grace {
            self.begun = Some((ticket, self.writes()));
        }
        progress.idle
    }

    /// The grace period on its way passes. False if there is none.
    pub(super) fn pass_grace(&mut self) -> bool {
        let Some((ticket, began)) = self.begun.take() else {
            return false;
        };
        self.graces.push((began, self.writes()));
        self.reconciler.grace_passed(ticket);
        true
    }

    /// Rounds, and grace periods as they are asked for, until there is nothing to do but retry.
    pub(super) fn settle(&mut self) {
        for _ in 0..10_000 {
            if self.round(7) && !self.pass_grace() {
                return;
            }
        }
        panic!("no end: {:?}", self.reconciler.counts());
    }

    /// As [`Self::settle`], going on through deadlines until nothing fails.
    pub(super) fn settle_failures(&mut self) {
        self.settle();
        for _ in 0..200 {
            if self.reconciler.counts().failing == 0 {
                return;
            }
            self.now += Duration::from_secs(20);
            self.settle();
        }
        panic!(
            "still failing: {:?}",
            self.reconciler.faults().collect::<Vec<_>>()
        );
    }

    pub(super) fn answers(&self, service: &str) -> Answers {
        answers(&self.memory.maps(), frontend(service, 80))
    }

    /// What the first tier's draws give, as addresses.
    pub(super) fn drawn(&self, service: &str) -> Vec<String> {
        self.answers(service)
            .drawn()
            .iter()
            .map(|key| key.address.to_string())
            .collect()
    }

    /// Every frontend with what is wanted behind it, straight from the store.
    pub(super) fn wanted(&self) -> BTreeMap<Frontend, Answers> {
        let names: Vec<_> = self.store.now().names().cloned().collect();
        let mut wanted = BTreeMap::new();
        for name in &names {
            for port in crate::desired::service(here(), self.store.now().group(name)).ports {
                let mut tiers = BTreeMap::<_, BTreeSet<_>>::new();
                for (key, rank) in port.backends {
                    tiers.entry(rank).or_default().insert(key);
                }
                let answers = if tiers.is_empty() {
                    Answers::Refused
                } else {
                    Answers::Tiers(tiers.into_values().collect())
                };
                wanted.extend(
                    port.frontends
                        .iter()
                        .map(|frontend| (*frontend, answers.clone())),
                );
            }
        }
        wanted
    }

    /// The maps say what is wanted, and hold nothing else: no slot, span, id or index is taken that nothing leads to.
    pub(super) fn assert_converged(&self) {
        let maps = self.memory.maps().clone();
        let wanted = self.wanted();
        for (frontend, wanted) in &wanted {
            assert_eq!(&answers(&maps, *frontend), wanted, "{frontend}");
        }
        let addresses: BTreeSet<_> = wanted.keys().map(|frontend| frontend.address).collect();
        assert_eq!(maps.frontends4.len(), wanted.len() + addresses.len());
        for address in &addresses {
            assert!(
                maps.frontends4
                    .contains_key(&key4(Frontend::address_only(*address)))
            );
        }
        let live = maps
            .backends
            .iter()
            .filter(|row| row.state == backend_state::LIVE)
            .count();
        let backends: usize = wanted.values().map(|answers| answers.all().len()).sum();
        let counts = self.reconciler.counts();
        assert_eq!(
            (counts.frontends4 as usize, counts.frontends6 as usize),
            (maps.frontends4.len(), maps.frontends6.len())
        );
        assert_eq!((live, counts.backends as usize), (backends, backends));
        assert_eq!(counts.services as usize, wanted.len());
        assert_eq!((counts.pending, counts.failing, counts.retired), (0, 0, 0));
        let rings = maps.rings.iter().filter(|ring| !ring.is_empty()).count();
        assert_eq!(
            rings,
            wanted
                .values()
                .filter(|answers| **answers != Answers::Refused)
                .count()
        );
        let spans: u32 = self
            .reconciler
            .services
            .iter()
            .filter_map(|(_, s)| s.ring.span)
            .map(|span| span.len())
            .sum();
        assert_eq!(counts.ring_slots, spans);
        // An agent that starts now agrees, and has nothing to clean up.
        let (again, adopted) =
            Reconciler::adopt(MemoryTable::new(maps).tables(), cluster(LOCAL)).unwrap();
        assert_eq!((adopted.leftovers, adopted.broken), (0, 0));
        // Room that is used up to the last slot is given back on adoption, if it is free.
        assert!(again.counts().ring_slots <= 2 * spans);
        assert_eq!(again.counts().frontends4, counts.frontends4);
        assert_eq!(again.counts().frontends6, counts.frontends6);
        assert_eq!(again.counts().backends, counts.backends);
    }
}
