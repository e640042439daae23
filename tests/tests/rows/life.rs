//! What programs and sockets go through: restarts, another version, crowds, rings that move.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, bail, ensure};
use isthmus_abi::{ClientWord, Counter, Frontend4Key, FrontendValue, Ring, Slot};
use isthmus_agent::datapath::{DatapathConfig, KernelHash};
use isthmus_core::model::Protocol;
use isthmus_core::table::TableBackend;
use isthmus_test_programs::Earlier;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Socket, Type};

use super::Row;
use super::connect::expect_errno;
use super::world::{SERVICE_PORT, SERVICE4, SERVICE6, TCP4, UDP4, World};

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
        row(
            "an earlier ABI: sockets that it connected still remember",
            earlier_abi,
        ),
        row(
            "host only: its clients are those of the agent's present namespace",
            host_moves,
        ),
        row(
            "a walk over a hash shows what stays once while the rest goes",
            walk,
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

/// Cookies of the network namespaces that have a row.
fn client_rows(world: &World) -> anyhow::Result<Vec<u64>> {
    let mut cookies = Vec::new();
    let clients: KernelHash<u64, ClientWord> = world.datapath().hash("clients", "")?;
    clients.for_each(&mut |cookie, _| cookies.push(cookie))?;
    Ok(cookies)
}

/// `--socket-lb=host`, by an agent that is started again in another network namespace.
fn host_moves(world: &mut World) -> anyhow::Result<()> {
    let host = |config: &mut DatapathConfig| config.translate_pods = false;
    world.start(host)?;
    let before = client_rows(world)?;
    ensure!(before.len() == 1, "{before:?}");
    udp()?.connect(&service().into())?;
    let elsewhere = std::thread::scope(|scope| {
        let moved = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            world.start(host)
        });
        moved.join()
    });
    match elsewhere {
        Ok(started) => started.context("in another namespace")?,
        Err(_) => bail!("the other namespace's thread panicked"),
    }
    let after = client_rows(world)?;
    ensure!(
        after.len() == 1 && after != before,
        "{before:?} became {after:?}"
    );
    // Who is not the host any more passes unchanged.
    expect_errno(udp()?.connect(&service().into()), libc::ENETUNREACH)?;
    world.start(|_| ())?;
    let all = client_rows(world)?;
    ensure!(all.is_empty(), "every client is served, and {all:?}");
    Ok(())
}

/// What people and adoption read of frontends while reconciliation writes them.
fn walk(world: &mut World) -> anyhow::Result<()> {
    // More than are read at once.
    world.start(|config| config.sizes.services = 2048)?;
    let (stays, goes) = (1..=1500, 2001..=3500);
    for port in stays.clone().chain(goes.clone()) {
        world.frontend(SERVICE4.into(), port, Protocol::Tcp.abi(), TCP4)?;
    }
    let frontends = || -> anyhow::Result<KernelHash<Frontend4Key, FrontendValue>> {
        Ok(world.datapath().hash("frontends4", "")?)
    };
    let mut writer = frontends()?;
    let mut shown = BTreeMap::new();
    let mut removed = Ok(());
    frontends()?.for_each(&mut |key, _| {
        let port = key.port.to_host();
        *shown.entry(port).or_insert(0) += 1;
        // The one that the walk stands at, too.
        if goes.contains(&port) && removed.is_ok() {
            removed = writer.remove(key);
        }
    })?;
    removed?;
    let wrong: Vec<_> = stays.filter(|port| shown.get(port) != Some(&1)).collect();
    ensure!(
        wrong.is_empty(),
        "ports {wrong:?} are not shown once: {shown:?}"
    );
    let twice: Vec<_> = goes.filter(|port| shown.get(port) > Some(&1)).collect();
    ensure!(twice.is_empty(), "ports {twice:?} are shown twice");
    Ok(())
}

/// Programs of ABI 2, built from this repository when that was current.
const ABI_2: &[u8] = include_bytes!("../../fixtures/datapath-abi2.o");

/// The socket's row of `sockets` is older than any version of the rest.
fn earlier_abi(world: &mut World) -> anyhow::Result<()> {
    let (service4, service6) = (service(), SocketAddr::from((SERVICE6, SERVICE_PORT)));
    let backends = [world.backend4, world.backend6];
    world.stop();
    let config = world.config();
    let cgroup = config.cgroup.context("the rows' cgroup")?;
    let earlier = Earlier::attach(ABI_2, &config.bpffs, &cgroup)?;
    for (nth, (service, backend)) in [service4, service6].into_iter().zip(backends).enumerate() {
        for (protocol, index) in [(1, 10), (2, 11)] {
            fill_abi_2(
                &earlier,
                service,
                backend,
                protocol,
                index + 2 * u32::try_from(nth)?,
            )?;
        }
    }
    let mut sockets = Vec::new();
    for (service, domain) in [(service4, Domain::IPV4), (service6, Domain::IPV6)] {
        for kind in [Type::STREAM, Type::DGRAM] {
            let socket = Socket::new(domain, kind, None)?;
            socket
                .connect(&service.into())
                .context("a connect under ABI 2")?;
            sockets.push((socket, service));
        }
    }
    drop(earlier);
    let peer = |socket: &Socket| -> anyhow::Result<SocketAddr> {
        socket.peer_addr()?.as_socket().context("an address")
    };
    for ((socket, _), backend) in sockets.iter().zip(backends.iter().flat_map(|b| [b, b])) {
        ensure!(
            peer(socket)? == *backend,
            "without programs: {:?}",
            peer(socket)?
        );
    }
    world.start(|_| ())?;
    for (socket, service) in &sockets {
        let seen = peer(socket)?;
        ensure!(
            seen == *service,
            "a socket of ABI 2 sees {seen}, not {service}"
        );
    }
    Ok(())
}

/// One service of one backend, as ABI 2 has it: protocols are 1 and 2, a ring's word has eight bits of tiers.
fn fill_abi_2(
    earlier: &Earlier,
    service: SocketAddr,
    backend: SocketAddr,
    protocol: u16,
    index: u32,
) -> anyhow::Result<()> {
    let settings = isthmus_abi::Settings {
        abi_version: 2,
        refuse_errno: 111,
        client_default: isthmus_abi::client::TRANSLATE,
        client_rows: 0,
        refuse_unknown_port: 0,
        passive_health: 1,
        service_cidrs4: [isthmus_abi::Cidr4::UNUSED; isthmus_abi::CIDRS_MAX],
        service_cidrs6: [isthmus_abi::Cidr6::UNUSED; isthmus_abi::CIDRS_MAX],
    };
    earlier.put("settings", &0_u32, &settings)?;
    let mut key = match service.ip() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    key.extend(service.port().to_be_bytes());
    key.extend(protocol.to_ne_bytes());
    let frontends = if service.is_ipv4() {
        "frontends4"
    } else {
        "frontends6"
    };
    earlier.put(frontends, key.as_slice(), &[index, 0])?;
    let row = isthmus_abi::BackendRow {
        address: isthmus_core::model::Address::from(backend.ip()).words(),
        port: backend.port().to_be(),
        service: index,
        generation: 1,
        state: isthmus_abi::backend_state::LIVE,
        protocol: u8::try_from(protocol)?,
        ..isthmus_abi::BackendRow::default()
    };
    earlier.put("backends", &index, &row)?;
    earlier.put("slots", &index, &Slot::new(index, index))?;
    let ring = u64::from(index) << 32 | 1 << 24 | 1;
    earlier.put("rings", &index, &ring)
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
    expect_errno(udp()?.connect(&service().into()), libc::ECONNREFUSED)?;
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
