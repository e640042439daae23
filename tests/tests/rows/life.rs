//! What programs and sockets go through: restarts, another version, crowds, rings that move.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use isthmus_abi::{Counter, Ring, Slot};
use isthmus_core::model::Protocol;
use socket2::{Domain, Socket, Type};

use super::Row;
use super::connect::expect_errno;
use super::world::{SERVICE_PORT, SERVICE4, TCP4, UDP4, World};

pub fn rows() -> Vec<Row> {
    let row = |name: &str, row: fn(&mut World) -> anyhow::Result<()>| -> Row {
        (name.to_owned(), Box::new(row))
    };
    vec![
        row(
            "restart: links keep their ids and the maps their rows",
            restart,
        ),
        row(
            "other sizes: new maps, the same links, sockets still remember",
            other_version,
        ),
        row("3,000 live sockets: each remembers its own service", crowd),
        row(
            "a slot of another service is drawn again, then refused",
            foreign_slot,
        ),
        row(
            "two tiers: the second stands behind its head and is not drawn",
            two_tiers,
        ),
    ]
}

fn service() -> SocketAddr {
    (SERVICE4, SERVICE_PORT).into()
}

fn udp() -> std::io::Result<Socket> {
    Socket::new(Domain::IPV4, Type::DGRAM, None)
}

fn link_ids(world: &World) -> Vec<Vec<Option<u32>>> {
    let hooks = world.datapath().hooks();
    hooks
        .iter()
        .map(|hook| {
            hook.programs
                .iter()
                .map(|program| program.link_id)
                .collect()
        })
        .collect()
}

fn restart(world: &mut World) -> anyhow::Result<()> {
    let before = link_ids(world);
    ensure!(
        before
            .iter()
            .all(|hook| hook.len() == 1 && hook[0].is_some()),
        "one program of ours a hook: {before:?}"
    );
    world.start(|_| ())?;
    ensure!(
        link_ids(world) == before,
        "links changed: {before:?} became {:?}",
        link_ids(world)
    );
    let socket = udp()?;
    socket
        .connect(&service().into())
        .context("the rows of before the restart")?;
    Ok(())
}

fn other_version(world: &mut World) -> anyhow::Result<()> {
    // A tracepoint's link is for one program.
    let cgroup_links = |world: &World| {
        let hooks = world.datapath().hooks();
        let ours = hooks
            .into_iter()
            .filter(|hook| hook.attach_name() != "trace_raw_tp");
        ours.map(|hook| hook.programs)
            .map(|programs| {
                programs
                    .into_iter()
                    .map(|program| program.link_id)
                    .collect::<Vec<_>>()
            })
            .collect::<Vec<_>>()
    };
    let before = cgroup_links(world);
    let old = udp()?;
    old.connect(&service().into())?;
    world.start(|config| config.sizes.backends *= 2)?;
    let after = cgroup_links(world);
    ensure!(
        after == before,
        "links changed: {before:?} became {after:?}"
    );
    ensure!(
        link_ids(world).iter().all(|hook| hook.len() == 1),
        "one program of ours a hook: {:?}",
        link_ids(world)
    );
    let seen = old.peer_addr()?.as_socket().context("an address")?;
    ensure!(
        seen == service(),
        "a socket of the earlier version sees {seen}"
    );
    let versions = std::fs::read_dir(world.config().bpffs)?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with('v'))
        .count();
    ensure!(versions == 1, "{versions} versions of maps are pinned");
    Ok(())
}

/// Enough sockets that some meet in one row of `sockets`: 3,000 in 65,536 places collide some 67 times.
fn crowd(world: &mut World) -> anyhow::Result<()> {
    let sockets = (0..3000)
        .map(|_| {
            let socket = udp()?;
            socket.connect(&service().into())?;
            Ok(socket)
        })
        .collect::<std::io::Result<Vec<_>>>()?;
    for (nth, socket) in sockets.iter().enumerate() {
        let seen = socket.peer_addr()?.as_socket().context("an address")?;
        ensure!(seen == service(), "socket {nth} of 3,000 sees {seen}");
    }
    world.expect_counter(Counter::SocketLost, 0)?;
    // Those whose record had to move must forget as well as the others.
    let backend = world.backend4;
    for (nth, socket) in sockets.iter().enumerate() {
        socket.connect(&backend.into())?;
        let seen = socket.peer_addr()?.as_socket().context("an address")?;
        ensure!(
            seen == backend,
            "socket {nth} of 3,000 sees {seen} after a connect to {backend}"
        );
    }
    Ok(())
}

fn foreign_slot(world: &mut World) -> anyhow::Result<()> {
    world
        .tables()
        .slots
        .put(UDP4 * 4, Slot::new(TCP4 * 4, TCP4))?;
    expect_errno(udp()?.connect(&service().into()), nix::libc::ECONNREFUSED)?;
    world.expect_counter(Counter::RefusedDrawGaveUp, 1)?;
    world.expect_counter(Counter::DrawRetried, u64::from(isthmus_abi::DRAW_TRIES))?;
    let other = world.connects(TCP4 * 4)?;
    ensure!(other == 0, "another's backend was counted {other} times");
    Ok(())
}

fn two_tiers(world: &mut World) -> anyhow::Result<()> {
    const SPAN: u32 = 200;
    let backend = world.backend4;
    let (near, far) = (UDP4 * 4, UDP4 * 4 + 1);
    world.backend(far, UDP4, Protocol::Udp, backend)?;
    world
        .tables()
        .slots
        .put(SPAN, Slot(isthmus_abi::TierHead::new(2, 1).0))?;
    world.tables().slots.put(SPAN + 1, Slot::new(near, UDP4))?;
    world.tables().slots.put(SPAN + 2, Slot::new(far, UDP4))?;
    world.tables().rings.put(UDP4, Ring::new(SPAN, 2, 1))?;
    for _ in 0..64 {
        udp()?.connect(&service().into())?;
    }
    let counts = (world.connects(near)?, world.connects(far)?);
    ensure!(counts == (64, 0), "the tiers got {counts:?}");
    Ok(())
}
