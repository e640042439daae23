//! What one change costs, and in which order it is written.

use isthmus_abi::{Slot, TierHead, service_flags};

use super::world::*;
use crate::model::{Affinity, Condition, RowChange, ServiceRow, ServiceRules};
use crate::store::Owner;
use crate::table::Write;

fn world(local: usize, remote: usize) -> World {
    let mut world = World::new(SIZES);
    world.stale(WEST, false);
    world.say(Owner::Local, vec![service("a", Affinity::Local)]);
    world.say(
        Owner::Local,
        (1..=local)
            .map(|n| ready("a", &format!("10.1.0.{n}")))
            .collect(),
    );
    world.say(west(), vec![service("a", Affinity::None)]);
    world.say(
        west(),
        (1..=remote)
            .map(|n| ready("a", &format!("10.2.0.{n}")))
            .collect(),
    );
    world.complete(Owner::Local);
    world.complete(west());
    world.settle();
    world
}

/// The writes of a change up to the first grace period.
fn writes(world: &mut World, change: impl FnOnce(&mut World)) -> Vec<Write> {
    let from = world.writes();
    change(world);
    assert!(world.round(1000));
    let writes = world.memory.maps().writes[from..].to_vec();
    world.settle();
    world.assert_converged();
    writes
}

#[test]
fn rules_are_one_row_of_limits_and_a_bit_of_the_ring_written_once() {
    let mut world = world(2, 0);
    let ruled = |rules| match service("a", Affinity::Local) {
        RowChange::Service(row) => RowChange::Service(
            ServiceRow {
                rules,
                ..(*row).clone()
            }
            .into(),
        ),
        other => other,
    };
    let rules = ServiceRules {
        affinity_seconds: 60,
        no_passive_health: true,
        node_only: false,
    };
    let first = writes(&mut world, |world| {
        world.say(Owner::Local, vec![ruled(rules)]);
    });
    let [Write::ServiceLimits(_, row), Write::Ring(_, ring)] = first[..] else {
        panic!("{first:?}")
    };
    assert!(ring.is_sticky());
    assert_eq!(
        (row.affinity_seconds, row.flags, row.allowed_total),
        (60, service_flags::NO_PASSIVE_HEALTH, 2)
    );
    // Where backends may be is no affair of the limits.
    for node_only in [true, false] {
        let again = writes(&mut world, |world| {
            world.say(
                Owner::Local,
                vec![ruled(ServiceRules { node_only, ..rules })],
            );
        });
        assert!(again.is_empty(), "{again:?}");
    }
    let last = writes(&mut world, |world| {
        world.say(Owner::Local, vec![ruled(ServiceRules::default())]);
    });
    let [Write::ServiceLimits(_, row), Write::Ring(_, ring)] = last[..] else {
        panic!("{last:?}")
    };
    assert!(!ring.is_sticky());
    assert_eq!((row.affinity_seconds, row.flags), (0, 0));
}

#[test]
fn an_append_is_a_row_a_slot_and_the_length() {
    let mut world = world(4, 0);
    let ring = world.reconciler.dump().next().unwrap().ring;
    let writes = writes(&mut world, |world| {
        world.say(Owner::Local, vec![ready("a", "10.1.0.9")])
    });
    let [
        Write::Backend(id, _),
        Write::Slot(at, slot),
        Write::Ring(index, moved),
    ] = writes[..]
    else {
        panic!("{writes:?}")
    };
    assert_eq!((at, slot), (ring.first() + 4, Slot::new(id, index)));
    assert_eq!((moved.span(), moved.len()), (ring.span(), 5));
}

#[test]
fn a_removal_is_a_slot_and_the_length_and_the_rest_keep_their_slots() {
    let mut world = world(4, 0);
    let ring = world.reconciler.dump().next().unwrap().ring;
    let before = world.memory.maps().slots.clone();
    let first = writes(&mut world, |world| {
        world.say(Owner::Local, vec![gone("a", "10.1.0.1")])
    });
    let [Write::Slot(at, slot), Write::Ring(_, moved)] = first[..] else {
        panic!("{first:?}")
    };
    assert_eq!(
        (at, slot),
        (ring.first(), before[ring.first() as usize + 3])
    );
    assert_eq!((moved.span(), moved.len()), (ring.span(), 3));
    // The last one is cut off.
    let last = world
        .reconciler
        .dump()
        .next()
        .unwrap()
        .backends
        .iter()
        .find(|b| b.place == Some((0, 2)))
        .unwrap()
        .key;
    let second = writes(&mut world, |world| {
        world.say(Owner::Local, vec![gone("a", &last.address.to_string())])
    });
    assert!(matches!(second[..], [Write::Ring(..)]), "{second:?}");
}

