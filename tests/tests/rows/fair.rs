//! Health among several: what one client's failures do to others, and one backend's to others.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use isthmus_abi::{
    BackendFailuresRow, BackendHealthRow, EPOCH_SHIFT, HealthState, MARKS, Ring, ServiceHealthRow,
    Slot, Standing, TICK_SHIFT, health_kind, ticks,
};
use isthmus_agent::datapath::clock;
use isthmus_core::model::Protocol;

use super::Row;
use super::connect::Kind;
use super::health::{MANY, Pair, far_ejection};
use super::taken::{Deaf, begin, non_blocking};
use super::world::World;

pub fn rows() -> Vec<Row> {
    let row = |name: &str, row: fn(&mut World) -> anyhow::Result<()>| -> Row {
        (format!("fair: {name}"), Box::new(row))
    };
    let mut rows = vec![
        row(
            "closed to another client: drawn as before",
            closed_to_another,
        ),
        row(
            "suspect: the same tier first, a later one if it is grave",
            tiers,
        ),
        row(
            "whose trial failed leaves the next one to others",
            next_trial,
        ),
        row(
            "a closing ends on time, whoever fails meanwhile",
            closing_ends,
        ),
        row("two deaths with a success between are believed", two_deaths),
        row("a black hole of a later tier is ejected", later_black_hole),
        row(
            "nothing leads back to a backend that has left the ring",
            does_not_lead_out,
        ),
        row(
            "nothing leads to a later tier while the first has others",
            does_not_lead_to_later_tiers,
        ),
    ];
    let kinds = [Kind::V4, Kind::V6, Kind::NonBlocking, Kind::Mptcp];
    let kinds = kinds.into_iter().filter(|k| k.exists(Protocol::Tcp));
    rows.extend(kinds.map(|kind| -> Row {
        (
            format!("fair: {kind:?}: a success elsewhere leads back to who refused"),
            Box::new(move |world| leads_back(world, kind)),
        )
    }));
    rows
}

fn now() -> u64 {
    clock() >> TICK_SHIFT
}

/// This client's bit, once it stands.
fn own_bit(pair: &Pair, world: &World) -> anyhow::Result<u64> {
    let standing = pair.service_health(world)?.standing;
    let bits = standing.iter().fold(0, |bits, word| bits | word & MARKS);
    ensure!(bits.is_power_of_two(), "{bits:#x} stand");
    Ok(bits)
}

/// Has these clients, and no other, stand at the service.
fn stand(pair: &Pair, world: &mut World, bits: u64) -> anyhow::Result<()> {
    let epoch = clock() >> EPOCH_SHIFT;
    let mut row = ServiceHealthRow {
        standing: [0; 2],
        ..pair.service_health(world)?
    };
    for epoch in [epoch, epoch + 1] {
        row.standing[usize::from(epoch & 1 == 1)] = Standing::new(epoch, bits).0;
    }
    Ok(world.tables().service_health.put(pair.service(), row)?)
}

fn set_closed(
    pair: &Pair,
    world: &mut World,
    which: u32,
    bits: u64,
    until: u64,
) -> anyhow::Result<()> {
    let row = BackendHealthRow {
        closed: bits,
        closed_until: until,
        ..pair.health(world, which)?
    };
    Ok(world.tables().backend_health.put(pair.id(which), row)?)
}

/// Somebody else failed there twice, and goes on failing. The others' share of it is what it was.
fn closed_to_another(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    let _second = TcpListener::bind(pair.dead())?;
    pair.prove(world, Kind::V4)?;
    let other = own_bit(&pair, world)?.rotate_left(1) & MARKS | 1 << 3;
    let until = now() + ticks(60_000);
    set_closed(&pair, world, Pair::ALIVE, other, until)?;
    pair.set_state(
        world,
        Pair::ALIVE,
        HealthState::suspect(now() - 1).accused(true),
    )?;
    let before = pair.health(world, Pair::ALIVE)?.connects;
    for _ in 0..2 * MANY {
        ensure!(pair.connects(Kind::V4, 1)? == 0, "refused");
    }
    let taken = pair.health(world, Pair::ALIVE)?.connects - before;
    // Five standard deviations.
    let even = MANY as u64;
    ensure!(taken > even - 32, "{taken} of {} connects", 2 * even);
    let row = pair.health(world, Pair::ALIVE)?;
    ensure!((row.closed, row.closed_until) == (other, until), "{row:?}");
    let state = pair.state(world, Pair::ALIVE)?;
    ensure!(
        state.kind() == health_kind::SUSPECT && !state.is_gated(now()),
        "{state:?}"
    );
    Ok(())
}

