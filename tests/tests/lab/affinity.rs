//! Which clusters serve a client: annotations, readiness and staleness, each row on real connects of both families.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use isthmus_tests::{Lab, PodStatus, Requests};
use serde_json::json;

use super::books::Ledger;
use super::common::{
    AFFINITY, PORT, SERVICE, TWO_SMALL, client, collect_until, expect_all_translated,
    expect_answers, running, service,
};

const GLOBAL: &str = "service.cilium.io/global";
const SHARED: &str = "service.cilium.io/shared";
type Annotation = (&'static str, &'static str);
type Annotations = &'static [Annotation];

const RATE: f64 = 3000.0;

fn annotate(lab: &Lab, cluster: &str, annotations: &[(&str, &str)]) {
    let manifests = lab.cluster(cluster).unwrap().manifests();
    manifests
        .write_objects("backend.yaml", &[service(annotations)])
        .unwrap();
}

/// Remote backends serve in east if east and west are global and west shares. East's own sharing does not matter, the
/// deprecated names mean the same, and neither is global if its Namespace is not.
#[test]
fn remote_backends_serve_if_both_are_global_and_theirs_are_shared() {
    let lab = running("sharing", TWO_SMALL);
    let ledger = Ledger::open(lab.node("east-1").unwrap(), SERVICE);
    let mut traffic = client(&lab, "east/client", "east-1");
    traffic.rate(RATE).unwrap();
    let (both, alone): (&[&str], &[&str]) = (&["east", "west"], &["east"]);
    let rows: [(Annotations, Annotations, &[&str]); 10] = [
        (&[], &[], alone),
        (&[(GLOBAL, "true")], &[], alone),
        (&[], &[(GLOBAL, "true")], alone),
        (&[(GLOBAL, "true")], &[(GLOBAL, "true")], both),
        (
            &[(GLOBAL, "true")],
            &[(GLOBAL, "true"), (SHARED, "false")],
            alone,
        ),
        (
            &[(GLOBAL, "true"), (SHARED, "false")],
            &[(GLOBAL, "true"), (SHARED, "true")],
            both,
        ),
        (
            &[(GLOBAL, "false")],
            &[(GLOBAL, "true"), (SHARED, "true")],
            alone,
        ),
        (
            &[(GLOBAL, "TRUE")],
            &[("io.cilium/global-service", "true")],
            both,
        ),
        (
            &[(GLOBAL, "true")],
            &[
                ("io.cilium/global-service", "true"),
                ("io.cilium/shared-service", "false"),
            ],
            alone,
        ),
        (&[(SHARED, "true")], &[(SHARED, "true")], alone),
    ];
    for (east, west, wanted) in rows {
        annotate(&lab, "east", east);
        annotate(&lab, "west", west);
        expect_answers(
            &mut traffic,
            wanted,
            &format!("east {east:?}, west {west:?}"),
        );
    }
    for (east, west, wanted) in [
        ("false", "true", alone),
        ("true", "false", alone),
        ("TRUE", "true", both),
    ] {
        for cluster in ["east", "west"] {
            annotate(&lab, cluster, &[(GLOBAL, "true")]);
        }
        global_namespace(&lab, "east", east);
        global_namespace(&lab, "west", west);
        let why = format!("the Namespace: east {east}, west {west}");
        expect_answers(&mut traffic, wanted, &why);
    }
    ledger.balance_with(&mut traffic);
    expect_all_translated(&lab);
}

/// What a cluster's Namespace `production` says of its Services being global.
fn global_namespace(lab: &Lab, cluster: &str, global: &str) {
    let namespace = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "production", "annotations": {"clustermesh.cilium.io/global": global}},
    });
    let manifests = lab.cluster(cluster).unwrap().manifests();
    manifests
        .write_objects("namespace.yaml", &[namespace])
        .unwrap();
}

use PodStatus::{NotReady, Ready, Terminating};

