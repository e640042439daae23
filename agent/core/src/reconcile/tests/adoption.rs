//! What a restarted agent does before everybody has spoken.

use super::world::*;
use crate::model::{Affinity, Condition, RowChange, ServiceRow};
use crate::store::{Owner, Store};

fn running(affinity: Affinity) -> World {
    let mut world = World::new(SIZES);
    world.stale(WEST, false);
    world.say(
        Owner::Local,
        vec![
            service("a", affinity),
            ready("a", "10.1.0.1"),
            ready("a", "10.1.0.2"),
        ],
    );
    world.say(
        west(),
        vec![service("a", Affinity::None), ready("a", "10.2.0.1")],
    );
    world.complete(Owner::Local);
    world.complete(west());
    world.settle();
    world
}

/// The agent is killed and started again; nobody has said anything yet.
fn restart(world: &World) -> World {
    World::on(world.memory.maps().clone(), Store::new())
}

#[test]
fn a_restart_with_equal_rows_writes_nothing() {
    for affinity in [Affinity::None, Affinity::Local, Affinity::Remote] {
        let world = running(affinity);
        let mut again = restart(&world);
        again.store = world.store;
        let before = again.writes();
        again.say_all();
        again.settle();
        assert_eq!(again.writes(), before);
        again.assert_converged();
    }
}

#[test]
fn without_a_word_nothing_is_removed() {
    let world = running(Affinity::Local);
    let mut again = restart(&world);
    let before = again.writes();
    again.settle();
    assert_eq!(again.writes(), before);
    assert_eq!(again.drawn("a"), ["10.1.0.1", "10.1.0.2"]);
    assert_eq!(again.reconciler.kept_clusters().len(), 2);
}

#[test]
fn a_dead_mesh_server_takes_no_remote_backend_with_it() {
    let world = running(Affinity::None);
    let mut again = restart(&world);
    // The local source speaks, with a backend more; nobody speaks for the peer.
    again.say(Owner::Local, vec![service("a", Affinity::None)]);
    again.say(
        Owner::Local,
        ["10.1.0.1", "10.1.0.2", "10.1.0.3"]
            .map(|a| ready("a", a))
            .to_vec(),
    );
    again.complete(Owner::Local);
    again.settle();
    assert_eq!(
        again.drawn("a"),
        ["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.2.0.1"]
    );
    // A ring laid anew for another reason keeps it too.
    again.say(Owner::Local, vec![service("a", Affinity::Local)]);
    again.say(
        Owner::Local,
        vec![endpoint("a", "10.1.0.1", Condition::ServingTerminating)],
    );
    again.settle();
    assert!(
        again
            .answers("a")
            .all()
            .iter()
            .any(|key| key.cluster == cluster(WEST))
    );
    // Until the peer is dropped, or its list is complete without it.
    let dirty = again.store.drop_peer(cluster(WEST));
    again.apply(&dirty);
    again.settle();
    assert!(
        again
            .answers("a")
            .all()
            .iter()
            .all(|key| key.cluster == cluster(LOCAL))
    );
    again.assert_converged();
}

#[test]
fn trust_makes_no_service_global() {
    let world = running(Affinity::None);
    let mut again = restart(&world);
    let RowChange::Service(row) = service("a", Affinity::None) else {
        unreachable!()
    };
    let row = ServiceRow {
        global: false,
        shared: false,
        ..(*row).clone()
    };
    again.say(
        Owner::Local,
        vec![RowChange::Service(row.into()), ready("a", "10.1.0.1")],
    );
    again.settle();
    assert_eq!(
        again.drawn("a"),
        ["10.1.0.1", "10.1.0.2"],
        "the other local one waits for the passport"
    );
}

#[test]
fn local_backends_wait_for_the_passport_of_their_own_source() {
    let world = running(Affinity::Local);
    let mut again = restart(&world);
    again.say(
        Owner::Local,
        vec![service("a", Affinity::Local), ready("a", "10.1.0.1")],
    );
    again.complete(west());
    again.settle();
    assert_eq!(again.drawn("a"), ["10.1.0.1", "10.1.0.2"]);
    assert_eq!(
        again.answers("a").all().len(),
        2,
        "the peer's list is complete, and empty"
    );
    again.complete(Owner::Local);
    again.settle();
    assert_eq!(again.drawn("a"), ["10.1.0.1"]);
    again.assert_converged();
}

