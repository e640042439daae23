//! What fails stays by itself, says why, and is done when it can be.

use super::world::*;
use crate::desired::Frontend;
use crate::model::{Affinity, RowChange};
use crate::reconcile::ReconcileError;
use crate::store::{Owner, Store};
use crate::table::{Sizes, TableError};

fn filled(sizes: Sizes) -> World {
    let mut world = World::new(sizes);
    world.say(
        Owner::Local,
        vec![service("a", Affinity::None), ready("a", "10.1.0.1")],
    );
    world.complete(Owner::Local);
    world.complete(west());
    world.settle();
    world
}

fn full(world: &World) -> &'static str {
    let fault = world.reconciler.faults().next().unwrap();
    match fault.error {
        ReconcileError::Table(TableError::Full { flag, .. }) => flag,
        other => panic!("{other}"),
    }
}

#[test]
fn a_full_map_names_its_flag_and_blocks_nobody_else() {
    let sizes = [
        (
            "--lb-services-max",
            Sizes {
                services: 2,
                ..SIZES
            },
        ),
        (
            "--lb-backends-max",
            Sizes {
                backends: 2,
                ..SIZES
            },
        ),
        ("--lb-ring-slots-max", Sizes { slots: 4, ..SIZES }),
    ];
    for (flag, sizes) in sizes {
        let mut world = filled(sizes);
        for (name, address) in [("b", "10.1.0.2"), ("c", "10.1.0.3")] {
            world.say(
                Owner::Local,
                vec![service(name, Affinity::None), ready(name, address)],
            );
        }
        world.settle();
        assert_eq!(full(&world), flag);
        assert_eq!(world.reconciler.counts().failing, 1);
        assert_eq!(
            (world.drawn("a"), world.drawn("b")),
            (vec!["10.1.0.1".to_owned()], vec!["10.1.0.2".to_owned()])
        );
        assert_eq!(
            world.answers("c"),
            Answers::Miss,
            "no frontend before its backends"
        );
        assert!(
            world
                .reconciler
                .faults()
                .next()
                .unwrap()
                .error
                .to_string()
                .contains("raise --lb")
        );
        // Room comes: it is used at once, and that clears the error.
        world.say(
            Owner::Local,
            vec![RowChange::ServiceGone(name("a")), gone("a", "10.1.0.1")],
        );
        world.settle();
        world.assert_converged();
    }
}

#[test]
fn a_full_hash_of_frontends_is_one_services_fault() {
    let mut world = filled(Sizes {
        frontends: 4,
        ..SIZES
    });
    world.say(
        Owner::Local,
        vec![service("b", Affinity::None), service("c", Affinity::None)],
    );
    world.settle();
    assert_eq!(full(&world), "--lb-services-max");
    world.say(
        Owner::Local,
        vec![RowChange::ServiceGone(name("a")), gone("a", "10.1.0.1")],
    );
    world.settle_failures();
    world.assert_converged();
}

#[test]
fn a_ring_never_names_a_backend_whose_row_failed_and_is_not_emptied_for_it() {
    let mut world = filled(SIZES);
    world.faults.break_table(Some("backends"));
    world.say(
        Owner::Local,
        vec![gone("a", "10.1.0.1"), ready("a", "10.1.0.2")],
    );
    world.settle();
    assert_eq!(world.drawn("a"), ["10.1.0.1"]);
    world.say(
        Owner::Local,
        vec![ready("a", "10.1.0.1"), ready("a", "10.1.0.3")],
    );
    world.settle();
    assert_eq!(world.drawn("a"), ["10.1.0.1"]);
    world.faults.break_table(None);
    world.settle_failures();
    assert_eq!(world.drawn("a"), ["10.1.0.1", "10.1.0.2", "10.1.0.3"]);
    world.assert_converged();
}

