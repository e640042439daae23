//! The rows' world: this process moves into a network namespace and a cgroup of its own.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use isthmus_abi::{
    BackendHealthRow, BackendRow, Counter, Frontend4Key, Frontend6Key, FrontendValue, NetPort,
    Ring, ScopeProtocol, Slot, backend_state,
};
use isthmus_agent::datapath::{Datapath, DatapathConfig, MapSizes, cleanup};
use isthmus_core::model::{Address, Protocol};
use isthmus_core::table::Tables;
use isthmus_tests::layout::PIN_ROOT;
use isthmus_tests::leftovers::sweep;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::fastopen;

/// Service address of the rows' IPv4 service, and its twin of IPv6.
pub const SERVICE4: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
pub const SERVICE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x10);
/// An address inside the service CIDR that is nobody's.
pub const NOBODY4: Ipv4Addr = Ipv4Addr::new(10, 96, 9, 9);
pub const SERVICE_PORT: u16 = 80;
const BACKEND4: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
const BACKEND6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xb, 0, 0, 0, 0, 0, 1);

/// The kernel's own (tcp(7)): a row may have set another.
const SYN_RETRIES: &str = "6";
const CGROUP_PREFIX: &str = "isthmus-rows-";
const PIN_PREFIX: &str = "rows-";

pub const SIZES: MapSizes = MapSizes {
    services: 64,
    backends: 64,
    ring_slots: 262_144,
    affinity: 1024,
};

/// Services of the rows, by index.
pub const TCP4: u32 = 1;
pub const UDP4: u32 = 2;
pub const TCP6: u32 = 3;
pub const UDP6: u32 = 4;

pub struct World {
    cgroup: PathBuf,
    bpffs: PathBuf,
    home: PathBuf,
    datapath: Option<Datapath>,
    /// How it was started.
    started: Option<DatapathConfig>,
    tables: Option<Tables>,
    /// As the row began.
    counters: Vec<u64>,
    /// Of the row's backends: what is known of an earlier row's is not theirs.
    generation: u32,
    tcp: [TcpListener; 2],
    udp: [UdpSocket; 2],
    pub backend4: SocketAddr,
    pub backend6: SocketAddr,
}

