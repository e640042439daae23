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

/// Where a stream stands in telling one cluster's rows: mark and sweep.
#[derive(Clone, Debug, Default)]
pub(super) enum Listing {
    /// The stream has not begun with this cluster.
    #[default]
    Silent,
    /// In the first list. What is held and not named by its end is gone.
    List { named: BTreeSet<RowKey> },
    /// The position was equal: nothing is listed, the end mark follows.
    Resuming,
    /// The list is complete; changes follow.
    Live,
}

impl Listing {
    pub(super) fn start(&mut self, resumed: bool, rows: &Rows) -> Result<(), &'static str> {
        if resumed && rows.position().is_none() {
            return Err("resumes what is not held");
        }
        *self = if resumed {
            Self::Resuming
        } else {
            Self::List {
                named: BTreeSet::new(),
            }
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
        match self {
            Self::Silent => return Err("sends rows before the list began"),
            Self::Resuming => return Err("sends rows before the resumed list's end"),
            Self::List { named } => {
                if position.is_some() {
                    return Err("gives a position before the list's end");
                }
                for change in &changes {
                    let key = RowKey::of(change);
                    match change {
                        RowChange::Service(_) | RowChange::Endpoint(_) => named.insert(key),
                        RowChange::ServiceGone(_) | RowChange::EndpointGone(_) => {
                            named.remove(&key)
                        }
                    };
                }
            }
            Self::Live => {}
        }
        changes.retain(|change| table.apply(change));
        if let Some(position) = position {
            table.settle(position);
        }
        Ok(changes)
    }

    /// The list's end: the removals that follow from it.
    pub(super) fn complete(
        &mut self,
        table: &mut impl Table,
        position: Position,
    ) -> Result<Vec<RowChange>, &'static str> {
        let removed = match std::mem::take(self) {
            Self::Silent => return Err("ends a list that did not begin"),
            Self::Live => return Err("ends a list twice"),
            Self::Resuming if table.rows().position() == Some(position) => Vec::new(),
            Self::Resuming => return Err("resumes at a position that is not held"),
            Self::List { named } => {
                let unnamed = table.rows().keys().filter(|key| !named.contains(key));
                let mut removed: Vec<RowChange> = unnamed.map(RowKey::gone).collect();
                // Endpoints before their services: a service without rows is better than rows without a service.
                removed.reverse();
                for change in &removed {
                    table.apply(change);
                }
                removed
            }
        };
        table.settle(position);
        *self = Self::Live;
        Ok(removed)
    }
}
