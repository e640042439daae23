//! Health among several: what one client's failures do to others, and one backend's to others.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use isthmus_abi::{
    BackendFailuresRow, BackendHealthRow, EPOCH_SHIFT, HealthState, MARKS, Ring, ServiceHealthRow,
    ServiceLimitsRow, Slot, Standing, TICK_SHIFT, health_kind, ticks,
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
            "a black hole of a very large service is ejected",
            far_black_hole,
        ),
        row(
            "nothing leads back to a backend that has left the ring",
            does_not_lead_out,
        ),
        row(
            "nothing leads to a later tier while the first has others",
            does_not_lead_to_later_tiers,
        ),
        row(
            "nothing leads to a backend that is not suspect any more",
            does_not_lead_to_the_good,
        ),
        row(
            "nothing leads to a backend that is closed to the client",
            does_not_lead_to_the_closed,
        ),
        row(
            "nothing leads away from a backend to which clients come back",
            does_not_lead_away_from_ones_own,
        ),
        row(
            "a client stands by its success of before a failure too",
            stands_by_older_successes,
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
pub(super) fn own_bit(pair: &Pair, world: &World) -> anyhow::Result<u64> {
    let standing = pair.service_health(world)?.standing;
    let bits = standing.iter().fold(0, |bits, word| bits | word & MARKS);
    ensure!(bits.is_power_of_two(), "{bits:#x} stand");
    Ok(bits)
}

/// Another client's bit.
pub(super) fn other_than(own: u64) -> u64 {
    if own == 1 { 2 } else { 1 }
}

/// Has these clients, and no other, stand at the service.
pub(super) fn stand(pair: &Pair, world: &mut World, bits: u64) -> anyhow::Result<()> {
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
    let other = other_than(own);
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
    let other = other_than(own);
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
    pair.draw_only(world, Pair::DEAD)?;
    ensure!(
        pair.connects(Kind::V4, 1)? == 1,
        "the first dead one answered"
    );
    pair.draw_only(world, Pair::ALIVE)?;
    for _ in 0..2 {
        ensure!(pair.connects(Kind::V4, 1)? == 0, "the living one refused");
    }
    pair.draw_only(world, NEXT)?;
    ensure!(
        pair.connects(Kind::V4, 1)? == 1,
        "the next dead one answered"
    );
    own_bit(&pair, world).context("its word counts no more")?;
    ensure!(pair.failures(world, NEXT)?.run != 0, "it was not believed");
    Ok(())
}

const SPAN: u32 = 200;
/// Slots of a ring of which a draw meets the first one so seldom that no row does, but for one of ten thousand.
const SELDOM: u32 = 250_000;
/// Enough that a client is led back, if at all, but for one row of a thousand.
const SOME: usize = 20;

/// A ring whose first slot is the dead backend's, and all others the living one's.
fn seldom(pair: &Pair, world: &mut World) -> anyhow::Result<Ring> {
    let dead = Slot::new(pair.id(Pair::DEAD), pair.service());
    let alive = Slot::new(pair.id(Pair::ALIVE), pair.service());
    world.tables().slots.put(SPAN, dead)?;
    for at in SPAN + 1..SPAN + SELDOM {
        world.tables().slots.put(at, alive)?;
    }
    Ok(Ring::new(SPAN, 1, SELDOM))
}

/// A client that stands is refused by the dead backend, which is drawn for that, and then not any more.
fn refused_once(world: &mut World, kind: Kind) -> anyhow::Result<Pair> {
    let pair = Pair::new(world, kind)?;
    pair.prove(world, kind)?;
    let ring = seldom(&pair, world)?;
    put_ring(&pair, world, Ring::new(ring.first(), 1, 1))?;
    ensure!(pair.connects(kind, 1)? == 1, "the dead backend answered");
    put_ring(&pair, world, ring)?;
    Ok(pair)
}

fn put_ring(pair: &Pair, world: &mut World, ring: Ring) -> anyhow::Result<()> {
    Ok(world.tables().rings.put(pair.service(), ring)?)
}

/// After a success, the client is led back, at once or some connects later: refused twice more, which ejects.
fn leads_back(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    let pair = refused_once(world, kind)?;
    let first = pair.connects(kind, 1)?;
    ensure!(first == 0, "led back without a success");
    let refused = pair.connects(kind, MANY)?;
    ensure!(refused == 2, "refused: {refused}");
    let state = pair.state(world, Pair::DEAD)?;
    ensure!(state.kind() == health_kind::EJECTED, "it is {state:?}");
    Ok(())
}

fn does_not_lead_out(world: &mut World) -> anyhow::Result<()> {
    let pair = refused_once(world, Kind::V4)?;
    put_ring(&pair, world, Ring::new(SPAN + 1, 1, SELDOM - 1))?;
    let refused = pair.connects(Kind::V4, SOME)?;
    ensure!(refused == 0, "{refused} went to what has left the ring");
    Ok(())
}

fn does_not_lead_to_the_good(world: &mut World) -> anyhow::Result<()> {
    let pair = refused_once(world, Kind::V4)?;
    // Another client's success said so.
    pair.set_state(world, Pair::DEAD, HealthState::HEALTHY)?;
    let refused = pair.connects(Kind::V4, SOME)?;
    ensure!(refused == 0, "{refused} went to what is not suspect");
    Ok(())
}

/// Two clients stand: the second failure of one closes the backend to it.
fn does_not_lead_to_the_closed(world: &mut World) -> anyhow::Result<()> {
    let pair = refused_once(world, Kind::V4)?;
    let own = own_bit(&pair, world)?;
    let other = other_than(own);
    stand(&pair, world, own | other)?;
    let row = |world: &World| pair.health(world, Pair::DEAD);
    set_closed(&pair, world, Pair::DEAD, own, now() + ticks(60_000))?;
    let refused = pair.connects(Kind::V4, SOME)?;
    ensure!(refused == 0, "{refused} went to it: {:?}", row(world)?);
    Ok(())
}

fn does_not_lead_away_from_ones_own(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    let ring = seldom(&pair, world)?;
    let limits = ServiceLimitsRow {
        allowed_total: 2,
        affinity_seconds: 60,
        flags: 0,
    };
    world.tables().service_limits.put(pair.service(), limits)?;
    put_ring(&pair, world, Ring::new(ring.first(), 1, 1))?;
    ensure!(pair.connects(Kind::V4, 1)? == 1, "the dead one answered");
    put_ring(&pair, world, ring)?;
    let refused = pair.connects(Kind::V4, SOME)?;
    ensure!(refused == 0, "{refused} left their backend");
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
    let refused = pair.connects(Kind::V4, MANY)?;
    ensure!(refused == 0, "{refused} went to the later tier");
    Ok(())
}

/// Whoever proved the client left a watched connect of before its failure, at which the next connect looks.
fn stands_by_older_successes(world: &mut World) -> anyhow::Result<()> {
    let epoch = || clock() >> EPOCH_SHIFT;
    let begun = epoch();
    let pair = refused_once(world, Kind::V4)?;
    if epoch() != begun {
        // A client's first connect of an epoch is looked at: nothing of before the failure is left then.
        println!("    an epoch began meanwhile");
        return Ok(());
    }
    let own = own_bit(&pair, world)?;
    stand(&pair, world, 0)?;
    ensure!(pair.connects(Kind::V4, 1)? == 0, "the living one refused");
    ensure!(own_bit(&pair, world)? == own, "another stands");
    Ok(())
}

fn later_black_hole(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    black_hole(
        &pair,
        world,
        |world| {
            pair.set_state(world, Pair::DEAD, far_ejection())?;
            pair.tiers(world, Pair::DEAD, &[HOLE])
        },
        // Now the tier has one more.
        |world| pair.tiers(world, Pair::DEAD, &[HOLE, Pair::ALIVE]),
    )
}

/// Behind more slots than the kernel searches for the backend's own.
fn far_black_hole(world: &mut World) -> anyhow::Result<()> {
    const FAR: u32 = 10_000;
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    let ring = seldom(&pair, world)?;
    let at = ring.first() + FAR;
    let hole = Slot::new(pair.id(HOLE), pair.service());
    world.tables().slots.put(at, hole)?;
    black_hole(
        &pair,
        world,
        |world| put_ring(&pair, world, Ring::new(at, 1, 1)),
        |world| put_ring(&pair, world, ring),
    )
}

const HOLE: u32 = 2;

/// Connects are on their way to [`HOLE`] as `draw` has it, and time out after `then`.
fn black_hole(
    pair: &Pair,
    world: &mut World,
    draw: impl FnOnce(&mut World) -> anyhow::Result<()>,
    then: impl FnOnce(&mut World) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    const CONNECTS: usize = 6;
    let deaf = Deaf::new(Kind::V4)?;
    let hole = pair.id(HOLE);
    world.backend(hole, pair.service(), Protocol::Tcp, deaf.address)?;
    draw(world)?;
    let sockets = (0..CONNECTS).map(|_| non_blocking(Kind::V4));
    let sockets: Vec<_> = sockets.collect::<anyhow::Result<_>>()?;
    for socket in &sockets {
        begin(socket, Kind::V4)?;
    }
    then(world)?;
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
