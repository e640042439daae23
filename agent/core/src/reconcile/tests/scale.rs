//! What large services and backlogs cost, in writes and rooms: times are for benchmarks.

use super::world::*;
use crate::model::{Affinity, Batch, Condition, RowChange};
use crate::store::Owner;
use crate::table::Sizes;

const LARGE: Sizes = Sizes {
    frontends: 4096,
    services: 2048,
    slots: 65536,
    backends: 32768,
};

fn host(n: usize) -> String {
    format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255)
}

fn fill(world: &mut World, changes: Vec<RowChange>) {
    let dirty = world.store.apply(
        Owner::Local,
        &Batch {
            changes,
            complete: true,
        },
    );
    world.apply(&dirty);
    while !world.round(100_000) || world.pass_grace() {}
}

#[test]
fn one_backend_of_ten_thousand_costs_what_one_of_a_hundred_does() {
    for size in [100, 10_000] {
        let mut world = World::new(LARGE);
        let endpoints = (0..size).map(|n| ready("a", &host(n)));
        fill(
            &mut world,
            [service("a", Affinity::None)]
                .into_iter()
                .chain(endpoints)
                .collect(),
        );
        let steps: [(RowChange, usize); 4] = [
            (ready("a", "10.200.0.1"), 3),
            (gone("a", &host(7)), 2),
            (endpoint("a", &host(9), Condition::NotReady), 2),
            (ready("a", &host(9)), 3),
        ];
        for (change, writes) in steps {
            // What an earlier step has retired.
            while !world.round(100_000) || world.pass_grace() {}
            let before = world.writes();
            world.say(Owner::Local, vec![change]);
            assert!(world.round(100_000));
            // Of a reused id, what programs learned is forgotten, in two rows.
            let done = world.writes() - before;
            assert!((writes..=writes + 2).contains(&done), "{done} at {size}");
        }
        while !world.round(100_000) || world.pass_grace() {}
        world.assert_converged();
    }
}

#[test]
fn a_backlog_takes_a_row_and_a_slot_a_backend_and_five_a_service() {
    let mut world = World::new(LARGE);
    let services = 1000;
    let mut changes = Vec::new();
    for n in 0..services {
        let RowChange::Service(row) = service("a", Affinity::None) else {
            unreachable!()
        };
        let mut row = (*row).clone();
        row.name = name(&format!("s{n}"));
        row.addresses = vec![host(0x60_0000 + n).parse().unwrap()];
        changes.push(RowChange::Service(row.into()));
        changes.extend((0..4).map(|e| ready(&format!("s{n}"), &host(n * 4 + e))));
    }
    fill(&mut world, changes);
    assert_eq!(world.writes(), services * (4 * 2 + 5));
    assert_eq!(world.reconciler.counts().ring_slots as usize, services * 8);
    world.assert_converged();
}

#[test]
fn ipv6_services_stand_in_their_own_map() {
    let mut world = World::new(SIZES);
    let RowChange::Service(row) = service("a", Affinity::None) else {
        unreachable!()
    };
    let mut row = (*row).clone();
    row.addresses.push("fd00:96::1".parse().unwrap());
    let rows = vec![
        RowChange::Service(row.into()),
        ready("a", "10.1.0.1"),
        ready("a", "fd01::1"),
    ];
    fill(&mut world, rows);
    let maps = world.memory.maps().clone();
    assert_eq!((maps.frontends4.len(), maps.frontends6.len()), (2, 2));
    let counts = world.reconciler.counts();
    assert_eq!(
        (counts.services, counts.frontends4, counts.frontends6),
        (2, 2, 2)
    );
    let mut again = World::on(maps, std::mem::take(&mut world.store));
    let before = again.writes();
    again.say_all();
    again.settle();
    assert_eq!(again.writes(), before);
    assert_eq!(
        again.reconciler.counts(),
        crate::reconcile::Counts {
            writes: 0,
            ..world.reconciler.counts()
        }
    );
}
