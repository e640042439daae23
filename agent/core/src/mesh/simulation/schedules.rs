//! Anything, in any order.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Say(u8, u16),
    Take(u8),
    Endpoint(u8, u32, bool),
    TakeEndpoint(u8, u32),
    Late,
    Steps(u8),
    Repeat(bool, usize),
    Swap(bool, usize),
    Lose(bool, usize),
    Cut(bool),
    /// The way is gone until it is there again: nobody gets through who tries.
    Way(bool, bool),
    HalfOpen(bool),
    Slow(bool, bool),
    /// More removals than are remembered.
    Churn(u8),
    /// As many rows as are doubted when they are missing come, or go.
    Crowd(u8, bool),
    /// East allows few of west's addresses, or all.
    Allow(bool),
    RestartWest,
    /// Its source has not spoken yet.
    CrashWest,
    SwitchWest(u64),
    RestartEast,
    RestartAgent,
    KillEast,
    Save,
    /// Nobody ran for so many seconds: they were suspended.
    Jump(u16),
    /// A wall clock is set ahead or back by so many minutes; no process's own time knows of it.
    Clock(Party, i16),
}

fn way() -> impl Strategy<Value = Op> {
    (any::<bool>(), any::<bool>()).prop_map(|(link, open)| Op::Way(link, open))
}

/// Up to two days either way.
fn clock() -> impl Strategy<Value = Op> {
    let party = prop_oneof![Just(Party::West), Just(Party::East), Just(Party::Agent)];
    (party, -2880..2880_i16).prop_map(|(whose, minutes)| Op::Clock(whose, minutes))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..4_u8, 80..83_u16).prop_map(|(n, port)| Op::Say(n, port)),
        2 => (0..4_u8).prop_map(Op::Take),
        6 => (0..4_u8, 0..6_u32, any::<bool>()).prop_map(|(n, e, ready)| Op::Endpoint(n, e, ready)),
        3 => (0..4_u8, 0..6_u32).prop_map(|(n, e)| Op::TakeEndpoint(n, e)),
        1 => Just(Op::Late),
        8 => (1..12_u8).prop_map(Op::Steps),
        2 => (any::<bool>(), 0..8_usize).prop_map(|(link, n)| Op::Repeat(link, n)),
        2 => (any::<bool>(), 0..4_usize).prop_map(|(link, n)| Op::Swap(link, n)),
        2 => (any::<bool>(), 0..4_usize).prop_map(|(link, n)| Op::Lose(link, n)),
        1 => any::<bool>().prop_map(Op::Cut),
        1 => way(),
        1 => any::<bool>().prop_map(Op::HalfOpen),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(link, slow)| Op::Slow(link, slow)),
        1 => (0..4_u8).prop_map(Op::Churn),
        2 => (0..4_u8, any::<bool>()).prop_map(|(n, there)| Op::Crowd(n, there)),
        1 => any::<bool>().prop_map(Op::Allow),
        1 => Just(Op::RestartWest),
        1 => Just(Op::CrashWest),
        1 => (1..4_u64).prop_map(Op::SwitchWest),
        1 => Just(Op::RestartEast),
        1 => Just(Op::RestartAgent),
        1 => Just(Op::KillEast),
        2 => Just(Op::Save),
        1 => (1..30_u16).prop_map(Op::Jump),
        2 => clock(),
    ]
}

fn apply(world: &mut World, op: &Op) {
    let name = |n: &u8| format!("s{n}");
    // Messages in flight are those that a step has not delivered: write some without reading.
    let fill = |wire: &mut Option<Wire>, hub: &mut Hub, now: Instant| {
        if let Some(wire) = wire {
            let view = hub.view(now);
            for _ in 0..4 {
                wire.queue.extend(wire.watcher.poll(&view, now + HEARTBEAT));
            }
        }
    };
    if let Op::Repeat(link, _) | Op::Swap(link, _) | Op::Lose(link, _) = op {
        if *link && world.west_alive {
            fill(&mut world.link, &mut world.west, world.now);
        } else if world.east_alive {
            fill(&mut world.agent, &mut world.east, world.now);
        }
    }
    match op {
        Op::Say(n, port) => world.say(&[service(&name(n), *port)]),
        Op::Take(n) => world.say(&[RowChange::ServiceGone(ObjectName::new("n", &name(n)))]),
        Op::Endpoint(n, e, ready) => world.say(&[endpoint(&name(n), *e, *ready)]),
        Op::TakeEndpoint(n, e) => world.say(&[RowKey::of(&endpoint(&name(n), *e, true)).gone()]),
        Op::Late => world.say(&[endpoint("stable", 2, true)]),
        Op::Steps(n) => world.run(STEP * u32::from(*n)),
        Op::Repeat(link, n) => on_wire(world, *link, |queue| queue.extend(queue.get(*n).cloned())),
        Op::Swap(link, n) => on_wire(world, *link, |queue| {
            if n + 1 < queue.len() {
                queue.swap(*n, n + 1);
            }
        }),
        Op::Lose(link, n) => on_wire(world, *link, |queue| drop(queue.remove(*n))),
        Op::Cut(true) => world.cut_link(),
        Op::Cut(false) => world.cut_agent(),
        Op::Way(true, open) => {
            world.link_up = *open;
            if !open {
                world.cut_link();
            }
        }
        Op::Way(false, open) => {
            world.agent_up = *open;
            if !open {
                world.cut_agent();
            }
        }
        Op::HalfOpen(true) => world.link.iter_mut().for_each(|wire| wire.void = true),
        Op::HalfOpen(false) => world.agent.iter_mut().for_each(|wire| wire.void = true),
        Op::Slow(true, slow) => world.link.iter_mut().for_each(|wire| wire.slow = *slow),
        Op::Slow(false, slow) => world.agent.iter_mut().for_each(|wire| wire.slow = *slow),
        Op::Churn(n) => {
            let rows = || (100..1200).map(|e| endpoint(&name(n), e, true));
            world.say(&rows().collect::<Vec<_>>());
            world.say(
                &rows()
                    .map(|row| RowKey::of(&row).gone())
                    .collect::<Vec<_>>(),
            );
        }
        Op::Crowd(n, there) => {
            let rows = (20..50).map(|e| endpoint(&name(n), e, true));
            let rows = rows.map(|row| if *there { row } else { RowKey::of(&row).gone() });
            world.say(&rows.collect::<Vec<_>>());
        }
        Op::Allow(all) => world.allow(Terms {
            // Of what no schedule may lose.
            cidrs: (!all).then(|| vec!["10.0.0.0/30".parse().unwrap()]),
            ..Terms::default()
        }),
        Op::RestartWest => {
            world.restart_west();
            world.retell_west();
        }
        Op::CrashWest => world.restart_west(),
        Op::SwitchWest(epoch) => world.switch_west(*epoch),
        Op::RestartEast => world.restart_east(),
        Op::RestartAgent => world.restart_agent(),
        Op::KillEast => world.kill_east(),
        Op::Save => world.save(),
        Op::Jump(seconds) => world.now += SECOND * u32::from(*seconds),
        Op::Clock(whose, minutes) => world.clocks.set(*whose, 60 * i64::from(*minutes)),
    }
}

