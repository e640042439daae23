//! The README's "Two plain hosts", command by command, with the installer, units and configuration of `deploy`; and an
//! agent in a container of such a host.
//!
//! A host here is a lab's node with a pid 1, and cgroup, mount, pid and host name's namespaces of its own, so that what
//! the agent finds by itself on a host (its name, the cgroup of pid 1, the pins' place) it finds here. There is no
//! systemd: `systemctl` writes down what it is told, and the test starts those units as their files say, in their
//! capabilities, with their directories. Copying needs no ssh.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use isthmus_tests::process::tail;
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

/// Where a host has something of its own.
const OWN: [(&str, &str); 4] = [
    ("etc", "/etc"),
    ("run", "/run"),
    ("var", "/var/lib"),
    ("bin", "/usr/local/bin"),
];

/// Notes what it is told to start.
const SYSTEMCTL: &str = r#"#!/bin/sh
[ "$1 $2" = "enable --now" ] || exit 0
shift 2
echo "$@" >>/run/enabled
"#;

struct Host<'a> {
    node: Node<'a>,
    /// What lies at `/` of this host, as far as it has something of its own, and root's home.
    root: PathBuf,
    /// The host ends with it.
    first: Child,
    pid: String,
    started: Vec<Child>,
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for unit in ["isthmus-agent", "isthmus-mesh"] {
                eprintln!("{}", tail(&self.log(unit), 25));
            }
        }
        // All others end with pid 1. Ended already, or ends now: nothing else can be done about it.
        let _ = self.first.kill();
        let _ = self.first.wait();
        for child in &mut self.started {
            let _ = child.wait();
        }
    }
}

