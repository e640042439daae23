//! {v4, v6, mapped, V6ONLY} × UDP without a connect: where datagrams go, and whose the answers are seen as.
//!
//! Long because it is one table, of which every row is a small function.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use isthmus_abi::{BackendRow, Counter, Ring, ScopeProtocol, Slot, TierHead};
use isthmus_core::model::{Address, Protocol};
use nix::libc;
use rustix::net::connect_unspec;
use socket2::{Domain, SockRef, Socket, Type};

use super::Row;
use super::connect::expect_errno;
use super::world::{NOBODY4, SERVICE_PORT, SERVICE4, SERVICE6, UDP4, UDP6, World};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    V4,
    V6,
    /// AF_INET6 to `::ffff:a.b.c.d`.
    Mapped,
    /// AF_INET6 to an address of AF_INET, which the kernel takes for datagrams.
    Mixed,
}

impl Kind {
    const ALL: [Self; 4] = [Self::V4, Self::V6, Self::Mapped, Self::Mixed];

    fn service(self) -> u32 {
        if self == Self::V6 { UDP6 } else { UDP4 }
    }
    fn ip(self) -> IpAddr {
        if self == Self::V6 {
            SERVICE6.into()
        } else {
            SERVICE4.into()
        }
    }
    /// As the call names it.
    fn named(self, address: SocketAddr) -> SocketAddr {
        match (self, address.ip()) {
            (Self::Mapped, IpAddr::V4(v4)) => {
                SocketAddr::new(v4.to_ipv6_mapped().into(), address.port())
            }
            _ => address,
        }
    }
    /// As `recvfrom` names it.
    fn seen(self, address: SocketAddr) -> SocketAddr {
        match self {
            Self::Mixed => Self::Mapped.named(address),
            _ => self.named(address),
        }
    }
    fn local(self, world: &World) -> IpAddr {
        if self == Self::V6 {
            world.backend6.ip()
        } else {
            Ipv4Addr::new(127, 0, 1, 3).into()
        }
    }
}

/// Another service, so that a socket can talk to two.
const OTHER: u32 = 9;
const OTHER_PORT: u16 = 53;

struct Client {
    kind: Kind,
    socket: UdpSocket,
}

impl Client {
    fn new(kind: Kind) -> anyhow::Result<Self> {
        let domain = if kind == Kind::V4 {
            Domain::IPV4
        } else {
            Domain::IPV6
        };
        let socket = Socket::new(domain, Type::DGRAM, None)?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        let socket = socket.into();
        Ok(Self { kind, socket })
    }
    fn send(&self, to: SocketAddr) -> io::Result<()> {
        self.socket.send_to(b"hello", self.kind.named(to)).map(drop)
    }
    /// Who answered, as the owner is told, and what.
    fn receive(&self) -> anyhow::Result<(SocketAddr, u8)> {
        let mut bytes = [0; 16];
        let (len, from) = self.socket.recv_from(&mut bytes).context("no answer")?;
        ensure!(len == 1, "an answer of {len} bytes");
        Ok((from, bytes[0]))
    }
}

/// Backends of a row; each answers with its own number.
struct Backends(Vec<UdpSocket>);

