//! One node: a real agent on a directory of manifests, and a client that asks the kernel.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

use super::arena::{Arena, BACKENDS, SERVICE_CIDR};
use crate::process::{Process, Programs};

pub const BACKENDS_EACH: u32 = 4;
const SERVICE_PORT: u16 = 53;
const BACKEND_PORT: u16 = 5353;
/// How long a change, or an agent's start, may take before the benchmark fails.
const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Node {
    agent: Process,
    home: tempfile::TempDir,
    /// Last, so that the agent has ended when its cgroup goes.
    arena: Arena,
}

impl Node {
    /// Starts an agent on a directory that holds services `0..services`, a file each; it need not be ready yet.
    pub fn start(services: u32) -> Result<Self> {
        let programs = Programs::beside_this_one()?;
        let program = programs.find("isthmus-agent")?;
        let arena = Arena::enter()?;
        let home = tempfile::tempdir().context("a directory for the agent")?;
        let manifests = home.path().join("manifests");
        fs::create_dir(&manifests)?;
        for service in 0..services {
            fs::write(
                manifests.join(service_file(service)),
                service_yaml(service, &all_backends(service)),
            )?;
        }
        let mut command = Command::new(program);
        command.args([
            "--cluster-name",
            "bench",
            "--cluster-id",
            "1",
            "--node-name",
            "bench",
        ]);
        command.args(["--service-cidr", SERVICE_CIDR, "--http", "127.0.0.1:9970"]);
        command
            .arg("--source")
            .arg(format!("dir:{}", manifests.display()));
        command.arg("--cgroup").arg(arena.cgroup());
        command.arg("--bpffs").arg(arena.pins());
        command.arg("--state-dir").arg(home.path().join("state"));
        command.arg("--socket").arg(home.path().join("agent.sock"));
        let agent = Process::start("isthmus-agent", command, home.path().join("agent.log"))?;
        Ok(Self { agent, home, arena })
    }

    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.home.path().join("manifests")
    }

    /// Puts a file in place, whole, and returns the moment before it was there.
    pub fn put(&self, file: &str, text: &str) -> Result<Instant> {
        let half = self.manifests().join(format!(".{file}.new"));
        fs::write(&half, text)?;
        let before = Instant::now();
        fs::rename(&half, self.manifests().join(file))?;
        Ok(before)
    }

    pub fn remove(&self, file: &str) -> Result<Instant> {
        let before = Instant::now();
        fs::remove_file(self.manifests().join(file))?;
        Ok(before)
    }

    /// Spins until a connect sees what is wanted, and tells how long after `since` it returned.
    pub fn until(&mut self, since: Instant, mut seen: impl FnMut() -> bool) -> Result<Duration> {
        while !seen() {
            if since.elapsed() > DEADLINE {
                self.agent.expect_alive()?;
                bail!(
                    "no connect saw the change in {DEADLINE:?}; {}",
                    self.agent.last_words(15)
                );
            }
        }
        Ok(since.elapsed())
    }

    /// Waits until connects to services `range` reach a backend.
    pub fn until_served(
        &mut self,
        since: Instant,
        range: std::ops::Range<u32>,
    ) -> Result<Duration> {
        for service in range {
            self.until(since, || backend_of(service_address(service)).is_some())?;
        }
        Ok(since.elapsed())
    }

    pub fn memory(&self) -> Result<Memory> {
        Memory::of(self.agent.pid())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The arena kills what does not end.
        let _ = self.agent.terminate(Duration::from_secs(10));
        let _ = self.arena.cgroup();
    }
}

/// Resident memory of a process, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Memory {
    pub resident: u64,
    pub anonymous: u64,
    /// Its program, its libraries, and those rows of the maps that it has touched.
    pub file: u64,
}

impl Memory {
    fn of(pid: u32) -> Result<Self> {
        let path = Path::new("/proc").join(pid.to_string()).join("status");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            kib.map(|kib| kib * 1024)
                .with_context(|| format!("{} has no {name}", path.display()))
        };
        Ok(Self {
            resident: field("VmRSS:")?,
            anonymous: field("RssAnon:")?,
            file: field("RssFile:")?,
        })
    }
}

/// Connects a fresh UDP socket to a service: the backend that it was sent to, or none if the connect failed.
///
/// Every backend's address is this namespace's own, and the kernel gives a socket that connects to such an address the
/// same one as its source: so the socket tells its peer, which `getpeername` would show as the service.
#[must_use]
pub fn backend_of(service: Ipv4Addr) -> Option<Ipv4Addr> {
    let socket: OwnedFd = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .ok()?;
    connect(&socket, &SocketAddrV4::new(service, SERVICE_PORT)).ok()?;
    match UdpSocket::from(socket).local_addr().ok()? {
        SocketAddr::V4(source) => Some(*source.ip()),
        SocketAddr::V6(_) => None,
    }
}

#[must_use]
pub fn service_address(service: u32) -> Ipv4Addr {
    // From 10.96.1.0 on.
    Ipv4Addr::from(0x0a60_0100 + service)
}

#[must_use]
pub fn backend(service: u32, nth: u32) -> Ipv4Addr {
    Ipv4Addr::from(BACKENDS.0 + 256 + service * BACKENDS_EACH + nth)
}

#[must_use]
pub fn all_backends(service: u32) -> Vec<Ipv4Addr> {
    (0..BACKENDS_EACH)
        .map(|nth| backend(service, nth))
        .collect()
}

#[must_use]
pub fn service_file(service: u32) -> String {
    format!("service-{service:05}.yaml")
}

/// A Service and its EndpointSlice, as people write them.
#[must_use]
pub fn service_yaml(service: u32, backends: &[Ipv4Addr]) -> String {
    let address = service_address(service);
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: service-{service:05}, namespace: bench}}\n\
         spec:\n  clusterIP: {address}\n  ports:\n  - {{protocol: UDP, port: {SERVICE_PORT}, targetPort: {BACKEND_PORT}}}\n---\n"
    );
    text.push_str(&slice_yaml(service, backends));
    text
}

#[must_use]
pub fn slice_yaml(service: u32, backends: &[Ipv4Addr]) -> String {
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: service-{service:05}-a\n  namespace: bench\n  \
         labels: {{kubernetes.io/service-name: service-{service:05}}}\naddressType: IPv4\n\
         ports:\n- {{protocol: UDP, port: {BACKEND_PORT}}}\nendpoints:\n"
    );
    for address in backends {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "- addresses: [{address}]\n  conditions: {{ready: true}}"
        );
    }
    text
}

/// A Service that selects Pods.
#[must_use]
pub fn selecting_yaml(service: u32) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: service-{service:05}, namespace: bench}}\nspec:\n  clusterIP: {}\n  \
         selector: {{app: service-{service:05}}}\n  ports:\n  - {{protocol: UDP, port: {SERVICE_PORT}, targetPort: {BACKEND_PORT}}}\n",
        service_address(service)
    )
}

/// A Pod of such a Service.
#[must_use]
pub fn pod_yaml(service: u32, ready: bool) -> String {
    let (address, ready) = (backend(service, 0), if ready { "True" } else { "False" });
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: pod-{service:05}\n  namespace: bench\n  labels: {{app: service-{service:05}}}\n\
         spec: {{nodeName: bench}}\nstatus:\n  phase: Running\n  podIP: {address}\n  podIPs: [{{ip: {address}}}]\n  \
         conditions: [{{type: Ready, status: \"{ready}\"}}]\n"
    )
}