fn tiers(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    let _second = TcpListener::bind(pair.dead())?;
    pair.prove(world, Kind::V4)?;
    pair.tiers(world, Pair::DEAD, &[Pair::ALIVE])?;
    for (grave, wanted) in [(false, Pair::DEAD), (true, Pair::ALIVE)] {
        // Another client's connect is on its way there.
        let state = HealthState::suspect(now()).accused(grave).probed(now());
        pair.set_state(world, Pair::DEAD, state)?;
        let before = pair.health(world, wanted)?.connects;
        ensure!(pair.connects(Kind::V4, 1)? == 0, "refused");
        let taken = pair.health(world, wanted)?.connects - before;
        ensure!(taken == 1, "grave: {grave}: the other tier was taken");
    }
    Ok(())
}

fn next_trial(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    let own = own_bit(&pair, world)?;
    let other = if own == 1 { 2 } else { 1 };
    let failed = HealthState::ejected_by(now(), 3, own.trailing_zeros());
    pair.set_state(world, Pair::DEAD, failed)?;
    stand(&pair, world, own | other)?;
    let refused = pair.connects(Kind::V4, MANY)?;
    ensure!(refused == 0, "{refused} refused while another stands");
    ensure!(pair.state(world, Pair::DEAD)? == failed);
    // With nobody else to ask, it tries again.
    stand(&pair, world, own)?;
    let refused = pair.connects(Kind::V4, MANY)?;
    ensure!(refused == 1, "{refused} refused with nobody else");
    let state = pair.state(world, Pair::DEAD)?;
    ensure!(
        (state.kind(), state.doublings()) == (health_kind::EJECTED, 4),
        "it is {state:?}"
    );
    ensure!(1 << state.mark() == own, "{state:?} was tried by another");
    Ok(())
}

fn closing_ends(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    let own = own_bit(&pair, world)?;
    let other = if own == 1 { 2 } else { 1 };
    stand(&pair, world, own | other)?;
    let until = now() + ticks(60_000);
    set_closed(&pair, world, Pair::DEAD, other, until)?;
    let refused = pair.connects(Kind::V4, MANY)?;
    ensure!(refused == 2, "{refused} refused");
    let row = pair.health(world, Pair::DEAD)?;
    ensure!(
        (row.closed, row.closed_until) == (own | other, until),
        "{row:?}"
    );
    Ok(())
}

/// One client sees two backends die, and others answer between.
fn two_deaths(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    let service = pair.service();
    let closed = TcpListener::bind((pair.dead().ip(), 0))?;
    let address = closed.local_addr()?;
    drop(closed);
    const NEXT: u32 = 2;
    world.backend(pair.id(NEXT), service, Protocol::Tcp, address)?;
    let only = |world: &mut World, which| {
        // A slot of its own for each, that names its backend.
        let at = pair.id(which);
        let slot = Slot::new(pair.id(which), service);
        world.tables().slots.put(at, slot)?;
        world.tables().rings.put(service, Ring::new(at, 1, 1))
    };
    only(world, Pair::DEAD)?;
    ensure!(
        pair.connects(Kind::V4, 1)? == 1,
        "the first dead one answered"
    );
    only(world, Pair::ALIVE)?;
    for _ in 0..2 {
        ensure!(pair.connects(Kind::V4, 1)? == 0, "the living one refused");
    }
    only(world, NEXT)?;
    ensure!(
        pair.connects(Kind::V4, 1)? == 1,
        "the next dead one answered"
    );
    own_bit(&pair, world).context("its word counts no more")?;
    ensure!(pair.failures(world, NEXT)?.run != 0, "it was not believed");
    Ok(())
}

