//! What programs tell, through the agent's own reader of the ring buffer.

use std::net::TcpListener;
use std::os::fd::AsFd;

use anyhow::ensure;
use isthmus_abi::{
    BackendRow, Counter, EventKind, EventRow, FailureCause, HealthState, NO_MARK, Refusal,
};
use isthmus_agent::datapath::{EventRing, clock};
use isthmus_core::model::Protocol;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Row;
use super::connect::Kind;
use super::health::{MANY, Pair};
use super::world::{SERVICE4, TCP4, World};

pub fn rows() -> Vec<Row> {
    let row = |name: &str, row: fn(&mut World) -> anyhow::Result<()>| -> Row {
        (format!("events: {name}"), Box::new(row))
    };
    vec![
        row("an ejection is told", ejection),
        row("a trial that fails is told", failed_trial),
        row("a trial that succeeds and the return are told", returned),
        row(
            "a refusal is told with its reason, at a bounded rate",
            refusal,
        ),
        row(
            "a full ring loses the newest, counts them, and goes on",
            full,
        ),
        row(
            "the next reader goes on where the last one stopped",
            next_reader,
        ),
    ]
}

/// The ring, without what earlier rows left in it.
fn ring(world: &World) -> anyhow::Result<EventRing> {
    let mut ring = world.datapath().events()?;
    while !ring.read(MANY).is_empty() {}
    ensure!(!readable(&ring)?, "an empty ring is readable");
    Ok(ring)
}

fn readable(ring: &EventRing) -> anyhow::Result<bool> {
    let mut fds = [PollFd::new(ring.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::ZERO)? == 1)
}

/// The events of a backend. What may come with every connect is left out.
fn of(
    rows: &[EventRow],
    pair: &Pair,
    which: u32,
) -> Vec<(Option<EventKind>, Option<FailureCause>)> {
    let rows = rows.iter().filter(|row| row.backend == pair.id(which));
    rows.map(|row| {
        (
            EventKind::from_abi(row.kind),
            FailureCause::from_abi(row.cause),
        )
    })
    .collect()
}

fn generation(world: &World, id: u32) -> anyhow::Result<u32> {
    Ok(world.datapath().array::<BackendRow>()?.get(id).generation)
}

fn ejection(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    let mut ring = ring(world)?;
    let began = clock();
    ensure!(pair.connects(Kind::V4, MANY)? == 3);
    ensure!(readable(&ring)?, "an ejection does not wake the reader");
    let rows = ring.read(MANY);
    let dead = pair.id(Pair::DEAD);
    let ejected: Vec<_> = rows
        .iter()
        .filter(|row| row.kind == EventKind::Ejected as u8)
        .collect();
    let [told] = ejected[..] else {
        anyhow::bail!("{} ejections are told: {rows:?}", ejected.len());
    };
    ensure!(
        (told.service, told.backend) == (pair.service(), dead)
            && told.generation == generation(world, dead)?,
        "{told:?}"
    );
    ensure!(told.cause == FailureCause::Refused as u8 && told.doublings == 0);
    ensure!(u32::from(told.mark) < NO_MARK, "no client: {told:?}");
    ensure!((began..=clock()).contains(&told.at), "{told:?}");
    ensure!(told.until == pair.state(world, Pair::DEAD)?.time());
    ensure!(ring.read(MANY).is_empty() && !readable(&ring)?);
    Ok(())
}

fn failed_trial(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    let mut ring = ring(world)?;
    pair.set_state(world, Pair::DEAD, HealthState::ejected(1, 3))?;
    ensure!(pair.connects(Kind::V4, MANY)? == 1);
    let rows = ring.read(MANY);
    let told = of(&rows, &pair, Pair::DEAD);
    ensure!(
        told == [
            (Some(EventKind::TrialBegan), Some(FailureCause::None)),
            (Some(EventKind::TrialFailed), Some(FailureCause::Refused)),
        ],
        "{told:?}"
    );
    ensure!(rows.iter().any(|row| row.doublings == 4), "{rows:?}");
    Ok(())
}

