#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]
use super::*;
use crate::mesh::Epoch;
use crate::mesh::simulation::{endpoint, service};

fn position(revision: u64) -> Position {
    Position {
        epoch: Epoch(7),
        revision,
        digest: revision,
    }
}

fn gone(row: &RowChange) -> RowChange {
    RowKey::of(row).gone()
}

/// A table with services `a` and `b` at position 1, live.
fn settled() -> (Intake, Rows) {
    let (mut intake, mut rows) = (Intake::default(), Rows::default());
    assert_eq!(intake.open(), None);
    intake.start(false, &rows).unwrap();
    let list = vec![service("a", 80), service("b", 80)];
    assert_eq!(intake.rows(&mut rows, list.clone(), None), Ok(list.clone()));
    assert!(!intake.is_still());
    assert_eq!(intake.complete(&mut rows, position(1)), Ok(vec![]));
    (intake, rows)
}

#[test]
fn a_list_sweeps_what_it_does_not_name() {
    let (mut intake, mut rows) = settled();
    let told = vec![endpoint("b", 1, true), service("c", 80)];
    intake.rows(&mut rows, told, Some(position(2))).unwrap();
    assert_eq!(intake.open(), Some(position(2)));
    intake.start(false, &rows).unwrap();
    let list = vec![service("a", 80), service("b", 81)];
    assert_eq!(
        intake.rows(&mut rows, list, None),
        Ok(vec![service("b", 81)])
    );
    // Named, and gone again before the end.
    let list = vec![service("c", 80), gone(&service("c", 80))];
    intake.rows(&mut rows, list, None).unwrap();
    assert_eq!(
        intake.complete(&mut rows, position(3)),
        Ok(vec![gone(&endpoint("b", 1, true))])
    );
    assert_eq!(rows.all(), vec![service("a", 80), service("b", 81)]);
    assert_eq!(rows.position(), Some(position(3)));
}

#[test]
fn a_difference_changes_what_it_names_and_nothing_else() {
    let (mut intake, mut rows) = settled();
    assert_eq!(intake.open(), Some(position(1)));
    intake.start(true, &rows).unwrap();
    let difference = vec![service("b", 81), gone(&service("c", 80))];
    assert_eq!(
        intake.rows(&mut rows, difference, None),
        Ok(vec![service("b", 81)])
    );
    assert_eq!(rows.position(), None);
    assert_eq!(intake.complete(&mut rows, position(2)), Ok(vec![]));
    assert_eq!(rows.all(), vec![service("a", 80), service("b", 81)]);
    assert_eq!(rows.position(), Some(position(2)));
    // Nothing changed at all, and another replica's name for it.
    assert_eq!(intake.open(), Some(position(2)));
    intake.start(true, &rows).unwrap();
    assert_eq!(intake.complete(&mut rows, position(9)), Ok(vec![]));
    assert_eq!(rows.position(), Some(position(9)));
}

/// Each is how a first stream ends in the middle; then one takes up at the state before.
#[test]
fn a_stream_that_ended_half_way_leaves_nothing_behind() {
    type Half = fn(&mut Intake, &mut Rows);
    let halves: [Half; 3] = [
        // Of a change of many rows.
        |intake, rows| {
            let half = vec![gone(&service("a", 80)), service("c", 80), service("b", 81)];
            intake.rows(rows, half, None).unwrap();
        },
        // Of a difference.
        |intake, rows| {
            intake.open();
            intake.start(true, rows).unwrap();
            let half = vec![gone(&service("a", 80)), service("c", 80), service("b", 81)];
            intake.rows(rows, half, None).unwrap();
        },
        // Of a list.
        |intake, rows| {
            intake.open();
            intake.start(false, rows).unwrap();
            let half = vec![service("b", 82), service("c", 80)];
            intake.rows(rows, half, None).unwrap();
        },
    ];
    for half in halves {
        let (mut intake, mut rows) = settled();
        half(&mut intake, &mut rows);
        // The next server is a replica that has not heard of `c`, and has `b` at 81.
        assert_eq!(intake.open(), Some(position(1)));
        intake.start(true, &rows).unwrap();
        intake
            .rows(&mut rows, vec![service("b", 81)], None)
            .unwrap();
        let restored = intake.complete(&mut rows, position(2)).unwrap();
        assert!(restored.contains(&gone(&service("c", 80))), "{restored:?}");
        assert_eq!(rows.all(), vec![service("a", 80), service("b", 81)]);
    }
}

#[test]
fn what_no_server_may_say() {
    let row = || vec![service("a", 80)];
    let (mut intake, mut rows) = (Intake::default(), Rows::default());
    assert!(intake.rows(&mut rows, row(), None).is_err());
    assert!(intake.complete(&mut rows, position(1)).is_err());
    assert!(intake.start(true, &rows).is_err(), "nothing is held");
    intake.start(false, &rows).unwrap();
    assert!(intake.rows(&mut rows, row(), Some(position(1))).is_err());
    let (mut intake, mut rows) = settled();
    assert!(intake.complete(&mut rows, position(1)).is_err());
    intake.open();
    intake.start(true, &rows).unwrap();
    assert!(intake.rows(&mut rows, row(), Some(position(1))).is_err());
    // A state file's rows are held, if they are whole.
    assert_eq!(Intake::load(&rows).open(), Some(position(1)));
    rows.apply(&service("c", 80));
    assert_eq!(Intake::load(&rows).open(), None);
}
