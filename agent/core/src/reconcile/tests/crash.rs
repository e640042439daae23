//! Each prefix of the list of writes is a crash: draws answer from the old ring or the new one, and a restart converges.

use super::world::*;
use crate::model::{Affinity, Condition, RowChange};
use crate::store::Owner;
use crate::table::MemoryMaps;

/// Checks all that can be drawn at one moment between two states.
fn assert_between(
    maps: &MemoryMaps,
    old: &std::collections::BTreeMap<crate::desired::Frontend, Answers>,
    new: &std::collections::BTreeMap<crate::desired::Frontend, Answers>,
) {
    for frontend in old.keys().chain(new.keys()) {
        let now = answers(maps, *frontend);
        let (old, new) = (
            old.get(frontend).unwrap_or(&Answers::Miss),
            new.get(frontend).unwrap_or(&Answers::Miss),
        );
        match &now {
            Answers::Miss => assert!(
                *old == Answers::Miss || *new == Answers::Miss,
                "{frontend} is missed"
            ),
            Answers::Refused => {
                let may = |answers: &Answers| answers.drawn().is_empty();
                assert!(may(old) || may(new), "{frontend} refuses");
            }
            Answers::Tiers(_) => {
                let (drawn, either) = (now.drawn(), &old.drawn() | &new.drawn());
                assert!(
                    drawn.is_subset(&either),
                    "{frontend}: {drawn:?}, old {old:?}, new {new:?}"
                );
            }
        }
    }
}

/// From a settled state, applies changes, crashes after every write, and after every write of the recovery too.
fn crash_everywhere(world: &mut World, change: impl FnOnce(&mut World)) {
    world.assert_converged();
    let before = world.memory.maps().clone();
    let from = before.writes.len();
    let old = world.wanted();
    change(world);
    world.settle();
    world.assert_converged();
    let (new, after) = (world.wanted(), world.memory.maps().clone());
    for crash in from..=after.writes.len() {
        let maps = replay(&before, &after.writes[from..crash]);
        assert_between(&maps, &old, &new);
        // The store is what sources say again.
        let store = std::mem::take(&mut world.store);
        let mut restarted = World::on(maps.clone(), store);
        restarted.say_all();
        restarted.settle();
        restarted.assert_converged();
        let recovery = restarted.memory.maps().clone();
        for second in crash..=recovery.writes.len() {
            assert_between(&replay(&maps, &recovery.writes[crash..second]), &old, &new);
        }
        world.store = restarted.store;
    }
}

fn start() -> World {
    let mut world = World::new(SIZES);
    world.stale(WEST, false);
    world.say(
        Owner::Local,
        vec![service("a", Affinity::Local), service("b", Affinity::None)],
    );
    world.say(
        west(),
        vec![service("a", Affinity::None), service("b", Affinity::None)],
    );
    for address in ["10.1.0.1", "10.1.0.2", "10.1.0.3"] {
        world.say(Owner::Local, vec![ready("a", address)]);
    }
    world.say(Owner::Local, vec![ready("b", "10.1.1.1")]);
    world.say(
        west(),
        vec![
            ready("a", "10.2.0.1"),
            ready("a", "10.2.0.2"),
            ready("b", "10.2.1.1"),
        ],
    );
    world.complete(Owner::Local);
    world.complete(west());
    world.settle();
    world
}

#[test]
fn the_first_fill() {
    let mut world = World::new(SIZES);
    world.complete(Owner::Local);
    world.complete(west());
    world.settle();
    crash_everywhere(&mut world, |world| {
        let endpoints = ["10.1.0.1", "10.1.0.2", "10.1.0.3"].map(|address| ready("a", address));
        world.say(
            Owner::Local,
            [service_with(
                "a",
                Affinity::Local,
                &[("http", 80), ("metrics", 81)],
            )]
            .into_iter()
            .chain(endpoints)
            .collect(),
        );
        world.say(
            west(),
            vec![service("a", Affinity::None), ready("a", "10.2.0.1")],
        );
    });
}

#[test]
fn one_backend_more_or_less() {
    let mut world = start();
    crash_everywhere(&mut world, |world| {
        world.say(Owner::Local, vec![ready("a", "10.1.0.4")])
    });
    crash_everywhere(&mut world, |world| {
        world.say(Owner::Local, vec![gone("a", "10.1.0.1")])
    });
    crash_everywhere(&mut world, |world| {
        world.say(west(), vec![gone("a", "10.2.0.1")])
    });
    crash_everywhere(&mut world, |world| {
        world.say(west(), vec![ready("a", "10.2.0.3")])
    });
}

