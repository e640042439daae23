//! Beside others: a ruleset in kube-proxy's nftables shape, and programs on our own hooks.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use isthmus_test_programs as programs;
use isthmus_tests::{Lab, Node, Requests, Traffic};

use super::books::{Ledger, Told};
use super::common::{
    ALONE, PORT, SERVICE, at_least, named_service, running, started, wait_status, world,
};

/// A service that only kube-proxy's rules know, and one that both know.
const THEIRS: &str = "10.96.200.1";
const BOTHS: &str = "10.96.200.2";

/// What kube-proxy writes in nftables mode, in small: a verdict map of services, a random endpoint, DNAT.
fn kube_proxy(lab: &Lab, node: Node<'_>) {
    let pods =
        ["east/backend-1", "east/backend-2"].map(|p| lab.pod(p).unwrap().plan().addresses.v4);
    let rules = format!(
        "table ip kube-proxy {{
            counter boths {{ }}
            chain endpoint-1 {{ meta l4proto tcp dnat to {}:{PORT}; }}
            chain endpoint-2 {{ meta l4proto tcp dnat to {}:{PORT}; }}
            chain theirs {{ numgen random mod 2 vmap {{ 0 : goto endpoint-1, 1 : goto endpoint-2 }}; }}
            chain boths {{ counter name boths goto theirs; }}
            map service-ips {{
                type ipv4_addr . inet_proto . inet_service : verdict
                elements = {{ {THEIRS} . tcp . 80 : goto theirs, {BOTHS} . tcp . 80 : goto boths }}
            }}
            chain services {{ ip daddr . meta l4proto . th dport vmap @service-ips; }}
            chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
            chain nat-output {{ type nat hook output priority -100; jump services; }}
        }}\n",
        pods[0], pods[1]
    );
    node.netns().nft(&rules).unwrap();
}

fn rules_saw_boths(node: Node<'_>) -> u64 {
    let mut list = std::process::Command::new("nft");
    list.args(["-j", "list", "counter", "ip", "kube-proxy", "boths"]);
    let said: serde_json::Value =
        serde_json::from_str(&node.netns().command(&mut list).unwrap()).unwrap();
    said["nftables"]
        .as_array()
        .unwrap()
        .iter()
        .find_map(|c| c["counter"]["packets"].as_u64())
        .unwrap()
}

/// 200 requests that must all be answered, by both backends.
fn expect_served(lab: &Lab, target: &str) -> Traffic {
    let mut traffic = lab
        .pod("client")
        .unwrap()
        .traffic(&Requests::to(target).unwrap())
        .unwrap();
    traffic.rate(2000.0).unwrap();
    let report = at_least(&mut traffic, 200);
    assert_eq!(report.failed(), 0, "{target}: {:?}", report.told);
    assert_eq!(report.answers.len(), 2, "{target}: {:?}", report.answers);
    traffic
}

/// The same by us.
fn expect_served_by_us(lab: &Lab, target: &str, service: &str) {
    let ledger = Ledger::open(lab.node("east-1").unwrap(), service);
    ledger.balance_with(&mut expect_served(lab, target));
}

#[test]
fn a_miss_passes_to_kube_proxys_rules_and_a_hit_never_meets_them() {
    let lab = running("kubeproxy", ALONE);
    let node = lab.node("east-1").unwrap();
    kube_proxy(&lab, node);
    let mut both = named_service("boths", 80, PORT, &[]);
    both["spec"]["clusterIP"] = BOTHS.into();
    both["spec"]["ipFamilyPolicy"] = "SingleStack".into();
    lab.cluster("east")
        .unwrap()
        .manifests()
        .write_objects("boths.yaml", &[both])
        .unwrap();
    node.wait_frontend("production/boths", 80, "has its backends", |f| {
        f.serving() == 2
    })
    .unwrap();

    let ours = node
        .frontend(SERVICE, PORT, false)
        .unwrap()
        .target()
        .unwrap();
    let all = Ledger::of(
        node,
        vec![SERVICE.to_owned(), "production/boths".to_owned()],
    );
    expect_served(&lab, &format!("{THEIRS}:80"));
    all.balance(Told::default());
    expect_served_by_us(&lab, &ours.to_string(), SERVICE);
    expect_served_by_us(&lab, &format!("{BOTHS}:80"), "production/boths");
    assert_eq!(
        rules_saw_boths(node),
        0,
        "a translated connect met the rules"
    );

    node.stop_agent().unwrap();
    node.cleanup().unwrap();
    expect_served(&lab, &format!("{THEIRS}:80"));
    expect_served(&lab, &format!("{BOTHS}:80"));
    assert!(rules_saw_boths(node) >= 200, "without us the rules serve");
}

