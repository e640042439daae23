//! {address family and socket kind} × {TCP, connected UDP}: where the socket goes, and what its owner sees.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use isthmus_abi::Counter;
use isthmus_core::model::Protocol;
use nix::libc;
use rustix::net::connect_unspec;
use socket2::{Domain, SockAddr, Socket, Type};

use super::world::{NOBODY4, SERVICE_PORT, SERVICE4, SERVICE6, TCP4, TCP6, UDP4, UDP6, World};
use super::{Row, fastopen};

/// What kind of socket the client uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    V4,
    V6,
    /// AF_INET6 with `IPV6_V6ONLY`.
    V6Only,
    /// AF_INET6 to `::ffff:a.b.c.d`.
    Mapped,
    NonBlocking,
    /// Data in the SYN, by `sendto(MSG_FASTOPEN)`.
    FastOpen,
    /// Data in the SYN, by `TCP_FASTOPEN_CONNECT`: the first write sends it.
    FastOpenConnect,
    Mptcp,
}

impl Kind {
    pub const ALL: [Self; 8] = [
        Self::V4,
        Self::V6,
        Self::V6Only,
        Self::Mapped,
        Self::NonBlocking,
        Self::FastOpen,
        Self::FastOpenConnect,
        Self::Mptcp,
    ];

    pub fn is_fast_open(self) -> bool {
        matches!(self, Self::FastOpen | Self::FastOpenConnect)
    }

    /// There are such sockets, here. A kernel that has MPTCP must give them.
    pub fn exists(self, protocol: Protocol) -> bool {
        match self {
            Self::FastOpen | Self::FastOpenConnect => protocol == Protocol::Tcp,
            Self::Mptcp => protocol == Protocol::Tcp && Path::new("/proc/sys/net/mptcp").exists(),
            _ => true,
        }
    }

    fn domain(self) -> Domain {
        match self {
            Self::V6 | Self::V6Only | Self::Mapped => Domain::IPV6,
            _ => Domain::IPV4,
        }
    }

    pub fn service(self) -> SocketAddr {
        let ip: IpAddr = match self {
            Self::V6 | Self::V6Only => SERVICE6.into(),
            Self::Mapped => SERVICE4.to_ipv6_mapped().into(),
            _ => SERVICE4.into(),
        };
        SocketAddr::new(ip, SERVICE_PORT)
    }

    /// Of its TCP service.
    pub fn index(self) -> u32 {
        service_index(self, Protocol::Tcp)
    }

    pub fn backend(self, world: &World) -> SocketAddr {
        match self {
            Self::V6 | Self::V6Only => world.backend6,
            _ => world.backend4,
        }
    }

    /// The backend as such a socket names it.
    pub fn straight(self, world: &World) -> SocketAddr {
        let mut backend = self.backend(world);
        if self == Self::Mapped
            && let IpAddr::V4(v4) = backend.ip()
        {
            backend.set_ip(v4.to_ipv6_mapped().into());
        }
        backend
    }
}

fn socket_type(protocol: Protocol) -> Type {
    if protocol == Protocol::Udp {
        Type::DGRAM
    } else {
        Type::STREAM
    }
}

pub fn open(kind: Kind, protocol: Protocol) -> io::Result<Socket> {
    let protocol_number = (kind == Kind::Mptcp).then_some(socket2::Protocol::MPTCP);
    let socket = Socket::new(kind.domain(), socket_type(protocol), protocol_number)?;
    if kind.domain() == Domain::IPV6 {
        socket.set_only_v6(kind == Kind::V6Only)?;
    }
    Ok(socket)
}

pub fn connect(socket: &Socket, kind: Kind, to: SocketAddr) -> io::Result<()> {
    match kind {
        Kind::NonBlocking => {
            socket.set_nonblocking(true)?;
            match socket.connect(&to.into()) {
                Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
                    wait_writable(socket)
                }
                other => other,
            }
        }
        Kind::FastOpen => socket
            .send_to_with_flags(b"x", &SockAddr::from(to), libc::MSG_FASTOPEN)
            .map(drop),
        Kind::FastOpenConnect => {
            fastopen::connect_with_write(socket)?;
            socket.connect(&to.into())?;
            socket.send(b"x")?;
            wait_writable(socket)
        }
        _ => socket
            .connect_timeout(&to.into(), Duration::from_secs(2))
            .and_then(|()| socket.set_nonblocking(false)),
    }
}

fn wait_writable(socket: &Socket) -> io::Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    poll(
        &mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)],
        PollTimeout::from(2000_u16),
    )?;
    socket.take_error()?.map_or(Ok(()), Err)
}

/// The peer as the socket's owner is told, canonical but for mapped addresses, which stay what they are.
pub fn peer(socket: &Socket) -> anyhow::Result<SocketAddr> {
    socket.peer_addr()?.as_socket().context("an IP address")
}

