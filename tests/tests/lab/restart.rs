//! What dies and comes back, under traffic: agents, agents with mesh servers, mesh servers alone.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use isthmus_agent::datapath::{HookKind, LoadPlan, MapSizes, ProgramPlan};
use isthmus_tests::{Frontend, Lab, Node, PodStatus, Requests, Traffic, wait_until};

use super::books::{Ledger, Opened};
use super::common::{
    PORT, SERVICE, SetAtEnd, TWO_CLUSTERS, at_least, expect_all_translated, named_service, running,
};
use super::long::LongFlows;

/// The frontends that clients ask for: both families of the one service, and those of `others`, at port 80.
fn asked_for(node: Node<'_>, others: &[String]) -> Vec<Frontend> {
    let both = [false, true].map(|v6| node.frontend(SERVICE, PORT, v6).unwrap());
    let others = others
        .iter()
        .map(|name| node.frontend(&format!("production/{name}"), 80, false));
    both.into_iter().chain(others.map(Result::unwrap)).collect()
}

/// As many requests as two workers make, to each in turn. Backends are the same pods, and say which port was reached.
fn full_traffic(lab: &Lab, frontends: &[Frontend]) -> Traffic {
    let targets: Vec<String> = frontends
        .iter()
        .map(|frontend| format!("{}={SERVICE}", frontend.target().unwrap()))
        .collect();
    let requests = Requests::to_all(targets.iter().map(String::as_str))
        .unwrap()
        .workers(2);
    let mut traffic = lab.pod("east/client").unwrap().traffic(&requests).unwrap();
    traffic.rate(0.0).unwrap();
    traffic
}

/// Fewest looks at the hooks while something is done, a quarter of what two busy cores make.
const LOOKS: u32 = 25;

/// Links on the cgroup's hooks, and at tracepoints, that the datapath's plan asks for.
fn planned() -> (usize, BTreeSet<&'static str>) {
    let sizes = MapSizes {
        services: 1,
        backends: 1,
        ring_slots: 1,
        affinity: 1,
    };
    let programs = LoadPlan::new(Path::new("/"), sizes).programs;
    let is_tracepoint = |program: &&ProgramPlan| program.hook == HookKind::Tracepoint;
    let tracepoints = programs.iter().filter(is_tracepoint).map(|p| p.name);
    let tracepoints: BTreeSet<_> = tracepoints.collect();
    (programs.len() - tracepoints.len(), tracepoints)
}

/// Watches the hooks of a node while `work` is done. On the cgroup every link that was there stays, without a gap. At a
/// tracepoint a new one comes before the old one goes: there is always one, and for a moment two.
fn watching_links<T>(node: Node<'_>, work: impl FnOnce() -> T) -> T {
    let (hooks, tracepoints) = planned();
    let before = node.kernel_links().unwrap();
    assert_eq!(before.len(), hooks, "hooks: {before:?}");
    assert!(before.values().all(|links| links.len() == 1), "{before:?}");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) {
                let now = node.kernel_links().unwrap();
                let name = node.name();
                assert_eq!(
                    now, before,
                    "the links of {name} changed after {looks} looks"
                );
                let now = node.kernel_tracepoints().unwrap();
                assert!(
                    now.keys().eq(&tracepoints) && now.values().all(|links| links.len() <= 2),
                    "at the tracepoints of {name} after {looks} looks: {now:?}"
                );
                looks += 1;
            }
            looks
        });
        // A panic of the work ends the watch too, and is told.
        let end = SetAtEnd(&done);
        let result = work();
        drop(end);
        let looks = watch.join().unwrap();
        assert!(looks >= LOOKS, "{looks} looks at the hooks");
        result
    })
}

/// Every program was replaced by another, on the links that were there.
fn assert_replaced(before: &BTreeMap<u32, u32>, after: &BTreeMap<u32, u32>) {
    assert!(
        before.keys().eq(after.keys()),
        "links: {before:?}, then {after:?}"
    );
    let same = |(before, after): (&u32, &u32)| before == after;
    assert!(
        !before.values().zip(after.values()).any(same),
        "programs: {before:?}, then {after:?}"
    );
}

