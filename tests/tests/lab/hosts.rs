//! The README's "Two plain hosts", command by command, with the units and the configuration of `deploy`.
//!
//! A host here is a lab's node with `/etc`, `/run` and `/var/lib` of its own, by a mount namespace for each command. The
//! units' programs are started as their `ExecStart` says, with no capability but those that the unit leaves them; there
//! is no systemd, and copying needs no ssh.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use isthmus_tests::{Lab, Node, wait_for};
use serde_json::Value;

use super::common::world;

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

struct Host<'a> {
    node: Node<'a>,
    lab: &'a Lab,
    /// What lies at `/` of this host, as far as it has something of its own.
    root: PathBuf,
    running: Vec<Child>,
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        for child in &mut self.running {
            // Ended already, or ends now: nothing else can be done about it.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl<'a> Host<'a> {
    fn new(lab: &'a Lab, cluster: &str, id: &str, root: PathBuf) -> Self {
        let etc = root.join("etc");
        for dir in [
            "etc/isthmus/manifests",
            "run/isthmus",
            "var/isthmus/agent",
            "var/isthmus/mesh",
            "home",
        ] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        for file in ["passwd", "group", "hosts", "nsswitch.conf"] {
            fs::copy(Path::new("/etc").join(file), etc.join(file)).unwrap();
        }
        for file in ["agent.yaml", "mesh.yaml"] {
            let text = fs::read_to_string(project().join("deploy/config").join(file)).unwrap();
            let text = text
                .replace("cluster-name: east", &format!("cluster-name: {cluster}"))
                .replace("cluster-id: 1", &format!("cluster-id: {id}"));
            fs::write(etc.join("isthmus").join(file), text).unwrap();
        }
        let node = lab.cluster(cluster).unwrap().first_node();
        Self {
            node,
            lab,
            root,
            running: Vec::new(),
        }
    }

    /// A command of a shell on this host.
    fn shell(&self, line: &str) -> Command {
        let root = self.root.display();
        let own = format!(
            "mount --bind {root}/etc /etc && mount --bind {root}/run /run && mount --bind {root}/var /var/lib && cd {root}/home && {line}"
        );
        let mut command = self.node.command("unshare").unwrap();
        command.args(["--mount", "--propagation", "private", "sh", "-c", &own]);
        let path = std::env::var("PATH").unwrap_or_default();
        let programs = self.lab.programs().dir().display();
        command.env("PATH", format!("{programs}:{path}"));
        command.env("ISTHMUS_CGROUP", self.node.cgroup());
        command.env(
            "ISTHMUS_BPFFS",
            format!(
                "/sys/fs/bpf/isthmus/{}-{}",
                self.lab.name(),
                self.node.name()
            ),
        );
        command
    }

    fn enable(&mut self, unit: &str) {
        let file = project().join(format!("deploy/systemd/{unit}.service"));
        let text = fs::read_to_string(file).unwrap();
        let of = |key: &str| {
            let mut lines = text.lines();
            let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            value.unwrap_or_else(|| panic!("{unit} has no {key}"))
        };
        let start = of("ExecStart").strip_prefix("/usr/local/bin/").unwrap();
        let bounds = of("CapabilityBoundingSet").to_lowercase();
        let bounds: String = bounds
            .split(' ')
            .map(|cap| cap.replace("cap_", ",+"))
            .collect();
        assert_eq!(of("NoNewPrivileges"), "yes");
        let line = format!("exec setpriv --no-new-privs --bounding-set=-all{bounds} {start}");
        self.running.push(self.shell(&line).spawn().unwrap());
    }

    fn run(&mut self, line: &str, other: &Path) {
        if let Some(units) = line.strip_prefix("systemctl enable --now ") {
            for unit in units.split_whitespace() {
                self.enable(unit);
            }
        } else if let Some(copy) = line.strip_prefix("scp -r ") {
            let (from, to) = copy.split_once(" west:/").unwrap();
            let line = format!("cp -r {from} {}/{to}", other.display());
            assert!(self.shell(&line).status().unwrap().success(), "{line}");
        } else {
            let output = self.shell(line).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{line}: {said}");
        }
    }

    /// Clusters whose backends of `production/backend` take connections here.
    fn serving(&self) -> anyhow::Result<Vec<String>> {
        let output = self.shell("agentctl service list -o json").output()?;
        let list: Value = serde_json::from_slice(&output.stdout)?;
        let backends = list["frontends"][0]["backends"].as_array().cloned();
        let serving = backends.unwrap_or_default().into_iter();
        Ok(serving
            .filter(|backend| backend["preferred"] == true)
            .filter_map(|backend| Some(backend["cluster"].as_str()?.to_owned()))
            .collect())
    }
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The commands of the README's section, each with the host it is for.
fn commands() -> Vec<(String, String)> {
    let readme = fs::read_to_string(project().join("README.md")).unwrap();
    let (_, section) = readme.split_once("## Two plain hosts").unwrap();
    let block = section.split("```").nth(1).unwrap();
    let lines = block.lines().skip(1).map(|line| {
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

#[test]
fn two_plain_hosts_are_linked_as_the_readme_says() {
    let commands = commands();
    assert!(
        commands.len() <= COMMANDS_MAX,
        "{} commands",
        commands.len()
    );
    let lab = world("hosts", HOSTS);
    let dir = tempfile::tempdir().unwrap();
    let mut east = Host::new(&lab, "east", "1", dir.path().join("east"));
    let mut west = Host::new(&lab, "west", "2", dir.path().join("west"));
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
    for (host, address) in [(&east, &at_east), (&west, &at_west)] {
        let file = host.root.join("etc/isthmus/manifests/backend.yaml");
        fs::write(file, manifests(address)).unwrap();
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
}
