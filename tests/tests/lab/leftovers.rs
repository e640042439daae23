//! Nothing is left: after a lab with agents, after `cleanup`, after the demo, and after a killed demo.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::process::{Command, Stdio};

use isthmus_tests::Programs;
use isthmus_tests::host::Host;
use isthmus_tests::kernel::Holdings;
use isthmus_tests::wait_for;

use super::common::{ALONE, SOON, TWO_CLUSTERS, running, world};

fn holdings() -> Holdings {
    Holdings::now(&Host::prepare().unwrap().cgroup2).unwrap()
}

fn expect_nothing_beyond(before: &Holdings) {
    wait_for("nothing is left", SOON, || {
        match holdings().beyond(before)[..] {
            [] => Ok(Some(())),
            ref left => anyhow::bail!("left: {}", left.join(", ")),
        }
    })
    .unwrap();
}

fn demo() -> Command {
    let mut demo = Command::new(
        Programs::beside_this_one()
            .unwrap()
            .find("isthmus-lab")
            .unwrap(),
    );
    demo.arg("demo");
    demo
}

#[test]
fn a_lab_with_agents_leaves_nothing() {
    let before = holdings();
    let lab = running("leaves", TWO_CLUSTERS);
    let made = holdings().beyond(&before);
    for kind in ["BPF program", "BPF map", "BPF link", "pin"] {
        assert!(
            made.iter().any(|m| m.starts_with(kind)),
            "no {kind} in {made:?}"
        );
    }
    lab.down().unwrap();
    expect_nothing_beyond(&before);
}

#[test]
fn cleanup_removes_what_an_agent_left() {
    let bare = world("swept", ALONE);
    let before = holdings();
    let node = bare.node("east-1").unwrap();
    bare.start().unwrap();
    node.stop_agent().unwrap();
    assert!(
        !node.kernel_links().unwrap().is_empty(),
        "SIGTERM leaves the datapath working"
    );
    node.cleanup().unwrap();
    expect_nothing_beyond(&before);
}

/// The demo's expectations are its own; here it must come to its end, and leave nothing.
#[test]
fn the_demo_ends_well_and_leaves_nothing() {
    let before = holdings();
    let output = demo().arg("--json").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let document: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(document["kind"], "Demo");
    // Two backends are killed in it: three refusals each, and what breaks off.
    let failed = document["failed"].as_u64().unwrap();
    assert!((6..20).contains(&failed), "{document}");
    assert!(
        document["requests"].as_u64().unwrap() > 10_000,
        "{document}"
    );
    expect_nothing_beyond(&before);
}

#[test]
fn a_killed_demo_leaves_nothing() {
    let before = holdings();
    let mut child = demo().stdout(Stdio::null()).spawn().unwrap();
    wait_for("the demo has programs in the kernel", SOON, || {
        Ok(holdings()
            .beyond(&before)
            .iter()
            .any(|m| m.starts_with("BPF link"))
            .then_some(()))
    })
    .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    expect_nothing_beyond(&before);
}
