//! The lab itself: it is what it says, and leaves nothing.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::io::Read;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use isthmus_tests::host::Host;
use isthmus_tests::kernel::Holdings;
use isthmus_tests::{Lab, Programs, Requests, wait_for, wait_until};

use super::common::{TWO_CLUSTERS, world};

const SOON: Duration = Duration::from_secs(10);

fn holdings() -> Holdings {
    Holdings::now(&Host::prepare().unwrap().cgroup2).unwrap()
}

fn expect_nothing_beyond(before: &Holdings) {
    wait_for("nothing of the lab is left", SOON, || {
        match holdings().beyond(before)[..] {
            [] => Ok(Some(())),
            ref left => anyhow::bail!("left: {}", left.join(", ")),
        }
    })
    .unwrap();
}

#[test]
fn pods_answer_by_name_over_both_families_and_transports() {
    let lab = world("world", TWO_CLUSTERS);
    let backend = lab.pod("west/backend-2").unwrap();
    let addresses = backend.plan().addresses;
    for target in [
        format!("{}:8080", addresses.v4),
        format!("[{}]:8080", addresses.v6),
    ] {
        for requests in [
            Requests::to(&target).unwrap(),
            Requests::to(&target).unwrap().udp(4),
        ] {
            let mut client = lab.pod("east/client").unwrap().traffic(&requests).unwrap();
            client.rate(0.0).unwrap();
            let mut sum = isthmus_tests::client::Report::default();
            wait_for("a thousand answers", SOON, || {
                sum = sum.clone().and(&client.mark()?);
                Ok((sum.answered() > 1000).then_some(()))
            })
            .unwrap();
            let sum = sum.and(&client.stop().unwrap());
            assert_eq!(
                sum.answers.keys().collect::<Vec<_>>(),
                ["production/backend west/backend-2"]
            );
            assert_eq!(sum.requests, sum.answered(), "{target}: {:?}", sum.failures);
        }
    }
    lab.down().unwrap();
}

#[test]
fn a_cut_wire_is_silent_and_a_mended_one_carries() {
    let lab = world("wires", TWO_CLUSTERS);
    let across = lab.pod("west/backend-1").unwrap().addresses()[0].to_string();
    let within = lab.pod("east/backend-2").unwrap().addresses()[0].to_string();
    let failures = |target: &str| {
        let requests = Requests::to(target)
            .unwrap()
            .workers(1)
            .timeout(Duration::from_millis(150));
        let mut client = lab.pod("east/client").unwrap().traffic(&requests).unwrap();
        client.rate(0.0).unwrap();
        let mut report = client.mark().unwrap();
        wait_until("a request is over", SOON, || {
            report = report.clone().and(&client.mark().unwrap());
            report.requests > 0
        })
        .unwrap();
        report.failures.into_keys().collect::<Vec<_>>()
    };
    let wire = lab.wire("west", "east").unwrap();
    assert!(failures(&across).is_empty());
    wire.cut().unwrap();
    assert_eq!(failures(&across), ["given up"], "a cut refuses nothing");
    assert!(failures(&within).is_empty());
    wire.mend().unwrap();
    assert!(failures(&across).is_empty());
    wire.lose(0.9999).unwrap();
    assert_eq!(failures(&across), ["given up"]);
}

#[test]
fn an_untranslated_connect_is_told_by_the_node() {
    let lab = world("telltale", TWO_CLUSTERS);
    let node = lab.node("east-1").unwrap();
    assert_eq!(node.untranslated().unwrap(), 0);
    for target in ["10.96.0.1:80", "[fd00:10:96::1]:80"] {
        let before = node.untranslated().unwrap();
        let mut client = lab
            .pod("east/client")
            .unwrap()
            .traffic(&Requests::to(target).unwrap())
            .unwrap();
        client.rate(100.0).unwrap();
        wait_until("a request is over", SOON, || {
            client.mark().unwrap().failed() > 0
        })
        .unwrap();
        assert!(node.untranslated().unwrap() > before);
    }
}