impl<'a> Host<'a> {
    fn new(lab: &'a Lab, cluster: &str, root: PathBuf) -> Self {
        let node = lab.cluster(cluster).unwrap().first_node();
        for dir in ["etc/systemd/system", "run", "var", "bin", "stubs"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        for file in ["passwd", "group", "hosts", "nsswitch.conf"] {
            fs::copy(Path::new("/etc").join(file), root.join("etc").join(file)).unwrap();
        }
        let systemctl = root.join("stubs/systemctl");
        fs::write(&systemctl, SYSTEMCTL).unwrap();
        fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
        // The repository, built.
        let clone = root.join("home/isthmus");
        fs::create_dir_all(clone.join("target")).unwrap();
        symlink(lab.programs().dir(), clone.join("target/release")).unwrap();
        let copied = Command::new("cp")
            .arg("-r")
            .arg(project().join("deploy"))
            .arg(&clone)
            .status();
        assert!(copied.unwrap().success());

        let binds: String = OWN
            .iter()
            .map(|(own, place)| format!("mount --bind {}/{own} {place}\n", root.display()))
            .collect();
        // Between the two cgroup2 mounts another file system must lie: the kernel refuses the same one twice at one place,
        // whatever it shows, and most machines have cgroup2 there.
        let init = format!(
            "echo {}-{} >/proc/sys/kernel/hostname
            mount -t tmpfs none /sys/fs/cgroup
            mount -t cgroup2 none /sys/fs/cgroup
            {binds}
            echo up
            exec sleep infinity",
            lab.name(),
            node.name(),
        );
        let spaces =
            "--mount --propagation private --pid --fork --kill-child --mount-proc --uts --cgroup";
        let line = format!(
            "echo 0 >{}/cgroup.procs && exec unshare {spaces} sh -ec \"$0\"",
            node.cgroup().display()
        );
        let mut command = node.command("sh").unwrap();
        let mut first = command
            .args(["-c", &line, &init])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 3];
        first
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut said)
            .expect("the host comes up");
        let children = format!("/proc/{0}/task/{0}/children", first.id());
        let pid = fs::read_to_string(children).unwrap().trim().to_owned();
        Self {
            node,
            root,
            first,
            pid,
            started: Vec::new(),
        }
    }

    fn log(&self, unit: &str) -> PathBuf {
        self.root.join(format!("{unit}.log"))
    }

    /// A command of a shell on this host, in the clone of the repository.
    fn shell(&self, line: &str) -> Command {
        let mut command = self.node.command("nsenter").unwrap();
        command
            .args([
                "--target", &self.pid, "--mount", "--uts", "--cgroup", "--pid",
            ])
            .args(["sh", "-ec", "cd \"$1\"; eval \"$0\"", line])
            .arg(self.root.join("home/isthmus"))
            .env(
                "PATH",
                format!(
                    "{}/stubs:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                    self.root.display()
                ),
            );
        for (setting, _) in std::env::vars_os() {
            if setting.to_string_lossy().starts_with("ISTHMUS_") {
                command.env_remove(setting);
            }
        }
        command
    }

    /// Starts what `systemctl` was told to, as the installed unit says.
    fn start_enabled(&mut self) {
        let enabled = fs::read_to_string(self.root.join("run/enabled")).unwrap_or_default();
        for name in enabled.split_whitespace().skip(self.started.len()) {
            let file = self.root.join(format!("etc/systemd/system/{name}.service"));
            let unit = Unit::parse(&fs::read_to_string(file).unwrap());
            let log = File::create(self.log(name)).unwrap();
            let child = self
                .shell(&unit.script())
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn();
            self.started.push(child.unwrap());
        }
    }

    fn run(&mut self, line: &str, other: &Path) {
        let line = match line.strip_prefix("scp -r ") {
            Some(copy) => {
                let (from, to) = copy.split_once(" west:").unwrap();
                format!("cp -r {from} {}/home/{to}", other.display())
            }
            None => line.to_owned(),
        };
        let output = self.shell(&line).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {said}");
        self.start_enabled();
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

/// What a unit's file says of its process, as far as it can be had without systemd.
#[derive(Debug)]
struct Unit {
    start: String,
    capabilities: String,
    no_new_privileges: bool,
    strict: bool,
    state: String,
    runtime: String,
}

impl Unit {
    fn parse(text: &str) -> Self {
        let value = |key: &str| {
            let mut lines = text.lines();
            let found = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            found.unwrap_or_default().to_owned()
        };
        Self {
            start: value("ExecStart"),
            capabilities: value("CapabilityBoundingSet"),
            no_new_privileges: value("NoNewPrivileges") == "yes",
            strict: value("ProtectSystem") == "strict",
            state: value("StateDirectory"),
            runtime: value("RuntimeDirectory"),
        }
    }

    /// Lines of a shell that become the unit's process.
    fn script(&self) -> String {
        let capabilities: String = self
            .capabilities
            .split_whitespace()
            .map(|name| format!(",+{}", name.strip_prefix("CAP_").unwrap().to_lowercase()))
            .collect();
        let no_new = if self.no_new_privileges {
            "--no-new-privs"
        } else {
            ""
        };
        let mut lines = format!("mkdir -p /var/lib/{} /run/{}\n", self.state, self.runtime);
        let program = format!(
            "exec setpriv --bounding-set=-all{capabilities} {no_new} {}",
            self.start
        );
        if self.strict {
            // All but what units may write: here that is what hosts have of their own, but /run and /var/lib.
            lines += &format!(
                "exec unshare --mount --propagation private sh -ec '
                for place in /etc /usr/local/bin; do mount -o remount,bind,ro $place; done
                {program}'"
            );
        } else {
            lines += &program;
        }
        lines
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
    let mut east = Host::new(&lab, "east", dir.path().join("east"));
    let mut west = Host::new(&lab, "west", dir.path().join("west"));
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
    let log = File::create(host.log("isthmus-agent")).unwrap();
    let agent = host
        .shell(IN_A_CONTAINER)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn();
    host.started.push(agent.unwrap());
    wait_for("the host's sockets are seen", SOON, || {
        let connect = "timeout 1 bash -c 'exec 3<>/dev/tcp/10.96.0.10/8080'";
        let said = host.shell(connect).output()?.stderr;
        let said = String::from_utf8_lossy(&said);
        anyhow::ensure!(said.contains("Connection refused"), "connect: {said}");
        Ok(Some(()))
    })
    .unwrap();
}