const NONE: Annotation = (AFFINITY, "none");
const LOCAL: Annotation = (AFFINITY, "local");
const REMOTE: Annotation = (AFFINITY, "remote");
const REMOTE_OF_OLD: Annotation = ("io.cilium/service-affinity", "remote");
const SIDEWAYS: Annotation = (AFFINITY, "sideways");

/// What east's Service says, east's pod, west's pod, the clusters that answer a client in east.
const TIERS: [(Annotation, PodStatus, PodStatus, &[&str]); 23] = [
    (NONE, Ready, Ready, &["east", "west"]),
    (NONE, NotReady, Ready, &["west"]),
    (NONE, Ready, NotReady, &["east"]),
    (NONE, Terminating, Ready, &["west"]),
    (NONE, Terminating, NotReady, &["east"]),
    (NONE, Terminating, Terminating, &["east", "west"]),
    (LOCAL, Ready, Ready, &["east"]),
    (LOCAL, NotReady, Ready, &["west"]),
    (LOCAL, Ready, NotReady, &["east"]),
    (LOCAL, Terminating, Ready, &["west"]),
    (LOCAL, Terminating, Terminating, &["east"]),
    (LOCAL, NotReady, Terminating, &["west"]),
    (LOCAL, Terminating, NotReady, &["east"]),
    (REMOTE, Ready, Ready, &["west"]),
    (REMOTE, Ready, NotReady, &["east"]),
    (REMOTE, Ready, Terminating, &["east"]),
    (REMOTE, NotReady, Ready, &["west"]),
    (REMOTE, Terminating, Terminating, &["west"]),
    (REMOTE, Terminating, NotReady, &["east"]),
    (REMOTE, NotReady, Terminating, &["west"]),
    (SIDEWAYS, Ready, Ready, &["east", "west"]),
    (LOCAL, Ready, Ready, &["east"]),
    (REMOTE_OF_OLD, Ready, Ready, &["west"]),
];

#[test]
fn tiers_follow_affinity_and_readiness() {
    let lab = running("tiers", TWO_SMALL);
    let ledger = Ledger::open(lab.node("east-1").unwrap(), SERVICE);
    let mut traffic = client(&lab, "east/client", "east-1");
    traffic.rate(RATE).unwrap();
    for (affinity, east, west, wanted) in TIERS {
        annotate(&lab, "east", &[(GLOBAL, "true"), affinity]);
        lab.pod("east/backend").unwrap().declare(east).unwrap();
        lab.pod("west/backend").unwrap().declare(west).unwrap();
        expect_answers(
            &mut traffic,
            wanted,
            &format!("{affinity:?}: east {east:?}, west {west:?}"),
        );
    }
    for pod in ["east/backend", "west/backend"] {
        lab.pod(pod).unwrap().declare(NotReady).unwrap();
    }
    collect_until(
        &mut traffic,
        "without any backend connects are refused at once",
        |r| r.failures.keys().collect::<Vec<_>>() == ["refused"] && r.answered() == 0,
    );
    ledger.balance_with(&mut traffic);
    expect_all_translated(&lab);
}

/// A Service that asks for no family has that of its own cluster's first range, whatever its peers' are.
#[test]
fn a_cluster_lends_the_families_that_its_peers_ask_for() {
    let lab = super::common::world("families", TWO_SMALL);
    let mut plain = service(&[(GLOBAL, "true")]);
    plain["spec"]
        .as_object_mut()
        .unwrap()
        .remove("ipFamilyPolicy");
    for cluster in lab.clusters() {
        let manifests = cluster.manifests();
        manifests
            .write_objects("backend.yaml", std::slice::from_ref(&plain))
            .unwrap();
    }
    lab.start_with(&["--service-cidr=fd00:10:96::/108,10.96.0.0/12"], &[])
        .unwrap();
    for node in lab.nodes() {
        let (_, frontend) = node
            .wait_frontend(SERVICE, 8080, "has both backends", |f| f.serving() == 2)
            .unwrap();
        assert!(
            frontend.address.is_some_and(|a| a.is_ipv6()),
            "{frontend:?}"
        );
    }
    let east = lab.node("east-1").unwrap();
    let ledger = Ledger::open(east, SERVICE);
    let target = east.frontend(SERVICE, PORT, true).unwrap().target();
    let requests = Requests::to(&format!("{}={SERVICE}", target.unwrap())).unwrap();
    let mut traffic = lab.pod("east/client").unwrap().traffic(&requests).unwrap();
    traffic.rate(RATE).unwrap();
    expect_answers(&mut traffic, &["east", "west"], "by IPv6");
    ledger.balance_with(&mut traffic);
    expect_all_translated(&lab);
}

