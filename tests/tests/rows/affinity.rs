//! Session affinity: a client comes back to its backend, for as long as its service says, within the tier in use.
//!
//! Long because it is one table, of which every row is a small function.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use isthmus_abi::{
    AffinityKey, AffinityRow, BackendHealthRow, BackendRow, HealthState, Ring, ServiceLimitsRow,
    Slot, TICK_SHIFT, TierHead, health_kind,
};
use isthmus_agent::datapath::{KernelHash, clock};
use isthmus_core::model::Protocol;
use isthmus_core::table::TableBackend;
use socket2::{Domain, Socket, Type};

use super::Row;
use super::world::{SERVICE_PORT, SERVICE4, SERVICE6, SIZES, TCP4, TCP6, UDP4, UDP6, World};

/// Connects after which chance alone has not kept one of four backends, but for one in 10¹² runs.
const MANY: usize = 20;
const SPAN: u32 = 200;
const TIMEOUT: u32 = 10_800;
/// Nobody's.
const OTHER_SERVICE: u32 = 60;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Tcp4,
    Tcp6,
    Udp4,
    Udp6,
    /// Without a connect.
    Datagram4,
    Datagram6,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Tcp4,
        Self::Tcp6,
        Self::Udp4,
        Self::Udp6,
        Self::Datagram4,
        Self::Datagram6,
    ];
    fn is_v6(self) -> bool {
        matches!(self, Self::Tcp6 | Self::Udp6 | Self::Datagram6)
    }
    fn protocol(self) -> Protocol {
        match self {
            Self::Tcp4 | Self::Tcp6 => Protocol::Tcp,
            _ => Protocol::Udp,
        }
    }
    fn service(self) -> u32 {
        match (self.protocol(), self.is_v6()) {
            (Protocol::Tcp, false) => TCP4,
            (Protocol::Tcp, true) => TCP6,
            (_, false) => UDP4,
            (_, true) => UDP6,
        }
    }
    fn ip(self) -> IpAddr {
        if self.is_v6() {
            SERVICE6.into()
        } else {
            SERVICE4.into()
        }
    }
}

/// A service of four backends that are one listener: which one was meant is told by the kernel's counts.
struct Scene {
    kind: Kind,
    service: u32,
}