fn restarts_under_traffic(lab: &Lab, others: &[String], at_least_requests: u64) {
    let node = lab.node("east-1").unwrap();
    let frontends = asked_for(node, others);
    let mut traffic = full_traffic(lab, &frontends);
    let mut opened = Opened::of(node, frontends, &mut traffic);
    traffic.rate(0.0).unwrap();
    let mut flows = LongFlows::begin(lab);
    let part = at_least_requests / 5;
    let first = at_least(&mut traffic, part);
    let programs = node.kernel_programs().unwrap();
    watching_links(node, || {
        node.kill_agent().unwrap();
        at_least(&mut traffic, part);
        flows.go_on("without an agent");
        node.start_agent(&[]).unwrap();
        at_least(&mut traffic, part);
        // As an upgrade that changes no map does it: programs are replaced on the links that are there.
        let adopted = node.kernel_programs().unwrap();
        assert_replaced(&programs, &adopted);
        node.stop_agent().unwrap();
        node.start_agent(&[]).unwrap();
        assert_replaced(&adopted, &node.kernel_programs().unwrap());
        at_least(&mut traffic, part);
        // Reconnect, resumption and sweep happen while connections are made, and are over before the last part of them.
        node.wait_peer("west", "connected").unwrap();
        let feed = node.feed().unwrap();
        lab.cluster("east").unwrap().kill_mesh().unwrap();
        lab.cluster("east").unwrap().start_mesh(&[]).unwrap();
        node.wait_resumed(&feed, "west").unwrap();
        at_least(&mut traffic, part);
    });
    traffic.pause().unwrap();
    let total = traffic.total();
    assert!(total.requests >= at_least_requests, "{}", total.requests);
    assert_eq!(
        (total.failed(), total.wrong),
        (0, 0),
        "{:?} {:?}",
        total.failures,
        total.told
    );
    assert!(total.from_cluster("west") > first.from_cluster("west"));
    expect_all_translated(lab);
    opened.balance(lab.name(), &mut traffic);
    flows.go_on("after restarts of agent and mesh server");
    upgrades_under_traffic(lab, &mut traffic, part / 5, || {
        opened.books.change_over(node);
        flows.change_over(node);
    });
    opened.balance(lab.name(), &mut traffic);
    flows.go_on("after changes of the maps");
    flows.balance();
}

/// Maps of a version: their ids in the kernel, and where they are pinned.
fn version(node: Node<'_>) -> (u32, Vec<String>) {
    let pins = std::fs::read_dir(node.plan().pins()).unwrap();
    let names = pins.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let versions = names.filter(|name| name.starts_with('v')).collect();
    (node.map_id("services").unwrap(), versions)
}

/// Other maps than those of the defaults.
const LARGER: [&str; 2] = ["--lb-services-max=131072", "--lb-ring-slots-max=524288"];

/// Another version of the maps, here of other sizes: new ones are filled beside the old, programs change over on the
/// links that are there, the old maps go. Once from an agent that was told to go, once from one that was killed. After each
/// change over to other maps, `changed`.
fn upgrades_under_traffic(lab: &Lab, traffic: &mut Traffic, part: u64, mut changed: impl FnMut()) {
    let node = lab.node("east-1").unwrap();
    let before = traffic.total().clone();
    traffic.rate(0.0).unwrap();
    let old = version(node);
    watching_links(node, || {
        node.stop_agent().unwrap();
        let programs = node.kernel_programs().unwrap();
        node.start_agent(&LARGER).unwrap();
        assert_replaced(&programs, &node.kernel_programs().unwrap());
        let new = version(node);
        assert_ne!(new.0, old.0, "the same map");
        assert!(
            old.1.len() == 1 && new.1.len() == 1 && old.1 != new.1,
            "pinned: {old:?}, then {new:?}"
        );
        changed();
        at_least(traffic, part);
        node.kill_agent().unwrap();
        node.start_agent(&[]).unwrap();
        assert_eq!(version(node).1, old.1);
        changed();
        at_least(traffic, part);
    });
    traffic.pause().unwrap();
    let total = traffic.total();
    assert_eq!(
        (total.failed(), total.wrong),
        (0, 0),
        "{:?} {:?}",
        total.failures,
        total.told
    );
    let west = total.from_cluster("west") - before.from_cluster("west");
    assert!(west > part / 4, "{west} requests went west");
    expect_all_translated(lab);
}

#[test]
fn agents_and_mesh_servers_die_and_no_connect_fails() {
    let lab = running("restart", TWO_CLUSTERS);
    let others: Vec<_> = (1..10).map(|n| format!("s{n}")).collect();
    let annotations = [("service.cilium.io/global", "true")];
    let services: Vec<_> = others
        .iter()
        .map(|name| named_service(name, 80, PORT, &annotations))
        .collect();
    for cluster in lab.clusters() {
        let manifests = cluster.manifests();
        manifests.write_objects("others.yaml", &services).unwrap();
    }
    let node = lab.node("east-1").unwrap();
    for name in &others {
        let name = format!("production/{name}");
        node.wait_frontend(&name, 80, "has all backends", |f| f.serving() == 4)
            .unwrap();
    }
    restarts_under_traffic(&lab, &others, 100_000);
}

