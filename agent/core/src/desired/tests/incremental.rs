//! Changes of endpoints, derived alone, add up to what is derived from the whole.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// Desired state as one who only ever hears changes knows it.
#[derive(Default)]
struct Listener {
    ports: BTreeMap<PortKey, BTreeSet<(BackendKey, Rank)>>,
}

impl Listener {
    fn hear(&mut self, change: Change) {
        match change {
            Change::Service(_, desired) => {
                let ports = desired.ports.into_iter();
                self.ports = ports
                    .map(|port| (port.key, port.backends.into_iter().collect()))
                    .collect();
            }
            Change::Endpoint(_, endpoint) => {
                for (key, backends) in &mut self.ports {
                    backends.retain(|(b, _)| {
                        (b.cluster, b.address) != (endpoint.cluster, endpoint.address)
                    });
                    let mine = endpoint.backends.iter().filter(|(port, ..)| port == key);
                    let (cluster, address) = (endpoint.cluster, endpoint.address);
                    backends.extend(mine.map(|(_, port, rank)| {
                        (
                            BackendKey {
                                cluster,
                                address,
                                port: *port,
                            },
                            *rank,
                        )
                    }));
                }
                for (port, ..) in &endpoint.backends {
                    assert!(
                        self.ports.contains_key(port),
                        "an endpoint makes no service port"
                    );
                }
            }
            Change::Release(_) => {}
        }
    }
}

fn any_change() -> impl Strategy<Value = (u16, RowChange)> {
    let affinity = prop_oneof![
        Just(Affinity::None),
        Just(Affinity::Local),
        Just(Affinity::Remote)
    ];
    let condition = prop_oneof![
        Just(Condition::Ready),
        Just(Condition::ServingTerminating),
        Just(Condition::NotReady)
    ];
    let address = prop_oneof![
        (1..5_u8).prop_map(|h| format!("10.1.0.{h}")),
        (1..3_u8).prop_map(|h| format!("fd01::{h}"))
    ];
    let change = prop_oneof![
        2 => (any::<bool>(), any::<bool>(), affinity, 0..3_usize).prop_map(|(global, shared, affinity, addresses)| {
            let mut row = row(global, global && shared, affinity);
            row.addresses.truncate(addresses);
            service_change(row)
        }),
        1 => Just(RowChange::ServiceGone(name())),
        8 => (address.clone(), condition, 0..3_usize).prop_map(|(address, condition, ports)| {
            let mut row = endpoint_row(&address, condition);
            row.ports.truncate(ports);
            RowChange::Endpoint(row.into())
        }),
        3 => address.prop_map(|address| RowChange::EndpointGone(EndpointKey { service: name(), address: address.parse().unwrap() })),
    ];
    (1..4_u16, change)
}

proptest! {
    #[test]
    fn changes_of_endpoints_add_up_to_the_whole(
        steps in proptest::collection::vec((proptest::collection::vec(any_change(), 1..4), any::<Option<bool>>()), 1..40),
    ) {
        let (mut store, mut listener) = (Store::new(), Listener::default());
        for (changes_now, stale) in steps {
            let mut dirty = Dirty::default();
            for (owner, change) in changes_now {
                let owner = if owner == 1 { Owner::Local } else { Owner::Peer(cluster(owner)) };
                dirty.merge(say(&mut store, owner, vec![change]));
            }
            if let Some(stale) = stale {
                dirty.merge(store.set_peer(cluster(WEST), PeerState { name: "west".parse().unwrap(), stale }));
            }
            changes(here(), store.now(), &dirty).for_each(|change| listener.hear(change));
            let mut whole = Listener::default();
            whole.hear(Change::Service(name(), service(here(), store.now().group(&name()))));
            prop_assert_eq!(&listener.ports, &whole.ports);
        }
    }
}
