//! Health where several connects come to one backend at the same time, or one after the other's end.

use std::net::TcpListener;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::ensure;
use isthmus_abi::{BackendFailuresRow, HealthState, Ring, Slot, TICK_SHIFT, health_kind, ticks};
use isthmus_agent::datapath::clock;
use isthmus_core::model::Protocol;

use super::Row;
use super::connect::Kind;
use super::health::{MANY, Pair};
use super::world::World;

/// Threads that connect at once: more than one for each of two CPUs.
const THREADS: usize = 4;
const ROUNDS: usize = 50;

pub fn rows() -> Vec<Row> {
    let row = |name: &str, row: fn(&mut World) -> anyhow::Result<()>| -> Row {
        (format!("health: {name}"), Box::new(row))
    };
    vec![
        row(
            "refused on several CPUs at once: ejected once",
            one_ejection,
        ),
        row("due on several CPUs at once: one trial", one_trial),
        row(
            "suspect: one connect at a time, unless there is no other",
            probe,
        ),
        row(
            "a failure at a backend that is gone is no sign of one's own trouble",
            gone,
        ),
    ]
}

/// All threads connect so many times each; how many of all were refused.
fn together(pair: &Pair, times: usize) -> anyhow::Result<usize> {
    let begin = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        let connects = || {
            begin.wait();
            pair.connects(Kind::V4, times)
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(connects)).collect();
        let mut refused = 0;
        for thread in threads {
            refused += thread.join().expect("no thread panics")?;
        }
        Ok(refused)
    })
}

fn one_ejection(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.limit(world, u64::MAX, 0)?;
    pair.prove(world, Kind::V4)?;
    for round in 1..=ROUNDS {
        pair.set_state(world, Pair::DEAD, HealthState::HEALTHY)?;
        let dead = pair.id(Pair::DEAD);
        world
            .tables()
            .backend_failures
            .put(dead, BackendFailuresRow::default())?;
        let refused = together(&pair, MANY / THREADS)?;
        // Three, and those that were drawn before the third was refused.
        ensure!(
            (3..3 + THREADS).contains(&refused),
            "{refused} refused in round {round}"
        );
        let failures = pair.failures(world, Pair::DEAD)?;
        ensure!(failures.refused == refused as u64, "{failures:?}");
        let state = pair.state(world, Pair::DEAD)?;
        ensure!(
            state.kind() == health_kind::EJECTED && state.doublings() == 0,
            "it is {state:?} in round {round}"
        );
        let ejected = pair.service_health(world)?.ejected_total;
        ensure!(
            ejected == round as u64,
            "{ejected} ejections in {round} rounds"
        );
    }
    Ok(())
}

fn one_trial(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    for round in 1..=ROUNDS {
        pair.set_state(world, Pair::DEAD, HealthState::ejected(1, 3))?;
        let refused = together(&pair, MANY / THREADS)?;
        ensure!(refused == 1, "{refused} trials in round {round}");
        // One that another CPU kept from being watched is over after its time, when the next connect looks.
        let deadline = Instant::now() + Duration::from_secs(2);
        while pair.state(world, Pair::DEAD)?.kind() == health_kind::TRIAL
            && Instant::now() < deadline
        {
            ensure!(pair.connects(Kind::V4, 1)? == 0, "a trial beside a trial");
        }
        let state = pair.state(world, Pair::DEAD)?;
        ensure!(
            state.kind() == health_kind::EJECTED && state.doublings() == 4,
            "it is {state:?} in round {round}"
        );
    }
    ensure!(pair.service_health(world)?.ejected_total == 0);
    Ok(())
}

fn probe(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    let now = clock() >> TICK_SHIFT;
    let probed = HealthState::suspect(now).accused(false).probed(now);
    pair.set_state(world, Pair::DEAD, probed)?;
    for nth in 0..MANY {
        let refused = pair.connects(Kind::V4, 1)?;
        if clock() >> TICK_SHIFT >= now + ticks(90) {
            println!("    after {nth} connects");
            break;
        }
        ensure!(refused == 0, "connect {nth} went to the one that waits");
    }
    let dead = pair.id(Pair::DEAD);
    world
        .tables()
        .rings
        .put(pair.service(), Ring::new(dead, 1, 1))?;
    let now = clock() >> TICK_SHIFT;
    let probed = HealthState::suspect(now).accused(false).probed(now);
    pair.set_state(world, Pair::DEAD, probed)?;
    ensure!(pair.connects(Kind::V4, 1)? == 1, "it was not taken");
    ensure!(pair.service_health(world)?.all_ejected == 0);
    Ok(())
}

/// Refused once by a backend that then goes; the next one's death costs what any costs.
fn gone(world: &mut World) -> anyhow::Result<()> {
    let pair = Pair::new(world, Kind::V4)?;
    pair.prove(world, Kind::V4)?;
    let (service, alive, dead) = (pair.service(), pair.id(Pair::ALIVE), pair.id(Pair::DEAD));
    let draw_from =
        |world: &mut World, first, len| world.tables().rings.put(service, Ring::new(first, 1, len));
    draw_from(world, dead, 1)?;
    ensure!(pair.connects(Kind::V4, 1)? == 1, "the dead one answered");
    draw_from(world, alive, 1)?;
    world.tables().backends.remove(dead)?;
    ensure!(
        pair.connects(Kind::V4, MANY)? == 0,
        "the living one refused"
    );

    let closed = TcpListener::bind((pair.dead().ip(), 0))?;
    let address = closed.local_addr()?;
    drop(closed);
    const NEXT: u32 = 2;
    let next = pair.id(NEXT);
    world.backend(next, service, Protocol::Tcp, address)?;
    // A backend's slot is where its id says; the gone one's is the next one's.
    world.tables().slots.put(dead, Slot::new(next, service))?;
    draw_from(world, alive, 2)?;
    let refused = pair.connects(Kind::V4, MANY)?;
    ensure!(refused == 3, "{refused} connects were refused");
    let state = pair.state(world, NEXT)?;
    ensure!(state.kind() == health_kind::EJECTED, "it is {state:?}");
    Ok(())
}
