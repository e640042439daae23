use std::sync::Arc;

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use super::Position;
use crate::model::{Address, EndpointKey, EndpointRow, ObjectName, RowChange, ServiceRow};

/// Names a row within its cluster.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
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

/// One cluster's rows. A clone is a snapshot: it shares what does not change, and costs a few words.
///
/// A state file holds it as lists; the work of making them is done by whoever serialises the clone.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(from = "Lists", into = "Lists")]
pub struct Rows {
    services: OrdMap<ObjectName, Arc<ServiceRow>>,
    endpoints: OrdMap<EndpointKey, Arc<EndpointRow>>,
    position: Option<Position>,
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

    /// Applies one change; false if it says what was so before.
    pub fn apply(&mut self, change: &RowChange) -> bool {
        let changed = match change {
            RowChange::Service(row) => match self.services.get(&row.name) {
                Some(held) if held == row => false,
                _ => {
                    self.services.insert(row.name.clone(), row.clone());
                    true
                }
            },
            RowChange::ServiceGone(name) => self.services.remove(name).is_some(),
            RowChange::Endpoint(row) => {
                let key = row.key();
                match self.endpoints.get(&key) {
                    Some(held) if held == row => false,
                    _ => {
                        self.endpoints.insert(key, row.clone());
                        true
                    }
                }
            }
            RowChange::EndpointGone(key) => self.endpoints.remove(key).is_some(),
        };
        if changed {
            self.position = None;
        }
        changed
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
        Self {
            position: lists.position,
            services: lists
                .services
                .into_iter()
                .map(|row| (row.name.clone(), row))
                .collect(),
            endpoints: lists
                .endpoints
                .into_iter()
                .map(|row| (row.key(), row))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::Epoch;
    use crate::mesh::simulation::service;

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
