//! Changes, derived as they come, add up to what is derived from scratch: from the rows alone, told to a new store in
//! another order.

use std::collections::BTreeMap;

use proptest::bool::weighted;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::mesh::RowKey;

/// Desired state as one who only ever hears changes knows it.
#[derive(Default)]
struct Listener {
    services: BTreeMap<ObjectName, DesiredService>,
    /// Owners of whom nothing is kept on trust.
    released: Vec<Owner>,
}

impl Listener {
    fn hear(&mut self, change: Change) {
        match change {
            Change::Service(name, desired) => {
                self.services.insert(name, desired);
            }
            Change::Endpoint(name, endpoint) => {
                let ports = &mut self.services.entry(name).or_default().ports;
                for (key, ..) in &endpoint.backends {
                    let known = ports.iter().any(|port| port.key == *key);
                    assert!(known, "an endpoint makes no service port");
                }
                for port in ports {
                    fold(port, &endpoint);
                }
            }
            Change::Release(owner) => self.released.push(owner),
        }
    }
}

/// What an endpoint gives to a port takes the place of what it gave before.
fn fold(port: &mut DesiredPort, endpoint: &DesiredEndpoint) {
    let (cluster, address) = (endpoint.cluster, endpoint.address);
    let others = |key: &BackendKey| (key.cluster, key.address) != (cluster, address);
    port.backends.retain(|(key, _)| others(key));
    let mine = endpoint
        .backends
        .iter()
        .filter(|(key, ..)| *key == port.key);
    port.backends.extend(mine.map(|&(_, number, rank)| {
        let key = BackendKey {
            cluster,
            address,
            port: number,
        };
        (key, rank)
    }));
    port.backends.sort_unstable();
}

/// What is said, without any history.
#[derive(Default)]
struct Said {
    rows: BTreeMap<(Owner, RowKey), RowChange>,
    peers: BTreeMap<ClusterId, PeerState>,
}

impl Said {
    fn say(&mut self, owner: Owner, change: &RowChange) {
        let key = (owner, RowKey::of(change));
        match change {
            RowChange::Service(_) | RowChange::Endpoint(_) => {
                self.rows.insert(key, change.clone());
            }
            RowChange::ServiceGone(_) | RowChange::EndpointGone(_) => {
                self.rows.remove(&key);
            }
        }
    }

    /// A store that was told this much and nothing else, in the opposite order.
    fn store(&self) -> Store {
        let mut store = Store::new();
        for ((owner, _), row) in self.rows.iter().rev() {
            say(&mut store, *owner, vec![row.clone()]);
        }
        for (id, state) in &self.peers {
            store.set_peer(*id, state.clone());
        }
        store
    }
}

#[derive(Clone, Debug)]
enum Step {
    Rows {
        owner: Owner,
        changes: Vec<RowChange>,
        complete: bool,
    },
    Peer(ClusterId, bool),
    Drop(ClusterId),
    /// What is dirty is derived.
    Derive,
}

const SERVICES: [&str; 3] = ["a", "b", "c"];
/// One of them has this cluster's own id: nobody else speaks for it.
const PEERS: [u16; 4] = [1, WEST, 3, 4];

fn any_change() -> impl Strategy<Value = RowChange> {
    let named = || select(&SERVICES[..]).prop_map(|name| ObjectName::new("production", name));
    let affinity = select(vec![Affinity::None, Affinity::Local, Affinity::Remote]);
    let condition = select(vec![
        Condition::Ready,
        Condition::Ready,
        Condition::ServingTerminating,
        Condition::NotReady,
    ]);
    let address = || {
        prop_oneof![
            (1..5_u8).prop_map(|host| format!("10.1.0.{host}")),
            (1..3_u8).prop_map(|host| format!("fd01::{host}"))
        ]
    };
    let like = row(true, true, Affinity::None);
    let service = (
        named(),
        [weighted(0.8), weighted(0.8), weighted(0.2)],
        affinity,
        subsequence(like.addresses, 0..=2),
        subsequence(like.ports, 0..=2),
    );
    let service = service.prop_map(
        |(name, [global, shared, node_only], affinity, addresses, ports)| {
            service_change(ServiceRow {
                name,
                addresses,
                ports,
                rules: ServiceRules {
                    node_only,
                    ..ServiceRules::default()
                },
                ..row(global, global && shared, affinity)
            })
        },
    );
    // Two numbers for one name: a backend each.
    let mut ports = endpoint_row("10.1.0.1", Condition::Ready).ports;
    ports.extend([80, 81].map(|port| EndpointPort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port,
    }));
    ports.sort();
    let node = select(&["n1", "n2"][..]);
    let endpoint = (
        named(),
        address(),
        condition,
        subsequence(ports, 0..=4),
        node,
    );
    let endpoint = endpoint.prop_map(|(service, address, condition, ports, node)| {
        RowChange::Endpoint(
            EndpointRow {
                service,
                ports,
                node: node.into(),
                ..endpoint_row(&address, condition)
            }
            .into(),
        )
    });
    prop_oneof![
        4 => service,
        1 => named().prop_map(RowChange::ServiceGone),
        10 => endpoint,
        3 => (named(), address()).prop_map(|(service, address)| RowChange::EndpointGone(EndpointKey {
            service,
            address: address.parse().unwrap(),
        })),
    ]
}