fn returned(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    let mut ring = ring(world)?;
    let _listening = TcpListener::bind(pair.dead())?;
    pair.set_state(world, Pair::DEAD, HealthState::ejected(1, 3))?;
    ensure!(pair.connects(Kind::V4, 20)? == 0);
    let told = of(&ring.read(MANY), &pair, Pair::DEAD);
    ensure!(
        told == [
            (Some(EventKind::TrialBegan), Some(FailureCause::None)),
            (Some(EventKind::Returned), Some(FailureCause::None)),
        ],
        "{told:?}"
    );
    Ok(())
}

fn refuse(world: &mut World, times: usize) -> anyhow::Result<Pair> {
    let pair = Pair::new(world, Kind::V4)?;
    world.service(TCP4, SERVICE4.into(), Protocol::Tcp, &[])?;
    for _ in 0..times {
        let answer = pair.connect(Kind::V4)?.map(drop);
        ensure!(answer == Err(libc::ECONNREFUSED), "{answer:?}");
    }
    Ok(pair)
}

fn refusal(world: &mut World) -> anyhow::Result<()> {
    let mut ring = ring(world)?;
    refuse(world, MANY)?;
    let rows = ring.read(MANY);
    let untold = world.gained(Counter::EventLost)?;
    ensure!(
        !rows.is_empty() && rows.len() as u64 + untold == MANY as u64,
        "{} are told and {untold} are not, of {MANY}",
        rows.len()
    );
    for row in rows {
        let reason = Refusal::ALL.get(usize::from(row.cause));
        ensure!(
            row.kind == EventKind::Refused as u8
                && row.service == TCP4
                && reason == Some(&Refusal::NoBackend),
            "{row:?}"
        );
    }
    Ok(())
}

fn full(world: &mut World) -> anyhow::Result<()> {
    let mut ring = ring(world)?;
    let room = isthmus_abi::EVENTS_BYTES as usize / (size_of::<EventRow>() + 8);
    // A trial that ends at once is two events, and costs one connect.
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    while !ring.read(MANY).is_empty() {}
    let mut before = world.gained(Counter::EventLost)?;
    let mut connects = 0;
    while before == world.gained(Counter::EventLost)? {
        connects += 1;
        ensure!(connects < 4 * room, "the ring is never full");
        pair.set_state(world, Pair::DEAD, HealthState::ejected(1, 0))?;
        pair.connects(Kind::V4, 4)?;
    }
    let mut told = 0;
    loop {
        let rows = ring.read(MANY);
        if rows.is_empty() {
            break;
        }
        ensure!(
            rows.iter()
                .all(|row| EventKind::from_abi(row.kind).is_some())
        );
        told += rows.len();
    }
    println!("    {told} of {room} records, {connects} rounds");
    ensure!(told > room / 2 && told <= room, "{told} of {room} records");
    before = world.gained(Counter::EventLost)?;
    pair.set_state(world, Pair::DEAD, HealthState::ejected(1, 0))?;
    pair.connects(Kind::V4, MANY)?;
    ensure!(
        !ring.read(MANY).is_empty(),
        "nothing is told after a full ring"
    );
    ensure!(before == world.gained(Counter::EventLost)?);
    Ok(())
}

fn next_reader(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    let mut first = ring(world)?;
    pair.set_state(world, Pair::DEAD, HealthState::ejected(1, 3))?;
    pair.connects(Kind::V4, MANY)?;
    ensure!(first.read(1).len() == 1);
    drop(first);
    world.start(|_| ())?;
    let told = of(&world.datapath().events()?.read(MANY), &pair, Pair::DEAD);
    ensure!(
        told == [(Some(EventKind::TrialFailed), Some(FailureCause::Refused))],
        "{told:?}"
    );
    Ok(())
}