#[test]
fn a_rolling_update() {
    let mut world = start();
    let draining = |address| endpoint("a", address, Condition::ServingTerminating);
    crash_everywhere(&mut world, |world| {
        world.say(
            Owner::Local,
            vec![ready("a", "10.1.0.9"), draining("10.1.0.1")],
        )
    });
    crash_everywhere(&mut world, |world| {
        world.say(Owner::Local, vec![draining("10.1.0.2")])
    });
    crash_everywhere(&mut world, |world| {
        world.say(
            Owner::Local,
            vec![draining("10.1.0.3"), gone("a", "10.1.0.1")],
        )
    });
    crash_everywhere(&mut world, |world| {
        world.say(Owner::Local, vec![draining("10.1.0.9")])
    });
}

#[test]
fn local_backends_leave_and_return() {
    let mut world = start();
    let local = ["10.1.0.1", "10.1.0.2", "10.1.0.3"];
    crash_everywhere(&mut world, |world| {
        world.say(Owner::Local, local.map(|a| gone("a", a)).to_vec())
    });
    crash_everywhere(&mut world, |world| {
        world.say(Owner::Local, local.map(|a| ready("a", a)).to_vec())
    });
}

#[test]
fn a_peer_grows_stale_returns_and_is_dropped() {
    let mut world = start();
    crash_everywhere(&mut world, |world| world.stale(WEST, true));
    crash_everywhere(&mut world, |world| world.stale(WEST, false));
    crash_everywhere(&mut world, |world| {
        let dirty = world.store.drop_peer(cluster(WEST));
        world.apply(&dirty);
        // Its passport is gone with it; what is left of it in the maps is let go by whoever knows that it is dropped.
        world.complete(west());
    });
}

#[test]
fn affinity_changes() {
    let mut world = start();
    for affinity in [Affinity::Remote, Affinity::None, Affinity::Local] {
        crash_everywhere(&mut world, |world| {
            world.say(Owner::Local, vec![service("a", affinity)])
        });
    }
}

#[test]
fn services_come_go_and_change_ports() {
    let mut world = start();
    let two = |b: u16| service_with("a", Affinity::Local, &[("http", 80), ("metrics", b)]);
    crash_everywhere(&mut world, |world| world.say(Owner::Local, vec![two(81)]));
    crash_everywhere(&mut world, |world| world.say(Owner::Local, vec![two(82)]));
    crash_everywhere(&mut world, |world| {
        world.say(Owner::Local, vec![RowChange::ServiceGone(name("a"))])
    });
    crash_everywhere(&mut world, |world| {
        world.say(
            Owner::Local,
            vec![
                service("a", Affinity::None),
                RowChange::ServiceGone(name("b")),
            ],
        )
    });
}

#[test]
fn ports_are_renamed() {
    let mut world = start();
    let ports = |ports: &[(&str, u16)]| service_with("a", Affinity::Local, ports);
    let lists: [&[(&str, u16)]; 5] = [
        &[("web", 80)],
        &[("http", 80), ("metrics", 81)],
        &[("metrics", 80), ("http", 81)],
        &[("web", 81)],
        &[("metrics", 81), ("http", 82)],
    ];
    for list in lists {
        crash_everywhere(&mut world, |world| {
            world.say(Owner::Local, vec![ports(list)])
        });
    }
}

#[test]
fn an_address_goes_to_another_service() {
    let at =
        |name, address| service_at(name, &address_of(address), Affinity::Local, &[("http", 80)]);
    // By the order of their names, the one that takes comes first, or last.
    for (gives, takes) in [("a", "b"), ("b", "a")] {
        let mut world = start();
        // From a service that goes, to one that had another address.
        crash_everywhere(&mut world, |world| {
            world.say(
                Owner::Local,
                vec![RowChange::ServiceGone(name(gives)), at(takes, gives)],
            )
        });
        // To one that is new.
        crash_everywhere(&mut world, |world| {
            world.say(
                Owner::Local,
                vec![RowChange::ServiceGone(name(takes)), at(gives, gives)],
            )
        });
        // To one that waits for it, and has its own meanwhile.
        world.say(Owner::Local, vec![at(takes, gives)]);
        world.settle();
        assert_eq!(world.reconciler.counts().failing, 1);
        world.say(Owner::Local, vec![at(takes, takes)]);
        world.settle();
        crash_everywhere(&mut world, |world| {
            world.say(Owner::Local, vec![at(takes, gives), at(gives, takes)])
        });
        // From one that moves to an address that nobody had.
        crash_everywhere(&mut world, |world| {
            world.say(Owner::Local, vec![at(takes, "z"), at(gives, gives)])
        });
    }
}

#[test]
fn the_last_backend_leaves() {
    let mut world = start();
    crash_everywhere(&mut world, |world| {
        world.say(Owner::Local, vec![gone("b", "10.1.1.1")]);
        world.say(west(), vec![gone("b", "10.2.1.1")]);
    });
    assert_eq!(world.answers("b"), Answers::Refused);
    crash_everywhere(&mut world, |world| {
        world.say(west(), vec![ready("b", "10.2.1.1")])
    });
}