#[test]
fn a_later_tier_changes_in_its_head() {
    let mut world = world(2, 2);
    let more = writes(&mut world, |world| {
        world.say(west(), vec![ready("a", "10.2.0.9")])
    });
    let [Write::Backend(..), Write::Slot(..), Write::Slot(head, word)] = more[..] else {
        panic!("{more:?}")
    };
    let ring = world.reconciler.dump().next().unwrap().ring;
    assert_eq!((head, TierHead(word.0).len()), (ring.span(), 3));
}

#[test]
fn a_full_span_a_new_tier_and_a_lost_tier_move_the_ring_in_one_word() {
    // Three have room for a fourth; a fifth finds the span full.
    let mut world = world(3, 0);
    world.say(Owner::Local, vec![ready("a", "10.1.0.4")]);
    world.settle();
    let span = |world: &World| world.reconciler.dump().next().unwrap().ring.span();
    let steps: [RowChange; 3] = [
        ready("a", "10.1.0.5"),
        endpoint("a", "10.1.0.1", Condition::ServingTerminating),
        gone("a", "10.1.0.1"),
    ];
    for step in steps {
        let before = span(&world);
        let writes = writes(&mut world, |world| world.say(Owner::Local, vec![step]));
        assert_ne!(span(&world), before);
        assert_eq!(
            writes
                .iter()
                .filter(|write| matches!(write, Write::Ring(..)))
                .count(),
            1
        );
        assert!(matches!(writes.last(), Some(Write::Ring(..))), "{writes:?}");
    }
}

#[test]
fn single_tiers_have_the_slack_that_they_should() {
    for (backends, slots) in [(1, 2), (2, 4), (3, 4), (4, 8), (7, 8), (8, 16)] {
        assert_eq!(
            world(backends, 0).reconciler.counts().ring_slots,
            slots,
            "{backends}"
        );
    }
}

#[test]
fn building_and_removing_go_in_opposite_orders() {
    let mut world = World::new(SIZES);
    world.complete(Owner::Local);
    let rows = vec![service("a", Affinity::None), ready("a", "10.1.0.1")];
    let built = writes(&mut world, |world| world.say(Owner::Local, rows));
    assert!(
        matches!(
            built[..],
            [
                Write::ServiceHealth(..),
                Write::ServiceLimits(..),
                Write::Backend(..),
                Write::Slot(..),
                Write::Ring(..),
                Write::Frontend4(_, Some(_)),
                Write::Frontend4(_, Some(_)),
            ]
        ),
        "{built:?}"
    );
    let from = world.writes();
    let removed = writes(&mut world, |world| {
        world.say(
            Owner::Local,
            vec![RowChange::ServiceGone(name("a")), gone("a", "10.1.0.1")],
        );
    });
    let [
        Write::Frontend4(mark, None),
        Write::Frontend4(service, None),
    ] = removed[..]
    else {
        panic!("{removed:?}")
    };
    assert_eq!((mark.port.to_host(), service.port.to_host()), (0, 80));
    let after_grace = world.memory.maps().writes[from + 2..].to_vec();
    assert!(
        matches!(after_grace[..], [Write::Ring(..), Write::Backend(..)]),
        "{after_grace:?}"
    );
}

#[test]
fn insertions_wait_for_a_grace_period_after_a_deletion_and_removals_wait_for_them() {
    let mut world = world(1, 0);
    world.say(
        Owner::Local,
        vec![service("b", Affinity::None), ready("b", "10.1.1.1")],
    );
    world.settle();
    world.say(Owner::Local, vec![RowChange::ServiceGone(name("a"))]);
    assert!(world.round(1000));
    assert_eq!(world.answers("a"), Answers::Miss);
    // Its grace period runs: an insertion now, and a removal behind it.
    world.say(
        Owner::Local,
        vec![
            service("c", Affinity::None),
            RowChange::ServiceGone(name("b")),
        ],
    );
    assert!(world.round(1000));
    assert_eq!(world.answers("c"), Answers::Miss);
    assert_ne!(world.answers("b"), Answers::Miss);
    assert!(world.pass_grace());
    assert!(world.round(1000));
    assert_eq!(world.answers("c"), Answers::Refused);
    assert_eq!(world.answers("b"), Answers::Miss);
    world.settle();
    world.assert_converged();
}

#[test]
fn rounds_are_bounded() {
    let mut world = World::new(SIZES);
    world.complete(Owner::Local);
    world.say(Owner::Local, vec![service("a", Affinity::None)]);
    world.say(
        Owner::Local,
        (1..=20)
            .map(|n| ready("a", &format!("10.1.0.{n}")))
            .collect(),
    );
    let mut rounds = 0;
    while !world.reconciler.step(world.now, 5).idle {
        rounds += 1;
        assert!(
            world.writes() <= rounds * 5 + 22,
            "one ring and its frontend at most above the bound"
        );
    }
    assert!(rounds >= 4);
}
