use std::collections::BTreeSet;
use std::time::Instant;

use super::guard::Withheld;
use super::refused::Refused;
use super::salt::Salt;
use super::terms::{Claimed, Rules};
use super::{
    BadRow, Beginning, Guard, Ledger, Position, Quarantine, Refusal, RowKey, Rows, row_bytes,
};
use crate::model::RowChange;

/// Rows that a stream's messages are applied to.
pub(super) trait Table {
    fn apply(&mut self, change: &RowChange) -> bool;
    fn settle(&mut self, position: Position);
    fn rows(&self) -> &Rows;
}

impl Table for Rows {
    fn apply(&mut self, change: &RowChange) -> bool {
        Rows::apply(self, change)
    }
    fn settle(&mut self, position: Position) {
        Rows::settle(self, position);
    }
    fn rows(&self) -> &Rows {
        self
    }
}

impl Table for Ledger {
    fn apply(&mut self, change: &RowChange) -> bool {
        Ledger::apply(self, change)
    }
    fn settle(&mut self, position: Position) {
        Ledger::settle(self, position);
    }
    fn rows(&self) -> &Rows {
        Ledger::rows(self)
    }
}

/// Leads what streams tell of one cluster into a table: lists by mark and sweep, differences by what they name.
#[derive(Debug, Default)]
pub(super) struct Intake {
    stage: Stage,
    base: Option<Base>,
    /// Rows that the base's publisher does not have, and that are held on.
    withheld: Option<Withheld>,
    /// Rows that the base's publisher has, and that are not held.
    refused: Refused,
    /// An earlier run left such rows out, or kept others; which, only a whole list can tell.
    inexact: bool,
    /// For tables that are told on: names for states that differ from their publisher's.
    salt: Option<Salt>,
}

/// The newest state that was told whole. A stream that ends on the way to the next one leaves a mixture, and the next
/// stream may still take up from here.
#[derive(Debug)]
struct Base {
    position: Position,
    /// As held then: with what was withheld.
    rows: Rows,
}

#[derive(Debug, Default)]
enum Stage {
    /// The stream has not begun with this cluster.
    #[default]
    Silent,
    /// In a list. What is held and not named by its end is gone.
    List {
        named: BTreeSet<RowKey>,
        /// What they cost.
        bytes: u64,
        /// Rows held when it began.
        held: usize,
        /// The server may have lost its memory: what its list leaves out is not believed without question.
        doubtful: bool,
    },
    /// In the difference from the base. `owed` are rows that an earlier stream changed and this one has not named: if it
    /// does not, they are as they were.
    Difference { owed: BTreeSet<RowKey> },
    /// The list or the difference is complete; changes follow.
    Live,
}

impl Intake {
    pub(super) fn salted(salt: Salt) -> Self {
        Self {
            salt: Some(salt),
            ..Self::default()
        }
    }

    /// Of rows that an earlier run held: `exact` if it held them as their publisher has them.
    pub(super) fn load(self, rows: &Rows, exact: bool) -> Self {
        let base = rows.position().map(|position| Base {
            position,
            rows: rows.clone(),
        });
        Self {
            base: base.filter(|_| exact),
            inexact: !exact,
            ..self
        }
    }

    /// A new stream: the state that it may take up from.
    pub(super) fn open(&mut self) -> Option<Position> {
        self.stage = Stage::Silent;
        self.base.as_ref().map(|base| base.position)
    }

    /// There is a state that a stream may take up from.
    pub(super) fn has_base(&self) -> bool {
        self.base.is_some()
    }

    /// No list or difference is under way.
    pub(super) fn is_still(&self) -> bool {
        matches!(self.stage, Stage::Live | Stage::Silent)
    }

    /// What is held of the base is what its publisher has.
    pub(super) fn is_exact(&self) -> bool {
        self.withheld.is_none() && self.refused.is_empty() && !self.inexact
    }

    pub(super) fn refused(&self) -> &Refused {
        &self.refused
    }

    pub(super) fn refused_mut(&mut self) -> &mut Refused {
        &mut self.refused
    }

    pub(super) fn quarantine(&self) -> Option<Quarantine> {
        self.withheld.as_ref().map(Withheld::quarantine)
    }