impl Scene {
    fn new(world: &mut World, kind: Kind) -> anyhow::Result<Self> {
        let backend = if kind.is_v6() {
            world.backend6
        } else {
            world.backend4
        };
        let service = kind.service();
        world.service(service, kind.ip(), kind.protocol(), &[backend; 4])?;
        let scene = Self { kind, service };
        scene.ring(world, Ring::new(service * 4, 1, 4))?;
        scene.allow(world, TIMEOUT)?;
        // Nobody comes back from an earlier scene.
        let mut table: KernelHash<AffinityKey, AffinityRow> =
            world.datapath().hash("affinity", "")?;
        for (key, _) in scene.rows(world)? {
            table.remove(key)?;
        }
        Ok(scene)
    }
    fn ring(&self, world: &mut World, ring: Ring) -> anyhow::Result<()> {
        Ok(world
            .tables()
            .rings
            .put(self.service, ring.with_affinity(true))?)
    }
    fn allow(&self, world: &mut World, affinity_seconds: u32) -> anyhow::Result<()> {
        let row = ServiceLimitsRow {
            allowed_total: 4,
            affinity_seconds,
            flags: 0,
        };
        Ok(world.tables().service_limits.put(self.service, row)?)
    }
    fn counts(&self, world: &World) -> anyhow::Result<Vec<u64>> {
        (0..4)
            .map(|nth| world.connects(self.service * 4 + nth))
            .collect()
    }
    /// Connects, or sends, once by a new socket of this thread's namespace; which backend was meant.
    fn connect(&self, world: &World) -> anyhow::Result<usize> {
        let before = self.counts(world)?;
        connect(self.kind)?;
        world.drain()?;
        let after = self.counts(world)?;
        let gained: Vec<usize> = (0..4).filter(|nth| after[*nth] > before[*nth]).collect();
        ensure!(gained.len() == 1, "{before:?} became {after:?}");
        Ok(gained[0])
    }
    fn stays(&self, world: &World, wanted: usize) -> anyhow::Result<()> {
        for _ in 0..MANY {
            let nth = self.connect(world)?;
            ensure!(nth == wanted, "backend {wanted}, then {nth}");
        }
        Ok(())
    }
    fn set_state(&self, world: &mut World, nth: usize, state: HealthState) -> anyhow::Result<()> {
        let id = self.service * 4 + u32::try_from(nth)?;
        let rows = world.datapath().array::<BackendHealthRow>()?;
        let row = BackendHealthRow {
            state: state.0,
            ..rows.get(id)
        };
        Ok(world.tables().backend_health.put(id, row)?)
    }
    fn state(&self, world: &World, nth: usize) -> anyhow::Result<HealthState> {
        let id = self.service * 4 + u32::try_from(nth)?;
        let rows = world.datapath().array::<BackendHealthRow>()?;
        Ok(HealthState(rows.get(id).state))
    }
    fn rows(&self, world: &World) -> anyhow::Result<Vec<(AffinityKey, AffinityRow)>> {
        let table: KernelHash<AffinityKey, AffinityRow> = world.datapath().hash("affinity", "")?;
        let mut rows = Vec::new();
        table.for_each(&mut |key, row| {
            if key.service == self.service {
                rows.push((key, row));
            }
        })?;
        Ok(rows)
    }
    /// Lays two tiers: the first of these backends, the second of those.
    fn tiers(&self, world: &mut World, first: &[usize], second: &[usize]) -> anyhow::Result<()> {
        let len = |tier: &[usize]| u32::try_from(tier.len());
        let head = TierHead::new(1 + len(first)?, len(second)?);
        world.tables().slots.put(SPAN, Slot(head.0))?;
        for (at, nth) in (SPAN + 1..).zip(first.iter().chain(second)) {
            let id = self.service * 4 + u32::try_from(*nth)?;
            world.tables().slots.put(at, Slot::new(id, self.service))?;
        }
        self.ring(world, Ring::new(SPAN, 2, len(first)?))
    }
}

fn connect(kind: Kind) -> anyhow::Result<()> {
    let domain = if kind.is_v6() {
        Domain::IPV6
    } else {
        Domain::IPV4
    };
    let stream = kind.protocol() == Protocol::Tcp;
    let socket_type = if stream { Type::STREAM } else { Type::DGRAM };
    let socket = Socket::new(domain, socket_type, None)?;
    if stream {
        socket.set_linger(Some(Duration::ZERO))?;
    }
    let to = SocketAddr::new(kind.ip(), SERVICE_PORT).into();
    if matches!(kind, Kind::Datagram4 | Kind::Datagram6) {
        socket.send_to(b"hello", &to)?;
    } else {
        socket.connect(&to)?;
    }
    Ok(())
}

pub fn rows() -> Vec<Row> {
    type Each = fn(&mut World, Kind) -> anyhow::Result<()>;
    let each: [(&str, Each); 7] = [
        ("a client comes back", comes_back),
        ("time-out", times_out),
        ("the backend removed: another, which is kept", removed),
        ("its slot moved: the same backend", slot_moved),
        (
            "in another tier: left, and the tier in use kept",
            other_tier,
        ),
        ("off: drawn anew", off),
        ("restart: the same backend", restart),
    ];
    let mut rows: Vec<Row> = Vec::new();
    for kind in Kind::ALL {
        for (name, row) in each {
            rows.push((
                format!("affinity {kind:?}: {name}"),
                Box::new(move |world| row(world, kind)),
            ));
        }
    }
    let row = |name: &str, row: fn(&mut World) -> anyhow::Result<()>| -> Row {
        (format!("affinity: {name}"), Box::new(row))
    };
    rows.extend([
        row("the backend ejected: another, which is kept", ejected),
        row("the backend suspect: it stays", suspect),
        row(
            "the first tier ejected: one of the second is kept",
            tier_ejected,
        ),
        row(
            "a backend that is due is tried by a client of another",
            tried,
        ),
        row(
            "a backend that the client is not sent to is not found well",
            no_false_success,
        ),
        row("namespaces are clients of their own", clients),
        row(
            "the map full: who comes back is kept, who came once is forgotten",
            full,
        ),
    ]);
    rows
}