#[test]
fn retries_back_off_and_are_bounded() {
    let mut world = filled(SIZES);
    world.faults.break_table(Some("backends"));
    world.say(Owner::Local, vec![ready("a", "10.1.0.2")]);
    world.settle();
    let first = world.reconciler.faults().next().unwrap();
    assert_eq!((first.attempts, first.since), (1, world.now));
    let mut last = world.now;
    let mut waits = Vec::new();
    for _ in 0..12 {
        let due = world.reconciler.faults().next().unwrap().retry_at;
        waits.push(due - last);
        (world.now, last) = (due, due);
        world.settle();
    }
    assert!(waits.windows(2).all(|w| w[0] <= w[1]), "{waits:?}");
    assert_eq!(*waits.last().unwrap(), super::super::BACKOFF_MAX);
    assert_eq!(world.reconciler.counts().failing, 1);
    let fault = world.reconciler.faults().next().unwrap();
    assert_eq!((fault.attempts, fault.since), (13, first.since));
    assert_eq!(fault.frontend.unwrap().to_string(), "10.96.0.97:80/TCP");
    world.faults.break_table(None);
    world.settle_failures();
    world.assert_converged();
    // What failed, was done and fails again has failed since then.
    world.faults.break_table(Some("backends"));
    world.say(Owner::Local, vec![ready("a", "10.1.0.3")]);
    world.settle();
    let again = world.reconciler.faults().next().unwrap();
    assert_eq!((again.attempts, again.since), (1, world.now));
    assert!(again.since > first.since);
}

#[test]
fn each_single_fault_is_survived() {
    // However many writes the change takes, each of them fails once.
    for nth in 0..40 {
        let mut world = filled(SIZES);
        world.faults.script((0..nth).map(|_| false).chain([true]));
        world.say(
            Owner::Local,
            vec![
                service("b", Affinity::Local),
                ready("b", "10.1.0.2"),
                ready("a", "10.1.0.4"),
            ],
        );
        world.say(
            west(),
            vec![service("b", Affinity::None), ready("b", "10.2.0.2")],
        );
        world.settle();
        world.say(
            Owner::Local,
            vec![gone("a", "10.1.0.1"), RowChange::ServiceGone(name("b"))],
        );
        world.settle_failures();
        world.faults.script([false; 40]);
        world.assert_converged();
    }
}

#[test]
fn two_services_that_want_one_frontend() {
    let mut world = filled(SIZES);
    let RowChange::Service(row) = service("a", Affinity::None) else {
        unreachable!()
    };
    let mut rival = (*row).clone();
    rival.name = name("rival");
    world.say(
        Owner::Local,
        vec![RowChange::Service(rival.into()), ready("rival", "10.1.0.9")],
    );
    world.settle();
    assert_eq!(world.drawn("a"), ["10.1.0.1"], "the first to come keeps it");
    let fault = world.reconciler.faults().next().unwrap();
    assert_eq!(fault.service, Some(name("rival")));
    assert!(
        fault
            .error
            .to_string()
            .starts_with("10.96.0.97:80/TCP belongs to service default/a;"),
        "{}",
        fault.error
    );
    world.say(
        Owner::Local,
        vec![RowChange::ServiceGone(name("a")), gone("a", "10.1.0.1")],
    );
    world.settle();
    assert_eq!(
        world.drawn("a"),
        ["10.1.0.9"],
        "without waiting for the deadline"
    );
    world.assert_converged();
}

#[test]
fn handing_over_is_no_fault() {
    let at = |name: &str, addresses: &[&str]| {
        let RowChange::Service(row) = service(name, Affinity::None) else {
            unreachable!()
        };
        let mut row = (*row).clone();
        row.addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
        RowChange::Service(row.into())
    };
    let mut world = filled(SIZES);
    world.say(
        Owner::Local,
        vec![
            at("a", &["10.96.0.97", "10.96.0.98"]),
            ready("b", "10.1.0.2"),
        ],
    );
    world.settle();
    // One address of two: it has to be taken from the one before the other can have it.
    world.say(
        Owner::Local,
        vec![at("a", &["10.96.0.97"]), at("b", &["10.96.0.98"])],
    );
    while !world.round(1) || world.pass_grace() {
        assert_eq!(world.reconciler.counts().failing, 0);
        let settled = world.reconciler.is_settled(&name("b"));
        assert!(settled || world.reconciler.counts().pending > 0);
    }
    assert_eq!(world.drawn("b"), ["10.1.0.2"]);
    world.assert_converged();
    // What it waits for comes back: now it has a rival.
    world.say(Owner::Local, vec![at("b", &["10.96.0.97"])]);
    world.settle();
    assert_eq!(world.reconciler.counts().failing, 1);
    world.say(Owner::Local, vec![at("b", &["10.96.0.98"])]);
    world.settle();
    world.assert_converged();
}