#[test]
fn nor_with_ten_thousand_services() {
    let lab = running("many", TWO_CLUSTERS);
    let manifests = lab.cluster("east").unwrap().manifests();
    for file in 0..10 {
        let services: Vec<_> = (0..1000)
            .map(|n| {
                let number = file * 1000 + n;
                let mut service = named_service(&format!("s{number}"), 80, PORT, &[]);
                service["spec"]["clusterIP"] =
                    format!("10.97.{}.{}", number / 250, number % 250 + 1).into();
                service["spec"]["ipFamilyPolicy"] = "SingleStack".into();
                service
            })
            .collect();
        manifests
            .write_objects(&format!("many-{file}.yaml"), &services)
            .unwrap();
    }
    let node = lab.node("east-1").unwrap();
    wait_until(
        "10,000 services are in the kernel",
        Duration::from_secs(60),
        || {
            node.frontend("production/s9999", 80, false)
                .is_ok_and(|f| f.serving() == 2)
        },
    )
    .unwrap();
    // The first, one of the middle, and the last to be claimed.
    let others = [0, 4711, 9999].map(|n| format!("s{n}"));
    restarts_under_traffic(&lab, &others, 100_000);
}

/// Agent and mesh server are dead, the agent is started alone, a local backend is added: the remote ones are still
/// drawn from, because the agent has kept what it knew.
#[test]
fn an_agent_alone_remembers_the_remote_backends() {
    let lab = running("memory", TWO_CLUSTERS);
    let node = lab.node("east-1").unwrap();
    lab.pod("east/backend-1").unwrap().withdraw().unwrap();
    node.wait_frontend(SERVICE, PORT, "has three backends", |f| f.serving() == 3)
        .unwrap();
    // The next agent begins with what the maps hold: all of it, since nothing was counted before.
    let ledger = Ledger::open(node, SERVICE);
    let mut traffic = full_traffic(&lab, &asked_for(node, &[]));
    lab.cluster("east").unwrap().kill_mesh().unwrap();
    node.kill_agent().unwrap();
    // It is not fully ready without its feed, or it is: both are fine, as long as it works.
    node.spawn_agent(&[]).unwrap();
    lab.pod("east/backend-1")
        .unwrap()
        .declare(PodStatus::Ready)
        .unwrap();
    node.wait_frontend(SERVICE, PORT, "has the new local backend", |f| {
        f.backends.iter().filter(|b| b.cluster == "east").count() == 2
    })
    .unwrap();
    let report = at_least(&mut traffic, 2000);
    assert_eq!((report.failed(), report.wrong), (0, 0), "{:?}", report.told);
    let mut by_pod = BTreeMap::new();
    for (name, answers) in &report.answers {
        by_pod.insert(name.as_str(), answers.count);
    }
    assert_eq!(by_pod.len(), 4, "all four backends serve: {by_pod:?}");
    lab.cluster("east").unwrap().start_mesh(&[]).unwrap();
    node.wait_peer("west", "connected").unwrap();
    let report = at_least(&mut traffic, 2000);
    assert_eq!(report.failed(), 0, "{:?}", report.told);
    assert_eq!(report.answers.len(), 4, "{:?}", report.answers);
    ledger.balance_with(&mut traffic);
    let total = traffic.total();
    assert_eq!((total.failed(), total.wrong), (0, 0), "{:?}", total.told);
    expect_all_translated(&lab);
}

/// Told to go right after it heard of a remote backend, the agent leaves that to the next one, whose maps are empty and
/// whose mesh server is dead.
#[test]
fn what_an_agent_heard_last_outlives_it() {
    let lab = running("last", TWO_CLUSTERS);
    let node = lab.node("east-1").unwrap();
    let pod = lab.pod("west/backend-1").unwrap();
    let from_west = |wanted: usize| {
        let of_west = move |f: &Frontend| f.backends.iter().filter(|b| b.cluster == "west").count();
        let what = format!("has {wanted} backends of west");
        node.wait_frontend(SERVICE, PORT, &what, move |f| of_west(f) == wanted)
            .unwrap();
    };
    // The state file is written at once for this, and then not for a second.
    pod.withdraw().unwrap();
    from_west(1);
    pod.declare(PodStatus::Ready).unwrap();
    from_west(2);
    node.stop_agent().unwrap();
    lab.cluster("east").unwrap().kill_mesh().unwrap();
    node.spawn_agent(&LARGER).unwrap();
    node.wait_frontend(SERVICE, PORT, "has all backends", |f| f.serving() == 4)
        .unwrap();
}