fn comes_back(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    let scene = Scene::new(world, kind)?;
    let first = scene.connect(world)?;
    scene.stays(world, first)?;
    let rows = scene.rows(world)?;
    ensure!(rows.len() == 1, "{} rows for one client", rows.len());
    Ok(())
}

/// As long ago as a time-out, without waiting for it: the clock's own zero is long past.
fn times_out(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    let scene = Scene::new(world, kind)?;
    let mut seen = std::collections::BTreeSet::new();
    let mut table: KernelHash<AffinityKey, AffinityRow> = world.datapath().hash("affinity", "")?;
    // The machine may not be up for as long as the default.
    scene.allow(world, 1)?;
    for _ in 0..2 * MANY {
        seen.insert(scene.connect(world)?);
        let rows = scene.rows(world)?;
        let (key, row) = *rows.first().context("no row")?;
        table.remove(key)?;
        table.put(key, AffinityRow { used: 0, ..row })?;
    }
    ensure!(seen.len() > 1, "only backend {seen:?}");
    // Within the time, the same row counts.
    scene.allow(world, TIMEOUT)?;
    let last = scene.connect(world)?;
    scene.stays(world, last)
}

fn removed(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    let scene = Scene::new(world, kind)?;
    let first = scene.connect(world)?;
    let others: Vec<usize> = (0..4).filter(|nth| *nth != first).collect();
    for (at, nth) in (SPAN..).zip(&others) {
        let id = scene.service * 4 + u32::try_from(*nth)?;
        world.tables().slots.put(at, Slot::new(id, scene.service))?;
    }
    scene.ring(world, Ring::new(SPAN, 1, 3))?;
    let id = scene.service * 4 + u32::try_from(first)?;
    let row = world.datapath().array::<BackendRow>()?.get(id);
    world.tables().backends.remove(id)?;
    let second = scene.connect(world)?;
    ensure!(second != first);
    scene.stays(world, second)?;
    // The id's next life is another backend's.
    let next = BackendRow {
        generation: row.generation + 1,
        ..row
    };
    world.tables().backends.put(id, next)?;
    scene.ring(world, Ring::new(scene.service * 4, 1, 4))?;
    scene.stays(world, second)
}

fn slot_moved(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    let scene = Scene::new(world, kind)?;
    let first = scene.connect(world)?;
    for (at, nth) in (SPAN..).zip((0..4).rev()) {
        let id = scene.service * 4 + nth;
        world.tables().slots.put(at, Slot::new(id, scene.service))?;
    }
    scene.ring(world, Ring::new(SPAN, 1, 4))?;
    scene.stays(world, first)
}

fn other_tier(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    let scene = Scene::new(world, kind)?;
    let first = scene.connect(world)?;
    let others: Vec<usize> = (0..4).filter(|nth| *nth != first).collect();
    scene.tiers(world, &others, &[first])?;
    let second = scene.connect(world)?;
    ensure!(second != first, "a backend of the second tier was kept");
    scene.stays(world, second)
}

fn off(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    let scene = Scene::new(world, kind)?;
    world
        .tables()
        .rings
        .put(scene.service, Ring::new(scene.service * 4, 1, 4))?;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..2 * MANY {
        seen.insert(scene.connect(world)?);
    }
    ensure!(seen.len() > 1, "only backend {seen:?}");
    ensure!(scene.rows(world)?.is_empty());
    Ok(())
}

