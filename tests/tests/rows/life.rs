//! What programs and sockets go through: restarts, another version, crowds, rings that move.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use isthmus_abi::{
    ClientWord, Counter, Frontend4Key, FrontendValue, HealthState, Ring, Slot, health_kind,
};
use isthmus_agent::datapath::{DatapathConfig, KernelHash};
use isthmus_core::model::Protocol;
use isthmus_core::table::TableBackend;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Socket, Type};

use super::Row;
use super::connect::{Kind, expect_errno};
use super::health::{MANY, Pair, far_ejection};
use super::taken::{Deaf, begin, non_blocking};
use super::world::{SERVICE_PORT, SERVICE4, TCP4, UDP4, World};

/// Longer than a trial may go without a word.
const TRIAL: Duration = Duration::from_millis(1_020);

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
            "host only: its clients are those of the agent's present namespace",
            host_moves,
        ),
        row(
            "a walk over a hash shows what stays once while the rest goes",
            walk,
        ),
        row(
            "restart: a trial that was answered before it readmits after it",
            |world| restart_in_trial(world, true),
        ),
        row(
            "restart: a trial that nobody answered doubles the wait after it",
            |world| restart_in_trial(world, false),
        ),
        row(
            "other sizes: new maps know nothing of a trial, and its failure is one like others",
            new_maps_in_trial,
        ),
        row(
            "restart: what a limit kept in goes once the limit is raised",
            restart_when_capped,
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

/// A connect tries a backend when the agent goes; nobody has looked yet what came of it.
fn restart_in_trial(world: &mut World, answered: bool) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    let deaf = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    deaf.bind(&pair.dead().into())?;
    deaf.listen(if answered { 64 } else { 0 })?;
    let queued = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    queued.connect(&pair.dead().into())?;
    pair.set_state(world, Pair::ALIVE, far_ejection())?;
    pair.set_state(world, Pair::DEAD, HealthState::ejected(1, 3))?;
    let trial = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    trial.set_nonblocking(true)?;
    expect_errno(trial.connect(&service().into()), libc::EINPROGRESS)?;
    let state = pair.state(world, Pair::DEAD)?;
    ensure!(state.kind() == health_kind::TRIAL, "it is {state:?}");
    ensure!(trial.peer_addr().is_ok() == answered);

    world.start(|_| ())?;
    // On a slow machine its SYN went out again meanwhile, and that decided it.
    let after = pair.state(world, Pair::DEAD)?;
    ensure!(
        after == state || (!answered && after.kind() == health_kind::EJECTED),
        "{state:?} became {after:?}"
    );
    pair.set_state(world, Pair::ALIVE, HealthState::HEALTHY)?;
    // How long a trial may go without a word, not a wait for anything.
    std::thread::sleep(TRIAL);
    let refused = pair.connects(Kind::V4, MANY)?;
    ensure!(refused == 0, "{refused} refused");
    let state = pair.state(world, Pair::DEAD)?;
    let as_it_should = if answered {
        state == HealthState::HEALTHY
    } else {
        (state.kind(), state.doublings()) == (health_kind::EJECTED, 4)
    };
    ensure!(as_it_should, "it is {state:?}");
    Ok(())
}

/// What was ejected, and what was tried, is drawn again. The socket that tried it fails later, and is counted once, where it was sent.
fn new_maps_in_trial(world: &mut World) -> anyhow::Result<()> {
    const TRIED: u32 = 2;
    std::fs::write("/proc/sys/net/ipv4/tcp_syn_retries", "1")?;
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    let deaf = Deaf::new(Kind::V4)?;
    let tried = pair.id(TRIED);
    let add = |world: &mut World| world.backend(tried, pair.service(), Protocol::Tcp, deaf.address);
    add(world)?;
    pair.set_state(world, Pair::DEAD, far_ejection())?;
    pair.set_state(world, TRIED, HealthState::ejected(1, 3))?;
    pair.draw_only(world, TRIED)?;
    let trial = non_blocking(Kind::V4)?;
    begin(&trial, Kind::V4)?;
    let state = pair.state(world, TRIED)?;
    ensure!(state.kind() == health_kind::TRIAL, "it is {state:?}");

    world.start(|config| config.sizes.backends *= 2)?;
    pair.declare(world)?;
    add(world)?;
    for which in [Pair::ALIVE, Pair::DEAD, TRIED] {
        let state = pair.state(world, which)?;
        ensure!(state == HealthState::HEALTHY, "{which} is {state:?}");
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while pair.failures(world, TRIED)?.timed_out == 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let failures = pair.failures(world, TRIED)?;
    ensure!(
        (failures.timed_out, failures.refused, failures.unreachable) == (1, 0, 0),
        "{failures:?}"
    );
    let state = pair.state(world, TRIED)?;
    ensure!(state.kind() != health_kind::EJECTED, "it is {state:?}");
    // Clients stand anew, and the dead one costs its failures once more.
    pair.prove(world, Kind::V4)?;
    let refused = pair.connects(Kind::V4, MANY)?;
    let state = pair.state(world, Pair::DEAD)?;
    ensure!(
        (refused, state.kind()) == (3, health_kind::EJECTED),
        "{refused} refused, it is {state:?}"
    );
    Ok(())
}

fn restart_when_capped(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    pair.limit(world, 0, 0)?;
    pair.connects(Kind::V4, MANY)?;
    let capped = pair.state(world, Pair::DEAD)?;
    ensure!(capped.kind() == health_kind::SUSPECT, "it is {capped:?}");

    world.start(|_| ())?;
    ensure!(pair.state(world, Pair::DEAD)? == capped);
    pair.limit(world, 1, 0)?;
    // It is closed to this client for a while; then the client's next failure is one too many.
    let open = isthmus_abi::BackendHealthRow {
        closed: 0,
        ..pair.health(world, Pair::DEAD)?
    };
    let id = pair.id(Pair::DEAD);
    world.tables().backend_health.put(id, open)?;
    let refused = pair.connects(Kind::V4, MANY)?;
    let state = pair.state(world, Pair::DEAD)?;
    ensure!(
        (refused, state.kind()) == (1, health_kind::EJECTED),
        "{refused} refused, it is {state:?}"
    );
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