/// The peer as the kernel has it: what `/proc/net` would show, read from the other end's view of a UDP or TCP socket.
fn sent_to(world: &World, service: u32) -> anyhow::Result<u64> {
    world.connects(service * 4)
}

fn service_index(kind: Kind, protocol: Protocol) -> u32 {
    match (kind, protocol) {
        (Kind::V6 | Kind::V6Only, Protocol::Udp) => UDP6,
        (Kind::V6 | Kind::V6Only, _) => TCP6,
        (_, Protocol::Udp) => UDP4,
        _ => TCP4,
    }
}

pub fn rows() -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for kind in Kind::ALL {
            if !kind.exists(protocol) {
                continue;
            }
            let name = |what: &str| format!("{protocol} {kind:?}: {what}");
            rows.push((
                name("a service"),
                Box::new(move |world| reaches(world, kind, protocol)),
            ));
            rows.push((
                name("no backend"),
                Box::new(move |world| refused_without_backend(world, kind, protocol)),
            ));
            rows.push((
                name("reused descriptor"),
                Box::new(move |world| reused(world, kind, protocol)),
            ));
            rows.push((
                name("straight to the backend"),
                Box::new(move |world| straight(world, kind, protocol)),
            ));
        }
        rows.push((
            format!("{protocol} V6ONLY: a mapped service"),
            Box::new(move |_| v6only(protocol)),
        ));
        rows.push((
            format!("{protocol}: unknown port of a service"),
            Box::new(move |world| unknown_port(world, protocol)),
        ));
        rows.push((
            format!("{protocol}: nobody's address in the service CIDR"),
            Box::new(move |_| nobody(protocol)),
        ));
        rows.push((
            format!("{protocol}: refuse with EHOSTUNREACH"),
            Box::new(move |world| unreachable(world, protocol)),
        ));
        rows.push((
            format!("{protocol}: four backends, even shares"),
            Box::new(move |world| shares(world, protocol)),
        ));
        rows.push((
            format!("{protocol}: client out of scope"),
            Box::new(move |world| out_of_scope(world, protocol)),
        ));
    }
    rows
}

/// A Fast Open client must have had the server's cookie before: the first connect only asks for it.
fn warm_up(world: &World, kind: Kind, protocol: Protocol) -> anyhow::Result<()> {
    if kind.is_fast_open() {
        let socket = open(kind, protocol)?;
        connect(&socket, Kind::FastOpen, kind.backend(world)).context("asking for a cookie")?;
    }
    Ok(())
}

/// Data went with the SYN, where the kind says so.
fn expect_syn_data(kind: Kind, socket: &Socket) -> anyhow::Result<()> {
    ensure!(
        fastopen::sent_with_syn(socket)? == kind.is_fast_open(),
        "data with the SYN, or not: it should be the other way"
    );
    Ok(())
}

fn reaches(world: &mut World, kind: Kind, protocol: Protocol) -> anyhow::Result<()> {
    warm_up(world, kind, protocol)?;
    let socket = open(kind, protocol)?;
    connect(&socket, kind, kind.service()).context("connect")?;
    if protocol == Protocol::Tcp {
        expect_syn_data(kind, &socket)?;
    }
    let seen = peer(&socket)?;
    ensure!(
        seen == kind.service(),
        "getpeername says {seen}, not the service {}",
        kind.service()
    );
    let counted = sent_to(world, service_index(kind, protocol))?;
    ensure!(counted == 1, "the kernel counted {counted} connects");
    // The other end is the backend's own listener only if bytes arrive there: a UDP datagram, or a TCP handshake,
    // which `connect` has waited for.
    if protocol == Protocol::Udp {
        socket.send(b"hello").context("send")?;
        world.expect_datagram(kind.backend(world))?;
    }
    Ok(())
}

fn refused_without_backend(
    world: &mut World,
    kind: Kind,
    protocol: Protocol,
) -> anyhow::Result<()> {
    let socket = open(kind, protocol)?;
    world.service(
        service_index(kind, protocol),
        unmapped(kind.service()).ip(),
        protocol,
        &[],
    )?;
    expect_errno(connect(&socket, kind, kind.service()), libc::ECONNREFUSED)?;
    world.expect_counter(Counter::RefusedNoBackend, 1)
}

fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A descriptor that was a service's, and is then somebody else's: it must not remember.
fn reused(world: &mut World, kind: Kind, protocol: Protocol) -> anyhow::Result<()> {
    warm_up(world, kind, protocol)?;
    let socket = open(kind, protocol)?;
    connect(&socket, kind, kind.service()).context("first connect")?;
    let disconnected = connect_unspec(&socket);
    if kind == Kind::Mptcp
        && let Err(error) = disconnected
    {
        println!("    this kernel lets nobody use an MPTCP socket again: {error}");
        return Ok(());
    }
    disconnected.context("AF_UNSPEC")?;
    let straight = kind.straight(world);
    connect(&socket, kind, straight).context("second connect, to the backend itself")?;
    let seen = peer(&socket)?;
    ensure!(
        seen == straight,
        "getpeername says {seen} after a connect to {straight}"
    );
    Ok(())
}

