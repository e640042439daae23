use std::sync::Arc;

use isthmus_core::desired::{Family, PortKey};
use isthmus_core::model::Protocol;

use super::*;
use crate::events::ServicePort;

const WEST: u16 = 2;

fn name(text: &str) -> ObjectName {
    ObjectName::new("production", text)
}

fn ports(names: &[(u32, &str)]) -> PortIndex {
    let port = |(index, text): &(u32, &str)| {
        let port = ServicePort {
            service: name(text),
            key: PortKey {
                name: "".into(),
                protocol: Protocol::Tcp,
                family: Family::V4,
            },
        };
        (*index, Arc::new(port))
    };
    names.iter().map(port).collect()
}

fn reading(id: u32, generation: u32, sent: u64, refused: u64) -> BackendReading {
    BackendReading {
        id,
        generation,
        cluster: WEST,
        connects: Connects {
            sent,
            refused,
            ..Connects::default()
        },
        ejected: refused > 0,
    }
}

fn of(sums: &Sums, service: &str) -> (u64, u64) {
    let sum = sums.pairs.own.get(&(name(service), WEST));
    sum.map_or((0, 0), |sum| (sum.connects.sent, sum.connects.refused))
}

#[test]
fn sums_go_on_from_life_to_life_of_an_id() {
    let mut sums = Sums::default();
    let (a, b) = (name("a"), name("b"));
    sums.backend(&reading(7, 1, 10, 1), Some(&a), true);
    sums.backend(&reading(7, 1, 15, 3), Some(&a), true);
    assert_eq!(of(&sums, "a"), (15, 3));
    // Its last word, when its service's name is gone already.
    sums.backend(&reading(7, 1, 16, 3), None, false);
    sums.backend(&reading(7, 2, 4, 0), Some(&b), true);
    sums.backend(&reading(7, 3, 5, 0), Some(&a), true);
    assert_eq!((of(&sums, "a"), of(&sums, "b")), ((21, 3), (4, 0)));
    // Nobody has said yet whose it is.
    sums.backend(&reading(8, 1, 9, 0), None, true);
    assert_eq!(of(&sums, "a"), (21, 3));
    sums.backend(&reading(8, 1, 9, 0), Some(&a), true);
    assert_eq!(of(&sums, "a"), (30, 3), "none of it is lost");
}

#[test]
fn backends_that_are_out_are_counted_as_of_the_last_look() {
    let mut sums = Sums::default();
    let a = name("a");
    let index = ports(&[(0, "a")]);
    for refused in [3, 0] {
        sums.begin();
        sums.backend(&reading(1, 1, 9, refused), Some(&a), true);
        sums.backend(&reading(2, 1, 9, 0), Some(&a), true);
        sums.end(&index);
        let sum = sums.pairs.own[&(name("a"), WEST)];
        assert_eq!((sum.backends, sum.ejected), (2, u32::from(refused > 0)));
    }
    // One that goes is no backend any more.
    sums.begin();
    sums.backend(&reading(1, 1, 9, 3), Some(&a), false);
    let sum = sums.pairs.own[&(name("a"), WEST)];
    assert_eq!((sum.backends, sum.ejected), (0, 0));
}

#[test]
fn an_index_that_goes_to_another_service_begins_anew() {
    let draws = |refused, ejections| Draws {
        refused,
        all_ejected: 0,
        ejections,
    };
    let mut sums = Sums::default();
    let (a, b) = (name("a"), name("b"));
    sums.port(3, Some(&a), draws(5, 1), true);
    sums.port(3, None, draws(6, 2), false);
    // More than was seen of the other, and all its own.
    sums.port(3, Some(&b), draws(7, 0), true);
    sums.port(3, Some(&b), draws(9, 0), true);
    // Zeroed for the same service, unseen.
    sums.port(3, Some(&b), draws(2, 1), true);
    assert_eq!(sums.services.own[&a], draws(6, 2));
    assert_eq!(sums.services.own[&b], draws(11, 1));
}

/// Frontends pass from one to the other: the rows stay where they are, and count for the other's name.
#[test]
fn services_that_exchange_their_places_keep_what_they_had() {
    let draws = |refused| Draws {
        refused,
        ..Draws::default()
    };
    let mut sums = Sums::default();
    let (a, b) = (name("a"), name("b"));
    for (index, service, refused) in [(3, &a, 50), (4, &b, 2), (3, &b, 51), (4, &a, 5)] {
        sums.port(index, Some(service), draws(refused), true);
        let reading = reading(index, 1, refused, 0);
        sums.backend(&reading, Some(service), true);
    }
    assert_eq!(sums.services.own[&a], draws(50 + 3));
    assert_eq!(sums.services.own[&b], draws(2 + 1));
    assert_eq!(of(&sums, "a").0, 50 + 3);
    assert_eq!(of(&sums, "b").0, 2 + 1);
}

/// Two CPUs ejected one backend: one of them takes its count back.
#[test]
fn an_ejection_that_is_taken_back_is_summed_once() {
    let mut sums = Sums::default();
    let a = name("a");
    for ejections in [1, 2, 1, 2] {
        let draws = Draws {
            refused: 5,
            all_ejected: 1,
            ejections,
        };
        sums.port(3, Some(&a), draws, true);
    }
    let draws = &sums.services.own[&a];
    assert_eq!(
        (draws.refused, draws.all_ejected, draws.ejections),
        (5, 1, 2)
    );
}

#[test]
fn series_are_bounded_and_nothing_is_lost_beyond() {
    let mut sums = Sums::default();
    let more = 10;
    let names: Vec<ObjectName> = (0..SERIES_MAX + more)
        .map(|n| name(&n.to_string()))
        .collect();
    let ids = |at: usize| u32::try_from(at).expect("small");
    for round in 1..=3 {
        for (at, service) in names.iter().enumerate() {
            sums.backend(&reading(ids(at), 1, round, 0), Some(service), true);
            let draws = Draws {
                refused: round,
                ..Draws::default()
            };
            sums.port(ids(at), Some(service), draws, true);
        }
    }
    assert_eq!(sums.pairs.own.len(), SERIES_MAX);
    assert_eq!(sums.services.own.len(), SERIES_MAX);
    assert_eq!(sums.pairs.other.connects.sent, 3 * more as u64);
    assert_eq!(sums.services.other.refused, 3 * more as u64);

    // Room again: for what comes, not for what is among the others already, or two series would share its past.
    let (first, kept) = (&names[0], &names[1..]);
    let live: Vec<(u32, String)> = kept
        .iter()
        .enumerate()
        .map(|(at, service)| (ids(at) + 1, service.name.to_string()))
        .collect();
    let live: Vec<(u32, &str)> = live.iter().map(|(at, text)| (*at, text.as_str())).collect();
    sums.begin();
    sums.end(&ports(&live));
    assert!(!sums.pairs.own.contains_key(&(first.clone(), WEST)));
    let last = names.last().expect("not empty");
    sums.backend(&reading(ids(names.len() - 1), 1, 4, 0), Some(last), true);
    assert_eq!(sums.pairs.other.connects.sent, 3 * more as u64 + 1);
    let new = name("new");
    sums.backend(&reading(9999, 1, 2, 0), Some(&new), true);
    assert_eq!(of(&sums, "new"), (2, 0));
}
