//! What a Service asks of the datapath beside its backends, and what is told of backends that are gone.

use std::sync::Arc;

use super::world::*;
use crate::model::{Affinity, Condition, EndpointKey, Protocol, RowChange, ServiceRules};
use crate::store::Owner;
use crate::table::Write;

fn with_rules(affinity_seconds: u32) -> RowChange {
    let RowChange::Service(row) = service("a", Affinity::None) else {
        unreachable!("a service")
    };
    let mut row = Arc::unwrap_or_clone(row);
    row.rules = ServiceRules {
        affinity_seconds,
        ..ServiceRules::default()
    };
    RowChange::Service(Arc::new(row))
}

fn world(affinity_seconds: u32) -> World {
    let mut world = World::new(SIZES);
    let rows = vec![
        with_rules(affinity_seconds),
        ready("a", "10.1.0.1"),
        ready("a", "10.1.0.2"),
    ];
    world.say(Owner::Local, rows);
    world.complete(Owner::Local);
    world.settle();
    world
}

fn is_sticky(world: &World) -> bool {
    world.reconciler.dump().next().unwrap().ring.is_sticky()
}

#[test]
fn affinity_stands_in_limits_and_ring() {
    let world = world(600);
    assert!(is_sticky(&world));
    let index = world.reconciler.dump().next().unwrap().index;
    let maps = world.memory.maps().clone();
    assert_eq!(maps.service_limits[index as usize].affinity_seconds, 600);
    assert!(maps.rings[index as usize].is_sticky());
}

#[test]
fn affinity_comes_and_goes_by_two_words() {
    let mut world = world(0);
    assert!(!is_sticky(&world));
    for seconds in [600, 0] {
        let from = world.writes();
        world.say(Owner::Local, vec![with_rules(seconds)]);
        world.settle();
        // The limits first: a ring that asks for affinity finds out for how long.
        let writes = world.memory.maps().writes[from..].to_vec();
        assert!(
            matches!(
                writes.as_slice(),
                [Write::ServiceLimits(..), Write::Ring(..)]
            ),
            "{writes:?}"
        );
        assert_eq!(is_sticky(&world), seconds != 0);
        world.assert_converged();
    }
}

#[test]
fn affinity_outlives_rings_that_move_and_agents() {
    let mut world = world(600);
    let rows = (3..20)
        .map(|n| ready("a", &format!("10.1.0.{n}")))
        .collect();
    world.say(Owner::Local, rows);
    world.settle();
    assert!(is_sticky(&world));
    let before = world.writes();
    let mut again = World::on(world.memory.maps().clone(), crate::store::Store::new());
    again.store = world.store;
    again.say_all();
    again.settle();
    assert_eq!(again.writes(), before);
    assert!(is_sticky(&again));
}

#[test]
fn removed_backends_of_udp_are_told_after_their_grace_period() {
    let mut world = World::new(SIZES);
    world.say(
        Owner::Local,
        vec![
            as_udp(service("a", Affinity::None)),
            as_udp(ready("a", "10.1.0.1")),
            as_udp(ready("a", "10.1.0.2")),
        ],
    );
    world.complete(Owner::Local);
    world.settle();
    assert_eq!(world.reconciler.take_removed().len(), 0);
    world.say(
        Owner::Local,
        vec![as_udp(endpoint(
            "a",
            "10.1.0.1",
            Condition::ServingTerminating,
        ))],
    );
    world.settle();
    assert_eq!(world.reconciler.take_removed().len(), 0, "on its way out");
    world.say(
        Owner::Local,
        vec![RowChange::EndpointGone(EndpointKey {
            service: name("a"),
            address: "10.1.0.1".parse().unwrap(),
        })],
    );
    world.settle();
    let removed: Vec<_> = world.reconciler.take_removed().into_iter().collect();
    assert_eq!(removed, [("10.1.0.1".parse().unwrap(), 8080)]);
    assert_eq!(world.reconciler.take_removed().len(), 0, "told once");
}

#[test]
fn removed_backends_of_tcp_end_by_themselves() {
    let mut world = world(0);
    world.say(Owner::Local, vec![RowChange::ServiceGone(name("a"))]);
    world.settle();
    assert_eq!(world.reconciler.take_removed().len(), 0);
}

fn as_udp(change: RowChange) -> RowChange {
    match change {
        RowChange::Service(row) => {
            let mut row = Arc::unwrap_or_clone(row);
            for port in &mut row.ports {
                port.protocol = Protocol::Udp;
            }
            RowChange::Service(Arc::new(row))
        }
        RowChange::Endpoint(row) => {
            let mut row = Arc::unwrap_or_clone(row);
            for port in &mut row.ports {
                port.protocol = Protocol::Udp;
            }
            RowChange::Endpoint(Arc::new(row))
        }
        other => other,
    }
}