impl Backends {
    fn new(ip: IpAddr, count: usize) -> anyhow::Result<Self> {
        let sockets = (0..count).map(|_| {
            let socket = UdpSocket::bind((ip, 0))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        Ok(Self(sockets.collect::<io::Result<_>>()?))
    }
    fn addresses(&self) -> anyhow::Result<Vec<SocketAddr>> {
        Ok(self
            .0
            .iter()
            .map(UdpSocket::local_addr)
            .collect::<io::Result<_>>()?)
    }
    /// Answers the one datagram that was sent, which a busy kernel may deliver after `sendto` returned; which backend got it.
    fn answer(&self) -> anyhow::Result<usize> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut got = Vec::new();
        while got.is_empty() && Instant::now() < deadline {
            for (nth, socket) in self.0.iter().enumerate() {
                let mut bytes = [0; 16];
                if let Ok((len, from)) = socket.recv_from(&mut bytes) {
                    ensure!(&bytes[..len] == b"hello");
                    socket.send_to(&[u8::try_from(nth)?], from)?;
                    got.push(nth);
                }
            }
        }
        ensure!(got.len() == 1, "backends {got:?} got the datagram");
        Ok(got[0])
    }
}

/// A client, and a service of `backends` that it can send to.
struct Scene {
    client: Client,
    backends: Backends,
    to: SocketAddr,
}

impl Scene {
    fn new(world: &mut World, kind: Kind, backends: usize) -> anyhow::Result<Self> {
        let backends = Backends::new(kind.local(world), backends)?;
        world.service(
            kind.service(),
            kind.ip(),
            Protocol::Udp,
            &backends.addresses()?,
        )?;
        Ok(Self {
            client: Client::new(kind)?,
            backends,
            to: SocketAddr::new(kind.ip(), SERVICE_PORT),
        })
    }
    /// Sends to the service once; which backend answered, as the service.
    fn ask(&self) -> anyhow::Result<usize> {
        self.ask_at(self.to)
    }
    fn ask_at(&self, to: SocketAddr) -> anyhow::Result<usize> {
        self.client.send(to).context("send")?;
        let nth = self.backends.answer()?;
        let (from, answer) = self.client.receive()?;
        let wanted = self.client.kind.seen(to);
        ensure!(from == wanted, "the answer is {from}'s, not {wanted}'s");
        ensure!(usize::from(answer) == nth, "{answer} answered for {nth}");
        Ok(nth)
    }
    /// The other service, of the same backends.
    fn add_other(&self, world: &mut World) -> anyhow::Result<SocketAddr> {
        let kind = self.client.kind;
        for (id, at) in (OTHER * 4..).zip(self.backends.addresses()?) {
            world.backend(id, OTHER, Protocol::Udp, at)?;
            world.tables().slots.put(id, Slot::new(id, OTHER))?;
        }
        let len = u32::try_from(self.backends.0.len())?;
        world
            .tables()
            .rings
            .put(OTHER, Ring::new(OTHER * 4, 1, len))?;
        world.frontend(kind.ip(), OTHER_PORT, ScopeProtocol::UDP, OTHER)?;
        Ok(SocketAddr::new(kind.ip(), OTHER_PORT))
    }
    fn backend_row(&self, world: &World, nth: usize) -> anyhow::Result<(u32, BackendRow)> {
        let id = self.client.kind.service() * 4 + u32::try_from(nth)?;
        Ok((id, world.datapath().array::<BackendRow>()?.get(id)))
    }
    /// Takes a backend out of the ring, and its row away, as a reconciler does.
    fn remove(&self, world: &mut World, nth: usize) -> anyhow::Result<()> {
        let service = self.client.kind.service();
        let left = (0..self.backends.0.len()).filter(|other| *other != nth);
        let mut len = 0;
        for other in left {
            let id = service * 4 + u32::try_from(other)?;
            world
                .tables()
                .slots
                .put(service * 4 + len, Slot::new(id, service))?;
            len += 1;
        }
        let ring = if len == 0 {
            Ring::EMPTY
        } else {
            Ring::new(service * 4, 1, len)
        };
        world.tables().rings.put(service, ring)?;
        world
            .tables()
            .backends
            .remove(service * 4 + u32::try_from(nth)?)?;
        Ok(())
    }
}

pub fn rows() -> Vec<Row> {
    type Each = fn(&mut World, Kind) -> anyhow::Result<()>;
    let each: [(&str, Each); 13] = [
        ("a service answers as itself", answers),
        ("keeps its backend", keeps),
        ("sockets share the backends evenly", shares),
        ("two services from one socket", two_services),
        ("backend gone: another", moves),
        ("backend gone, of a second service: another", moves_in_flows),
        ("the backend under another id", other_id),
        ("no backend", refused),
        ("unknown port of a service", unknown_port),
        ("straight to the backend", straight),
        ("connected: recvfrom shows the service", connected),
        (
            "connected, then sends to another service",
            connected_and_sends,
        ),
        ("restart and another version", restart),
    ];
    let mut rows: Vec<Row> = Vec::new();
    for kind in Kind::ALL {
        for (name, row) in each {
            rows.push((
                format!("datagram {kind:?}: {name}"),
                Box::new(move |world| row(world, kind)),
            ));
        }
    }
    let row = |name: &str, row: fn(&mut World) -> anyhow::Result<()>| -> Row {
        (format!("datagram: {name}"), Box::new(row))
    };
    rows.extend([
        row("V6ONLY: a mapped service", v6only),
        row("nobody's address in the service CIDR", nobody),
        row("refuse with EHOSTUNREACH", unreachable),
        row("client out of scope", out_of_scope),
        row("a backend of a lower tier under another id", lower_tier),
        row(
            "straight there after the service: the connect wins",
            straight_after,
        ),
        row("3,000 live sockets: each keeps its own backend", crowd),
        row("a server's own answers stay its clients'", server),
    ]);
    rows
}

fn answers(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    let scene = Scene::new(world, kind, 1)?;
    scene.ask()?;
    let counted = world.connects(kind.service() * 4)?;
    ensure!(counted == 1, "the kernel counted {counted} flows");
    Ok(())
}

fn keeps(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    let scene = Scene::new(world, kind, 4)?;
    let first = scene.ask()?;
    for _ in 0..40 {
        let nth = scene.ask()?;
        ensure!(nth == first, "backend {first}, then {nth}");
    }
    let counts = (0..4)
        .map(|nth| world.connects(kind.service() * 4 + nth))
        .collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(counts.iter().sum::<u64>() == 1, "{counts:?} flows counted");
    Ok(())
}

fn shares(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    const SOCKETS: u64 = 800;
    let mut scene = Scene::new(world, kind, 4)?;
    let mut counts = [0_u64; 4];
    for _ in 0..SOCKETS {
        scene.client = Client::new(kind)?;
        counts[scene.ask()?] += 1;
    }
    // Five standard deviations of a binomial share of a quarter.
    ensure!(
        counts.iter().all(|count| count.abs_diff(SOCKETS / 4) < 62),
        "{counts:?} are not even"
    );
    Ok(())
}

/// Of the same backends: whose the answer is seen as is decided by whom the socket last sent to.
fn two_services(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    let scene = Scene::new(world, kind, 2)?;
    let other = scene.add_other(world)?;
    let (first, second) = (scene.ask()?, scene.ask_at(other)?);
    for _ in 0..20 {
        let again = (scene.ask()?, scene.ask_at(other)?);
        ensure!(
            again == (first, second),
            "backends {first} and {second}, then {again:?}"
        );
    }
    // An answer that comes while the other service was not asked again is seen by its own backend.
    if first != second {
        scene.client.send(scene.to)?;
        let nth = scene.backends.answer()?;
        scene.client.send(other)?;
        scene.backends.answer()?;
        ensure!(nth == first);
        let seen = [scene.client.receive()?.0, scene.client.receive()?.0];
        let wanted = [kind.seen(scene.to), kind.seen(other)];
        ensure!(seen == wanted, "{seen:?}, not {wanted:?}");
    }
    Ok(())
}

fn moves(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    let scene = Scene::new(world, kind, 2)?;
    let first = scene.ask()?;
    scene.remove(world, first)?;
    for _ in 0..5 {
        let nth = scene.ask()?;
        ensure!(nth == 1 - first, "backend {nth} is gone");
    }
    scene.remove(world, 1 - first)?;
    world.tables().rings.put(kind.service(), Ring::EMPTY)?;
    expect_errno(scene.client.send(scene.to), libc::ECONNREFUSED)
}

fn moves_in_flows(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    let scene = Scene::new(world, kind, 2)?;
    let other = scene.add_other(world)?;
    scene.ask_at(other)?;
    let first = scene.ask()?;
    scene.remove(world, first)?;
    for _ in 0..5 {
        let nth = scene.ask()?;
        ensure!(nth == 1 - first, "backend {nth} is gone");
        scene.ask_at(other)?;
    }
    Ok(())
}

/// As after a change of the maps' version: the row names an id that is another's now.
fn other_id(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    let scene = Scene::new(world, kind, 4)?;
    let other = scene.add_other(world)?;
    let (first, second) = (scene.ask()?, scene.ask_at(other)?);
    for service in [kind.service(), OTHER] {
        let mut rows = Vec::new();
        let table = world.datapath().array::<BackendRow>()?;
        for nth in 0..4 {
            rows.push(table.get(service * 4 + nth));
        }
        rows.reverse();
        for (id, row) in (service * 4..).zip(rows) {
            world.tables().backends.put(id, row)?;
        }
    }
    for _ in 0..5 {
        let again = (scene.ask()?, scene.ask_at(other)?);
        ensure!(
            again == (first, second),
            "backends {first} and {second}, then {again:?}"
        );
    }
    Ok(())
}

fn refused(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    let scene = Scene::new(world, kind, 0)?;
    for _ in 0..2 {
        expect_errno(scene.client.send(scene.to), libc::ECONNREFUSED)?;
    }
    world.expect_counter(Counter::RefusedNoBackend, 2)
}

fn unknown_port(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    let client = Client::new(kind)?;
    let to = SocketAddr::new(kind.ip(), 81);
    expect_errno(client.send(to), libc::ECONNREFUSED)?;
    world.expect_counter(Counter::RefusedUnknownPort, 1)
}

/// Who never asked for the service sees the backend itself, though others of the node do not.
fn straight(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    let mut scene = Scene::new(world, kind, 1)?;
    scene.ask()?;
    scene.client = Client::new(kind)?;
    let backend = scene.backends.addresses()?[0];
    for _ in 0..3 {
        scene.ask_at(backend)?;
    }
    let counted = world.connects(kind.service() * 4)?;
    ensure!(counted == 1, "the kernel counted {counted} flows");
    Ok(())
}

fn connect(client: &Client, to: SocketAddr) -> io::Result<()> {
    client.socket.connect(client.kind.named(to))
}

fn connected(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    if kind == Kind::Mixed {
        // An AF_INET6 socket is connected to addresses of its own family only.
        return Ok(());
    }
    let scene = Scene::new(world, kind, 4)?;
    connect(&scene.client, scene.to)?;
    let counted = |world: &World| -> anyhow::Result<u64> {
        (0..4)
            .map(|nth| world.connects(kind.service() * 4 + nth))
            .sum()
    };
    scene.client.socket.send(b"hello")?;
    let first = scene.backends.answer()?;
    let (from, _) = scene.client.receive()?;
    ensure!(from == kind.seen(scene.to), "the answer is {from}'s");
    // With the service's address too: it goes where the connect went, which is what the kernel lets answer.
    for _ in 0..10 {
        let nth = scene.ask()?;
        ensure!(nth == first, "backend {first}, then {nth}");
    }
    ensure!(counted(world)? == 1, "{} flows counted", counted(world)?);
    Ok(())
}

fn connected_and_sends(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    if kind == Kind::Mixed {
        return Ok(());
    }
    let scene = Scene::new(world, kind, 2)?;
    let other = scene.add_other(world)?;
    connect(&scene.client, scene.to)?;
    scene.client.send(other)?;
    scene.backends.answer()?;
    let peer = scene.client.socket.peer_addr()?;
    ensure!(peer == kind.seen(scene.to), "getpeername says {peer}");
    connect_unspec(&scene.client.socket)?;
    scene.ask_at(other)?;
    scene.ask_at(scene.to)?;
    Ok(())
}

fn restart(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    let scene = Scene::new(world, kind, 4)?;
    let other = scene.add_other(world)?;
    let (first, second) = (scene.ask()?, scene.ask_at(other)?);
    let check = |what: &str| -> anyhow::Result<()> {
        let again = (scene.ask()?, scene.ask_at(other)?);
        ensure!(
            again == (first, second),
            "{what}: backends {first} and {second}, then {again:?}"
        );
        Ok(())
    };
    world.start(|_| ())?;
    check("restart")?;
    // New maps, in which the service and its backends have other numbers.
    world.start(|config| config.sizes.backends *= 2)?;
    let at = scene.backends.addresses()?;
    world.service(OTHER, kind.ip(), Protocol::Udp, &at)?;
    for (id, address) in (40..).zip(at.iter().rev()) {
        world.backend(id, 5, Protocol::Udp, *address)?;
        world.tables().slots.put(id, Slot::new(id, 5))?;
    }
    world.tables().rings.put(5, Ring::new(40, 1, 4))?;
    world.frontend(kind.ip(), OTHER_PORT, ScopeProtocol::UDP, 5)?;
    check("another version")
}

fn v6only(world: &mut World) -> anyhow::Result<()> {
    let scene = Scene::new(world, Kind::Mapped, 1)?;
    SockRef::from(&scene.client.socket).set_only_v6(true)?;
    // The kernel's own answer, as without us.
    expect_errno(scene.client.send(scene.to), libc::ENETUNREACH)?;
    let scene = Scene::new(world, Kind::V6, 1)?;
    SockRef::from(&scene.client.socket).set_only_v6(true)?;
    scene.ask()?;
    Ok(())
}

fn nobody(_: &mut World) -> anyhow::Result<()> {
    let to = (NOBODY4, SERVICE_PORT).into();
    expect_errno(Client::new(Kind::V4)?.send(to), libc::ENETUNREACH)
}

fn unreachable(world: &mut World) -> anyhow::Result<()> {
    world.start(|config| config.refuse_errno = libc::EHOSTUNREACH.cast_unsigned())?;
    let scene = Scene::new(world, Kind::V4, 0)?;
    expect_errno(scene.client.send(scene.to), libc::EHOSTUNREACH)
}

fn out_of_scope(world: &mut World) -> anyhow::Result<()> {
    world.start(|config| config.translate_pods = false)?;
    let scene = Scene::new(world, Kind::V4, 1)?;
    scene.ask().context("the host's own namespace")?;
    let to = scene.to;
    let elsewhere = std::thread::spawn(move || -> anyhow::Result<()> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
        expect_errno(Client::new(Kind::V4)?.send(to), libc::ENETUNREACH)
    });
    elsewhere
        .join()
        .map_err(|_| anyhow::anyhow!("the other namespace's thread panicked"))?
        .context("another namespace")?;
    world.expect_counter(Counter::ClientOutOfScope, 1)
}

