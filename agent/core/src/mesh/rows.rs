use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use serde::{Deserialize, Serialize};

use super::Position;
use crate::model::{Address, EndpointKey, EndpointRow, ObjectName, RowChange, ServiceRow};

/// Names a row within its cluster.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum RowKey {
    Service(ObjectName),
    Endpoint(EndpointKey),
}

impl RowKey {
    #[must_use]
    pub fn of(change: &RowChange) -> Self {
        match change {
            RowChange::Service(row) => Self::Service(row.name.clone()),
            RowChange::ServiceGone(name) => Self::Service(name.clone()),
            RowChange::Endpoint(row) => Self::Endpoint(row.key()),
            RowChange::EndpointGone(key) => Self::Endpoint(key.clone()),
        }
    }

    #[must_use]
    pub fn gone(self) -> RowChange {
        match self {
            Self::Service(name) => RowChange::ServiceGone(name),
            Self::Endpoint(key) => RowChange::EndpointGone(key),
        }
    }
}

/// `Service production/backend`, `endpoint 10.0.0.1 of production/backend`.
impl fmt::Display for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "Service {name}"),
            Self::Endpoint(key) => write!(f, "endpoint {} of {}", key.address, key.service),
        }
    }
}

/// What a row costs to hold, roughly and the same everywhere: its texts, and a sum for what every row has.
#[must_use]
pub fn row_bytes(change: &RowChange) -> u64 {
    const ROW: usize = 128;
    const PORT: usize = 24;
    let name = |name: &ObjectName| name.namespace.len() + name.name.len();
    let bytes = match change {
        RowChange::Service(row) => {
            let ports = row.ports.iter().map(|port| PORT + port.name.len());
            ROW + name(&row.name) + ports.sum::<usize>()
        }
        RowChange::Endpoint(row) => {
            let ports = row.ports.iter().map(|port| PORT + port.name.len());
            let texts = row.reason.len() + row.node.len() + row.zone.len();
            ROW + name(&row.service) + texts + ports.sum::<usize>()
        }
        RowChange::ServiceGone(_) | RowChange::EndpointGone(_) => 0,
    };
    bytes as u64
}

/// One cluster's rows. A clone is a snapshot: it shares what does not change, and costs a few words.
///
/// A state file holds it as lists; the work of making them is done by whoever serialises the clone.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(from = "Lists", into = "Lists")]
pub struct Rows {
    services: OrdMap<ObjectName, Arc<ServiceRow>>,
    endpoints: OrdMap<EndpointKey, Arc<EndpointRow>>,
    position: Option<Position>,
    /// By [`row_bytes`].
    bytes: u64,
}

impl Rows {
    /// The publisher's name for exactly these rows; `None` in the middle of changes, and before a first list.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.position
    }

    pub fn settle(&mut self, position: Position) {
        self.position = Some(position);
    }

    /// These rows are no state that their publisher has a name for.
    pub fn unsettle(&mut self) {
        self.position = None;
    }

    /// Applies one change; false if it says what was so before.
    pub fn apply(&mut self, change: &RowChange) -> bool {
        let before = match change {
            RowChange::Service(row) => {
                let before = self.services.get(&row.name);
                if before == Some(row) {
                    return false;
                }
                let before = self.services.insert(row.name.clone(), row.clone());
                before.map(RowChange::Service)
            }
            RowChange::ServiceGone(name) => match self.services.remove(name) {
                None => return false,
                before => before.map(RowChange::Service),
            },
            RowChange::Endpoint(row) => {
                let key = row.key();
                if self.endpoints.get(&key) == Some(row) {
                    return false;
                }
                let before = self.endpoints.insert(key, row.clone());
                before.map(RowChange::Endpoint)
            }
            RowChange::EndpointGone(key) => match self.endpoints.remove(key) {
                None => return false,
                before => before.map(RowChange::Endpoint),
            },
        };
        let freed = before.as_ref().map_or(0, row_bytes);
        self.bytes = self.bytes - freed + row_bytes(change);
        self.position = None;
        true
    }

    /// Services and endpoints.
    #[must_use]
    pub fn len(&self) -> usize {
        self.services.len() + self.endpoints.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// By [`row_bytes`].
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    #[must_use]
    pub fn contains(&self, key: &RowKey) -> bool {
        match key {
            RowKey::Service(name) => self.services.contains_key(name),
            RowKey::Endpoint(key) => self.endpoints.contains_key(key),
        }
    }

    /// Keys whose rows differ. It costs what differs, if one began as a clone of the other.
    #[must_use]
    pub fn differing(&self, other: &Self) -> BTreeSet<RowKey> {
        let services = self.services.diff(&other.services);
        let endpoints = self.endpoints.diff(&other.endpoints);
        let services = services.map(|item| RowKey::Service(diff_key(item).clone()));
        let endpoints = endpoints.map(|item| RowKey::Endpoint(diff_key(item).clone()));
        services.chain(endpoints).collect()
    }

    #[must_use]
    pub fn service(&self, name: &ObjectName) -> Option<&Arc<ServiceRow>> {
        self.services.get(name)
    }

    #[must_use]
    pub fn services(&self) -> usize {
        self.services.len()
    }

    #[must_use]
    pub fn endpoints(&self) -> usize {
        self.endpoints.len()
    }

    pub fn endpoints_of<'a>(
        &'a self,
        service: &'a ObjectName,
    ) -> impl Iterator<Item = &'a Arc<EndpointRow>> {
        let first = EndpointKey {
            service: service.clone(),
            address: Address::from_octets([0; 16]),
        };
        self.endpoints
            .range(first..)
            .take_while(move |(key, _)| key.service == *service)
            .map(|(_, row)| row)
    }

    pub fn endpoints_all(&self) -> impl Iterator<Item = &Arc<EndpointRow>> {
        self.endpoints.values()
    }

    /// The row as a change that brings it, or takes it away if there is none.
    #[must_use]
    pub fn as_change(&self, key: &RowKey) -> RowChange {
        let row = match key {
            RowKey::Service(name) => self.services.get(name).cloned().map(RowChange::Service),
            RowKey::Endpoint(name) => self.endpoints.get(name).cloned().map(RowChange::Endpoint),
        };
        row.unwrap_or_else(|| key.clone().gone())
    }

    pub fn keys(&self) -> impl Iterator<Item = RowKey> {
        let services = self.services.keys().cloned().map(RowKey::Service);
        services.chain(self.endpoints.keys().cloned().map(RowKey::Endpoint))
    }

    /// Up to `limit` rows after `last` in the order of [`RowKey`]: services first.
    #[must_use]
    pub fn page(&self, last: Option<&RowKey>, limit: usize) -> Vec<RowChange> {
        use std::ops::Bound::{Excluded, Unbounded};
        let services = match last {
            None => Some(
                self.services
                    .range::<(std::ops::Bound<ObjectName>, _), _>((Unbounded, Unbounded)),
            ),
            Some(RowKey::Service(name)) => {
                Some(self.services.range((Excluded(name.clone()), Unbounded)))
            }
            Some(RowKey::Endpoint(_)) => None,
        };
        let endpoints = match last {
            Some(RowKey::Endpoint(key)) => self.endpoints.range((Excluded(key.clone()), Unbounded)),
            _ => self
                .endpoints
                .range::<(std::ops::Bound<EndpointKey>, _), _>((Unbounded, Unbounded)),
        };
        let services = services
            .into_iter()
            .flatten()
            .map(|(_, row)| RowChange::Service(row.clone()));
        services
            .chain(endpoints.map(|(_, row)| RowChange::Endpoint(row.clone())))
            .take(limit)
            .collect()
    }

    /// Every row, as changes that bring it.
    #[must_use]
    pub fn all(&self) -> Vec<RowChange> {
        self.page(None, usize::MAX)
    }

    #[must_use]
    pub fn same_rows(&self, other: &Self) -> bool {
        self.services == other.services && self.endpoints == other.endpoints
    }
}