/// A ring in which one slot of [`SELDOM`] is the dead backend's.
fn seldom_dead(pair: &Pair, world: &mut World) -> anyhow::Result<()> {
    let of = |at| if at == 0 { Pair::DEAD } else { Pair::ALIVE };
    for at in 0..SELDOM {
        let slot = Slot::new(pair.id(of(at)), pair.service());
        world.tables().slots.put(SPAN + at, slot)?;
    }
    let ring = Ring::new(SPAN, 1, SELDOM);
    Ok(world.tables().rings.put(pair.service(), ring)?)
}

const SPAN: u32 = 200;
const SELDOM: u32 = 48;

/// Connects until one is refused.
fn until_refused(pair: &Pair, kind: Kind) -> anyhow::Result<()> {
    for _ in 0..SELDOM * 20 {
        if pair.connects(kind, 1)? == 1 {
            return Ok(());
        }
    }
    anyhow::bail!("the dead backend was never drawn")
}

/// One draw of 48 meets the dead backend: but for the first failure, no draw is waited for.
fn leads_back(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    let pair = Pair::new(world, kind)?;
    pair.prove(world, kind)?;
    seldom_dead(&pair, world)?;
    until_refused(&pair, kind)?;
    let next: Vec<_> = (0..6)
        .map(|_| pair.connects(kind, 1))
        .collect::<anyhow::Result<_>>()?;
    // A success, and who refused again, twice; a draw might meet it instead of the success once.
    ensure!(next.iter().sum::<usize>() == 2, "refused: {next:?}");
    let state = pair.state(world, Pair::DEAD)?;
    ensure!(state.kind() == health_kind::EJECTED, "it is {state:?}");
    Ok(())
}

fn does_not_lead_out(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    seldom_dead(&pair, world)?;
    until_refused(&pair, Kind::V4)?;
    let ring = Ring::new(SPAN + 1, 1, SELDOM - 1);
    world.tables().rings.put(pair.service(), ring)?;
    let refused = pair.connects(Kind::V4, 10)?;
    ensure!(refused == 0, "{refused} went to what has left the ring");
    Ok(())
}

fn does_not_lead_to_later_tiers(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    pair.tiers(world, Pair::ALIVE, &[Pair::DEAD])?;
    pair.set_state(world, Pair::ALIVE, far_ejection())?;
    ensure!(pair.connects(Kind::V4, 1)? == 1, "the later tier answered");
    ensure!(pair.failures(world, Pair::DEAD)?.run != 0, "nothing counts");
    pair.set_state(world, Pair::ALIVE, HealthState::HEALTHY)?;
    let refused = pair.connects(Kind::V4, 10)?;
    ensure!(refused == 0, "{refused} went to the later tier");
    Ok(())
}

fn later_black_hole(world: &mut World) -> anyhow::Result<()> {
    const CONNECTS: usize = 6;
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    let deaf = Deaf::new(Kind::V4)?;
    const HOLE: u32 = 2;
    let hole = pair.id(HOLE);
    world.backend(hole, pair.service(), Protocol::Tcp, deaf.address)?;
    pair.tiers(world, Pair::DEAD, &[HOLE])?;
    pair.set_state(world, Pair::DEAD, far_ejection())?;
    let sockets = (0..CONNECTS).map(|_| non_blocking(Kind::V4));
    let sockets: Vec<_> = sockets.collect::<anyhow::Result<_>>()?;
    for socket in &sockets {
        begin(socket, Kind::V4)?;
    }
    // All are on their way there; now the tier has one more.
    pair.tiers(world, Pair::DEAD, &[HOLE, Pair::ALIVE])?;
    let failures = |world: &World| -> anyhow::Result<BackendFailuresRow> {
        Ok(world.datapath().array::<BackendFailuresRow>()?.get(hole))
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while failures(world)?.unanswered < CONNECTS as u64 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let state = pair.state(world, HOLE)?;
    ensure!(
        state.kind() == health_kind::EJECTED,
        "it is {state:?} after {:?}",
        failures(world)?
    );
    Ok(())
}
