//! Passive health: what counts against a backend, what ejects it, and how it returns. One client, unless a row says so.
//!
//! Long because it is one table, of which every row is a small function.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use isthmus_abi::{
    BackendFailuresRow, BackendHealthRow, Counter, HealthState, Ring, ServiceHealthRow,
    ServiceLimitsRow, Slot, Standing, TierHead, health_kind, service_flags,
};
use isthmus_core::model::Protocol;
use nix::libc;
use socket2::{Domain, Socket, Type};

use super::Row;
use super::connect::{Kind, connect, open};
use super::world::{SERVICE_PORT, SERVICE4, SERVICE6, TCP4, TCP6, UDP4, World};

/// Enough connects that each of a few backends is drawn, but for one in 10¹⁰ runs.
pub(super) const MANY: usize = 80;

pub fn rows() -> Vec<Row> {
    let row = |name: &str, row: fn(&mut World) -> anyhow::Result<()>| -> Row {
        (format!("health: {name}"), Box::new(row))
    };
    let mut rows: Vec<Row> = [
        Kind::V4,
        Kind::V6,
        Kind::Mapped,
        Kind::NonBlocking,
        Kind::FastOpen,
        Kind::FastOpenConnect,
        Kind::Mptcp,
    ]
    .into_iter()
    .filter(|kind| kind.exists(Protocol::Tcp))
    .map(|kind| -> Row {
        (
            format!("health: {kind:?}: three refusals eject"),
            Box::new(move |world| three_refusals(world, kind)),
        )
    })
    .collect();
    for (name, end) in [
        ("the client closes first", End::ClientFirst),
        ("the server closes first", End::ServerFirst),
        ("the client resets", End::Reset),
        ("both stay open", End::Open),
    ] {
        let kinds = [Kind::V4, Kind::Mptcp];
        for kind in kinds.into_iter().filter(|k| k.exists(Protocol::Tcp)) {
            rows.push((
                format!("health: {kind:?}: a client stands soon when {name}"),
                Box::new(move |world| stands(world, kind, end)),
            ));
        }
    }
    rows.extend([
        row("a trial that succeeds readmits", trial_succeeds),
        row("a trial that is refused doubles the wait", trial_fails),
        row(
            "a trial that ends at once readmits as well",
            trial_ends_soon,
        ),
        row("all ejected: drawn as if none were", all_ejected),
        row("the next tier serves when the first is ejected", next_tier),
        row("a limit keeps backends in", capped),
        row("off for the node: counted, and nobody is ejected", off),
        row(
            "off for the service: counted, and nobody is ejected",
            off_for_service,
        ),
        row("UDP refusals are counted, and eject nobody", udp_refused),
        row("a failure of an earlier life is not charged", earlier_life),
        row("a client without a route fails by itself", no_route),
        row("a success clears suspicion", success_clears),
        row("restart: ejected backends stay ejected", restart),
    ]);
    rows
}

/// Backends of a row: a port that listens, and one that is closed.
pub(super) struct Pair {
    service: u32,
    address: IpAddr,
    alive: TcpListener,
    dead: SocketAddr,
}

impl Pair {
    pub(super) const ALIVE: u32 = 0;
    pub(super) const DEAD: u32 = 1;