#[test]
fn an_endpoint_that_is_said_to_be_gone_does_not_wait() {
    let world = running(Affinity::Local);
    let mut again = restart(&world);
    again.say(
        Owner::Local,
        vec![service("a", Affinity::Local), ready("a", "10.1.0.1")],
    );
    again.say(
        Owner::Local,
        vec![endpoint("a", "10.1.0.2", Condition::NotReady)],
    );
    again.settle();
    assert_eq!(again.drawn("a"), ["10.1.0.1"]);
}

#[test]
fn services_nobody_names_go_with_the_passport() {
    let world = running(Affinity::None);
    let mut again = restart(&world);
    again.complete(west());
    again.settle();
    assert_ne!(again.answers("a"), Answers::Miss);
    again.complete(Owner::Local);
    again.settle();
    assert_eq!(again.answers("a"), Answers::Miss);
    again.assert_converged();
}

#[test]
fn tiers_keep_their_order_until_their_ranks_are_known() {
    let mut world = running(Affinity::None);
    world.stale(WEST, true);
    world.settle();
    let mut again = restart(&world);
    again.say(
        Owner::Local,
        vec![
            service("a", Affinity::None),
            ready("a", "10.1.0.1"),
            ready("a", "10.1.0.2"),
        ],
    );
    again.complete(Owner::Local);
    again.settle();
    assert_eq!(
        again.drawn("a"),
        ["10.1.0.1", "10.1.0.2"],
        "the stale peer's backend stays below"
    );
    let before = again.writes();
    again.store.set_peer(
        cluster(WEST),
        crate::store::PeerState {
            name: "west".parse().unwrap(),
            stale: true,
        },
    );
    again.say(
        west(),
        vec![service("a", Affinity::None), ready("a", "10.2.0.1")],
    );
    again.complete(west());
    again.settle();
    assert_eq!(again.writes(), before, "it was where it belongs");
    again.assert_converged();
}

#[test]
fn ids_and_generations_go_on() {
    let mut world = running(Affinity::None);
    let id = world
        .reconciler
        .dump()
        .next()
        .unwrap()
        .backends
        .iter()
        .find(|b| b.key.cluster == cluster(WEST))
        .unwrap()
        .id;
    world.say(west(), vec![gone("a", "10.2.0.1")]);
    world.settle();
    world.memory.maps().backend_health[id as usize].connects = 7;
    let mut again = restart(&world);
    again.store = world.store;
    again.say_all();
    again.say(west(), vec![ready("a", "10.2.0.9")]);
    again.settle();
    again.assert_converged();
    let dump = again.reconciler.dump().next().unwrap();
    let reborn = dump.backends.iter().find(|b| b.id == id).unwrap();
    assert_eq!(reborn.generation, 2);
    assert_eq!(again.memory.maps().backend_health[id as usize].connects, 0);
}

#[test]
fn rings_that_make_no_sense_are_laid_anew() {
    use isthmus_abi::{Ring, Slot};
    let spoilers: [fn(&mut crate::table::MemoryMaps, u32); 5] = [
        |maps, index| maps.rings[index as usize] = Ring::new(u32::MAX - 1, 1, 3),
        |maps, index| maps.rings[index as usize] = Ring::new(0, 255, 3),
        |maps, index| maps.rings[index as usize] = Ring::new(1, 1, 2),
        |maps, index| {
            let first = maps.rings[index as usize].first();
            maps.slots[first as usize] = Slot::new(63, 9);
        },
        |maps, index| {
            let first = maps.rings[index as usize].first() as usize;
            maps.slots[first] = maps.slots[first + 1];
        },
    ];
    for spoil in spoilers {
        let world = running(Affinity::None);
        let index = world.reconciler.dump().next().unwrap().index;
        let mut maps = world.memory.maps().clone();
        spoil(&mut maps, index);
        let mut again = World::on(maps, world.store);
        again.say_all();
        again.settle();
        again.assert_converged();
    }
}