/// A flow stays where it is when its backend sinks below others, whatever id it has there.
fn lower_tier(world: &mut World) -> anyhow::Result<()> {
    const SPAN: u32 = 200;
    let scene = Scene::new(world, Kind::V4, 2)?;
    let first = scene.ask()?;
    let (id, row) = scene.backend_row(world, first)?;
    let (other, _) = scene.backend_row(world, 1 - first)?;
    world.tables().backends.put(50, row)?;
    world.tables().backends.remove(id)?;
    for (at, word) in [
        (SPAN, TierHead::new(2, 1).0),
        (SPAN + 1, Slot::new(other, UDP4).0),
        (SPAN + 2, Slot::new(50, UDP4).0),
    ] {
        world.tables().slots.put(at, Slot(word))?;
    }
    world.tables().rings.put(UDP4, Ring::new(SPAN, 2, 1))?;
    for _ in 0..5 {
        let nth = scene.ask()?;
        ensure!(nth == first, "backend {first}, then {nth}");
    }
    Ok(())
}

fn straight_after(world: &mut World) -> anyhow::Result<()> {
    let scene = Scene::new(world, Kind::V4, 1)?;
    let other = scene.add_other(world)?;
    scene.ask()?;
    scene.ask_at(other)?;
    let backend = scene.backends.addresses()?[0];
    connect(&scene.client, backend)?;
    scene.client.socket.send(b"hello")?;
    scene.backends.answer()?;
    let (from, _) = scene.client.receive()?;
    ensure!(from == backend, "the answer is {from}'s");
    Ok(())
}

