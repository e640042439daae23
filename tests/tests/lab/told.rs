//! What `agentctl monitor` tells of tiers and peers.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use isthmus_tests::{Monitor, PodStatus, wait_for};

use super::common::{AFFINITY, SERVICE, SOON, TWO_SMALL, monitor, running, service};

const EAST: &str = "east/backend";

/// Both families, by both protocols, go to another tier, and each is told; `before` and `now` are tiers' names.
fn expect_tiers(monitor: &Monitor, change: usize, before: Option<&str>, now: Option<&str>) {
    const PORTS: usize = 4;
    let told = monitor.wait("tier", (change + 1) * PORTS).unwrap();
    for event in &told[change * PORTS..] {
        assert_eq!(
            (event.tier_before.as_deref(), event.tier.as_deref()),
            (before, now),
            "change {change}: {event:?}"
        );
        assert_eq!(event.service.as_deref(), Some(SERVICE), "{event:?}");
    }
}

/// The peer comes to this state, or is not linked any more. All that was told of it is one history, from being connected on.
fn expect_peer(monitor: &Monitor, now: Option<&str>) {
    wait_for(&format!("the peer is {now:?}"), SOON, || {
        let mut state = Some("connected".to_owned());
        for event in monitor.of("peer") {
            assert_eq!(event.peer_before, state, "{event:?}");
            assert_eq!(event.cluster.as_deref(), Some("west"), "{event:?}");
            state = event.peer;
        }
        Ok((state.as_deref() == now).then_some(()))
    })
    .unwrap();
}

#[test]
fn a_monitor_tells_of_tiers_and_peers() {
    let lab = running("told", TWO_SMALL);
    let node = lab.node("east-1").unwrap();
    let monitor = monitor(node, &lab.pod("east/client").unwrap());
    let manifests = lab.cluster("east").unwrap().manifests();
    let global = ("service.cilium.io/global", "true");
    let local = service(&[global, (AFFINITY, "local")]);
    manifests.write_objects("backend.yaml", &[local]).unwrap();
    expect_tiers(&monitor, 0, Some("ready"), Some("local ready"));
    let (east, west) = (Some("local ready"), Some("remote ready"));
    let backend = lab.pod(EAST).unwrap();
    backend.declare(PodStatus::NotReady).unwrap();
    expect_tiers(&monitor, 1, east, west);
    lab.pod("west/backend").unwrap().withdraw().unwrap();
    expect_tiers(&monitor, 2, west, None);
    backend.declare(PodStatus::Ready).unwrap();
    expect_tiers(&monitor, 3, None, east);

    let wire = lab.wire("east", "west").unwrap();
    wire.cut().unwrap();
    expect_peer(&monitor, Some("stale"));
    wire.mend().unwrap();
    expect_peer(&monitor, Some("connected"));
    lab.cluster("east").unwrap().disconnect("west").unwrap();
    expect_peer(&monitor, None);
    let lost = monitor.told().into_iter().filter_map(|event| event.lost);
    assert_eq!(lost.sum::<u64>(), 0);
}
