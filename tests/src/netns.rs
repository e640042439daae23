//! Network namespaces by name, as `ip netns` keeps them, entered with setns: `ip netns exec` would hide cgroup2.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use crate::host::run;

const NETNS_ROOT: &str = "/run/netns";

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_ROOT).join(&self.name)
    }
    /// Runs `work` inside, on a thread of its own: sockets and children that it makes belong to the namespace, and
    /// the caller's thread stays where it is. Cgroups are not entered: services are not translated for `work`.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = File::open(self.path())
            .with_context(|| format!("there is no network namespace {}", self.name))?;
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(file, CloneFlags::CLONE_NEWNET).context("setns")?;
                Ok(work())
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
    /// Runs a command inside and gives its output.
    pub fn command(&self, command: &mut Command) -> Result<String> {
        self.run(|| run(command))?
            .with_context(|| format!("in {}", self.name))
    }
    /// Writes sysctls of the namespace, by their paths below `/proc/sys`.
    pub fn sysctl(&self, values: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (key, value) in values {
                std::fs::write(Path::new("/proc/sys").join(key), value)
                    .with_context(|| format!("sysctl {key}={value}"))?;
            }
            Ok(())
        })?
    }
    /// Loads an nft script.
    pub fn nft(&self, script: &str) -> Result<()> {
        self.run(|| feed(Command::new("nft").args(["-f", "-"]), script))?
            .with_context(|| format!("in {}", self.name))
    }
    /// Runs lines of `ip` here, in one process.
    pub fn ip(&self, lines: &str) -> Result<()> {
        feed(
            Command::new("ip").args(["-n", &self.name, "-batch", "-"]),
            lines,
        )
        .with_context(|| format!("in {}", self.name))
    }
}

/// Runs lines of `ip` in the caller's namespace, in one process.
pub(crate) fn ip_batch(lines: &str) -> Result<()> {
    feed(Command::new("ip").args(["-batch", "-"]), lines)
}

/// Names of all namespaces that begin with `prefix`.
pub(crate) fn list(prefix: &str) -> Result<Vec<Netns>> {
    let entries = match std::fs::read_dir(NETNS_ROOT) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).context(NETNS_ROOT),
    };
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    Ok(names
        .filter(|n| n.starts_with(prefix))
        .map(Netns::new)
        .collect())
}

pub(crate) fn feed(command: &mut Command, input: &str) -> Result<()> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {shown}"))?;
    // A child that died early says why on its standard error, which is better than our broken pipe.
    let _ = child
        .stdin
        .take()
        .context("no pipe to a child")?
        .write_all(input.as_bytes());
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "{shown}: {}\nits input was:\n{input}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
