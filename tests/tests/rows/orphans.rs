//! Connected UDP sockets whose backend is removed: exactly those are closed, wherever they are.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, ensure};
use isthmus_abi::{Ring, ScopeProtocol, Slot};
use isthmus_agent::datapath::{Closed, Orphans, Place, Removed};
use isthmus_core::model::{Address, Protocol};
use nix::libc;
use socket2::{Domain, Socket, Type};

use super::Row;
use super::world::{SERVICE_PORT, SERVICE4, SERVICE6, UDP4, UDP6, World};

pub fn rows() -> Vec<Row> {
    let row = |name: &str, row: fn(&mut World) -> anyhow::Result<()>| -> Row {
        (format!("removed: {name}"), Box::new(row))
    };
    vec![
        row("v4: its socket is closed, and no other", v4),
        row("v6: its socket is closed, and no other", v6),
        row("mapped: its socket is closed, and no other", mapped),
        row("from one of two services only", one_of_two),
        row("with its whole service", whole_service),
        row("in another network namespace", elsewhere),
        row(
            "a socket that was connected elsewhere since stays",
            moved_on,
        ),
        row("1,000 sockets at once", many),
        row(
            "unseen: whoever's service has no such backend, and no other",
            unseen,
        ),
    ]
}

/// A connected socket that waits no longer than a row may.
fn connected(domain: Domain, to: SocketAddr) -> anyhow::Result<UdpSocket> {
    let socket = Socket::new(domain, Type::DGRAM, None)?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(false)?;
    }
    socket.connect(&to.into())?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(socket.into())
}

fn errno(result: io::Result<usize>) -> anyhow::Result<i32> {
    let error = result.err().context("it received something")?;
    error.raw_os_error().context("an errno")
}

fn expect_closed(socket: &UdpSocket) -> anyhow::Result<()> {
    let errno = errno(socket.recv(&mut [0; 16]))?;
    ensure!(errno == libc::ECONNABORTED, "recv fails with {errno}");
    Ok(())
}

/// It is connected still, and nothing is the matter with it.
fn expect_open(socket: &UdpSocket) -> anyhow::Result<()> {
    socket.peer_addr().context("not connected any more")?;
    ensure!(socket.take_error()?.is_none());
    Ok(())
}

fn place(at: SocketAddr) -> Place {
    (Address::from(at.ip()), at.port())
}

fn close(world: &World, at: &[SocketAddr]) -> anyhow::Result<Closed> {
    let removed: BTreeSet<Place> = at.iter().copied().map(place).collect();
    Ok(Orphans::open(world.datapath())?.close(&removed.into())?)
}

/// Another port at the backend's address, where nobody has to answer.
fn other_place(at: SocketAddr) -> SocketAddr {
    SocketAddr::new(at.ip(), at.port() ^ 1)
}

fn set_only(world: &mut World, service: u32, id: u32) -> anyhow::Result<()> {
    world
        .tables()
        .slots
        .put(service * 4, Slot::new(id, service))?;
    Ok(world
        .tables()
        .rings
        .put(service, Ring::new(service * 4, 1, 1))?)
}

/// Sockets of all sorts at two backends, of which one goes.
fn exactly(world: &mut World, domain: Domain, ip: IpAddr) -> anyhow::Result<()> {
    let v6 = ip.to_canonical().is_ipv6();
    let (service, gone) = if v6 {
        (UDP6, world.backend6)
    } else {
        (UDP4, world.backend4)
    };
    let stays = other_place(gone);
    let to = SocketAddr::new(ip, SERVICE_PORT);
    world.service(service, ip.to_canonical(), Protocol::Udp, &[gone])?;
    let closed = connected(domain, to)?;
    let unconnected = UdpSocket::bind((gone.ip(), 0))?;
    if domain != Domain::IPV6 || v6 {
        unconnected.send_to(b"hello", to)?;
        world.expect_datagram(gone)?;
    }
    let straight = connected(domain, {
        let mapped = |ip: IpAddr| match (ip, domain == Domain::IPV6) {
            (IpAddr::V4(v4), true) => v4.to_ipv6_mapped().into(),
            (ip, _) => ip,
        };
        SocketAddr::new(mapped(gone.ip()), gone.port())
    })?;
    world.backend(service * 4 + 1, service, Protocol::Udp, stays)?;
    set_only(world, service, service * 4 + 1)?;
    let other = connected(domain, to)?;
    world.tables().backends.remove(service * 4)?;
    let done = close(world, &[gone, stays])?;
    ensure!(done.closed == 1, "{done:?}");
    expect_closed(&closed)?;
    ensure!(closed.peer_addr().is_err(), "it has a peer still");
    expect_open(&straight)?;
    expect_open(&other)?;
    ensure!(unconnected.take_error()?.is_none());
    unconnected.send_to(b"hello", gone)?;
    world.expect_datagram(gone)?;
    // Nobody is left.
    let again = close(world, &[gone])?;
    ensure!(again.closed == 0, "{again:?}");
    Ok(())
}