fn restart(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    let scene = Scene::new(world, kind)?;
    let first = scene.connect(world)?;
    world.start(|_| ())?;
    scene.stays(world, first)
}

/// Beyond any row's life.
fn far_ejection() -> HealthState {
    HealthState::ejected(1 << 40, 0)
}

fn ejected(world: &mut World) -> anyhow::Result<()> {
    let scene = Scene::new(world, Kind::Tcp4)?;
    let first = scene.connect(world)?;
    scene.set_state(world, first, far_ejection())?;
    let second = scene.connect(world)?;
    ensure!(second != first);
    scene.stays(world, second)?;
    scene.set_state(world, first, HealthState::HEALTHY)?;
    scene.stays(world, second)
}

fn tier_ejected(world: &mut World) -> anyhow::Result<()> {
    let scene = Scene::new(world, Kind::Tcp4)?;
    scene.tiers(world, &[0], &[1, 2, 3])?;
    scene.stays(world, 0)?;
    scene.set_state(world, 0, far_ejection())?;
    let second = scene.connect(world)?;
    ensure!(second != 0);
    scene.stays(world, second)?;
    // The first tier is in use again.
    scene.set_state(world, 0, HealthState::HEALTHY)?;
    scene.stays(world, 0)
}

/// Its time is over, and every client comes back to another backend.
fn tried(world: &mut World) -> anyhow::Result<()> {
    let scene = Scene::new(world, Kind::Tcp4)?;
    let kept = scene.connect(world)?;
    scene.stays(world, kept)?;
    let due = (kept + 1) % 4;
    scene.set_state(world, due, HealthState::ejected(1, 0))?;
    let mut seen = std::collections::BTreeSet::new();
    let deadline = Instant::now() + Duration::from_secs(10);
    while scene.state(world, due)?.kind() != health_kind::HEALTHY && Instant::now() < deadline {
        seen.insert(scene.connect(world)?);
    }
    ensure!(
        scene.state(world, due)?.kind() == health_kind::HEALTHY,
        "nobody tried it: {seen:?}"
    );
    ensure!(seen == [kept, due].into(), "{seen:?}");
    // The trial was no reason to come back there.
    scene.stays(world, kept)
}

/// Another client's failure, and a connect that may still be on its way, are no reason to go elsewhere.
fn suspect(world: &mut World) -> anyhow::Result<()> {
    let scene = Scene::new(world, Kind::Tcp4)?;
    let kept = scene.connect(world)?;
    scene.stays(world, kept)?;
    let now = clock() >> TICK_SHIFT;
    let state = HealthState::suspect(now).accused(true).probed(now);
    scene.set_state(world, kept, state)?;
    scene.stays(world, kept)
}

/// In a later tier health may choose one backend and affinity another.
fn no_false_success(world: &mut World) -> anyhow::Result<()> {
    let scene = Scene::new(world, Kind::Tcp4)?;
    scene.tiers(world, &[0], &[1, 2])?;
    scene.set_state(world, 0, far_ejection())?;
    let kept = scene.connect(world)?;
    scene.stays(world, kept)?;
    let other = 3 - kept;
    scene.set_state(world, other, HealthState::suspect(1))?;
    scene.stays(world, kept)?;
    scene.stays(world, kept)?;
    let state = scene.state(world, other)?;
    ensure!(
        state == HealthState::suspect(1),
        "{state:?} by connects to another"
    );
    Ok(())
}

