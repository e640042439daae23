//! Nothing is left: after a lab with agents, after `cleanup`, after the demo, and after a killed demo.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use isthmus_tests::Programs;
use isthmus_tests::host::Host;
use isthmus_tests::kernel::Holdings;
use isthmus_tests::wait_for;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

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

fn lab() -> Command {
    let programs = Programs::beside_this_one().unwrap();
    Command::new(programs.find("isthmus-lab").unwrap())
}

fn demo() -> Command {
    let mut demo = lab();
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

/// Takes a kept demo down, whatever came of it.
struct Kept;

impl Drop for Kept {
    fn drop(&mut self) {
        // Nothing more can be done about it; a lab that is not there is no failure.
        let _ = lab().args(["down", "demo"]).output();
    }
}

/// A `sudo` for who is root already, and an editor that shows: the way of the lines that the demo prints.
fn reader(line: &str, tools: &Path) -> Command {
    let path = std::env::var("PATH").unwrap();
    let mut shell = Command::new("timeout");
    shell
        .args(["20", "sh", "-c", line])
        .env("PATH", format!("{}:{path}", tools.display()))
        .env("EDITOR", "cat");
    shell
}

/// What a line that ends by itself says.
fn said_by(line: &str, tools: &Path) -> String {
    let output = reader(line, tools).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {said}{complaint}");
    said
}

/// The first line of what goes on until somebody ends it.
fn first_said_by(line: &str, tools: &Path) -> String {
    let mut child = reader(line, tools).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    output.read_line(&mut said).unwrap();
    assert!(child.try_wait().unwrap().is_none(), "{line} ended: {said}");
    // `timeout` passes it on to all that it started.
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    child.wait().unwrap();
    said
}

/// As a newcomer compares them: what `agentctl` lists as frontends are the rows of the map, by their addresses.
fn expect_same(maps: &str, dump: &str, tools: &Path) {
    let listed = said_by(&format!("{maps} -o json"), tools);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let frontends = listed["frontends"].as_array().unwrap().iter();
    let addresses = frontends.filter_map(|row| row["address"].as_str()?.parse::<Ipv4Addr>().ok());
    let keys: Vec<_> = addresses
        .map(|address| {
            let [a, b, c, d] = address.octets();
            format!("key: {a:02x} {b:02x} {c:02x} {d:02x} ")
        })
        .collect();
    let held = said_by(dump, tools);
    assert!(
        !keys.is_empty() && keys.iter().all(|key| held.contains(key)),
        "{keys:?}: {held}"
    );
    assert_eq!(held.matches("key:").count(), keys.len(), "{held}");
}

/// Runs what the demo prints for a reader who has root by sudo, in its order: all is there, and shows what it should.
fn explore(lines: &[&str]) {
    let tools = tempfile::tempdir().unwrap();
    let tools = tools.path();
    std::fs::write(tools.join("sudo"), "#!/bin/sh\nexec \"$@\"\n").unwrap();
    std::fs::set_permissions(tools.join("sudo"), PermissionsExt::from_mode(0o755)).unwrap();
    let [
        status,
        client,
        connects,
        manifest,
        services,
        maps,
        dump,
        kill_agent,
        down,
    ] = lines
    else {
        panic!("other commands: {lines:#?}");
    };
    for line in lines {
        assert!(line.starts_with("sudo "), "{line}");
    }
    let running = said_by(status, tools);
    assert!(
        running.contains("node east-1") && running.contains("  agent "),
        "{running}"
    );
    let answered = first_said_by(client, tools);
    assert!(
        answered.contains(" 0 failed  production/backend east/backend-"),
        "{answered}"
    );
    let answer = first_said_by(connects, tools);
    assert!(
        answer.starts_with("production/backend east/backend-"),
        "{answer}"
    );
    let shown = said_by(manifest, tools);
    assert!(
        shown.contains("kind: Service") && shown.contains("service.cilium.io/affinity"),
        "{shown}"
    );
    let shown = said_by(services, tools);
    assert_eq!(shown.matches("active (preferred)").count(), 2, "{shown}");
    expect_same(maps, dump, tools);
    assert_eq!(said_by(kill_agent, tools), "");
    let answer = first_said_by(connects, tools);
    assert!(answer.starts_with("production/backend "), "{answer}");
    let gone = said_by(down, tools);
    assert!(gone.starts_with("lab demo is gone"), "{gone}");
}

/// The demo's expectations are its own; here it must come to its end. It is kept, so that the lines which it prints then
/// can be run; the last of them takes it away.
#[test]
fn the_demo_ends_well_and_can_be_explored_and_leaves_nothing() {
    let before = holdings();
    let kept = Kept;
    let output = demo()
        .args(["--json", "--keep"])
        .env("SUDO_UID", "1000")
        .output()
        .unwrap();
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
    let mut events = document["events"].as_array().unwrap().iter();
    let lines = events.find_map(|event| event["commands"].as_array());
    let lines = lines.unwrap().iter().map(|line| line.as_str().unwrap());
    explore(&lines.collect::<Vec<_>>());
    expect_nothing_beyond(&before);
    drop(kept);
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