fn v4(world: &mut World) -> anyhow::Result<()> {
    exactly(world, Domain::IPV4, SERVICE4.into())
}

fn v6(world: &mut World) -> anyhow::Result<()> {
    exactly(world, Domain::IPV6, SERVICE6.into())
}

fn mapped(world: &mut World) -> anyhow::Result<()> {
    exactly(world, Domain::IPV6, SERVICE4.to_ipv6_mapped().into())
}

fn one_of_two(world: &mut World) -> anyhow::Result<()> {
    const OTHER: u32 = 9;
    let at = world.backend4;
    world.backend(OTHER * 4, OTHER, Protocol::Udp, at)?;
    set_only(world, OTHER, OTHER * 4)?;
    world.frontend(SERVICE4.into(), 53, ScopeProtocol::UDP, OTHER)?;
    let first = connected(Domain::IPV4, (SERVICE4, SERVICE_PORT).into())?;
    let second = connected(Domain::IPV4, (SERVICE4, 53).into())?;
    world.tables().rings.put(UDP4, Ring::EMPTY)?;
    world.tables().backends.remove(UDP4 * 4)?;
    let done = close(world, &[at])?;
    ensure!(done.closed == 1, "{done:?}");
    expect_closed(&first)?;
    expect_open(&second)
}

fn whole_service(world: &mut World) -> anyhow::Result<()> {
    let at = world.backend4;
    let socket = connected(Domain::IPV4, (SERVICE4, SERVICE_PORT).into())?;
    let mut keys = Vec::new();
    let tables = world.tables();
    tables.frontends4.for_each(&mut |key, value| {
        if value.service == UDP4 {
            keys.push(key);
        }
    })?;
    for key in keys {
        tables.frontends4.remove(key)?;
    }
    tables.rings.put(UDP4, Ring::EMPTY)?;
    tables.backends.remove(UDP4 * 4)?;
    let done = close(world, &[at])?;
    ensure!(done.closed == 1, "{done:?}");
    expect_closed(&socket)
}

fn elsewhere(world: &mut World) -> anyhow::Result<()> {
    let at = world.backend4;
    let (ready, is_ready) = mpsc::channel();
    let (proceed, may_proceed) = mpsc::channel();
    let pod = std::thread::spawn(move || -> anyhow::Result<()> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
        super::world::run("ip", &["link", "set", "lo", "up"])?;
        let socket = connected(Domain::IPV4, (SERVICE4, SERVICE_PORT).into())?;
        // Threads share their process' directory in /proc: a process of its own holds the namespace there.
        let mut child = std::process::Command::new("sleep").arg("30").spawn()?;
        ready.send(())?;
        may_proceed.recv()?;
        let result = expect_closed(&socket);
        child.kill()?;
        child.wait()?;
        result
    });
    let outcome = is_ready
        .recv()
        .context("the other namespace is not ready")
        .and_then(|()| {
            world.tables().backends.remove(UDP4 * 4)?;
            close(world, &[at])
        });
    proceed.send(())?;
    pod.join()
        .map_err(|_| anyhow::anyhow!("the other namespace's thread panicked"))??;
    let done = outcome?;
    ensure!(done.closed == 1, "{done:?}");
    Ok(())
}

fn moved_on(world: &mut World) -> anyhow::Result<()> {
    let at = world.backend4;
    let socket = connected(Domain::IPV4, (SERVICE4, SERVICE_PORT).into())?;
    socket.connect(other_place(at))?;
    world.tables().backends.remove(UDP4 * 4)?;
    let done = close(world, &[at])?;
    ensure!(done.closed == 0, "{done:?}");
    expect_open(&socket)
}

fn many(world: &mut World) -> anyhow::Result<()> {
    let at = world.backend4;
    let sockets = (0..1000)
        .map(|_| connected(Domain::IPV4, (SERVICE4, SERVICE_PORT).into()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    world.tables().backends.remove(UDP4 * 4)?;
    let done = close(world, &[at])?;
    ensure!(done.closed == 1000, "{done:?}");
    sockets.iter().try_for_each(expect_closed)
}

/// Other maps than those by which the sockets were sent there.
fn unseen(world: &mut World) -> anyhow::Result<()> {
    let to = (SERVICE4, SERVICE_PORT).into();
    let gone = connected(Domain::IPV4, to)?;
    let of_unknown = connected(Domain::IPV6, (SERVICE6, SERVICE_PORT).into())?;
    world.start(|config| config.sizes.backends *= 2)?;
    let stays = other_place(world.backend4);
    world.service(UDP4, SERVICE4.into(), Protocol::Udp, &[stays])?;
    let other = connected(Domain::IPV4, to)?;
    let done = Orphans::open(world.datapath())?.close(&Removed::ANYWHERE)?;
    ensure!(done.closed == 1, "{done:?}");
    expect_closed(&gone)?;
    expect_open(&of_unknown)?;
    expect_open(&other)
}