/// Another's program on a hook of the node's cgroup, after those that are there. It goes with what is returned.
fn foreign(node: Node<'_>, hook: u32) -> OwnedFd {
    let cgroup = File::open(node.cgroup()).unwrap();
    let program = programs::Program::trivial(hook).unwrap();
    program.attach(cgroup.as_fd()).unwrap()
}

/// Programs on a hook as `status` shows them to people: name, place, state.
fn on_hook(status: &str, hook: &str) -> Vec<(String, String, String)> {
    let rows = status.lines().filter_map(|line| {
        let (name, rest) = line.split_once(&format!(" {hook} "))?;
        let fields: Vec<&str> = rest.split("  ").map(str::trim).collect();
        let fields: Vec<&str> = fields.into_iter().filter(|f| !f.is_empty()).collect();
        let (place, state) = (fields.first()?, fields.last()?);
        Some((
            name.trim().to_owned(),
            (*place).to_owned(),
            (*state).to_owned(),
        ))
    });
    rows.collect()
}

fn expect_on_hook(status: &str, hook: &str, wanted: &[(&str, &str, &str)]) {
    let found = on_hook(status, hook);
    let found: Vec<_> = found
        .iter()
        .map(|(name, place, state)| (name.as_str(), place.as_str(), state.as_str()))
        .collect();
    assert_eq!(found, wanted, "{hook} in:\n{status}");
}

#[test]
fn a_foreign_program_before_ours_is_a_fault_and_one_after_ours_is_listed() {
    const CONNECT4: &str = "cgroup_inet4_connect";
    let lab = world("foreign", ALONE);
    let node = lab.node("east-1").unwrap();
    let before = foreign(node, programs::CONNECT4);
    let lab = started(lab, &[]);
    let node = lab.node("east-1").unwrap();
    let ours = node.frontend(SERVICE, PORT, false).unwrap();
    let ours = ours.target().unwrap().to_string();

    let said = wait_status(node, 1, "trivial");
    expect_on_hook(
        &said,
        CONNECT4,
        &[
            ("trivial", "1 of 2", "foreign, hides services"),
            ("connect4", "2 of 2", "attached"),
        ],
    );
    assert!(
        said.contains("runs before it on cgroup_inet4_connect: addresses it changes are no longer services to us"),
        "{said}"
    );
    assert!(said.contains("attach it after ours"), "a way out: {said}");
    expect_served_by_us(&lab, &ours, SERVICE);

    // A restarted agent keeps its place on the hook, so the other stays before it; on other hooks nobody is.
    node.stop_agent().unwrap();
    node.start_agent(&[]).unwrap();
    let said = wait_status(node, 1, "hides services");
    assert_eq!(said.matches("hides services").count(), 1, "{said}");
    drop(before);
    let said = wait_status(node, 0, "connect4");
    expect_on_hook(&said, CONNECT4, &[("connect4", "1 of 1", "attached")]);

    let after = [
        foreign(node, programs::CONNECT4),
        foreign(node, programs::CONNECT4),
    ];
    let said = wait_status(node, 0, "trivial");
    expect_on_hook(
        &said,
        CONNECT4,
        &[
            ("connect4", "1 of 3", "attached"),
            ("trivial", "2 of 3", "foreign"),
            ("trivial", "3 of 3", "foreign"),
        ],
    );
    expect_served_by_us(&lab, &ours, SERVICE);
    drop(after);
    wait_status(node, 0, "1 of 1");

    // What runs before ours on a hook that translates nothing hides nothing.
    node.stop_agent().unwrap();
    node.cleanup().unwrap();
    let _getpeername = foreign(node, programs::GETPEERNAME4);
    node.start_agent(&[]).unwrap();
    let said = wait_status(node, 0, "trivial");
    expect_on_hook(
        &said,
        "cgroup_inet4_getpeername",
        &[
            ("trivial", "1 of 2", "foreign"),
            ("getpeername4", "2 of 2", "attached"),
        ],
    );
}
