use std::ops::Bound::{Excluded, Unbounded};

use imbl::{OrdMap, OrdSet};

use super::{Position, RowKey, Rows};
use crate::model::RowChange;

mod saved;

pub use saved::SavedHistory;

/// Bounds of what a ledger remembers of the past. A reader that needs more starts again with a list, which is then not
/// much longer than the difference would be: hence as many as there are rows, between these two.
const PAST_MIN: usize = 1024;
const PAST_MAX: usize = 16_384;

/// [`Rows`] that remember the order of their changes, so that many readers can follow at their own pace, and take up
/// where they were: a row that changed twice since a reader looked is told once. A clone is a snapshot.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// Tells a reader that its place in another ledger means nothing here.
    instance: u64,
    rows: Rows,
    past: Past,
}

/// The order of changes.
#[derive(Clone, PartialEq, Default, Debug)]
struct Past {
    /// Of the last change.
    sequence: u64,
    /// Each key once, at its last change. A key without a row was removed.
    log: OrdMap<u64, RowKey>,
    places: OrdMap<RowKey, u64>,
    gone: OrdSet<u64>,
    /// Removals at or before it are forgotten.
    forgotten: u64,
    /// Settled states, by place and digest. Several can share a place, under names of different publishers.
    states: OrdSet<(u64, u64)>,
    /// Digest → the newest place with it.
    named: OrdMap<u64, u64>,
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

/// How much of the past is remembered, and how much at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HistorySize {
    /// Rows that went.
    pub removals: usize,
    /// Settled states that a consumer can take up from.
    pub states: usize,
    /// The bound of either.
    pub capacity: usize,
}

impl Ledger {
    #[must_use]
    pub fn new(instance: u64, rows: Rows) -> Self {
        Self::load(instance, rows, SavedHistory::default())
    }

    /// `history` is of these rows.
    #[must_use]
    pub fn load(instance: u64, rows: Rows, history: SavedHistory) -> Self {
        let position = rows.position();
        let past = history.past(&rows);
        let mut ledger = Self {
            instance,
            rows,
            past,
        };
        if let Some(position) = position {
            ledger.settle(position);
        }
        ledger
    }

    #[must_use]
    pub fn history(&self) -> SavedHistory {
        SavedHistory::of(&self.past)
    }

    #[must_use]
    pub fn history_size(&self) -> HistorySize {
        HistorySize {
            removals: self.past.gone.len(),
            states: self.past.states.len(),
            capacity: self.capacity(),
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
        self.past.sequence
    }

    /// The place of a reader that holds this state; `None` if the ledger never was in it, or has forgotten what went
    /// since.
    #[must_use]
    pub fn place_of(&self, held: Position) -> Option<u64> {
        // By the digest, which depends on rows alone: another replica's states, and those that a crash made us count
        // under other revisions, are the same.
        let place = self.past.named.get(&held.digest).copied();
        place.filter(|place| self.remembers(*place))
    }

    /// Whether a reader at this place can be told what changed since.
    #[must_use]
    pub fn remembers(&self, place: u64) -> bool {
        place >= self.past.forgotten
    }

    pub fn settle(&mut self, position: Position) {
        self.rows.settle(position);
        self.past.name(position.digest);
        self.past.forget(self.capacity());
    }

    pub fn unsettle(&mut self) {
        self.rows.unsettle();
    }

    /// Applies one change; false if it says what was so before.
    pub fn apply(&mut self, change: &RowChange) -> bool {
        if !self.rows.apply(change) {
            return false;
        }
        self.past.note(change);
        self.past.forget(self.capacity());
        true
    }

    fn capacity(&self) -> usize {
        self.rows.len().clamp(PAST_MIN, PAST_MAX)
    }

    /// Up to `limit` changes after `place`.
    #[must_use]
    pub fn since(&self, place: u64, limit: usize) -> Changes {
        if !self.remembers(place) {
            return Changes::Forgotten;
        }
        let (mut reached, mut changes) = (place, Vec::new());
        for (sequence, key) in self
            .past
            .log
            .range((Excluded(place), Unbounded))
            .take(limit)
        {
            reached = *sequence;
            changes.push(self.rows.as_change(key));
        }
        let position = if reached == self.past.sequence {
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

impl Past {
    fn note(&mut self, change: &RowChange) {
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
    }

    /// The rows as they are now have this name.
    fn name(&mut self, digest: u64) {
        if let Some(before) = self.named.insert(digest, self.sequence) {
            self.states.remove(&(before, digest));
        }
        self.states.insert((self.sequence, digest));
    }

    fn forget(&mut self, capacity: usize) {
        while self.gone.len() > capacity {
            if let Some(oldest) = self.gone.remove_min()
                && let Some(key) = self.log.remove(&oldest)
            {
                self.places.remove(&key);
                self.forgotten = oldest;
            }
        }
        while let Some(&(place, digest)) = self.states.get_min()
            && (place < self.forgotten || self.states.len() > capacity)
        {
            self.states.remove_min();
            self.named.remove(&digest);
        }
    }
}

#[cfg(test)]
mod tests;