/// The peer's mesh server is dead, its pods are not: they serve only when nothing else does.
#[test]
fn a_stale_peers_backends_are_the_last_resort() {
    let lab = running("stale", TWO_SMALL);
    let ledger = Ledger::open(lab.node("east-1").unwrap(), SERVICE);
    let mut traffic = client(&lab, "east/client", "east-1");
    traffic.rate(RATE).unwrap();
    expect_answers(&mut traffic, &["east", "west"], "before");
    lab.cluster("west").unwrap().kill_mesh().unwrap();
    let east = lab.node("east-1").unwrap();
    east.wait_peer("west", "stale").unwrap();
    for affinity in ["none", "local", "remote"] {
        annotate(&lab, "east", &[(GLOBAL, "true"), (AFFINITY, affinity)]);
        for (pod, wanted) in [(Ready, "east"), (Terminating, "east"), (NotReady, "west")] {
            lab.pod("east/backend").unwrap().declare(pod).unwrap();
            expect_answers(
                &mut traffic,
                &[wanted],
                &format!("{affinity}: east {pod:?}, west stale"),
            );
        }
    }
    lab.pod("east/backend").unwrap().declare(Ready).unwrap();
    annotate(&lab, "east", &[(GLOBAL, "true")]);
    lab.cluster("west").unwrap().start_mesh(&[]).unwrap();
    east.wait_peer("west", "connected").unwrap();
    expect_answers(&mut traffic, &["east", "west"], "after");
    let shown = east.agentctl(&["service", "list"]).unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains(SERVICE), "{shown}");
    ledger.balance_with(&mut traffic);
    expect_all_translated(&lab);
}

/// `--cluster-ttl`: what a silent peer said is dropped in the end, and back when it speaks again.
#[test]
fn a_silent_peers_backends_are_dropped_after_the_ttl() {
    let lab = super::common::world("ttl", TWO_SMALL);
    for cluster in ["east", "west"] {
        annotate(&lab, cluster, &[(GLOBAL, "true")]);
    }
    lab.start_with(&["--peer-stale-after=1s", "--cluster-ttl=3s"], &[])
        .unwrap();
    let east = lab.node("east-1").unwrap();
    east.wait_frontend(SERVICE, 8080, "has both backends", |f| f.serving() == 2)
        .unwrap();
    let ledger = Ledger::open(east, SERVICE);
    let mut traffic = client(&lab, "east/client", "east-1");
    traffic.rate(RATE).unwrap();
    expect_answers(&mut traffic, &["east", "west"], "before");
    lab.cluster("west").unwrap().kill_mesh().unwrap();
    let (took, _) = east.wait_peer("west", "dropped").unwrap();
    assert!(took.as_secs_f64() > 1.5, "dropped after {took:?} already");
    let (_, frontend) = east
        .wait_frontend(SERVICE, 8080, "has its own only", |f| f.backends.len() == 1)
        .unwrap();
    assert_eq!(frontend.backends[0].cluster, "east");
    expect_answers(&mut traffic, &["east"], "without it");
    lab.cluster("west").unwrap().start_mesh(&[]).unwrap();
    east.wait_frontend(SERVICE, 8080, "has both backends", |f| f.serving() == 2)
        .unwrap();
    expect_answers(&mut traffic, &["east", "west"], "after");
    assert_eq!(traffic.total().failed(), 0, "{:?}", traffic.total());
    ledger.balance_with(&mut traffic);
    expect_all_translated(&lab);
}
