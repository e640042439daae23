#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

mod incremental;

use std::collections::BTreeMap;

use super::*;
use crate::model::{Batch, Condition, EndpointKey, EndpointPort, PortRow, RowChange};
use crate::store::{PeerState, Store};

const WEST: u16 = 2;

fn cluster(id: u16) -> ClusterId {
    id.try_into().unwrap()
}

fn west() -> Owner {
    Owner::Peer(cluster(WEST))
}

fn here() -> Here<'static> {
    Here {
        cluster: cluster(1),
        node: "n1",
        programmed: Programmed::All,
    }
}

fn name() -> ObjectName {
    ObjectName::new("production", "backend")
}

fn row(global: bool, shared: bool, affinity: Affinity) -> ServiceRow {
    let port = |name: &str, protocol, port| PortRow {
        name: name.into(),
        protocol,
        port,
    };
    ServiceRow {
        name: name(),
        addresses: vec!["10.96.0.1".parse().unwrap(), "fd00:96::1".parse().unwrap()],
        ports: vec![
            port("http", Protocol::Tcp, 80),
            port("dns", Protocol::Udp, 53),
        ],
        global,
        shared,
        affinity,
        rules: ServiceRules::default(),
    }
}

fn endpoint_row(address: &str, condition: Condition) -> EndpointRow {
    let port = |name: &str, protocol, port| EndpointPort {
        name: name.into(),
        protocol,
        port,
    };
    EndpointRow {
        service: name(),
        address: address.parse().unwrap(),
        // A TCP port named `dns` meets no service port: names meet with their protocols.
        ports: vec![
            port("dns", Protocol::Tcp, 5300),
            port("http", Protocol::Tcp, 8080),
        ],
        condition,
        reason: "".into(),
        node: "n1".into(),
        zone: "".into(),
    }
}

fn say(store: &mut Store, owner: Owner, changes: Vec<RowChange>) -> Dirty {
    store.apply(
        owner,
        &Batch {
            changes,
            complete: false,
        },
    )
}

fn service_change(row: ServiceRow) -> RowChange {
    RowChange::Service(row.into())
}

fn endpoint_change(address: &str, condition: Condition) -> RowChange {
    RowChange::Endpoint(endpoint_row(address, condition).into())
}

/// The tiers of the IPv4 HTTP port: empty ranks left out, addresses only.
fn tiers(store: &Store) -> Vec<Vec<String>> {
    let desired = service(here(), store.now().group(&name()));
    let Some(port) = desired
        .ports
        .iter()
        .find(|port| &*port.key.name == "http" && port.key.family == Family::V4)
    else {
        return vec![];
    };
    let mut tiers = BTreeMap::<Rank, Vec<String>>::new();
    for (key, rank) in &port.backends {
        tiers
            .entry(*rank)
            .or_default()
            .push(key.address.to_string());
    }
    tiers.into_values().collect()
}

#[test]
fn remote_backends_are_used_iff_both_are_global_and_the_other_shares() {
    for bits in 0..16 {
        let [here_global, here_shared, there_global, there_shared] =
            [1, 2, 4, 8].map(|bit| bits & bit != 0);
        let mut store = Store::new();
        let local = service_change(row(here_global, here_shared, Affinity::None));
        say(
            &mut store,
            Owner::Local,
            vec![local, endpoint_change("10.1.0.1", Condition::Ready)],
        );
        let remote = service_change(row(there_global, there_shared, Affinity::None));
        say(
            &mut store,
            west(),
            vec![remote, endpoint_change("10.2.0.1", Condition::Ready)],
        );
        let used = tiers(&store).concat().contains(&"10.2.0.1".to_owned());
        assert_eq!(
            used,
            here_global && there_global && there_shared,
            "{bits:04b}"
        );
        assert!(tiers(&store).concat().contains(&"10.1.0.1".to_owned()));
    }
}

/// Local `r`eady, `t`erminating and `n`ot ready, and the same of two peers, of which the second is stale.
fn mixture(affinity: Affinity) -> Store {
    let mut store = Store::new();
    store.set_peer(
        cluster(3),
        PeerState {
            name: "north".parse().unwrap(),
            stale: true,
        },
    );
    let owners = [Owner::Local, west(), Owner::Peer(cluster(3))];
    for (owner, net) in owners.into_iter().zip(1..) {
        let conditions = [
            Condition::Ready,
            Condition::ServingTerminating,
            Condition::NotReady,
        ];
        let endpoints = conditions
            .into_iter()
            .zip(1..)
            .map(|(c, host)| endpoint_change(&format!("10.{net}.0.{host}"), c));
        // A peer's own affinity plays no part here.
        let affinity = if owner == Owner::Local {
            affinity
        } else {
            Affinity::Remote
        };
        say(
            &mut store,
            owner,
            endpoints
                .chain([service_change(row(true, true, affinity))])
                .collect(),
        );
    }
    store
}

