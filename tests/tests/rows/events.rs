//! What programs tell, through the agent's own reader of the ring buffer.

use std::net::TcpListener;
use std::os::fd::AsFd;

use anyhow::ensure;
use isthmus_abi::{
    BackendHealthRow, BackendRow, Counter, EventKind, EventRow, FailureCause, HealthState, NO_MARK,
    Refusal, TICK_SHIFT,
};
use isthmus_agent::datapath::{EventRing, clock};
use isthmus_core::model::Protocol;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Row;
use super::connect::Kind;
use super::fair::{other_than, own_bit, stand};
use super::health::{MANY, Pair, far_ejection};
use super::taken::{Deaf, begin, non_blocking};
use super::world::{SERVICE4, TCP4, World};

pub fn rows() -> Vec<Row> {
    let row = |name: &str, row: fn(&mut World) -> anyhow::Result<()>| -> Row {
        (format!("events: {name}"), Box::new(row))
    };
    vec![
        row("an ejection is told", ejection),
        row("a trial that fails is told", failed_trial),
        row("a trial that succeeds and the return are told", returned),
        row("a trial that is given up is told", abandoned_trial),
        row("a closing is told, of its client", closed),
        row("a disbelief is told, of its client", disbelieved),
        row("what a limit keeps in is told, of its service", capped),
        row(
            "that all are ejected is told, at a bounded rate",
            all_ejected,
        ),
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
    let since = pair.failures(world, Pair::DEAD)?.out_since();
    let meanwhile = began >> TICK_SHIFT..=told.at >> TICK_SHIFT;
    ensure!(
        since.is_some_and(|since| meanwhile.contains(&since)),
        "{since:?}: {told:?}"
    );
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

/// The client's next connect there finds that the one before it is gone, and is the trial now.
fn abandoned_trial(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    let deaf = Deaf::new(Kind::V4)?;
    let dead = pair.id(Pair::DEAD);
    world.backend(dead, pair.service(), Protocol::Tcp, deaf.address)?;
    pair.set_state(world, Pair::DEAD, HealthState::ejected(1, 3))?;
    pair.draw_only(world, Pair::DEAD)?;
    let mut ring = ring(world)?;
    for _ in 0..2 {
        let trial = non_blocking(Kind::V4)?;
        begin(&trial, Kind::V4)?;
    }
    let told = of(&ring.read(MANY), &pair, Pair::DEAD);
    let none = Some(FailureCause::None);
    ensure!(
        told == [
            (Some(EventKind::TrialBegan), none),
            (Some(EventKind::TrialAbandoned), none),
            (Some(EventKind::TrialBegan), none),
        ],
        "{told:?}"
    );
    Ok(())
}

/// Two stand, and the backend fails one of them twice.
fn closed(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    let own = own_bit(&pair, world)?;
    stand(&pair, world, own | other_than(own))?;
    let mut ring = ring(world)?;
    ensure!(pair.connects(Kind::V4, MANY)? == 2, "not closed");
    let rows = ring.read(MANY);
    let told = of(&rows, &pair, Pair::DEAD);
    ensure!(
        told == [(Some(EventKind::Closed), Some(FailureCause::Refused))],
        "{told:?}"
    );
    let row = pair.health(world, Pair::DEAD)?;
    ensure!(row.closed == own, "{row:?}");
    let told = rows.iter().find(|row| row.kind == EventKind::Closed as u8);
    ensure!(
        told.is_some_and(|told| told.until == row.closed_until && 1 << told.mark == own),
        "{told:?} of {row:?}"
    );
    Ok(())
}

/// Two backends fail a client, and none answers between.
fn disbelieved(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    let own = own_bit(&pair, world)?;
    const NEXT: u32 = 2;
    let next = pair.id(NEXT);
    world.backend(next, pair.service(), Protocol::Tcp, pair.dead())?;
    let mut ring = ring(world)?;
    for (which, wanted) in [(Pair::DEAD, None), (NEXT, Some(FailureCause::Refused))] {
        pair.draw_only(world, which)?;
        ensure!(pair.connects(Kind::V4, 1)? == 1, "{which} answered");
        let rows = ring.read(MANY);
        let told = of(&rows, &pair, which);
        let wanted = wanted.map(|cause| (Some(EventKind::Disbelieved), Some(cause)));
        ensure!(told == Vec::from_iter(wanted), "{told:?}");
        ensure!(rows.iter().all(|row| 1 << row.mark == own), "{rows:?}");
    }
    let run = pair.failures(world, NEXT)?.run;
    ensure!(run == 0, "it was believed: {run:#x}");
    Ok(())
}

fn capped(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    pair.limit(world, 0, 0)?;
    let mut ring = ring(world)?;
    // Twice, and it is closed; a client to which it is not goes on.
    for _ in 0..MANY {
        pair.connects(Kind::V4, 1)?;
        let open = BackendHealthRow {
            closed: 0,
            ..pair.health(world, Pair::DEAD)?
        };
        let dead = pair.id(Pair::DEAD);
        world.tables().backend_health.put(dead, open)?;
    }
    expect_told_of_service(world, &mut ring, EventKind::Capped, Counter::EjectionCapped)
}

fn all_ejected(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    for which in [Pair::ALIVE, Pair::DEAD] {
        pair.set_state(world, which, far_ejection())?;
    }
    let mut ring = ring(world)?;
    pair.connects(Kind::V4, MANY)?;
    expect_told_of_service(world, &mut ring, EventKind::AllEjected, Counter::AllEjected)
}

/// All that `counter` counted was told, or counted as untold.
fn expect_told_of_service(
    world: &World,
    ring: &mut EventRing,
    kind: EventKind,
    counter: Counter,
) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    loop {
        let more = ring.read(MANY);
        if more.is_empty() {
            break;
        }
        rows.extend(more);
    }
    let told = rows.iter().filter(|row| row.kind == kind as u8);
    let told: Vec<_> = told.collect();
    ensure!(!told.is_empty(), "{rows:?}");
    let none = FailureCause::None as u8;
    for row in &told {
        ensure!(
            (row.service, row.backend, row.cause) == (TCP4, 0, none)
                && u32::from(row.mark) == NO_MARK,
            "{row:?}"
        );
    }
    let (counted, untold) = (world.gained(counter)?, world.gained(Counter::EventLost)?);
    ensure!(
        counted > 1 && told.len() as u64 + untold == counted,
        "{} are told and {untold} are not, of {counted}",
        told.len()
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
