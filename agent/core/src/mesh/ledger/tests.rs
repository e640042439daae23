#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test's panic is its report"
)]
use proptest::prelude::*;

use super::*;
use crate::mesh::Epoch;
use crate::mesh::simulation::{endpoint, service};

fn position(revision: u64, digest: u64) -> Position {
    Position {
        epoch: Epoch(7),
        revision,
        digest,
    }
}

fn told(ledger: &Ledger, place: u64) -> (Vec<RowChange>, u64, Option<Position>) {
    match ledger.since(place, usize::MAX) {
        Changes::Some {
            changes,
            place,
            position,
        } => (changes, place, position),
        Changes::Forgotten => panic!("forgotten"),
    }
}

#[test]
fn a_row_that_changed_twice_is_told_once_and_forgotten_removals_need_a_list() {
    let mut ledger = Ledger::new(1, Rows::default());
    assert!(ledger.apply(&service("a", 80)));
    assert!(!ledger.apply(&service("a", 80)), "equal rows are no change");
    assert!(ledger.apply(&service("a", 81)));
    assert_eq!(told(&ledger, 0), (vec![service("a", 81)], 2, None));
    for n in 0..=PAST_MIN {
        let row = endpoint("a", u32::try_from(n).unwrap(), true);
        assert!(ledger.apply(&row));
        assert!(ledger.apply(&RowKey::of(&row).gone()));
    }
    assert!(matches!(ledger.since(2, 10), Changes::Forgotten));
    assert_eq!(told(&ledger, ledger.head()).0, []);
    assert!(ledger.past.log.len() <= PAST_MIN + 1);
    assert_eq!(ledger.history_size().removals, PAST_MIN);
}

#[test]
fn a_reader_takes_up_at_any_state_that_is_remembered() {
    let mut ledger = Ledger::new(1, Rows::default());
    ledger.apply(&service("a", 80));
    ledger.settle(position(1, 11));
    ledger.apply(&endpoint("a", 1, true));
    ledger.settle(position(2, 22));
    ledger.apply(&RowKey::of(&endpoint("a", 1, true)).gone());
    ledger.apply(&service("b", 80));
    ledger.settle(position(3, 33));
    let changes = |held| told(&ledger, ledger.place_of(held).unwrap()).0;
    let gone = RowKey::of(&endpoint("a", 1, true)).gone();
    assert_eq!(
        changes(position(1, 11)),
        vec![gone.clone(), service("b", 80)]
    );
    assert_eq!(changes(position(2, 22)), vec![gone, service("b", 80)]);
    assert_eq!(changes(position(3, 33)), vec![]);
    // The revision is a name; what counts are the rows. Another replica's, or one counted twice:
    let elsewhere = Position {
        epoch: Epoch(8),
        ..position(99, 33)
    };
    assert_eq!(changes(elsewhere), vec![]);
    assert_eq!(ledger.place_of(position(3, 34)), None, "never its state");
}

#[test]
fn states_are_remembered_up_to_a_bound() {
    let mut ledger = Ledger::new(1, Rows::default());
    for n in 0..3 * PAST_MIN as u64 {
        ledger.apply(&service("a", if n % 2 == 0 { 80 } else { 81 }));
        ledger.settle(position(n, n));
    }
    let size = ledger.history_size();
    assert_eq!((size.states, size.removals), (PAST_MIN, 0));
    assert_eq!(size.capacity, PAST_MIN);
    let newest = 3 * PAST_MIN as u64 - 1;
    assert_eq!(ledger.place_of(position(0, 0)), None);
    assert!(ledger.place_of(position(newest, newest)).is_some());
    // The same state again stands at its newest place, once.
    ledger.apply(&service("a", 82));
    ledger.settle(position(9, newest));
    assert_eq!(
        ledger.place_of(position(newest, newest)),
        Some(ledger.head())
    );
    assert_eq!(ledger.past.states.len(), ledger.past.named.len());
}

/// As a state file would, through its text.
fn restarted(ledger: &Ledger) -> Ledger {
    let text = serde_json::to_string(&(ledger.rows(), ledger.history())).unwrap();
    let (rows, history) = serde_json::from_str(&text).unwrap();
    Ledger::load(2, rows, history)
}

#[test]
fn a_restart_remembers_a_bounded_part() {
    let mut ledger = Ledger::new(1, Rows::default());
    for n in 0..5000 {
        ledger.apply(&endpoint("a", n, true));
        ledger.settle(position(n.into(), (n + 1).into()));
    }
    let again = restarted(&ledger);
    assert_eq!(again.past.log.len(), 4096);
    assert_eq!(again.place_of(position(1, 1)), None);
    let held = position(4990, 4991);
    let place = again.place_of(held).unwrap();
    assert_eq!(told(&again, place), told(&ledger, place));
    assert_eq!(told(&again, place).0.len(), 9);
    assert_eq!(told(&again, place).2, ledger.rows().position());
    // A file that no ledger wrote.
    let lies = r#"{"sequence": 3, "states": [[9, 1]], "log": [], "forgotten": 0}"#;
    let lies: SavedHistory = serde_json::from_str(lies).unwrap();
    let lied_to = Ledger::load(3, ledger.rows().clone(), lies);
    assert_eq!(lied_to.head(), 0);
    // A file of a version that had no history.
    let old = Ledger::load(3, ledger.rows().clone(), SavedHistory::default());
    assert_eq!(old.place_of(held), None);
    assert_eq!(old.place_of(position(4999, 5000)), Some(0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whoever held a state that is remembered and is told what changed since, in pages of any size and over restarts
    /// of the teller, holds the newest rows.
    #[test]
    fn differences_add_up(
        steps in proptest::collection::vec(
            (proptest::collection::vec((0..3_u8, 0..8_u32, any::<bool>()), 1..4), any::<bool>()),
            1..40,
        ),
        page in 1..5_usize,
    ) {
        let mut ledger = Ledger::new(1, Rows::default());
        let mut states = vec![];
        for (revision, (changes, restart)) in steps.iter().enumerate() {
            for (service, number, there) in changes {
                let row = endpoint(&format!("s{service}"), *number, true);
                let change = if *there { row } else { RowKey::of(&row).gone() };
                ledger.apply(&change);
            }
            // No real digest: this says no two states equal, where a real one would for equal rows.
            let name = position(revision as u64, revision as u64 + 1);
            ledger.settle(name);
            states.push((name, ledger.rows().clone()));
            if *restart {
                ledger = restarted(&ledger);
            }
        }
        for (name, mut rows) in states {
            let mut place = ledger.place_of(name).expect("so little is not forgotten");
            loop {
                let Changes::Some { changes, place: reached, position } = ledger.since(place, page) else {
                    panic!("forgotten")
                };
                prop_assert!(changes.len() <= page);
                for change in &changes {
                    rows.apply(change);
                }
                place = reached;
                if position.is_some() {
                    break;
                }
            }
            prop_assert!(rows.same_rows(ledger.rows()));
        }
    }
}