fn on_wire(world: &mut World, link: bool, act: impl FnOnce(&mut VecDeque<Sequenced>)) {
    let wire = if link {
        &mut world.link
    } else {
        &mut world.agent
    };
    if let Some(wire) = wire {
        act(&mut wire.queue);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever happens on the way, it ends with equal rows; and on the way no row goes that west did not take back,
    /// no equal row wakes the store, and no stale peer becomes live without a word.
    #[test]
    fn any_schedule_converges(ops in proptest::collection::vec(op(), 1..80)) {
        let mut world = World::new();
        let mut stale_since = None;
        for op in &ops {
            if matches!(op, Op::RestartEast | Op::RestartAgent) {
                stale_since = None; // An older state file may know less.
            }
            let was_stale = world.store.stale.get(&west().id).copied().unwrap_or(false);
            apply(&mut world, op);
            let is_stale = world.store.stale.get(&west().id).copied().unwrap_or(false);
            if !was_stale && is_stale {
                stale_since = Some(world.now);
            }
            if let (true, false, Some(since)) = (was_stale, is_stale, stale_since) {
                prop_assert!(world.last_word > since - STEP * 12, "live again without a word");
            }
        }
        world.heal();
        world.assert_converged();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Of two worlds that go the same way, one has wall clocks that jump. Their stores are told the same, and as much is
    /// sent: what is decided hangs on no wall clock, over restarts either.
    #[test]
    fn the_wall_clock_decides_nothing(
        ops in proptest::collection::vec(prop_oneof![3 => op(), 1 => restarts()], 1..80),
    ) {
        let (mut right, mut wrong) = (World::new(), World::new());
        let told = |wrong: &World, right: &World| {
            prop_assert_eq!(&wrong.store.history, &right.store.history);
            Ok(())
        };
        for op in &ops {
            if let Op::RestartAgent = op {
                told(&wrong, &right)?; // The store goes with it.
            }
            if !matches!(op, Op::Clock(..)) {
                apply(&mut right, op);
            }
            apply(&mut wrong, op);
        }
        for world in [&mut right, &mut wrong] {
            world.heal();
            world.assert_converged();
        }
        told(&wrong, &right)?;
        for (wrong, right) in [
            (&wrong.link_traffic, &right.link_traffic),
            (&wrong.agent_traffic, &right.agent_traffic),
        ] {
            prop_assert_eq!(wrong, right);
        }
    }
}

/// What lets a wall clock be read: a state file that is written, and another life that begins with it.
fn restarts() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => clock(),
        2 => Just(Op::Save),
        1 => Just(Op::RestartEast),
        1 => Just(Op::RestartAgent),
        1 => way(),
    ]
}

/// Once did not converge: a list that is asked for because terms are wider breaks off after its first word, and the next
/// stream, or the next run, takes up from before it.
#[test]
fn a_list_that_breaks_off_is_still_wanted() {
    for restart in [false, true] {
        let mut world = World::new();
        let narrow = [Op::Say(0, 80), Op::Crowd(0, true), Op::Allow(false)];
        let wide = [Op::Steps(5), Op::Slow(true, true), Op::Allow(true)];
        narrow
            .iter()
            .chain(&wide)
            .for_each(|op| apply(&mut world, op));
        for _ in 0..50 {
            if world.link_traffic.beginnings.last() == Some(&Beginning::Asked) {
                break;
            }
            world.step();
        }
        assert_eq!(
            world.link_traffic.beginnings.last(),
            Some(&Beginning::Asked)
        );
        if restart {
            world.save();
            world.restart_east();
        } else {
            world.cut_link();
        }
        world.heal();
        world.assert_converged();
    }
}