/// Who asks again and again whether a server on this host is there must not become the server, by a connection from the
/// server's own port to itself.
#[test]
fn a_connection_is_never_given_the_port_of_a_server_of_ours() {
    const TRIES: u32 = 70_000; // More than there are ports.
    let lab = world("ports", TWO_CLUSTERS);
    let node = lab.node("east-1").unwrap();
    for port in [4260, 9970] {
        let answered = node
            .netns()
            .run(|| (0..TRIES).find(|_| TcpStream::connect(("127.0.0.1", port)).is_ok()));
        assert_eq!(answered.unwrap(), None, "port {port} met itself");
    }
}

#[test]
fn a_lab_leaves_nothing_when_it_goes() {
    let before = holdings();
    let lab = world("gone", TWO_CLUSTERS);
    let made = holdings().beyond(&before);
    // 4 nodes, 6 pods, the backbone; the lab's cgroup; its register.
    assert_eq!(
        made.iter()
            .filter(|m| m.starts_with("network namespace"))
            .count(),
        11,
        "{made:?}"
    );
    assert!(made.contains(&"cgroup isthmus-gone".to_owned()), "{made:?}");
    lab.down().unwrap();
    expect_nothing_beyond(&before);
}

/// A process that owns a lab, as `isthmus-lab up --foreground` does; its warden's pid.
fn owner(name: &str) -> (Child, u32) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lab.yaml");
    std::fs::write(&file, TWO_CLUSTERS).unwrap();
    let lab = Programs::beside_this_one()
        .unwrap()
        .find("isthmus-lab")
        .unwrap();
    let mut child = Command::new(lab)
        .args(["up", "--bare", "--foreground", "--name", name])
        .arg(&file)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut out = child.stdout.take().unwrap();
    let mut byte = [0];
    while !said.contains("up after") {
        assert_eq!(out.read(&mut byte).unwrap(), 1, "the owner ended: {said}");
        said.push(char::from(byte[0]));
    }
    let warden = warden_of(child.id()).expect("an owner has a warden");
    (child, warden)
}

fn warden_of(owner: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{owner}/task/{owner}/children")).ok()?;
    let is_warden = |pid: &&str| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split('\0').nth(1) == Some("warden")
    };
    children.split_whitespace().find(is_warden)?.parse().ok()
}

fn kill_9(pid: u32) {
    use nix::sys::signal::{Signal, kill};
    kill(
        nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap()),
        Signal::SIGKILL,
    )
    .unwrap();
}

#[test]
fn a_killed_owners_lab_is_removed_by_its_warden() {
    let before = holdings();
    let (mut child, _) = owner("orphan");
    assert!(!holdings().beyond(&before).is_empty());
    kill_9(child.id());
    child.wait().unwrap();
    expect_nothing_beyond(&before);
}

#[test]
fn what_a_killed_run_left_is_removed_by_the_next() {
    let before = holdings();
    let (mut child, warden) = owner("remains");
    kill_9(warden);
    kill_9(child.id());
    child.wait().unwrap();
    assert!(
        holdings()
            .beyond(&before)
            .contains(&"cgroup isthmus-remains".to_owned())
    );
    let next: Lab = world("next", "clusters: [{name: east, id: 1}]");
    let left = holdings().beyond(&before);
    assert!(left.iter().all(|l| !l.contains("remains")), "{left:?}");
    next.down().unwrap();
    expect_nothing_beyond(&before);
}

#[test]
fn a_kept_lab_stays_until_it_is_taken_down() {
    let lab = world(
        "kept",
        "clusters: [{name: east, id: 1, pods: [{name: a, serves: {80: x/y}}]}]",
    );
    lab.keep().unwrap();
    world("other", "clusters: [{name: east, id: 1}]")
        .down()
        .unwrap();
    let again = Lab::open("kept").unwrap();
    assert_eq!(
        again.pod("a").unwrap().plan().addresses.v4.to_string(),
        "10.11.1.5"
    );
    drop(again);
    let lab = Programs::beside_this_one()
        .unwrap()
        .find("isthmus-lab")
        .unwrap();
    let seen = Command::new(&lab)
        .args(["exec", "kept", "east/a", "--", "cat", "/proc/self/cgroup"])
        .output()
        .unwrap();
    let cgroup = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(
        cgroup
            .lines()
            .any(|l| l == "0::/isthmus-kept/east-1/pods/a"),
        "{cgroup}"
    );
    assert!(
        Command::new(&lab)
            .args(["down", "kept"])
            .output()
            .unwrap()
            .status
            .success()
    );
    assert!(Lab::open("kept").is_err());
}