    pub(super) fn new(world: &mut World, kind: Kind) -> anyhow::Result<Self> {
        let (service, address, local): (u32, IpAddr, IpAddr) = match kind {
            Kind::V6 => (TCP6, SERVICE6.into(), world.backend6.ip()),
            _ => (TCP4, SERVICE4.into(), Ipv4Addr::new(127, 0, 1, 2).into()),
        };
        let alive = TcpListener::bind((local, 0))?;
        alive.set_nonblocking(true)?;
        let closed = TcpListener::bind((local, 0))?;
        let dead = closed.local_addr()?;
        drop(closed);
        let pair = Self {
            service,
            address,
            alive,
            dead,
        };
        pair.declare(world)?;
        Ok(pair)
    }
    /// Writes it into the maps.
    pub(super) fn declare(&self, world: &mut World) -> anyhow::Result<()> {
        let backends = [self.alive.local_addr()?, self.dead];
        world.service(self.service, self.address, Protocol::Tcp, &backends)?;
        self.limit(world, 2, 0)
    }
    pub(super) fn limit(
        &self,
        world: &mut World,
        allowed_total: u64,
        flags: u32,
    ) -> anyhow::Result<()> {
        let row = ServiceLimitsRow {
            allowed_total,
            affinity_seconds: 0,
            flags,
        };
        Ok(world.tables().service_limits.put(self.service, row)?)
    }
    pub(super) fn service(&self) -> u32 {
        self.service
    }
    pub(super) fn dead(&self) -> SocketAddr {
        self.dead
    }
    pub(super) fn id(&self, which: u32) -> u32 {
        self.service * 4 + which
    }
    pub(super) fn health(&self, world: &World, which: u32) -> anyhow::Result<BackendHealthRow> {
        let rows = world.datapath().array::<BackendHealthRow>()?;
        Ok(rows.get(self.id(which)))
    }
    pub(super) fn state(&self, world: &World, which: u32) -> anyhow::Result<HealthState> {
        Ok(HealthState(self.health(world, which)?.state))
    }
    pub(super) fn set_state(
        &self,
        world: &mut World,
        which: u32,
        state: HealthState,
    ) -> anyhow::Result<()> {
        let row = BackendHealthRow {
            state: state.0,
            ..self.health(world, which)?
        };
        Ok(world.tables().backend_health.put(self.id(which), row)?)
    }
    pub(super) fn failures(&self, world: &World, which: u32) -> anyhow::Result<BackendFailuresRow> {
        let rows = world.datapath().array::<BackendFailuresRow>()?;
        Ok(rows.get(self.id(which)))
    }
    pub(super) fn service_health(&self, world: &World) -> anyhow::Result<ServiceHealthRow> {
        let rows = world.datapath().array::<ServiceHealthRow>()?;
        Ok(rows.get(self.service))
    }
    /// One backend in the first tier, and others in the second.
    pub(super) fn tiers(
        &self,
        world: &mut World,
        first: u32,
        second: &[u32],
    ) -> anyhow::Result<()> {
        const SPAN: u32 = 200;
        let slot = |which| Slot::new(self.id(which), self.service);
        let len = u32::try_from(second.len())?;
        let words = [Slot(TierHead::new(2, len).0), slot(first)];
        let words = words
            .into_iter()
            .chain(second.iter().map(|which| slot(*which)));
        for (at, word) in (SPAN..).zip(words) {
            world.tables().slots.put(at, word)?;
        }
        Ok(world
            .tables()
            .rings
            .put(self.service, Ring::new(SPAN, 2, 1))?)
    }
    /// Every draw meets this backend. It has a slot of its own.
    pub(super) fn draw_only(&self, world: &mut World, which: u32) -> anyhow::Result<()> {
        let at = self.id(which);
        let tables = world.tables();
        tables.slots.put(at, Slot::new(at, self.service))?;
        Ok(tables.rings.put(self.service, Ring::new(at, 1, 1))?)
    }
    /// Connects once. The established socket, or the errno.
    pub(super) fn connect(&self, kind: Kind) -> anyhow::Result<Result<Socket, i32>> {
        let to = match (kind, self.address) {
            (Kind::Mapped, IpAddr::V4(v4)) => {
                SocketAddr::new(v4.to_ipv6_mapped().into(), SERVICE_PORT)
            }
            (_, address) => SocketAddr::new(address, SERVICE_PORT),
        };
        let socket = open(kind, Protocol::Tcp)?;
        Ok(match connect(&socket, kind, to) {
            Ok(()) => Ok(socket),
            Err(error) => Err(error.raw_os_error().context("an errno")?),
        })
    }
    /// Connects `times`, keeping what is established open meanwhile; how many were refused.
    pub(super) fn connects(&self, kind: Kind, times: usize) -> anyhow::Result<usize> {
        let mut open = Vec::new();
        let mut refused = 0;
        for _ in 0..times {
            match self.connect(kind)? {
                Ok(socket) => open.push(socket),
                Err(libc::ECONNREFUSED) => refused += 1,
                Err(errno) => anyhow::bail!("errno {errno}"),
            }
            while self.alive.accept().is_ok() {}
        }
        Ok(refused)
    }
    /// Until this client stands.
    pub(super) fn prove(&self, world: &mut World, kind: Kind) -> anyhow::Result<()> {
        self.set_state(world, Self::DEAD, far_ejection())?;
        let refused = self.connects(kind, 10)?;
        ensure!(refused == 0, "{refused} of the first connects were refused");
        ensure!(
            self.service_health(world)?
                .standing
                .iter()
                .any(|word| Standing(*word).0 << 8 != 0),
            "the client does not stand after 10 connects"
        );
        self.set_state(world, Self::DEAD, HealthState::HEALTHY)
    }
}