/// A client that names the backend itself sees the backend, though the backend is a service's too.
fn straight(world: &mut World, kind: Kind, protocol: Protocol) -> anyhow::Result<()> {
    warm_up(world, kind, protocol)?;
    let socket = open(kind, protocol)?;
    let backend = kind.straight(world);
    connect(&socket, kind, backend).context("connect")?;
    let seen = peer(&socket)?;
    ensure!(seen == backend, "getpeername says {seen}, not {backend}");
    let counted = sent_to(world, service_index(kind, protocol))?;
    ensure!(
        counted == 0,
        "the kernel counted {counted} connects to the service"
    );
    Ok(())
}

fn v6only(protocol: Protocol) -> anyhow::Result<()> {
    let socket = Socket::new(Domain::IPV6, socket_type(protocol), None)?;
    socket.set_only_v6(true)?;
    let mapped = SocketAddr::new(SERVICE4.to_ipv6_mapped().into(), SERVICE_PORT);
    // The kernel's own answer, as without us.
    expect_errno(socket.connect(&mapped.into()), libc::ENETUNREACH)
}

fn unknown_port(world: &mut World, protocol: Protocol) -> anyhow::Result<()> {
    for (domain, ip) in [
        (Domain::IPV4, IpAddr::from(SERVICE4)),
        (Domain::IPV6, SERVICE6.into()),
    ] {
        let socket = Socket::new(domain, socket_type(protocol), None)?;
        expect_errno(
            socket.connect(&SocketAddr::new(ip, 81).into()),
            libc::ECONNREFUSED,
        )?;
    }
    world.expect_counter(Counter::RefusedUnknownPort, 2)
}

/// Somebody else may serve it: it passes, and the namespace has no route to it.
fn nobody(protocol: Protocol) -> anyhow::Result<()> {
    let socket = Socket::new(Domain::IPV4, socket_type(protocol), None)?;
    expect_errno(
        socket.connect(&SocketAddr::from((NOBODY4, SERVICE_PORT)).into()),
        libc::ENETUNREACH,
    )
}

fn unreachable(world: &mut World, protocol: Protocol) -> anyhow::Result<()> {
    world.start(|config| config.refuse_errno = libc::EHOSTUNREACH.cast_unsigned())?;
    world.service(
        service_index(Kind::V4, protocol),
        SERVICE4.into(),
        protocol,
        &[],
    )?;
    let socket = open(Kind::V4, protocol)?;
    expect_errno(
        socket.connect(&Kind::V4.service().into()),
        libc::EHOSTUNREACH,
    )
}

fn shares(world: &mut World, protocol: Protocol) -> anyhow::Result<()> {
    const CONNECTS: u64 = 4000;
    let service = service_index(Kind::V4, protocol);
    let backend = world.backend4;
    world.service(service, SERVICE4.into(), protocol, &[backend; 4])?;
    for _ in 0..CONNECTS {
        let socket = open(Kind::V4, protocol)?;
        socket.set_linger(Some(Duration::ZERO))?;
        socket.connect(&Kind::V4.service().into())?;
        world.drain()?;
    }
    let counts = (0..4)
        .map(|nth| world.connects(service * 4 + nth))
        .collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(
        counts.iter().sum::<u64>() == CONNECTS,
        "{counts:?} is not {CONNECTS} in all"
    );
    // Five standard deviations of a binomial share of a quarter.
    ensure!(
        counts
            .iter()
            .all(|count| count.abs_diff(CONNECTS / 4) < 137),
        "{counts:?} are not even"
    );
    Ok(())
}

/// `--socket-lb=host` serves the agent's own namespace; a client elsewhere passes unchanged.
fn out_of_scope(world: &mut World, protocol: Protocol) -> anyhow::Result<()> {
    world.start(|config| config.translate_pods = false)?;
    let socket = open(Kind::V4, protocol)?;
    connect(&socket, Kind::V4, Kind::V4.service()).context("the host's own namespace")?;
    let elsewhere = std::thread::spawn(move || -> anyhow::Result<()> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
        let socket = open(Kind::V4, protocol)?;
        expect_errno(
            socket.connect(&Kind::V4.service().into()),
            libc::ENETUNREACH,
        )
    });
    match elsewhere.join() {
        Ok(result) => result.context("another namespace")?,
        Err(_) => bail!("the other namespace's thread panicked"),
    }
    world.expect_counter(Counter::ClientOutOfScope, 1)
}

pub fn expect_errno(result: io::Result<()>, wanted: i32) -> anyhow::Result<()> {
    let wanted_name = nix::errno::Errno::from_raw(wanted);
    match result {
        Ok(()) => bail!("the call succeeded; {wanted_name} was expected"),
        Err(error) => {
            ensure!(
                error.raw_os_error() == Some(wanted),
                "{error}; {wanted_name} was expected"
            );
            Ok(())
        }
    }
}
