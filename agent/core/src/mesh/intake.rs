use std::collections::BTreeSet;

use super::{Ledger, Position, RowKey, Rows};
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
}

/// The newest state that was held whole. A stream that ends on the way to the next one leaves a mixture, and the next
/// stream may still take up from here.
#[derive(Debug)]
struct Base {
    position: Position,
    rows: Rows,
}

#[derive(Debug, Default)]
enum Stage {
    /// The stream has not begun with this cluster.
    #[default]
    Silent,
    /// In a list. What is held and not named by its end is gone.
    List { named: BTreeSet<RowKey> },
    /// In the difference from the base. `owed` are rows that an earlier stream changed and this one has not named: if it
    /// does not, they are as they were.
    Difference { owed: BTreeSet<RowKey> },
    /// The list or the difference is complete; changes follow.
    Live,
}

impl Intake {
    /// Of rows that an earlier run held.
    pub(super) fn load(rows: &Rows) -> Self {
        let base = rows.position().map(|position| Base {
            position,
            rows: rows.clone(),
        });
        Self {
            base,
            ..Self::default()
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

    pub(super) fn start(&mut self, resumed: bool, table: &impl Table) -> Result<(), &'static str> {
        self.stage = match (&self.base, resumed) {
            (Some(base), true) => Stage::Difference {
                owed: base.rows.differing(table.rows()),
            },
            (None, true) => return Err("resumes what is not held"),
            (_, false) => Stage::List {
                named: BTreeSet::new(),
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
        match (&mut self.stage, change) {
            (Stage::List { named }, RowChange::Service(_) | RowChange::Endpoint(_)) => {
                named.insert(RowKey::of(change));
            }
            (Stage::List { named }, RowChange::ServiceGone(_) | RowChange::EndpointGone(_)) => {
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
    ) -> Result<Vec<RowChange>, &'static str> {
        let mut changes: Vec<RowChange> = match std::mem::take(&mut self.stage) {
            Stage::Silent => return Err("ends a list that did not begin"),
            Stage::Live => return Err("ends a list twice"),
            Stage::Difference { owed } => {
                let base = self.base.as_ref().map(|base| &base.rows);
                let as_it_was = |key| base.map(|rows| rows.as_change(key));
                owed.iter().filter_map(as_it_was).collect()
            }
            Stage::List { named } => {
                let unnamed = table.rows().keys().filter(|key| !named.contains(key));
                unnamed.map(RowKey::gone).collect()
            }
        };
        // Endpoints before their services: a service without rows is better than rows without a service.
        changes.reverse();
        changes.retain(|change| table.apply(change));
        self.settle(table, position);
        self.stage = Stage::Live;
        Ok(changes)
    }

    fn settle(&mut self, table: &mut impl Table, position: Position) {
        table.settle(position);
        self.base = Some(Base {
            position,
            rows: table.rows().clone(),
        });
    }
}

#[cfg(test)]
mod tests;
