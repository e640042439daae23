#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]
use super::*;
use crate::mesh::simulation::{batch, endpoint, endpoint_at, private_service, service};

fn new(epoch: Epoch) -> Publisher {
    load(SavedPublisher::empty(epoch))
}

fn load(saved: SavedPublisher) -> Publisher {
    Publisher::load(saved, Vec::new())
}

fn apply(publisher: &mut Publisher, batch: Batch) -> bool {
    publisher.apply(&batch, Guard::default(), Instant::now())
}

fn position(publisher: &Publisher) -> Option<String> {
    publisher
        .ledger()
        .rows()
        .position()
        .map(|position| position.to_string())
}

#[test]
fn only_shared_services_and_their_endpoints_are_told() {
    let mut publisher = new(Epoch(0x19c0));
    assert!(
        !apply(&mut publisher, batch(vec![endpoint("a", 1, true)], false)),
        "its service is not known yet"
    );
    assert!(apply(&mut publisher, batch(vec![service("a", 80)], false)));
    assert_eq!(
        position(&publisher),
        None,
        "nothing is settled before the first list is complete"
    );
    assert!(apply(
        &mut publisher,
        batch(vec![private_service("b"), endpoint("b", 2, true)], true)
    ));
    assert_eq!(position(&publisher).unwrap(), "19c0/1");
    assert_eq!(
        (
            publisher.told.rows().services(),
            publisher.told.rows().endpoints()
        ),
        (1, 1)
    );
    assert!(!apply(&mut publisher, batch(vec![service("a", 80)], false)));
    // No longer shared: its endpoints go with it.
    assert!(apply(
        &mut publisher,
        batch(vec![private_service("a")], false)
    ));
    assert_eq!(
        (
            publisher.told.rows().services(),
            publisher.told.rows().endpoints()
        ),
        (0, 0)
    );
    assert_eq!(publisher.digest, 0);
}

#[test]
fn a_restart_tells_the_same_until_the_source_has_spoken_and_the_same_position_if_it_says_the_same()
{
    let rows = vec![
        service("a", 80),
        endpoint("a", 1, true),
        endpoint("a", 2, false),
    ];
    let mut publisher = new(Epoch(7));
    apply(&mut publisher, batch(rows.clone(), true));
    let before = publisher.ledger().rows().position();
    let saved = publisher.save();
    let mut publisher = load(saved.clone());
    assert_eq!(publisher.ledger().rows().position(), before);
    assert!(!apply(&mut publisher, batch(rows[..2].to_vec(), false)));
    assert_eq!(publisher.told.rows().endpoints(), 2);
    assert!(!apply(&mut publisher, batch(rows[2..].to_vec(), true)));
    assert_eq!(publisher.ledger().rows().position(), before);
    // An endpoint before its service, in a batch of its own.
    let mut publisher = load(saved.clone());
    assert!(!apply(&mut publisher, batch(rows[1..].to_vec(), false)));
    assert!(!apply(&mut publisher, batch(rows[..1].to_vec(), true)));
    assert_eq!(publisher.ledger().rows().position(), before);
    // Told less: the next revision, and only at the end of the list.
    let mut publisher = load(saved);
    apply(&mut publisher, batch(rows[..2].to_vec(), false));
    assert_eq!(publisher.told.rows().endpoints(), 2);
    assert!(apply(&mut publisher, batch(vec![], true)));
    assert_eq!(publisher.told.rows().endpoints(), 1);
    assert_eq!(position(&publisher).unwrap(), "0007/2");
}

#[test]
fn revisions_counted_twice_after_a_crash_differ_by_their_digest() {
    let mut publisher = new(Epoch(7));
    apply(&mut publisher, batch(vec![service("a", 80)], true));
    let saved = publisher.save();
    apply(&mut publisher, batch(vec![service("b", 80)], false));
    let lost = publisher.ledger().rows().position().unwrap();
    let mut publisher = load(saved);
    apply(
        &mut publisher,
        batch(vec![service("a", 80), service("c", 80)], true),
    );
    let again = publisher.ledger().rows().position().unwrap();
    assert_eq!(lost.to_string(), again.to_string());
    assert_ne!(lost, again);
}

