use imbl::{OrdMap, OrdSet};

use super::{Position, RowKey, Rows};
use crate::model::RowChange;

/// Removed rows that a ledger remembers. A reader that lags behind more removals than this starts again with a list.
const GONE_MAX: usize = 16_384;

/// [`Rows`] that remember the order of their changes, so that many readers can follow at their own pace: a row that
/// changed twice since a reader looked is told once. A clone is a snapshot.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// Tells a reader that its place in another ledger means nothing here.
    instance: u64,
    rows: Rows,
    /// Of the last change.
    sequence: u64,
    /// Each key once, at its last change. A key without a row was removed.
    log: OrdMap<u64, RowKey>,
    places: OrdMap<RowKey, u64>,
    gone: OrdSet<u64>,
    /// Removals at or before it are forgotten.
    forgotten: u64,
}

/// What a reader at a place in a ledger is told next.
#[derive(Debug)]
pub enum Changes {
    /// Changes up to `place`; `position` if they lead to a settled state, which is the newest.
    Some {
        changes: Vec<RowChange>,
        place: u64,
        position: Option<Position>,
    },
    /// The ledger no longer knows all that went since: the reader needs a list.
    Forgotten,
}

impl Ledger {
    #[must_use]
    pub fn new(instance: u64, rows: Rows) -> Self {
        Self {
            instance,
            rows,
            sequence: 0,
            log: OrdMap::new(),
            places: OrdMap::new(),
            gone: OrdSet::new(),
            forgotten: 0,
        }
    }

    #[must_use]
    pub fn instance(&self) -> u64 {
        self.instance
    }

    #[must_use]
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    /// The place of a reader that has seen everything.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.sequence
    }

    pub fn settle(&mut self, position: Position) {
        self.rows.settle(position);
    }

    /// Applies one change; false if it says what was so before.
    pub fn apply(&mut self, change: &RowChange) -> bool {
        if !self.rows.apply(change) {
            return false;
        }
        let key = RowKey::of(change);
        self.sequence += 1;
        if let Some(before) = self.places.insert(key.clone(), self.sequence) {
            self.log.remove(&before);
            self.gone.remove(&before);
        }
        self.log.insert(self.sequence, key);
        if matches!(
            change,
            RowChange::ServiceGone(_) | RowChange::EndpointGone(_)
        ) {
            self.gone.insert(self.sequence);
        }
        while self.gone.len() > GONE_MAX {
            let oldest = self.gone.remove_min();
            if let Some(oldest) = oldest
                && let Some(key) = self.log.remove(&oldest)
            {
                self.places.remove(&key);
                self.forgotten = oldest;
            }
        }
        true
    }

    /// Up to `limit` changes after `place`.
    #[must_use]
    pub fn since(&self, place: u64, limit: usize) -> Changes {
        if place < self.forgotten {
            return Changes::Forgotten;
        }
        let (mut reached, mut changes) = (place, Vec::new());
        for (sequence, key) in self.log.range(place + 1..).take(limit) {
            reached = *sequence;
            changes.push(self.rows.as_change(key));
        }
        let position = if reached == self.sequence {
            self.rows.position()
        } else {
            None
        };
        Changes::Some {
            changes,
            place: reached,
            position,
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::panic, reason = "a test's panic is its report")]
    use super::*;
    use crate::mesh::simulation::{endpoint, service};

    #[test]
    fn a_row_that_changed_twice_is_told_once_and_forgotten_removals_need_a_list() {
        let mut ledger = Ledger::new(1, Rows::default());
        assert!(ledger.apply(&service("a", 80)));
        assert!(!ledger.apply(&service("a", 80)), "equal rows are no change");
        assert!(ledger.apply(&service("a", 81)));
        let Changes::Some {
            changes,
            place,
            position,
        } = ledger.since(0, 10)
        else {
            panic!("forgotten")
        };
        assert_eq!(
            (changes, place, position),
            (vec![service("a", 81)], 2, None)
        );
        for n in 0..=GONE_MAX {
            let row = endpoint("a", u32::try_from(n).unwrap_or(u32::MAX), true);
            assert!(ledger.apply(&row));
            assert!(ledger.apply(&RowKey::of(&row).gone()));
        }
        assert!(matches!(ledger.since(2, 10), Changes::Forgotten));
        assert!(matches!(
            ledger.since(ledger.head(), 10),
            Changes::Some { .. }
        ));
        assert!(ledger.log.len() <= GONE_MAX + 1);
    }
}