/// Beyond any row's life.
pub(super) fn far_ejection() -> HealthState {
    HealthState::ejected(1 << 40, 0)
}

fn three_refusals(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    let pair = Pair::new(world, kind)?;
    pair.prove(world, kind)?;
    let before = pair.health(world, Pair::DEAD)?.connects;
    let refused = pair.connects(kind, MANY)?;
    ensure!(refused == 3, "{refused} connects were refused");
    let state = pair.state(world, Pair::DEAD)?;
    ensure!(
        state.kind() == health_kind::EJECTED && state.doublings() == 0,
        "the dead backend is {state:?}"
    );
    let failures = pair.failures(world, Pair::DEAD)?;
    ensure!(
        (failures.refused, failures.unreachable, failures.timed_out) == (3, 0, 0),
        "{failures:?}"
    );
    ensure!(
        pair.health(world, Pair::DEAD)?.connects - before == 3,
        "the kernel sent another number there"
    );
    ensure!(pair.service_health(world)?.ejected_total == 1);
    ensure!(pair.failures(world, Pair::ALIVE)? == BackendFailuresRow::default());
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    ClientFirst,
    ServerFirst,
    Reset,
    Open,
}

/// However connections end, one after the other: some is seen established before it is gone.
fn stands(world: &mut World, kind: Kind, end: End) -> anyhow::Result<()> {
    let pair = Pair::new(world, kind)?;
    pair.set_state(world, Pair::DEAD, far_ejection())?;
    let mut kept = Vec::new();
    for nth in 1..=3 {
        let socket = pair.connect(kind)?.ok().context("refused")?;
        let (server, _) = pair.alive.accept()?;
        match end {
            End::ClientFirst => {
                drop(socket);
                drop(server);
            }
            End::ServerFirst => {
                drop(server);
                drop(socket);
            }
            End::Reset => {
                socket.set_linger(Some(Duration::ZERO))?;
                drop(socket);
                drop(server);
            }
            End::Open => kept.push((socket, server)),
        }
        let standing = pair.service_health(world)?.standing;
        if standing.iter().any(|word| word << 8 != 0) {
            println!("    after {nth} connects");
            return Ok(());
        }
    }
    anyhow::bail!("the client does not stand after three connects")
}

fn trial_succeeds(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    pair.set_state(world, Pair::ALIVE, HealthState::ejected(1, 3))?;
    pair.set_state(world, Pair::DEAD, far_ejection())?;
    let refused = pair.connects(Kind::V4, 10)?;
    ensure!(refused == 0, "{refused} refused");
    let state = pair.state(world, Pair::ALIVE)?;
    ensure!(state == HealthState::HEALTHY, "it is {state:?}");
    Ok(())
}