#[test]
fn a_source_that_lost_its_objects_empties_nothing_at_once() {
    let guard = Guard::default();
    let start = Instant::now();
    let mut rows = vec![service("a", 80)];
    rows.extend((0..40).map(|n| endpoint("a", n, true)));
    let mut publisher = new(Epoch(7));
    assert!(apply(&mut publisher, batch(rows.clone(), true)));
    let saved = publisher.save();
    let restarted = || load(saved.clone());

    // Told in the middle of a life, it is believed.
    assert!(apply(
        &mut publisher,
        batch(
            rows.iter().map(|row| RowKey::of(row).gone()).collect(),
            false
        )
    ));
    assert_eq!(
        (publisher.told.rows().len(), publisher.quarantine()),
        (0, None)
    );

    // As the first list of another life, it is not.
    let mut publisher = restarted();
    assert!(!publisher.apply(&batch(vec![], true), guard, start));
    assert_eq!(publisher.told.rows().len(), 41);
    assert_eq!(
        position(&publisher).unwrap(),
        "0007/1",
        "peers hear nothing new"
    );
    let quarantine = publisher.quarantine().unwrap();
    assert_eq!((quarantine.rows, quarantine.held), (41, 41));
    assert_eq!(quarantine.until, start + guard.grace);
    // What comes back is taken up, and a service's return does not give up its endpoints.
    assert!(!publisher.apply(&batch(rows[..2].to_vec(), false), guard, start));
    assert_eq!(publisher.quarantine().unwrap().rows, 39);
    assert_eq!(publisher.release(quarantine.until - guard.grace / 2), 0);
    assert_eq!(publisher.release(quarantine.until), 39);
    assert_eq!(publisher.told.rows().all(), {
        let mut told = rows[..2].to_vec();
        told.iter_mut().for_each(without_addresses);
        told
    });
    assert_eq!(position(&publisher).unwrap(), "0007/2");

    // All of it back in time: nothing ever changed.
    let mut publisher = restarted();
    publisher.apply(&batch(vec![], true), guard, start);
    assert!(!publisher.apply(&batch(rows.clone(), false), guard, start));
    assert_eq!(publisher.quarantine(), None);
    assert_eq!(position(&publisher).unwrap(), "0007/1");

    // A few rows less are an ordinary change.
    let mut publisher = restarted();
    assert!(publisher.apply(&batch(rows[..30].to_vec(), true), guard, start));
    assert_eq!(
        (publisher.told.rows().len(), publisher.quarantine()),
        (30, None)
    );
}

/// As peers are told of it.
fn without_addresses(row: &mut RowChange) {
    if let RowChange::Service(row) = row {
        let row = Arc::make_mut(row);
        row.addresses = Vec::new();
        row.affinity = Affinity::None;
    }
}

#[test]
fn endpoints_outside_our_own_ranges_are_not_lent() {
    let mut publisher = new(Epoch(7));
    publisher.cidrs = vec!["10.0.0.0/24".parse().unwrap()];
    let (inside, outside) = (endpoint("a", 1, true), endpoint_at("a", "10.9.0.1"));
    let rows = vec![
        inside.clone(),
        outside.clone(),
        endpoint_at("a", "127.0.0.1"),
    ];
    apply(&mut publisher, batch(rows, true));
    assert_eq!(publisher.outside().len(), 0, "of no service that is lent");
    assert!(apply(&mut publisher, batch(vec![service("a", 80)], false)));
    assert_eq!(publisher.told.rows().endpoints(), 1);
    assert_eq!(publisher.outside().len(), 2);
    assert!(!apply(
        &mut publisher,
        batch(vec![RowKey::of(&outside).gone()], false)
    ));
    assert_eq!(publisher.outside().len(), 1);
    apply(&mut publisher, batch(vec![private_service("a")], false));
    assert_eq!(publisher.outside().len(), 0);
}