impl World {
    pub fn build() -> anyhow::Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "root is needed for namespaces, cgroups and BPF: run with sudo"
        );
        unshare(CloneFlags::CLONE_NEWNET).context("a network namespace of its own")?;
        run("ip", &["link", "set", "lo", "up"])?;
        run(
            "ip",
            &[
                "-6",
                "addr",
                "add",
                &format!("{BACKEND6}/128"),
                "dev",
                "lo",
                "nodad",
            ],
        )?;
        let home = cgroup2().context("cgroup2")?;
        sweep(&home, CGROUP_PREFIX, PIN_PREFIX).context("removing what killed rows left")?;
        let pid = std::process::id();
        let cgroup = home.join(format!("{CGROUP_PREFIX}{pid}"));
        fs::create_dir(&cgroup).with_context(|| format!("making {}", cgroup.display()))?;
        fs::write(cgroup.join("cgroup.procs"), "0").context("joining the cgroup")?;
        // Of this namespace: clients and servers of TCP Fast Open, and no pause of it after a connection that broke.
        fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3").context("tcp_fastopen")?;
        fs::write("/proc/sys/net/ipv4/tcp_fastopen_blackhole_timeout_sec", "0")
            .context("tcp_fastopen_blackhole_timeout_sec")?;
        let tcp4 = TcpListener::bind((BACKEND4, 0))?;
        let tcp6 = TcpListener::bind((BACKEND6, 0))?;
        let udp4 = UdpSocket::bind(tcp4.local_addr()?)?;
        let udp6 = UdpSocket::bind(tcp6.local_addr()?)?;
        let (backend4, backend6) = (tcp4.local_addr()?, tcp6.local_addr()?);
        let bpffs = Path::new(PIN_ROOT).join(format!("{PIN_PREFIX}{pid}"));
        for listener in [&tcp4, &tcp6] {
            listener.set_nonblocking(true)?;
            fastopen::listen(listener).context("TCP_FASTOPEN")?;
        }
        for socket in [&udp4, &udp6] {
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        }
        let mut world = Self {
            cgroup,
            bpffs,
            home,
            datapath: None,
            started: None,
            tables: None,
            counters: Vec::new(),
            generation: 0,
            tcp: [tcp4, tcp6],
            udp: [udp4, udp6],
            backend4,
            backend6,
        };
        world.start(|_| ())?;
        Ok(world)
    }

    pub fn config(&self) -> DatapathConfig {
        DatapathConfig {
            bpffs: self.bpffs.clone(),
            cgroup: Some(self.cgroup.clone()),
            sizes: SIZES,
            service_cidrs: ["10.96.0.0/12", "fd00:10:96::/108"]
                .map(|cidr| cidr.parse().expect("a CIDR"))
                .to_vec(),
            translate_pods: true,
            refuse_unknown_port: true,
            refuse_errno: libc::ECONNREFUSED.cast_unsigned(),
            passive_health: true,
        }
    }

    /// A new agent's datapath in the place of the present one, if any, as at a restart.
    pub fn start(&mut self, change: impl FnOnce(&mut DatapathConfig)) -> anyhow::Result<()> {
        let mut config = self.config();
        change(&mut config);
        self.tables = None;
        self.datapath = None;
        self.started = None;
        let mut datapath = Datapath::open(&config)?;
        datapath.attach()?;
        self.tables = Some(datapath.tables()?);
        self.datapath = Some(datapath);
        self.started = Some(config);
        Ok(())
    }

    /// Without programs, and with no maps but those of what sockets remember, until the next start.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.tables = None;
        self.datapath = None;
        self.started = None;
        for entry in fs::read_dir(&self.bpffs)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    pub fn datapath(&self) -> &Datapath {
        self.datapath.as_ref().expect("built")
    }

    pub fn tables(&mut self) -> &mut Tables {
        self.tables.as_mut().expect("built")
    }

    /// Settings and tables as every row begins: one service of each family and protocol, one backend each.
    pub fn reset(&mut self) -> anyhow::Result<()> {
        if self.started.as_ref() != Some(&self.config()) {
            self.start(|_| ())?;
        }
        self.generation += 1;
        fs::write("/proc/sys/net/ipv4/tcp_syn_retries", SYN_RETRIES)?;
        self.clear()?;
        let (b4, b6) = (self.backend4, self.backend6);
        self.service(TCP4, SERVICE4.into(), Protocol::Tcp, &[b4])?;
        self.service(UDP4, SERVICE4.into(), Protocol::Udp, &[b4])?;
        self.service(TCP6, SERVICE6.into(), Protocol::Tcp, &[b6])?;
        self.service(UDP6, SERVICE6.into(), Protocol::Udp, &[b6])?;
        for address in [IpAddr::from(SERVICE4), SERVICE6.into()] {
            self.frontend(address, 0, ScopeProtocol::ADDRESS_ONLY, u32::MAX)?;
        }
        self.drain()?;
        self.counters = self.datapath().counters()?;
        Ok(())
    }

    fn clear(&mut self) -> anyhow::Result<()> {
        let tables = self.tables();
        let mut keys4 = Vec::new();
        tables.frontends4.for_each(&mut |key, _| keys4.push(key))?;
        keys4
            .into_iter()
            .try_for_each(|key| tables.frontends4.remove(key))?;
        let mut keys6 = Vec::new();
        tables.frontends6.for_each(&mut |key, _| keys6.push(key))?;
        keys6
            .into_iter()
            .try_for_each(|key| tables.frontends6.remove(key))?;
        for index in 0..SIZES.services {
            tables.rings.remove(index)?;
            tables.service_health.remove(index)?;
            tables.service_limits.remove(index)?;
        }
        for index in 0..SIZES.backends {
            tables.backends.remove(index)?;
            tables.backend_health.remove(index)?;
            tables.backend_failures.remove(index)?;
        }
        Ok(())
    }

    /// Writes a service with a ring of one tier. Backend ids and the span follow from its index: at most 4 backends.
    pub fn service(
        &mut self,
        service: u32,
        address: IpAddr,
        protocol: Protocol,
        backends: &[SocketAddr],
    ) -> anyhow::Result<()> {
        ensure!(
            backends.len() <= 4,
            "a row's service has at most 4 backends"
        );
        for (id, backend) in (service * 4..).zip(backends) {
            self.backend(id, service, protocol, *backend)?;
            self.tables().slots.put(id, Slot::new(id, service))?;
        }
        let len = u32::try_from(backends.len())?;
        self.tables().rings.put(
            service,
            if len == 0 {
                Ring::EMPTY
            } else {
                Ring::new(service * 4, 1, len)
            },
        )?;
        self.frontend(address, SERVICE_PORT, protocol.abi(), service)
    }

    pub fn backend(
        &mut self,
        id: u32,
        service: u32,
        protocol: Protocol,
        at: SocketAddr,
    ) -> anyhow::Result<()> {
        let row = BackendRow {
            address: Address::from(at.ip()).words(),
            port: NetPort::from_host(at.port()).net(),
            cluster: 1,
            service,
            generation: self.generation,
            state: backend_state::LIVE,
            protocol: u8::try_from(protocol.abi())?,
            reserved: [0; 2],
        };
        Ok(self.tables().backends.put(id, row)?)
    }

    pub fn frontend(
        &mut self,
        address: IpAddr,
        port: u16,
        protocol: u16,
        service: u32,
    ) -> anyhow::Result<()> {
        let port = NetPort::from_host(port);
        let scope_protocol = ScopeProtocol::new(0, protocol);
        let value = FrontendValue {
            service,
            reserved: 0,
        };
        match address {
            IpAddr::V4(v4) => {
                let key = Frontend4Key {
                    address: u32::from(v4).to_be(),
                    port,
                    scope_protocol,
                };
                self.tables().frontends4.remove(key)?;
                self.tables().frontends4.put(key, value)?;
            }
            IpAddr::V6(_) => {
                let key = Frontend6Key {
                    address: Address::from(address).words(),
                    port,
                    scope_protocol,
                };
                self.tables().frontends6.remove(key)?;
                self.tables().frontends6.put(key, value)?;
            }
        }
        Ok(())
    }

    pub fn connects(&self, backend: u32) -> anyhow::Result<u64> {
        Ok(self
            .datapath()
            .array::<BackendHealthRow>()?
            .get(backend)
            .connects)
    }

    /// Accepts and closes what clients left in the listeners' queues.
    pub fn drain(&self) -> anyhow::Result<()> {
        for listener in &self.tcp {
            while listener.accept().is_ok() {}
        }
        Ok(())
    }

    /// The next connection that a backend's own listener was given.
    pub fn accept(&self, backend: SocketAddr) -> anyhow::Result<TcpStream> {
        let of_v6 = usize::from(backend.is_ipv6());
        let (stream, _) = self.tcp[of_v6].accept().context("nobody connected")?;
        stream.set_nonblocking(false)?;
        Ok(stream)
    }

    /// A datagram has come, or comes within two seconds, to this backend's own socket. Gives its sender.
    pub fn expect_datagram(&self, backend: SocketAddr) -> anyhow::Result<SocketAddr> {
        let mut bytes = [0; 16];
        let (len, from) = self
            .udp(backend)
            .recv_from(&mut bytes)
            .with_context(|| format!("nothing came to {backend}"))?;
        ensure!(
            &bytes[..len] == b"hello",
            "{:?} came to {backend}",
            &bytes[..len]
        );
        Ok(from)
    }

    /// The backend answers the client's datagram that has come, or comes. Others' lie there still from before.
    pub fn answer_datagram(
        &self,
        backend: SocketAddr,
        client: &UdpSocket,
        answer: &[u8],
    ) -> anyhow::Result<()> {
        let port = client.local_addr()?.port();
        loop {
            let from = self.expect_datagram(backend)?;
            if from.port() == port {
                self.udp(backend).send_to(answer, from)?;
                return Ok(());
            }
        }
    }

    fn udp(&self, backend: SocketAddr) -> &UdpSocket {
        &self.udp[usize::from(backend.is_ipv6())]
    }

    /// What a program's counter has gained since the row began.
    pub fn gained(&self, counter: Counter) -> anyhow::Result<u64> {
        let place = counter as usize;
        Ok(self.datapath().counters()?[place] - self.counters[place])
    }

    pub fn expect_counter(&self, counter: Counter, wanted: u64) -> anyhow::Result<()> {
        let gained = self.gained(counter)?;
        ensure!(
            gained == wanted,
            "{counter:?} gained {gained}, not {wanted}"
        );
        Ok(())
    }

    /// Detaches and removes all that the rows made.
    fn remove(&mut self) -> anyhow::Result<()> {
        self.tables = None;
        self.datapath = None;
        cleanup(&self.bpffs).context("removing the pins")?;
        fs::write(self.home.join("cgroup.procs"), "0").context("leaving the cgroup")?;
        let deadline = Instant::now() + Duration::from_secs(5);
        while let Err(error) = fs::remove_dir(&self.cgroup) {
            if Instant::now() > deadline {
                bail!("removing {}: {error}", self.cgroup.display());
            }
            std::thread::yield_now();
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("the rows' world is not removed: {error:#}");
        }
    }
}

pub fn run(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let status = Command::new(program)
        .args(args)
        .status()
        .with_context(|| format!("starting {program}"))?;
    ensure!(status.success(), "{program} {} failed", args.join(" "));
    Ok(())
}

/// A cgroup2 mount: the one that is there, or one made for this process alone.
fn cgroup2() -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let found = mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ")
            .then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    });
    if let Some(path) = found {
        return Ok(path);
    }
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(
        Some("none"),
        Path::new("/sys/fs/cgroup"),
        Some("cgroup2"),
        MsFlags::empty(),
        none,
    )?;
    Ok("/sys/fs/cgroup".into())
}