fn trial_fails(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    pair.set_state(world, Pair::DEAD, HealthState::ejected(1, 3))?;
    let refused = pair.connects(Kind::V4, MANY)?;
    ensure!(
        refused == 1,
        "{refused} connects were refused: one is the trial"
    );
    let state = pair.state(world, Pair::DEAD)?;
    ensure!(
        state.kind() == health_kind::EJECTED && state.doublings() == 4,
        "it is {state:?}"
    );
    ensure!(
        pair.service_health(world)?.ejected_total == 0,
        "an ejection after a trial is not counted again"
    );
    Ok(())
}

/// Its socket is closed, and its memory the next one's, before anybody looks.
fn trial_ends_soon(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    pair.set_state(world, Pair::ALIVE, HealthState::ejected(1, 3))?;
    pair.set_state(world, Pair::DEAD, far_ejection())?;
    for _ in 0..2 {
        let socket = pair.connect(Kind::V4)?.ok().context("refused")?;
        socket.set_linger(Some(Duration::ZERO))?;
        drop(socket);
        while pair.alive.accept().is_ok() {}
    }
    let state = pair.state(world, Pair::ALIVE)?;
    ensure!(state == HealthState::HEALTHY, "it is {state:?}");
    Ok(())
}

fn all_ejected(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    for which in [Pair::ALIVE, Pair::DEAD] {
        pair.set_state(world, which, far_ejection())?;
    }
    let refused = pair.connects(Kind::V4, MANY)?;
    ensure!(refused > 0 && refused < MANY, "{refused} of {MANY} refused");
    world.expect_counter(Counter::AllEjected, MANY as u64)?;
    ensure!(pair.service_health(world)?.all_ejected == MANY as u64);
    Ok(())
}

fn next_tier(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    pair.tiers(world, Pair::DEAD, &[Pair::ALIVE])?;
    let refused = pair.connects(Kind::V4, MANY)?;
    ensure!(refused == 3, "{refused} connects were refused");
    ensure!(pair.state(world, Pair::DEAD)?.kind() == health_kind::EJECTED);
    Ok(())
}

fn capped(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    pair.limit(world, 0, 0)?;
    let refused = pair.connects(Kind::V4, MANY)?;
    ensure!(pair.state(world, Pair::DEAD)?.kind() == health_kind::SUSPECT);
    // Two failures of one client close the backend to it, whatever the limit.
    ensure!(
        (2..=4).contains(&refused),
        "{refused} connects were refused"
    );
    Ok(())
}

fn off(world: &mut World) -> anyhow::Result<()> {
    world.start(|config| config.passive_health = false)?;
    let pair = Pair::new(world, Kind::V4)?;
    let refused = pair.connects(Kind::V4, MANY)?;
    ensure!(refused > 10, "{refused} connects were refused");
    ensure!(pair.state(world, Pair::DEAD)? == HealthState::HEALTHY);
    ensure!(pair.failures(world, Pair::DEAD)?.refused == refused as u64);
    Ok(())
}

fn off_for_service(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.limit(world, 2, service_flags::NO_PASSIVE_HEALTH)?;
    let refused = pair.connects(Kind::V4, MANY)?;
    ensure!(refused > 10, "{refused} connects were refused");
    ensure!(pair.state(world, Pair::DEAD)? == HealthState::HEALTHY);
    ensure!(pair.failures(world, Pair::DEAD)?.refused == refused as u64);
    Ok(())
}

fn udp_refused(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    world.service(UDP4, SERVICE4.into(), Protocol::Udp, &[pair.dead])?;
    for _ in 0..5 {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        socket.connect(&SocketAddr::new(SERVICE4.into(), SERVICE_PORT).into())?;
        socket.send(b"hello")?;
        let answer = answer(&socket)?.and_then(|error| error.raw_os_error());
        ensure!(answer == Some(libc::ECONNREFUSED), "{answer:?}");
    }
    let rows = world.datapath().array::<BackendFailuresRow>()?;
    // The error is the socket's a moment before the kernel reports it, perhaps on another CPU.
    let deadline = Instant::now() + Duration::from_secs(2);
    while rows.get(UDP4 * 4).refused < 5 && Instant::now() < deadline {
        std::thread::yield_now();
    }
    ensure!(rows.get(UDP4 * 4).refused == 5, "{:?}", rows.get(UDP4 * 4));
    let rows = world.datapath().array::<BackendHealthRow>()?;
    ensure!(rows.get(UDP4 * 4).state == 0);
    Ok(())
}