fn clients(world: &mut World) -> anyhow::Result<()> {
    const CLIENTS: usize = 12;
    let scene = Scene::new(world, Kind::Udp4)?;
    scene.connect(world)?;
    for _ in 0..CLIENTS {
        // UDP connects without a packet: a route will do.
        let elsewhere = std::thread::spawn(|| -> anyhow::Result<()> {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
            super::world::run("ip", &["link", "set", "lo", "up"])?;
            connect(Kind::Udp4)?;
            connect(Kind::Udp4)
        });
        elsewhere
            .join()
            .map_err(|_| anyhow::anyhow!("a client's thread panicked"))??;
    }
    let rows = scene.rows(world)?;
    ensure!(
        rows.len() == CLIENTS + 1,
        "{} rows for {CLIENTS} clients and this one",
        rows.len()
    );
    let counts = scene.counts(world)?;
    ensure!(
        counts.iter().sum::<u64>() == 2 * CLIENTS as u64 + 1
            && counts.iter().filter(|count| **count > 0).count() > 1,
        "{counts:?}"
    );
    Ok(())
}

/// A client of another service.
fn another(client: u64) -> (AffinityKey, AffinityRow) {
    let key = AffinityKey {
        client,
        service: OTHER_SERVICE,
        reserved: 0,
    };
    let row = AffinityRow {
        used: 1,
        backend: 0,
        generation: 0,
        slot: 0,
        reserved: 0,
    };
    (key, row)
}

/// Three times as many other clients as the map has rows come, each once: the first of them are forgotten. A client that comes back
/// meanwhile is kept. One that stays away for so long is served, whether it is remembered or not: on Linux 6.1 and 6.12 a row that was
/// looked up outlives those that never were.
fn full(world: &mut World) -> anyhow::Result<()> {
    const OTHERS: u64 = 3 * SIZES.affinity as u64;
    // Between two visits of the client: fewer than half of the rows.
    const BETWEEN: u64 = 100;
    let scene = Scene::new(world, Kind::Udp4)?;
    let mut table: KernelHash<AffinityKey, AffinityRow> = world.datapath().hash("affinity", "")?;
    let kept = scene.connect(world)?;
    let visitor = Visitor::comes();
    ensure!(scene.rows(world)?.len() == 2);
    let idle = 1_000_000;
    for client in idle..idle + OTHERS {
        let (key, row) = another(client);
        table.put(key, row)?;
        if client % BETWEEN == 0 {
            let nth = scene.connect(world)?;
            ensure!(nth == kept, "backend {kept}, then {nth}");
        }
    }
    let mut clients = std::collections::BTreeSet::new();
    table.for_each(&mut |key, _| {
        clients.insert((key.service, key.client));
    })?;
    let rows = u64::try_from(clients.len())?;
    // Rows are taken back some at a time, on each CPU.
    ensure!(
        rows <= SIZES.affinity.into() && rows * 2 > SIZES.affinity.into(),
        "{rows} rows of {}",
        SIZES.affinity
    );
    ensure!(
        !clients.contains(&(OTHER_SERVICE, idle))
            && clients.contains(&(OTHER_SERVICE, idle + OTHERS - 1)),
        "the first of the others stays, or the last does not"
    );
    visitor.comes_again()?;
    ensure!(scene.rows(world)?.len() == 2);
    scene.stays(world, kept)
}

/// A client in a namespace of its own, which comes once, stays away, and comes again.
struct Visitor {
    again: std::sync::mpsc::Sender<()>,
    thread: std::thread::JoinHandle<anyhow::Result<()>>,
}

impl Visitor {
    fn comes() -> Self {
        let (again, wait) = std::sync::mpsc::channel();
        let (came, first) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || -> anyhow::Result<()> {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
            super::world::run("ip", &["link", "set", "lo", "up"])?;
            connect(Kind::Udp4)?;
            came.send(())?;
            wait.recv()?;
            connect(Kind::Udp4)
        });
        // If it failed, its own error says more than a channel's.
        let _ = first.recv();
        Self { again, thread }
    }
    fn comes_again(self) -> anyhow::Result<()> {
        let _ = self.again.send(());
        let ended = self.thread.join();
        ended.map_err(|_| anyhow::anyhow!("a client's thread panicked"))?
    }
}
