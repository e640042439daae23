//! A plain host: its init, its `systemctl`, and its units' processes.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use isthmus_tests::process::tail;
use isthmus_tests::{Lab, Node};
use serde_json::Value;

/// Where a host has something of its own.
const OWN: [(&str, &str); 4] = [
    ("etc", "/etc"),
    ("run", "/run"),
    ("var", "/var/lib"),
    ("bin", "/usr/local/bin"),
];

/// Notes what it is told to start, beside itself, and ends by SIGTERM what it is told to stop.
const SYSTEMCTL: &str = r#"#!/bin/sh
set -e
notes=$(dirname "$0")
case "$1 $2" in
"daemon-reload ") ;;
"enable --now")
  shift 2
  echo "$@" >>"$notes/enabled"
  ;;
"disable --now")
  shift 2
  for unit; do
    pid=$(cat "$notes/$unit.pid")
    kill "$pid"
    timeout 20 tail --pid="$pid" -s 0.1 -f /dev/null
  done
  ;;
*)
  echo "systemctl $* is not known here" >&2
  exit 1
  ;;
esac
"#;

pub(super) struct Host<'a> {
    pub(super) node: Node<'a>,
    /// What lies at `/` of this host, as far as it has something of its own, and root's home.
    pub(super) root: PathBuf,
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
    pub(super) fn new(lab: &'a Lab, cluster: &str, root: PathBuf) -> Self {
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

    pub(super) fn log(&self, unit: &str) -> PathBuf {
        self.root.join(format!("{unit}.log"))
    }

    /// A command of a shell on this host, in the clone of the repository.
    pub(super) fn shell(&self, line: &str) -> Command {
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
        let notes = self.root.join("stubs");
        let enabled = fs::read_to_string(notes.join("enabled")).unwrap_or_default();
        for name in enabled.split_whitespace() {
            let file = self.root.join(format!("etc/systemd/system/{name}.service"));
            let unit = Unit::parse(&fs::read_to_string(file).unwrap());
            let pid = notes.join(format!("{name}.pid"));
            self.start(
                name,
                &format!("echo $$ >{}\n{}", pid.display(), unit.script()),
            );
        }
        fs::write(notes.join("enabled"), "").unwrap();
    }

    /// Starts what stays, with a log.
    pub(super) fn start(&mut self, name: &str, line: &str) {
        let log = File::create(self.log(name)).unwrap();
        let child = self
            .shell(line)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.started.push(child.unwrap());
    }

    pub(super) fn run(&mut self, line: &str, other: &Path) {
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

    /// `production/backend`, as it is served here.
    pub(super) fn frontend(&self) -> anyhow::Result<Value> {
        let output = self.shell("agentctl service list -o json").output()?;
        let mut list: Value = serde_json::from_slice(&output.stdout)?;
        Ok(list["frontends"][0].take())
    }

    /// Clusters whose backends of `production/backend` take connections here.
    pub(super) fn serving(&self) -> anyhow::Result<Vec<String>> {
        let backends = self.frontend()?["backends"].as_array().cloned();
        let serving = backends.unwrap_or_default().into_iter();
        Ok(serving
            .filter(|backend| backend["preferred"] == true)
            .filter_map(|backend| Some(backend["cluster"].as_str()?.to_owned()))
            .collect())
    }

    /// Who answers to so many connections to port 8080 of an address; none if one of them fails.
    pub(super) fn answers(&self, address: &str, connections: u32) -> BTreeSet<String> {
        let connect = format!("timeout 2 bash -c 'cat </dev/tcp/{address}/8080'");
        let line = format!("for n in $(seq {connections}); do {connect}; done");
        let output = self.shell(&line).output().unwrap();
        if !output.status.success() {
            return BTreeSet::new();
        }
        let said = String::from_utf8_lossy(&output.stdout);
        said.lines().map(str::to_owned).collect()
    }

    /// All that lies where this host has something of its own.
    pub(super) fn files(&self) -> BTreeSet<PathBuf> {
        fn add(dir: &Path, files: &mut BTreeSet<PathBuf>) {
            for entry in fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    add(&entry.path(), files);
                }
                files.insert(entry.path());
            }
        }
        let mut files = BTreeSet::new();
        for (own, _) in OWN {
            add(&self.root.join(own), &mut files);
        }
        files
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

pub(super) fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