/// The error that ICMP brings to a socket, perhaps a moment after the datagram went.
fn answer(socket: &Socket) -> anyhow::Result<Option<std::io::Error>> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match socket.take_error()? {
            None if Instant::now() < deadline => std::thread::yield_now(),
            answer => return Ok(answer),
        }
    }
}

fn earlier_life(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    world.service(UDP4, SERVICE4.into(), Protocol::Udp, &[pair.dead])?;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.connect(&SocketAddr::new(SERVICE4.into(), SERVICE_PORT).into())?;
    let id = UDP4 * 4;
    let mut row = world.datapath().array::<isthmus_abi::BackendRow>()?.get(id);
    row.generation += 1;
    world.tables().backends.put(id, row)?;
    socket.send(b"hello")?;
    ensure!(answer(&socket)?.is_some(), "nothing was refused");
    let rows = world.datapath().array::<BackendFailuresRow>()?;
    ensure!(
        rows.get(id) == BackendFailuresRow::default(),
        "{:?}",
        rows.get(id)
    );
    Ok(())
}

fn no_route(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    // TEST-NET-3: this namespace has no route beyond loopback.
    let far: SocketAddr = (Ipv4Addr::new(203, 0, 113, 1), 80).into();
    world.backend(pair.id(Pair::DEAD), pair.service, Protocol::Tcp, far)?;
    let mut unreachable = 0;
    for _ in 0..MANY {
        match pair.connect(Kind::V4)? {
            Ok(_) => {}
            Err(libc::ENETUNREACH) => unreachable += 1,
            Err(errno) => anyhow::bail!("errno {errno}"),
        }
        while pair.alive.accept().is_ok() {}
    }
    ensure!(unreachable > 10, "{unreachable} connects had no route");
    ensure!(pair.state(world, Pair::DEAD)? == HealthState::HEALTHY);
    ensure!(pair.failures(world, Pair::DEAD)? == BackendFailuresRow::default());
    Ok(())
}

/// Two refusals, then the backend listens: what counted against it is forgotten, and two more do not eject.
fn success_clears(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    pair.set_state(world, Pair::ALIVE, far_ejection())?;
    pair.draw_only(world, Pair::DEAD)?;
    ensure!(pair.connects(Kind::V4, 1)? == 1);
    ensure!(pair.state(world, Pair::DEAD)?.kind() == health_kind::SUSPECT);
    let listener = TcpListener::bind(pair.dead)?;
    let mut open = Vec::new();
    for _ in 0..5 {
        open.push(pair.connect(Kind::V4)?.ok().context("refused")?);
        open.push(listener.accept()?.0.into());
    }
    ensure!(pair.state(world, Pair::DEAD)? == HealthState::HEALTHY);
    ensure!(pair.failures(world, Pair::DEAD)?.run == 0);
    Ok(())
}

fn restart(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    ensure!(pair.connects(Kind::V4, MANY)? == 3);
    ensure!(pair.state(world, Pair::DEAD)?.kind() == health_kind::EJECTED);
    // However slow the machine is: no trial falls due meanwhile.
    pair.set_state(world, Pair::DEAD, HealthState::ejected(1 << 40, 0))?;
    world.start(|_| ())?;
    ensure!(pair.state(world, Pair::DEAD)?.kind() == health_kind::EJECTED);
    let refused = pair.connects(Kind::V4, MANY)?;
    ensure!(
        refused == 0,
        "{refused} connects were refused after the restart"
    );
    Ok(())
}