    pub(super) fn start(
        &mut self,
        beginning: Beginning,
        table: &impl Table,
    ) -> Result<(), &'static str> {
        let (held, doubtful) = match self.stage {
            // The list that a slow reader made the server begin again.
            Stage::List { held, doubtful, .. } => (held, doubtful),
            _ => (table.rows().len(), false),
        };
        if beginning != Beginning::Resumed {
            if !self.refused.is_empty() {
                // Only the list's end tells which of them are still said: no stream takes up from before it.
                (self.base, self.inexact) = (None, true);
            }
            self.refused.begin_list();
        }
        let forgetful = matches!(beginning, Beginning::First | Beginning::HistoryGone);
        self.stage = match (&self.base, beginning) {
            (Some(base), Beginning::Resumed) => Stage::Difference {
                owed: base.rows.differing(table.rows()),
            },
            (None, Beginning::Resumed) => return Err("resumes what is not held"),
            _ => Stage::List {
                named: BTreeSet::new(),
                bytes: 0,
                held,
                doubtful: doubtful || forgetful,
            },
        };
        Ok(())
    }

    /// Applies a batch, row by row as `rules` allow; the changes that made a difference are left. A row that is refused
    /// is not held, not even as it was before: nobody says that any more.
    pub(super) fn rows(
        &mut self,
        table: &mut impl Table,
        mut changes: Vec<RowChange>,
        bad: Vec<BadRow>,
        position: Option<Position>,
        rules: &Rules<'_>,
    ) -> Result<Vec<RowChange>, &'static str> {
        match self.stage {
            Stage::Silent => return Err("sends rows before the list began"),
            Stage::List { .. } | Stage::Difference { .. } if position.is_some() => {
                return Err("gives a position before the list's end");
            }
            _ => {}
        }
        changes.retain_mut(|change| {
            self.judge(table.rows(), change, rules);
            self.row(table, change)
        });
        for BadRow { key, field } in bad {
            if let Some(key) = key {
                self.refused.note(Refusal::Malformed, &key, Some(field));
                let gone = key.gone();
                if self.row(table, &gone) {
                    changes.push(gone);
                }
            } else {
                let words = format!("a row without a name ({field})");
                self.refused.note_unnamed(Refusal::Malformed, 1, words);
            }
        }
        if let Some(position) = position {
            self.settle(table, position);
        }
        Ok(changes)
    }

    /// Makes a removal of what is refused.
    fn judge(&mut self, held: &Rows, change: &mut RowChange, rules: &Rules<'_>) {
        let key = RowKey::of(change);
        if matches!(
            change,
            RowChange::ServiceGone(_) | RowChange::EndpointGone(_)
        ) {
            self.refused.clear(&key);
            return;
        }
        match rules.judge(change, self.claimed_beside(&key, held)) {
            Ok(()) => self.refused.clear(&key),
            Err(reason) => {
                self.refused.note(reason, &key, None);
                *change = key.gone();
            }
        }
    }

    /// What the publisher has here, this row aside. What a list has not named yet may go: it does not count.
    fn claimed_beside(&self, key: &RowKey, held: &Rows) -> Claimed {
        let (rows, bytes, counts) = match (&self.stage, &self.withheld) {
            (Stage::List { named, bytes, .. }, _) => (named.len(), *bytes, named.contains(key)),
            (_, Some(withheld)) => (
                held.len() - withheld.len(),
                held.bytes() - withheld.bytes(),
                held.contains(key) && !withheld.contains(key),
            ),
            (_, None) => (held.len(), held.bytes(), held.contains(key)),
        };
        let beside = if counts {
            (rows - 1, bytes - row_bytes(&held.as_change(key)))
        } else {
            (rows, bytes)
        };
        Claimed {
            rows: beside.0 as u64,
            bytes: beside.1,
        }
    }

    fn row(&mut self, table: &mut impl Table, change: &RowChange) -> bool {
        let key = RowKey::of(change);
        if let Some(withheld) = &mut self.withheld {
            withheld.named(&key);
            self.withheld.take_if(|withheld| withheld.is_empty());
        }
        match &mut self.stage {
            Stage::List { named, bytes, .. } => {
                let before = if named.remove(&key) {
                    row_bytes(&table.rows().as_change(&key))
                } else {
                    0
                };
                *bytes = *bytes - before + row_bytes(change);
                if matches!(change, RowChange::Service(_) | RowChange::Endpoint(_)) {
                    named.insert(key);
                }
            }
            Stage::Difference { owed } if !owed.is_empty() => {
                owed.remove(&key);
            }
            _ => {}
        }
        table.apply(change)
    }

    /// The end of the list or difference: the changes that follow from it.
    pub(super) fn complete(
        &mut self,
        table: &mut impl Table,
        position: Position,
        guard: Guard,
        now: Instant,
    ) -> Result<Vec<RowChange>, &'static str> {
        let guard = Some(guard);
        let mut changes: Vec<RowChange> = match std::mem::take(&mut self.stage) {
            Stage::Silent => return Err("ends a list that did not begin"),
            Stage::Live => return Err("ends a list twice"),
            Stage::Difference { owed } => {
                let base = self.base.as_ref().map(|base| &base.rows);
                let as_it_was = |key| base.map(|rows| rows.as_change(key));
                owed.iter().filter_map(as_it_was).collect()
            }
            Stage::List {
                named,
                held,
                doubtful,
                ..
            } => {
                let rows = table.rows();
                let unnamed = rows.keys().filter(|key| !named.contains(key)).collect();
                let guard = guard.filter(|_| doubtful);
                let gone = self.sweep(unnamed, rows, held, guard, now);
                gone.into_iter().map(RowKey::gone).collect()
            }
        };
        // Endpoints before their services: a service without rows is better than rows without a service.
        changes.reverse();
        changes.retain(|change| table.apply(change));
        self.inexact = false;
        self.settle(table, position);
        self.stage = Stage::Live;
        Ok(changes)
    }

    /// Which of the rows that a list did not name go now; the rest is withheld. No guard: the list is believed.
    fn sweep(
        &mut self,
        unnamed: BTreeSet<RowKey>,
        rows: &Rows,
        held: usize,
        guard: Option<Guard>,
        now: Instant,
    ) -> BTreeSet<RowKey> {
        let earlier = self.withheld.take();
        match (guard, earlier) {
            (Some(guard), earlier) if guard.doubts(held, unnamed.len()) => {
                let again = |earlier: &Withheld| unnamed.iter().all(|key| earlier.contains(key));
                let withheld = match earlier {
                    // Told again, the same absence gets no second grace time.
                    Some(earlier) if again(&earlier) && earlier.is_over(now) => return unnamed,
                    Some(earlier) if again(&earlier) => earlier.only(&unnamed),
                    _ => Withheld::new(unnamed, rows, held, guard, now),
                };
                self.withheld = Some(withheld);
                BTreeSet::new()
            }
            (None, Some(earlier)) => {
                let earlier = earlier.only(&unnamed);
                let gone = unnamed.into_iter().filter(|key| !earlier.contains(key));
                let gone = gone.collect();
                self.withheld = Some(earlier).filter(|earlier| !earlier.is_empty());
                gone
            }
            _ => unnamed,
        }
    }

    /// When something is withheld no longer.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        Some(self.withheld.as_ref()?.quarantine().until)
    }

    /// Lets go of what was withheld for long enough.
    pub(super) fn release(&mut self, table: &mut impl Table, now: Instant) -> Vec<RowChange> {
        let Some(withheld) = self.withheld.take_if(|withheld| withheld.is_over(now)) else {
            return Vec::new();
        };
        self.drop_rows(table, withheld.keys().rev().cloned().collect())
    }

    /// Lets go of rows that new rules do not allow.
    pub(super) fn enforce(&mut self, table: &mut impl Table, rules: &Rules<'_>) -> Vec<RowChange> {
        let mut refused = Vec::new();
        for row in table.rows().endpoints_all() {
            if let Err(reason) = rules.judge_address(row.address) {
                let key = RowKey::Endpoint(row.key());
                self.refused.note(reason, &key, None);
                refused.push(key);
            }
        }
        self.drop_rows(table, refused)
    }

    /// Rows go for reasons of our own: they are not held, and no stream brings them back by saying nothing of them.
    fn drop_rows(&mut self, table: &mut impl Table, keys: Vec<RowKey>) -> Vec<RowChange> {
        let settled = table.rows().position().is_some();
        let mut changes: Vec<RowChange> = keys.into_iter().map(RowKey::gone).collect();
        if let Some(base) = &mut self.base {
            for change in &changes {
                base.rows.apply(change);
            }
        }
        changes.retain(|change| self.row(table, change));
        if settled && let Some(position) = self.base.as_ref().map(|base| base.position) {
            self.settle(table, position);
        }
        changes
    }

    fn settle(&mut self, table: &mut impl Table, position: Position) {
        let exact = self.is_exact();
        let name = match &mut self.salt {
            Some(salt) if !exact => salt.name(position),
            _ => position,
        };
        table.settle(name);
        self.base = Some(Base {
            position,
            rows: table.rows().clone(),
        });
    }
}

#[cfg(test)]
mod tests;