fn diff_key<'a, K, V>(item: DiffItem<'a, 'a, K, V>) -> &'a K {
    match item {
        DiffItem::Add(key, _) | DiffItem::Remove(key, _) => key,
        DiffItem::Update { new: (key, _), .. } => key,
    }
}

#[derive(Serialize, Deserialize)]
struct Lists {
    position: Option<Position>,
    services: Vec<Arc<ServiceRow>>,
    endpoints: Vec<Arc<EndpointRow>>,
}

impl From<Rows> for Lists {
    fn from(rows: Rows) -> Self {
        Self {
            position: rows.position,
            services: rows.services.values().cloned().collect(),
            endpoints: rows.endpoints.values().cloned().collect(),
        }
    }
}

impl From<Lists> for Rows {
    fn from(lists: Lists) -> Self {
        let mut rows = Self::default();
        for row in lists.services {
            rows.apply(&RowChange::Service(row));
        }
        for row in lists.endpoints {
            rows.apply(&RowChange::Endpoint(row));
        }
        rows.position = lists.position;
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::Epoch;
    use crate::mesh::simulation::{endpoint, service};

    #[test]
    fn bytes_follow_the_rows_and_differences_are_named() {
        let mut rows = Rows::default();
        assert!(rows.apply(&service("a", 80)) && rows.apply(&endpoint("a", 1, true)));
        let before = rows.clone();
        assert_eq!((rows.len(), rows.bytes()), (2, 2 * 128 + 2 * 24 + 2 * 2));
        assert!(rows.apply(&endpoint("a", 1, false)));
        assert_eq!(rows.bytes(), before.bytes() + "Pod condition".len() as u64);
        let key = RowKey::of(&service("a", 80));
        assert!(rows.apply(&key.gone()) && rows.apply(&service("b", 80)));
        let named = rows.differing(&before);
        let wanted = [service("a", 80), service("b", 80), endpoint("a", 1, true)];
        assert_eq!(named, wanted.iter().map(RowKey::of).collect());
        assert_eq!(before.differing(&before), BTreeSet::new());
        for key in rows.keys().collect::<Vec<_>>() {
            assert!(rows.contains(&key) && rows.apply(&key.clone().gone()));
            assert!(!rows.contains(&key) && !rows.apply(&key.gone()));
        }
        assert_eq!((rows.len(), rows.bytes()), (0, 0));
    }

    #[test]
    fn a_change_unsettles_and_an_equal_row_does_not() {
        let mut rows = Rows::default();
        assert!(rows.apply(&service("a", 80)));
        let position = Position {
            epoch: Epoch(1),
            revision: 1,
            digest: 1,
        };
        rows.settle(position);
        assert!(!rows.apply(&service("a", 80)));
        assert_eq!(rows.position(), Some(position));
        assert!(rows.apply(&service("a", 81)));
        assert_eq!(rows.position(), None);
    }
}
