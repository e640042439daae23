use std::collections::BTreeSet;
use std::time::Instant;

use super::guard::Withheld;
use super::salt::Salt;
use super::{Beginning, Guard, Ledger, Position, Quarantine, RowKey, Rows};
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

    /// Of rows that an earlier run held as their publisher has them.
    pub(super) fn load(self, rows: &Rows) -> Self {
        let base = rows.position().map(|position| Base {
            position,
            rows: rows.clone(),
        });
        Self { base, ..self }
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
        self.withheld.is_none()
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
        let forgetful = matches!(beginning, Beginning::First | Beginning::HistoryGone);
        self.stage = match (&self.base, beginning) {
            (Some(base), Beginning::Resumed) => Stage::Difference {
                owed: base.rows.differing(table.rows()),
            },
            (None, Beginning::Resumed) => return Err("resumes what is not held"),
            _ => Stage::List {
                named: BTreeSet::new(),
                held,
                doubtful: doubtful || forgetful,
            },
        };
        Ok(())
    }

    /// Applies a batch; the changes that made a difference are left.
    pub(super) fn rows(
        &mut self,
        table: &mut impl Table,
        mut changes: Vec<RowChange>,
        position: Option<Position>,
    ) -> Result<Vec<RowChange>, &'static str> {
        match self.stage {
            Stage::Silent => return Err("sends rows before the list began"),
            Stage::List { .. } | Stage::Difference { .. } if position.is_some() => {
                return Err("gives a position before the list's end");
            }
            _ => {}
        }
        changes.retain(|change| self.row(table, change));
        if let Some(position) = position {
            self.settle(table, position);
        }
        Ok(changes)
    }

    fn row(&mut self, table: &mut impl Table, change: &RowChange) -> bool {
        if let Some(withheld) = &mut self.withheld {
            withheld.named(&RowKey::of(change));
            self.withheld.take_if(|withheld| withheld.is_empty());
        }
        match (&mut self.stage, change) {
            (Stage::List { named, .. }, RowChange::Service(_) | RowChange::Endpoint(_)) => {
                named.insert(RowKey::of(change));
            }
            (Stage::List { named, .. }, RowChange::ServiceGone(_) | RowChange::EndpointGone(_)) => {
                named.remove(&RowKey::of(change));
            }
            (Stage::Difference { owed }, _) if !owed.is_empty() => {
                owed.remove(&RowKey::of(change));
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
            } => {
                let unnamed = table.rows().keys().filter(|key| !named.contains(key));
                let gone = self.sweep(unnamed.collect(), held, doubtful, guard, now);
                gone.into_iter().map(RowKey::gone).collect()
            }
        };
        // Endpoints before their services: a service without rows is better than rows without a service.
        changes.reverse();
        changes.retain(|change| table.apply(change));
        self.settle(table, position);
        self.stage = Stage::Live;
        Ok(changes)
    }

    /// Which of the rows that a list did not name go now; the rest is withheld.
    fn sweep(
        &mut self,
        mut unnamed: BTreeSet<RowKey>,
        held: usize,
        doubtful: bool,
        guard: Guard,
        now: Instant,
    ) -> BTreeSet<RowKey> {
        let earlier = self.withheld.take();
        if doubtful && guard.doubts(held, unnamed.len()) {
            let withheld = match earlier {
                // Told again, the same absence gets no second grace time.
                Some(earlier) if unnamed.is_subset(earlier.rows()) => {
                    if earlier.is_over(now) {
                        return unnamed;
                    }
                    earlier.only(unnamed)
                }
                _ => Withheld::new(unnamed, held, guard, now),
            };
            self.withheld = Some(withheld);
            return BTreeSet::new();
        }
        if !doubtful && let Some(earlier) = earlier {
            let (still, gone) = unnamed
                .into_iter()
                .partition(|key| earlier.rows().contains(key));
            unnamed = gone;
            self.withheld = Some(earlier.only(still)).filter(|still| !still.is_empty());
        }
        unnamed
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
        let settled = table.rows().position().is_some();
        let gone = withheld.rows().iter().rev().cloned().map(RowKey::gone);
        let mut changes: Vec<RowChange> = gone.collect();
        if let Some(base) = &mut self.base {
            for change in &changes {
                base.rows.apply(change);
            }
        }
        changes.retain(|change| table.apply(change));
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