/// Enough sockets that some meet in one row of `sockets`.
fn crowd(world: &mut World) -> anyhow::Result<()> {
    let mut scene = Scene::new(world, Kind::V4, 4)?;
    let mut clients = Vec::new();
    for _ in 0..3000 {
        scene.client = Client::new(Kind::V4)?;
        let nth = scene.ask()?;
        clients.push((nth, scene.client.socket.try_clone()?));
    }
    for (nth, (first, socket)) in clients.into_iter().enumerate() {
        scene.client.socket = socket;
        let again = scene.ask().with_context(|| format!("socket {nth}"))?;
        ensure!(
            again == first,
            "socket {nth}: backend {first}, then {again}"
        );
    }
    world.expect_counter(Counter::SocketLost, 0)
}

/// A server receives from anybody; nothing is translated for it.
fn server(world: &mut World) -> anyhow::Result<()> {
    let scene = Scene::new(world, Kind::V4, 1)?;
    let client = UdpSocket::bind((Ipv4Addr::new(127, 0, 1, 4), 0))?;
    client.send_to(b"hello", scene.to)?;
    let mut bytes = [0; 16];
    let (_, from) = scene.backends.0[0].recv_from(&mut bytes)?;
    ensure!(from == client.local_addr()?, "the server sees {from}");
    ensure!(Address::from(from.ip()).v4().is_some());
    Ok(())
}
