//! The README's "Two plain hosts" and "Remove it", command by command, with the installer, units and configuration of
//! `deploy`; and an agent in a container of such a host.
//!
//! A host here is a lab's node with a pid 1, and cgroup, mount, pid and host name's namespaces of its own, so that what
//! the agent finds by itself on a host (its name, the cgroup of pid 1, the pins' place) it finds here. There is no
//! systemd: `systemctl` writes down what it is told to start, and the test starts those units as their files say, in their
//! capabilities, with their directories; what it is told to stop it ends as systemd does. Copying needs no ssh.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

mod host;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use isthmus_tests::wait_for;

use super::common::world;
use host::{Host, project};

const HOSTS: &str = "
clusters:
  - {name: east, id: 1}
  - {name: west, id: 2}
links: [{between: [east, west]}]
";

/// Most commands that linking two hosts may take.
const COMMANDS_MAX: usize = 8;

const SOON: Duration = Duration::from_secs(15);

/// A Service and an endpoint of it at `address`.
fn manifests(address: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: backend, namespace: production, annotations: {{service.cilium.io/global: \"true\"}}}}
spec: {{ports: [{{port: 8080}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: backend-1, namespace: production, labels: {{kubernetes.io/service-name: backend}}}}
addressType: IPv4
ports: [{{port: 8080}}]
endpoints: [{{addresses: [{address}]}}]
"
    )
}

/// The lines of a README section's commands.
fn lines_of(section: &str) -> Vec<String> {
    let readme = fs::read_to_string(project().join("README.md")).unwrap();
    let (_, section) = readme.split_once(&format!("## {section}\n")).unwrap();
    let block = section.split("```").nth(1).unwrap();
    block.lines().skip(1).map(str::to_owned).collect()
}

/// The commands of "Two plain hosts", each with the host it is for.
fn commands() -> Vec<(String, String)> {
    let lines = lines_of("Two plain hosts").into_iter().map(|line| {
        let (command, host) = line
            .split_once("# on ")
            .expect("each command names its host");
        (command.trim().to_owned(), host.trim().to_owned())
    });
    lines
        .flat_map(|(command, host)| match host.as_str() {
            "both" => ["east", "west"]
                .map(|host| (command.clone(), host.to_owned()))
                .to_vec(),
            _ => vec![(command, host)],
        })
        .collect()
}

/// Takes Isthmus off a host of two that serve, as "Remove it" says.
fn remove(host: &mut Host<'_>, own_address: &str, before: &BTreeSet<PathBuf>) {
    let service = host.frontend().unwrap()["address"].take();
    let service = service.as_str().unwrap().to_owned();
    let both = BTreeSet::from(["east", "west"].map(|name| format!("production/backend {name}")));
    assert_eq!(host.answers(&service, 30), both);
    let (mut stopped, mut cleaned) = (false, false);
    for line in lines_of("Remove it") {
        let output = host.shell(&line).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {said}");
        if line.starts_with("systemctl disable") {
            let status = host.shell("agentctl status").output().unwrap();
            assert_eq!(status.status.code(), Some(1), "the agent still answers");
            assert!(host.node.plan().pins().exists(), "stopping keeps the pins");
            assert_eq!(host.answers(&service, 30), both, "after {line}");
            stopped = true;
        } else if line.ends_with(" cleanup") {
            assert!(stopped, "{line} comes before the agent is stopped");
            assert!(!host.node.plan().pins().exists(), "pins after {line}");
            let hooks = host.node.kernel_links().unwrap();
            assert!(hooks.is_empty(), "hooks after {line}: {hooks:?}");
            assert_eq!(host.answers(&service, 1).len(), 0, "served after {line}");
            assert_eq!(host.answers(own_address, 1).len(), 1, "the backend is gone");
            cleaned = true;
        }
    }
    assert!(stopped && cleaned);
    let left: Vec<_> = host.files().difference(before).cloned().collect();
    assert!(left.is_empty(), "left: {left:?}");
}

#[test]
fn two_plain_hosts_are_linked_and_one_is_left_as_the_readme_says() {
    let commands = commands();
    assert!(
        commands.len() <= COMMANDS_MAX,
        "{} commands",
        commands.len()
    );
    let lab = world("hosts", HOSTS);
    let dir = tempfile::tempdir().unwrap();
    let mut east = Host::new(&lab, "east", dir.path().join("east"));
    let mut west = Host::new(&lab, "west", dir.path().join("west"));
    let before = east.files();
    let address = |host: &Host<'_>| host.node.plan().addresses.v4.to_string();
    let (at_east, at_west) = (address(&east), address(&west));
    for (command, host) in &commands {
        let command = command
            .replace("192.0.2.1", &at_east)
            .replace("192.0.2.2", &at_west);
        match host.as_str() {
            "east" => east.run(&command, &west.root),
            "west" => west.run(&command, &east.root),
            other => panic!("{command} is for {other}"),
        }
    }
    for (host, address) in [(&mut east, &at_east), (&mut west, &at_west)] {
        let file = host.root.join("etc/isthmus/manifests/backend.yaml");
        fs::write(file, manifests(address)).unwrap();
        let cluster = host.node.cluster().name();
        let serve = format!(
            "exec target/release/isthmus-lab serve --pod {cluster} --port 8080=production/backend"
        );
        host.start("backend", &serve);
    }
    for host in [&east, &west] {
        wait_for("both hosts serve", SOON, || {
            let serving = host.serving()?;
            let both = serving.len() == 2 && serving[0] != serving[1];
            anyhow::ensure!(both, "serving: {serving:?}");
            Ok(Some(()))
        })
        .unwrap();
    }
    for (address, cluster) in [(&at_east, "east"), (&at_west, "west")] {
        let wanted = BTreeSet::from([format!("production/backend {cluster}")]);
        wait_for("the backends listen", SOON, || {
            Ok((east.answers(address, 1) == wanted).then_some(()))
        })
        .unwrap();
    }
    remove(&mut east, &at_east, &before);
}

/// A service that nobody serves: a connection to it is refused, by whoever sees the client's socket.
const REFUSED: &str = "apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: production}
spec: {clusterIP: 10.96.0.10, ports: [{port: 8080}]}
";

/// As in a container with a cgroup namespace of its own, whose `/sys/fs/cgroup` shows its own cgroup as the root.
const IN_A_CONTAINER: &str = "mkdir -p /sys/fs/cgroup/box /run/isthmus /var/lib/isthmus/agent
echo 0 >/sys/fs/cgroup/box/cgroup.procs
exec unshare --cgroup --mount --propagation private sh -ec '
umount /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
exec target/release/isthmus-agent --cluster-name east --cluster-id 1 --source dir:/etc/isthmus/manifests'";

#[test]
fn an_agent_in_a_container_serves_its_whole_host() {
    let lab = world("boxed", HOSTS);
    let dir = tempfile::tempdir().unwrap();
    let mut host = Host::new(&lab, "east", dir.path().join("east"));
    let manifests = host.root.join("etc/isthmus/manifests");
    fs::create_dir_all(&manifests).unwrap();
    fs::write(manifests.join("nobody.yaml"), REFUSED).unwrap();
    host.start("isthmus-agent", IN_A_CONTAINER);
    wait_for("the host's sockets are seen", SOON, || {
        let connect = "timeout 1 bash -c 'exec 3<>/dev/tcp/10.96.0.10/8080'";
        let said = host.shell(connect).output()?.stderr;
        let said = String::from_utf8_lossy(&said);
        anyhow::ensure!(said.contains("Connection refused"), "connect: {said}");
        Ok(Some(()))
    })
    .unwrap();
}