/// Everybody lends everything: what comes then has something to change.
fn beginning() -> Vec<Step> {
    let peers = PEERS.map(|id| Owner::Peer(cluster(id)));
    let owners = peers.into_iter().chain([Owner::Local]);
    let changes = SERVICES.map(|name| {
        let name = ObjectName::new("production", name);
        let like = row(true, true, Affinity::None);
        service_change(ServiceRow { name, ..like })
    });
    let said = owners.map(|owner| Step::Rows {
        owner,
        changes: changes.to_vec(),
        complete: false,
    });
    said.collect()
}

fn any_step() -> impl Strategy<Value = Step> {
    let peers = || select(&PEERS[..]).prop_map(cluster);
    let owner = prop_oneof![Just(Owner::Local), peers().prop_map(Owner::Peer)];
    let changes = proptest::collection::vec(any_change(), 0..4);
    prop_oneof![
        12 => (owner, changes, any::<bool>())
            .prop_map(|(owner, changes, complete)| Step::Rows { owner, changes, complete }),
        2 => (peers(), any::<bool>()).prop_map(|(id, stale)| Step::Peer(id, stale)),
        1 => peers().prop_map(Step::Drop),
        6 => Just(Step::Derive),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn changes_add_up_to_what_is_derived_from_scratch(
        steps in proptest::collection::vec(any_step(), 1..60),
        programmed in select(vec![Programmed::All, Programmed::Global]),
    ) {
        let here = Here { programmed, ..here() };
        let (mut store, mut said) = (Store::new(), Said::default());
        let (mut listener, mut dirty, mut released) = (Listener::default(), Dirty::default(), vec![]);
        for step in beginning().into_iter().chain(steps).chain([Step::Derive]) {
            match step {
                Step::Rows { owner, changes, complete } => {
                    for change in &changes {
                        said.say(owner, change);
                    }
                    let first = complete && !store.now().has_passport(owner);
                    dirty.merge(store.apply(owner, &Batch { changes, complete }));
                    released.extend(first.then_some(owner));
                }
                Step::Peer(id, stale) => {
                    let name = format!("peer-{id}").parse().unwrap();
                    let state = PeerState { name, stale };
                    said.peers.insert(id, state.clone());
                    dirty.merge(store.set_peer(id, state));
                }
                Step::Drop(id) => {
                    said.rows.retain(|(owner, _), _| *owner != Owner::Peer(id));
                    said.peers.remove(&id);
                    dirty.merge(store.drop_peer(id));
                    released.push(Owner::Peer(id));
                }
                Step::Derive => {
                    let dirty = std::mem::take(&mut dirty);
                    changes(here, store.now(), &dirty).for_each(|change| listener.hear(change));
                    let fresh = said.store();
                    for name in SERVICES.map(|name| ObjectName::new("production", name)) {
                        let scratch = service(here, fresh.now().group(&name));
                        let known = listener.services.get(&name).cloned().unwrap_or_default();
                        prop_assert_eq!(known, scratch, "{}", name);
                    }
                    released.sort();
                    released.dedup();
                    listener.released.sort();
                    prop_assert_eq!(std::mem::take(&mut listener.released), std::mem::take(&mut released));
                }
            }
        }
    }
}