#[test]
fn tiers_by_affinity() {
    let rows: [(Affinity, &[&[&str]]); 3] = [
        (
            Affinity::None,
            &[
                &["10.1.0.1", "10.2.0.1"],
                &["10.1.0.2", "10.2.0.2"],
                &["10.3.0.1", "10.3.0.2"],
            ],
        ),
        (
            Affinity::Local,
            &[
                &["10.1.0.1"],
                &["10.2.0.1"],
                &["10.1.0.2"],
                &["10.2.0.2"],
                &["10.3.0.1", "10.3.0.2"],
            ],
        ),
        (
            Affinity::Remote,
            &[
                &["10.2.0.1"],
                &["10.1.0.1"],
                &["10.2.0.2"],
                &["10.1.0.2"],
                &["10.3.0.1", "10.3.0.2"],
            ],
        ),
    ];
    for (affinity, wanted) in rows {
        assert_eq!(tiers(&mixture(affinity)), wanted, "{affinity}");
    }
}

#[test]
fn empty_tiers_leave_the_next_ones_first() {
    let mut store = mixture(Affinity::Local);
    let gone = |address: &str| {
        RowChange::EndpointGone(EndpointKey {
            service: name(),
            address: address.parse().unwrap(),
        })
    };
    say(&mut store, Owner::Local, vec![gone("10.1.0.1")]);
    assert_eq!(
        tiers(&store)[0],
        ["10.2.0.1"],
        "no ready local backend: remote at once"
    );
    say(&mut store, west(), vec![gone("10.2.0.1"), gone("10.2.0.2")]);
    assert_eq!(
        tiers(&store)[0],
        ["10.1.0.2"],
        "serving-terminating before a stale peer's"
    );
    say(&mut store, Owner::Local, vec![gone("10.1.0.2")]);
    assert_eq!(tiers(&store), [["10.3.0.1", "10.3.0.2"]]);
}

#[test]
fn each_port_and_family_has_its_own_backends() {
    let mut store = Store::new();
    let rows = ["10.1.0.1", "fd01::1"].map(|address| endpoint_change(address, Condition::Ready));
    say(
        &mut store,
        Owner::Local,
        [service_change(row(true, true, Affinity::None))]
            .into_iter()
            .chain(rows)
            .collect(),
    );
    let desired = service(here(), store.now().group(&name()));
    let seen: Vec<_> = desired
        .ports
        .iter()
        .map(|port| {
            let backends = port
                .backends
                .iter()
                .map(|(key, _)| format!("{}:{}", key.address, key.port))
                .collect::<Vec<_>>();
            (port.frontends[0].to_string(), backends.join(" "))
        })
        .collect();
    let wanted = [
        ("10.96.0.1:53/UDP", ""),
        ("[fd00:96::1]:53/UDP", ""),
        ("10.96.0.1:80/TCP", "10.1.0.1:8080"),
        ("[fd00:96::1]:80/TCP", "fd01::1:8080"),
    ];
    assert_eq!(
        seen,
        wanted.map(|(frontend, backends)| (frontend.to_owned(), backends.to_owned()))
    );
    assert_eq!(desired.addresses.len(), 2);
}

#[test]
fn internal_traffic_policy_local_keeps_connections_on_their_node() {
    let node_only = |node_only| {
        let rules = ServiceRules {
            node_only,
            ..ServiceRules::default()
        };
        service_change(ServiceRow {
            rules,
            ..row(true, true, Affinity::None)
        })
    };
    let on = |node: &str, address: &str| {
        RowChange::Endpoint(
            EndpointRow {
                node: node.into(),
                ..endpoint_row(address, Condition::Ready)
            }
            .into(),
        )
    };
    let mut store = Store::new();
    let local = vec![
        node_only(true),
        on("n1", "10.1.0.1"),
        on("n2", "10.1.0.2"),
        on("", "10.1.0.3"),
    ];
    say(&mut store, Owner::Local, local);
    // A node of the same name in another cluster is another node.
    let remote = vec![
        service_change(row(true, true, Affinity::None)),
        on("n1", "10.2.0.1"),
    ];
    say(&mut store, west(), remote);
    assert_eq!(tiers(&store), [["10.1.0.1"]]);
    let ports = service(here(), store.now().group(&name())).ports;
    assert!(
        ports.iter().all(|port| !port.global),
        "nothing of other clusters is kept on trust"
    );

    let group_name = name();
    let group = store.now().group(&group_name);
    let shown = view(here(), group).unwrap();
    let backends = &shown.frontends[0].backends;
    let elsewhere: Vec<_> = backends
        .iter()
        .filter(|backend| backend.elsewhere)
        .map(|backend| (backend.address.to_string(), backend.rank))
        .collect();
    let others = ["10.1.0.2", "10.1.0.3", "10.2.0.1"];
    assert_eq!(elsewhere, others.map(|address| (address.to_owned(), None)));

    let dirty = say(
        &mut store,
        Owner::Local,
        vec![endpoint_change("10.1.0.1", Condition::NotReady)],
    );
    assert_eq!(changes(here(), store.now(), &dirty).count(), 1);
    assert!(tiers(&store).is_empty(), "refused, as kube-proxy drops");
    say(&mut store, Owner::Local, vec![node_only(false)]);
    assert_eq!(tiers(&store), [["10.1.0.2", "10.1.0.3", "10.2.0.1"]]);
}

