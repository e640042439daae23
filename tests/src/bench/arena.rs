//! Where a benchmark runs: a network namespace for its thread, a cgroup for its process, a directory for its pins.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use isthmus_agent::datapath::cleanup;
use nix::sched::{CloneFlags, unshare};

use super::tax::fleet::BACKEND_PORT;
use crate::cgroup::Cgroup;
use crate::host::{Host, drop_empty_pin_root};
use crate::layout::PIN_ROOT;
use crate::leftovers::sweep;
use crate::netns::ip_batch;

const CGROUP_PREFIX: &str = "isthmus-bench-";
const PIN_PREFIX: &str = "bench-";

/// Every address in here is the namespace's own: a backend needs no more than a row in a map.
pub const BACKENDS: (u32, &str) = (0x0ac8_0000, "10.200.0.0/14");
/// An address that is nobody's service, inside and outside the service range.
pub const NOBODY_INSIDE: &str = "10.111.255.1";
pub const NOBODY_OUTSIDE: &str = "10.203.255.1";
pub const SERVICE_CIDR: &str = "10.96.0.0/12";

#[derive(Debug)]
pub struct Arena {
    cgroup: Cgroup,
    open: File,
    home: PathBuf,
    pins: PathBuf,
}

impl Arena {
    /// Moves the calling thread into a new network namespace, which ends with it, and this process into a new cgroup.
    /// Removes what killed benchmarks left.
    pub fn enter() -> Result<Self> {
        let host = Host::prepare()?;
        sweep(&host.cgroup2, CGROUP_PREFIX, PIN_PREFIX)?;
        unshare(CloneFlags::CLONE_NEWNET).context("a network namespace of its own")?;
        prepare_namespace()?;
        let pid = std::process::id();
        let home = host.cgroup2.join(own_cgroup()?);
        let cgroup = Cgroup::create(host.cgroup2.join(format!("{CGROUP_PREFIX}{pid}")))?;
        let arena = Self {
            open: File::open(cgroup.path())?,
            cgroup,
            home,
            pins: Path::new(PIN_ROOT).join(format!("{PIN_PREFIX}{pid}")),
        };
        join(arena.cgroup.path())?;
        Ok(arena)
    }

    #[must_use]
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    #[must_use]
    pub fn cgroup_fd(&self) -> BorrowedFd<'_> {
        self.open.as_fd()
    }

    /// A directory of bpffs.
    #[must_use]
    pub fn pins(&self) -> &Path {
        &self.pins
    }
}

/// Has this thread's network namespace answer for every address here.
pub fn prepare_namespace() -> Result<()> {
    ip_batch(&format!(
        "link set lo up\nroute add local {} dev lo\nroute add local {NOBODY_INSIDE}/32 dev lo\n",
        BACKENDS.1
    ))?;
    for (key, value) in [
        // Closed connections leave nothing behind, so that no batch pays for the one before it.
        ("net/ipv4/tcp_max_tw_buckets", "0"),
        ("net/ipv4/ip_local_port_range", "1024 65000"),
        // A client that was given its backend's port would connect to itself where nobody listens.
        (
            "net/ipv4/ip_local_reserved_ports",
            &BACKEND_PORT.to_string(),
        ),
    ] {
        fs::write(Path::new("/proc/sys").join(key), value)
            .with_context(|| format!("sysctl {key}={value}"))?;
    }
    Ok(())
}

impl Drop for Arena {
    fn drop(&mut self) {
        // What cannot be removed now, the next benchmark removes.
        if join(&self.home).is_ok() {
            let _ = self.cgroup.kill();
            let _ = self.cgroup.remove();
        }
        let _ = cleanup(&self.pins);
        drop_empty_pin_root();
    }
}

fn join(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0")
        .with_context(|| format!("cannot join the cgroup {}", cgroup.display()))
}

/// This process' cgroup, relative to the mount.
fn own_cgroup() -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
    Ok(path
        .context("this process is in no cgroup of version 2")?
        .into())
}
