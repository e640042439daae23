//! One node: a real agent on a directory of manifests, and a client that asks the kernel.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

use super::arena::{Arena, BACKENDS, SERVICE_CIDR};
use crate::mesh::get;
use crate::process::{Process, Programs};

pub const BACKENDS_EACH: u32 = 4;
/// Addresses that a service has for its backends.
const BACKENDS_MOST: u32 = 16;
pub const AGENT_HTTP: &str = "127.0.0.1:9970";
const SERVICE_PORT: u16 = 53;
const BACKEND_PORT: u16 = 5353;
/// How long a change, or an agent's start, may take before the benchmark fails.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a node begins with.
#[derive(Clone, Debug)]
pub struct Beginning {
    /// A file each.
    pub services: u32,
    /// Backends of each service; without any, its endpoints are other clusters'.
    pub each: u32,
    /// All services are global.
    pub global: bool,
    /// More of the agent's flags.
    pub flags: Vec<String>,
}

impl Beginning {
    #[must_use]
    pub fn of(services: u32) -> Self {
        Self {
            services,
            each: BACKENDS_EACH,
            global: false,
            flags: Vec::new(),
        }
    }

    /// Writes the services' files into a directory that is made.
    pub fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir(directory)?;
        for service in 0..self.services {
            let backends = backends(service, self.each);
            let mut text = if backends.is_empty() {
                head_yaml(service)
            } else {
                service_yaml(service, &backends)
            };
            if self.global {
                text = global(&text);
            }
            fs::write(directory.join(service_file(service)), text)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
pub struct Node {
    agent: Process,
    /// Processes beside it.
    others: Vec<Process>,
    home: tempfile::TempDir,
    /// Last, so that the agent has ended when its cgroup goes.
    arena: Arena,
}

impl Node {
    /// Starts an agent on a directory that holds services `0..services`, a file each; it need not be ready yet.
    pub fn start(services: u32) -> Result<Self> {
        Self::start_beside(&Beginning::of(services), |_, _| Ok(Vec::new()))
    }

    /// The same, after others were started in the node's namespace, with a directory of their own to write to.
    pub fn start_beside(
        beginning: &Beginning,
        others: impl FnOnce(&Programs, &Path) -> Result<Vec<Process>>,
    ) -> Result<Self> {
        let programs = Programs::beside_this_one()?;
        let program = programs.find("isthmus-agent")?;
        let arena = Arena::enter()?;
        let home = tempfile::tempdir().context("a directory for the agent")?;
        let manifests = home.path().join("manifests");
        beginning.write(&manifests)?;
        let others = others(&programs, home.path())?;
        let mut command = Command::new(program);
        command.args([
            "--cluster-name",
            "east",
            "--cluster-id",
            "1",
            "--node-name",
            "bench",
        ]);
        command.args(["--service-cidr", SERVICE_CIDR, "--http", AGENT_HTTP]);
        command
            .arg("--source")
            .arg(format!("dir:{}", manifests.display()));
        command.arg("--cgroup").arg(arena.cgroup());
        command.arg("--bpffs").arg(arena.pins());
        command.arg("--state-dir").arg(home.path().join("state"));
        command.arg("--socket").arg(home.path().join("agent.sock"));
        command.args(&beginning.flags);
        let agent = Process::start("isthmus-agent", command, home.path().join("agent.log"))?;
        Ok(Self {
            agent,
            others,
            home,
            arena,
        })
    }

    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.home.path().join("manifests")
    }

    /// Puts a file in place, whole, and returns the moment before it was there.
    pub fn put(&self, file: &str, text: &str) -> Result<Instant> {
        put(&self.manifests(), file, text)
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

    /// Time that the agent's threads have run.
    pub fn cpu(&self) -> Result<Duration> {
        let tasks = Path::new("/proc")
            .join(self.agent.pid().to_string())
            .join("task");
        let mut nanoseconds = 0;
        for task in fs::read_dir(&tasks).with_context(|| tasks.display().to_string())? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            let ran = text.split(' ').next().and_then(|n| n.parse::<u64>().ok());
            nanoseconds += ran.with_context(|| format!("{text:?} is no schedstat"))?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// A gauge of the agent's metrics, summed over its labels.
    pub fn gauge(&self, name: &str) -> Result<f64> {
        gauge(AGENT_HTTP, name)
    }

    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The arena kills what does not end.
        for process in self.others.iter_mut().chain([&mut self.agent]) {
            let _ = process.terminate(Duration::from_secs(10));
        }
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
    pub fn of(pid: u32) -> Result<Self> {
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
    Ipv4Addr::from(BACKENDS.0 + 256 + service * BACKENDS_MOST + nth)
}

#[must_use]
pub fn all_backends(service: u32) -> Vec<Ipv4Addr> {
    backends(service, BACKENDS_EACH)
}

/// The first so many of a service's backends.
#[must_use]
pub fn backends(service: u32, count: u32) -> Vec<Ipv4Addr> {
    (0..count).map(|nth| backend(service, nth)).collect()
}

/// Puts a file in place in a directory, whole, and returns the moment before it was there.
pub fn put(directory: &Path, file: &str, text: &str) -> Result<Instant> {
    let half = directory.join(format!(".{file}.new"));
    fs::write(&half, text)?;
    let before = Instant::now();
    fs::rename(&half, directory.join(file))?;
    Ok(before)
}

/// Sums the samples of a gauge, over all labels, that a process' metrics show.
pub fn gauge(address: &str, name: &str) -> Result<f64> {
    let samples = samples(address, name)?;
    ensure!(!samples.is_empty(), "{address}/metrics has no {name}");
    Ok(samples.iter().map(|(_, value)| value).sum())
}

/// The samples of a metric, each behind its labels.
pub fn samples(address: &str, name: &str) -> Result<Vec<(String, f64)>> {
    let (status, page) = get(address, "/metrics")?;
    ensure!(status == 200, "{address}/metrics answers {status}");
    let samples = page.lines().filter_map(|line| {
        let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
        let whole = labels.is_empty() || labels.starts_with('{');
        Some((labels.to_owned(), value.parse().ok().filter(|_| whole)?))
    });
    Ok(samples.collect())
}

#[must_use]
pub fn service_file(service: u32) -> String {
    format!("service-{service:05}.yaml")
}

/// A Service and its EndpointSlice, as people write them.
#[must_use]
pub fn service_yaml(service: u32, backends: &[Ipv4Addr]) -> String {
    let mut text = head_yaml(service);
    text.push_str("---\n");
    text.push_str(&slice_yaml(service, backends));
    text
}

/// The same, with its Service shared with all clusters.
#[must_use]
pub fn global(text: &str) -> String {
    text.replacen(
        "namespace: bench}",
        "namespace: bench, annotations: {service.cilium.io/global: \"true\"}}",
        1,
    )
}

/// The Service alone.
#[must_use]
pub fn head_yaml(service: u32) -> String {
    let address = service_address(service);
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: service-{service:05}, namespace: bench}}\n\
         spec:\n  clusterIP: {address}\n  ports:\n  - {{protocol: UDP, port: {SERVICE_PORT}, targetPort: {BACKEND_PORT}}}\n"
    )
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