#[test]
fn services_global_leaves_the_others_alone() {
    let only_global = Here {
        programmed: Programmed::Global,
        ..here()
    };
    for global in [false, true] {
        let mut store = Store::new();
        let service_row = service_change(row(global, global, Affinity::None));
        say(
            &mut store,
            Owner::Local,
            vec![service_row, endpoint_change("10.1.0.1", Condition::Ready)],
        );
        let group_name = name();
        let group = store.now().group(&group_name);
        assert_eq!(
            service(only_global, group) != DesiredService::default(),
            global
        );
        assert_eq!(
            endpoint(
                only_global,
                group,
                Owner::Local,
                "10.1.0.1".parse().unwrap()
            )
            .backends
            .is_empty(),
            !global
        );
        assert_eq!(view(only_global, group).unwrap().programmed, global);
    }
}

#[test]
fn rows_of_peers_make_no_service_and_nobody_speaks_for_this_cluster() {
    let mut store = Store::new();
    let rows = || {
        vec![
            service_change(row(true, true, Affinity::None)),
            endpoint_change("10.2.0.1", Condition::Ready),
        ]
    };
    say(&mut store, west(), rows());
    assert_eq!(
        service(here(), store.now().group(&name())),
        DesiredService::default()
    );
    assert_eq!(view(here(), store.now().group(&name())), None);
    say(
        &mut store,
        Owner::Local,
        vec![service_change(row(true, true, Affinity::None))],
    );
    let own = Owner::Peer(here().cluster);
    say(&mut store, own, rows());
    assert_eq!(tiers(&store), [["10.2.0.1"]]);
    let dirty = say(
        &mut store,
        own,
        vec![endpoint_change("10.9.0.1", Condition::Ready)],
    );
    assert_eq!(changes(here(), store.now(), &dirty).count(), 0);
}

#[test]
fn the_view_shows_every_endpoint_and_where_connections_go() {
    let store = mixture(Affinity::Local);
    let view = view(here(), store.now().group(&name())).unwrap();
    let frontend = view
        .frontends
        .iter()
        .find(|f| f.frontend.to_string() == "10.96.0.1:80/TCP")
        .unwrap();
    let seen: Vec<_> = frontend
        .backends
        .iter()
        .map(|b| {
            (
                b.address.to_string(),
                b.cluster.get(),
                b.tier(view.affinity),
                b.preferred,
            )
        })
        .collect();
    let wanted = [
        ("10.1.0.1", 1, "local ready", true),
        ("10.1.0.2", 1, "local terminating", false),
        ("10.1.0.3", 1, "not ready", false),
        ("10.2.0.1", 2, "remote ready", false),
        ("10.2.0.2", 2, "remote terminating", false),
        ("10.2.0.3", 2, "not ready", false),
        ("10.3.0.1", 3, "stale", false),
        ("10.3.0.2", 3, "stale", false),
        ("10.3.0.3", 3, "not ready", false),
    ];
    assert_eq!(
        seen,
        wanted.map(|(address, cluster, tier, preferred)| (
            address.to_owned(),
            cluster,
            tier,
            preferred
        ))
    );
    assert_eq!(frontend.backends[6].cluster_name.as_deref(), Some("north"));
}

#[test]
fn assumed_ranks_keep_the_order_found() {
    let ranks = |affinity, tiers: &[bool]| {
        assumed(affinity, tiers.iter().copied())
            .iter()
            .map(|r| r.get())
            .collect::<Vec<_>>()
    };
    assert_eq!(ranks(Affinity::None, &[true, false]), [0, 2]);
    assert_eq!(ranks(Affinity::Local, &[true, false]), [0, 1]);
    assert_eq!(ranks(Affinity::Local, &[false, true]), [1, 2]);
    assert_eq!(ranks(Affinity::Remote, &[false, true, false]), [0, 1, 2]);
    assert_eq!(
        ranks(Affinity::None, &[true, true, false, false]),
        [0, 2, 4, 5]
    );
}
