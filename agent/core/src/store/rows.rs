//! A persistent table of rows that carry their own keys: an entry is an owner and a pointer, sixteen bytes.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt::{self, Debug};
use std::ops::Bound;
use std::sync::Arc;

use imbl::OrdSet;

use super::Owner;
use crate::model::{Address, EndpointRow, ObjectName, ServiceRow};

/// Rows of a service lie together, an owner's within them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct At<'a> {
    pub(super) service: &'a ObjectName,
    pub(super) owner: Owner,
    /// None in a table with one row for each service and owner.
    pub(super) address: Option<Address>,
}

/// What knows the place of a row of its kind, the owner aside.
pub(super) trait Keyed {
    fn key(&self) -> (&ObjectName, Option<Address>);
}

impl Keyed for ServiceRow {
    fn key(&self) -> (&ObjectName, Option<Address>) {
        (&self.name, None)
    }
}

impl Keyed for EndpointRow {
    fn key(&self) -> (&ObjectName, Option<Address>) {
        (&self.service, Some(self.address))
    }
}

pub(super) struct Rows<R> {
    rows: OrdSet<Owned<R>>,
}

#[derive(Debug)]
struct Owned<R> {
    owner: Owner,
    row: Arc<R>,
}

/// Lets a place be looked up without a row that stands there.
trait Placed {
    fn at(&self) -> At<'_>;
}

impl Placed for At<'_> {
    fn at(&self) -> At<'_> {
        *self
    }
}

impl<R: Keyed> Placed for Owned<R> {
    fn at(&self) -> At<'_> {
        let (service, address) = self.row.key();
        At {
            service,
            owner: self.owner,
            address,
        }
    }
}

impl<'a, R: Keyed + 'a> Borrow<dyn Placed + 'a> for Owned<R> {
    fn borrow(&self) -> &(dyn Placed + 'a) {
        self
    }
}

impl PartialEq for dyn Placed + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.at() == other.at()
    }
}

impl Eq for dyn Placed + '_ {}

impl PartialOrd for dyn Placed + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for dyn Placed + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at().cmp(&other.at())
    }
}

impl<R: Keyed> PartialEq for Owned<R> {
    fn eq(&self, other: &Self) -> bool {
        self.at() == other.at()
    }
}

impl<R: Keyed> Eq for Owned<R> {}

impl<R: Keyed> PartialOrd for Owned<R> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<R: Keyed> Ord for Owned<R> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at().cmp(&other.at())
    }
}

impl<R> Clone for Owned<R> {
    fn clone(&self) -> Self {
        Self {
            owner: self.owner,
            row: self.row.clone(),
        }
    }
}

impl<R> Clone for Rows<R> {
    fn clone(&self) -> Self {
        Self {
            rows: self.rows.clone(),
        }
    }
}

impl<R: Debug + Keyed> Debug for Rows<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.rows).finish()
    }
}

impl<R> Default for Rows<R> {
    fn default() -> Self {
        Self {
            rows: OrdSet::default(),
        }
    }
}

impl<R: Keyed + PartialEq> Rows<R> {
    /// Puts a row in its place. False if an equal one is there already.
    pub(super) fn insert(&mut self, owner: Owner, row: &Arc<R>) -> bool {
        let entry = Owned {
            owner,
            row: row.clone(),
        };
        if self.get(entry.at()) == Some(row) {
            return false;
        }
        self.rows.insert(entry);
        true
    }

    pub(super) fn remove(&mut self, at: At<'_>) -> bool {
        self.rows.remove(&at as &dyn Placed).is_some()
    }

    pub(super) fn get(&self, at: At<'_>) -> Option<&Arc<R>> {
        self.rows.get(&at as &dyn Placed).map(|entry| &entry.row)
    }

    /// All rows in order, with their owners.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Owner, &Arc<R>)> {
        self.rows.iter().map(|entry| (entry.owner, &entry.row))
    }

    /// Rows of one service. O(log n) to the first.
    pub(super) fn of_service<'a>(
        &'a self,
        service: &'a ObjectName,
    ) -> impl Iterator<Item = (Owner, &'a Arc<R>)> + use<'a, R> {
        let first = At {
            service,
            owner: Owner::Local,
            address: None,
        };
        let from = (Bound::Included(&first as &dyn Placed), Bound::Unbounded);
        let rows = self.rows.range::<_, dyn Placed>(from);
        let rows = rows.take_while(move |entry| entry.row.key().0 == service);
        rows.map(|entry| (entry.owner, &entry.row))
    }

    /// Takes out all rows of an owner. O(all rows).
    pub(super) fn remove_owner(&mut self, owner: Owner) -> Vec<Arc<R>> {
        let mine = self.rows.iter().filter(|entry| entry.owner == owner);
        let mine: Vec<_> = mine.cloned().collect();
        for entry in &mine {
            self.rows.remove(entry);
        }
        mine.into_iter().map(|entry| entry.row).collect()
    }
}