#[test]
fn an_address_that_was_handed_over_never_stays_with_the_backends_of_the_other() {
    for broken in ["backends", "slots"] {
        let mut world = filled(SIZES);
        world.faults.break_table(Some(broken));
        world.say(
            Owner::Local,
            vec![
                RowChange::ServiceGone(name("a")),
                service_at("b", &address_of("a"), Affinity::None, &[("http", 80)]),
                ready("b", "10.1.0.2"),
            ],
        );
        world.settle();
        assert_eq!(world.answers("a"), Answers::Refused, "{broken}");
        assert!(world.reconciler.counts().failing > 0);
        world.faults.break_table(None);
        world.settle_failures();
        assert_eq!(world.drawn("a"), ["10.1.0.2"]);
        world.assert_converged();
    }
}

fn is_marked(world: &World, service: &str) -> bool {
    let address = frontend(service, 80).address;
    let row = key4(Frontend::address_only(address));
    world.memory.maps().frontends4.contains_key(&row)
}

#[test]
fn a_port_that_a_fault_keeps_out_is_not_refused() {
    let ports: [(&str, u16); 2] = [("http", 80), ("metrics", 81)];
    let two = || service_with("a", Affinity::None, &ports);
    for broken in ["backends", "slots", "rings", "frontends4"] {
        let mut world = filled(SIZES);
        assert!(is_marked(&world, "a"));
        world.faults.break_table(Some(broken));
        world.say(Owner::Local, vec![two()]);
        world.settle();
        // The mark's own row may be of the table that takes no writes.
        assert_eq!(is_marked(&world, "a"), broken == "frontends4", "{broken}");
        assert_eq!(world.drawn("a"), ["10.1.0.1"]);
        world.faults.break_table(None);
        world.settle_failures();
        assert!(is_marked(&world, "a"), "{broken}");
        world.assert_converged();
    }
}

#[test]
fn an_address_is_marked_again_when_the_port_that_found_no_room_is_wanted_no_more() {
    let ports: [(&str, u16); 2] = [("http", 80), ("metrics", 81)];
    let two = || service_with("a", Affinity::None, &ports);
    let sizes = Sizes {
        services: 1,
        ..SIZES
    };
    let mut world = filled(sizes);
    world.say(Owner::Local, vec![two()]);
    world.settle();
    assert_eq!(full(&world), "--lb-services-max");
    assert!(!is_marked(&world, "a"));
    // Nor by the next agent, that finds what an earlier one marked.
    let marked = filled(sizes).memory.maps().clone();
    let mut again = World::on(marked, Store::new());
    again.say(Owner::Local, vec![two(), ready("a", "10.1.0.1")]);
    again.settle();
    assert!(!is_marked(&again, "a"));
    assert_eq!(again.drawn("a"), ["10.1.0.1"]);
    world.say(Owner::Local, vec![service("a", Affinity::None)]);
    world.settle();
    assert!(is_marked(&world, "a"));
    world.assert_converged();
}

#[test]
fn a_fault_of_one_service_unmarks_an_address_of_two_until_it_is_over() {
    let sizes = Sizes {
        services: 1,
        ..SIZES
    };
    let mut world = filled(sizes);
    let address = address_of("a");
    let other = || service_at("b", &address, Affinity::None, &[("web", 81)]);
    world.say(Owner::Local, vec![other()]);
    world.settle();
    assert!(!is_marked(&world, "a"));
    world.say(Owner::Local, vec![RowChange::ServiceGone(name("b"))]);
    world.settle();
    assert!(is_marked(&world, "a"));
    world.assert_converged();
}
