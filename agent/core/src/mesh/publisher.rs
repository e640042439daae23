use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Epoch, Ledger, Position, RowKey, Rows, SavedHistory};
use crate::model::{Affinity, Batch, EndpointKey, ObjectName, RowChange, ServiceRow, ServiceRules};

/// Turns a cluster's own rows into what it tells its peers: services that are global and shared, and their endpoints.
#[derive(Debug)]
pub struct Publisher {
    epoch: Epoch,
    revision: u64,
    digest: u64,
    own: Rows,
    /// What is told. After a restart it begins as it was, and stays until the source's first list is complete.
    told: Ledger,
    /// The source's first list is complete.
    complete: bool,
}

impl Publisher {
    /// Nothing to tell, and no state told until a first list is complete.
    #[must_use]
    pub fn new(epoch: Epoch) -> Self {
        Self::load(SavedPublisher {
            epoch,
            revision: 0,
            told: Rows::default(),
            history: SavedHistory::default(),
        })
    }

    #[must_use]
    pub fn load(saved: SavedPublisher) -> Self {
        let mut rows = saved.told;
        let digest = rows
            .all()
            .iter()
            .fold(0_u64, |sum, row| sum.wrapping_add(row_digest(row)));
        // Equal rows of another version's encoding have another digest: peers then list once more, and that is all.
        let known = rows.position().is_some();
        if known {
            rows.settle(Position {
                epoch: saved.epoch,
                revision: saved.revision,
                digest,
            });
        }
        Self {
            epoch: saved.epoch,
            revision: saved.revision,
            digest,
            own: Rows::default(),
            told: Ledger::load(0, rows, saved.history),
            complete: false,
        }
    }

    #[must_use]
    pub fn save(&self) -> SavedPublisher {
        SavedPublisher {
            epoch: self.epoch,
            revision: self.revision,
            told: self.told.rows().clone(),
            history: self.told.history(),
        }
    }

    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.told
    }

    /// The source's first list is complete.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Applies what the source says; true if peers are told something new.
    pub fn apply(&mut self, batch: &Batch) -> bool {
        let settled = self.told.rows().position().is_some();
        let mut changed = false;
        for change in &batch.changes {
            if !self.own.apply(change) {
                continue;
            }
            match change {
                RowChange::Service(row) => changed |= self.tell_service(&row.name),
                RowChange::ServiceGone(name) => changed |= self.tell_service(name),
                RowChange::Endpoint(row) => changed |= self.tell_endpoint(&row.key()),
                RowChange::EndpointGone(key) => changed |= self.tell_endpoint(key),
            }
        }
        if batch.complete && !self.complete {
            self.complete = true;
            let unfounded: Vec<RowKey> = self
                .told
                .rows()
                .keys()
                .filter(|key| self.wanted(key).is_none())
                .collect();
            for key in unfounded.into_iter().rev() {
                changed |= self.tell(key.gone());
            }
        }
        if changed {
            self.revision += 1;
        }
        if settled || self.complete {
            self.told.settle(Position {
                epoch: self.epoch,
                revision: self.revision,
                digest: self.digest,
            });
        }
        changed || settled != self.told.rows().position().is_some()
    }

    fn tell_service(&mut self, name: &ObjectName) -> bool {
        let mut changed = self.tell_row(RowKey::Service(name.clone()));
        let mut keys: Vec<EndpointKey> = self.own.endpoints_of(name).map(|row| row.key()).collect();
        // Before the first list is complete, an endpoint not seen yet may still come; one of a service that is not lent
        // any more need not be waited for.
        if self.complete || self.lent(name).is_none() {
            keys.extend(self.told.rows().endpoints_of(name).map(|row| row.key()));
        }
        for key in keys {
            changed |= self.tell_row(RowKey::Endpoint(key));
        }
        changed
    }

    fn tell_endpoint(&mut self, key: &EndpointKey) -> bool {
        if !self.complete && self.own.service(&key.service).is_none() {
            return false; // Told with its service.
        }
        self.tell_row(RowKey::Endpoint(key.clone()))
    }

    fn tell_row(&mut self, key: RowKey) -> bool {
        let change = self.wanted(&key).unwrap_or_else(|| key.gone());
        self.tell(change)
    }

    fn tell(&mut self, change: RowChange) -> bool {
        let before = self.told.rows().as_change(&RowKey::of(&change));
        if !self.told.apply(&change) {
            return false;
        }
        self.digest = self
            .digest
            .wrapping_sub(row_digest(&before))
            .wrapping_add(row_digest(&change));
        true
    }

    fn lent(&self, name: &ObjectName) -> Option<&Arc<ServiceRow>> {
        self.own
            .service(name)
            .filter(|row| row.global && row.shared)
    }

    /// What peers should be told of a row; `None` if nothing.
    fn wanted(&self, key: &RowKey) -> Option<RowChange> {
        match key {
            RowKey::Service(name) => self.lent(name).map(|row| {
                // A ClusterIP and a preference mean something at home only.
                let row = ServiceRow {
                    addresses: Vec::new(),
                    affinity: Affinity::None,
                    rules: ServiceRules::default(),
                    ..row.as_ref().clone()
                };
                RowChange::Service(Arc::new(row))
            }),
            RowKey::Endpoint(endpoint) => {
                self.lent(&endpoint.service)?;
                match self.own.as_change(key) {
                    RowChange::EndpointGone(_) => None,
                    row => Some(row),
                }
            }
        }
    }
}

/// 0 for a row that is not there.
fn row_digest(row: &RowChange) -> u64 {
    let text = match row {
        RowChange::Service(row) => serde_json::to_vec(row),
        RowChange::Endpoint(row) => serde_json::to_vec(row),
        RowChange::ServiceGone(_) | RowChange::EndpointGone(_) => return 0,
    };
    let text = text.expect("rows hold strings and numbers only, which JSON always can");
    let hash = Sha256::digest(&text);
    u64::from_le_bytes([
        hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7],
    ])
}

/// A [`Publisher`] as a state file holds it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SavedPublisher {
    pub epoch: Epoch,
    pub revision: u64,
    pub told: Rows,
    #[serde(default)]
    pub history: SavedHistory,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]
    use super::*;
    use crate::mesh::simulation::{batch, endpoint, private_service, service};

    fn position(publisher: &Publisher) -> Option<String> {
        publisher
            .ledger()
            .rows()
            .position()
            .map(|position| position.to_string())
    }

    #[test]
    fn only_shared_services_and_their_endpoints_are_told() {
        let mut publisher = Publisher::new(Epoch(0x19c0));
        assert!(
            !publisher.apply(&batch(vec![endpoint("a", 1, true)], false)),
            "its service is not known yet"
        );
        assert!(publisher.apply(&batch(vec![service("a", 80)], false)));
        assert_eq!(
            position(&publisher),
            None,
            "nothing is settled before the first list is complete"
        );
        assert!(publisher.apply(&batch(
            vec![private_service("b"), endpoint("b", 2, true)],
            true
        )));
        assert_eq!(position(&publisher).unwrap(), "19c0/1");
        assert_eq!(
            (
                publisher.told.rows().services(),
                publisher.told.rows().endpoints()
            ),
            (1, 1)
        );
        assert!(!publisher.apply(&batch(vec![service("a", 80)], false)));
        // No longer shared: its endpoints go with it.
        assert!(publisher.apply(&batch(vec![private_service("a")], false)));
        assert_eq!(
            (
                publisher.told.rows().services(),
                publisher.told.rows().endpoints()
            ),
            (0, 0)
        );
        assert_eq!(publisher.digest, 0);
    }

    #[test]
    fn a_restart_tells_the_same_until_the_source_has_spoken_and_the_same_position_if_it_says_the_same()
     {
        let rows = vec![
            service("a", 80),
            endpoint("a", 1, true),
            endpoint("a", 2, false),
        ];
        let mut publisher = Publisher::new(Epoch(7));
        publisher.apply(&batch(rows.clone(), true));
        let before = publisher.ledger().rows().position();
        let saved = publisher.save();
        let mut publisher = Publisher::load(saved.clone());
        assert_eq!(publisher.ledger().rows().position(), before);
        assert!(!publisher.apply(&batch(rows[..2].to_vec(), false)));
        assert_eq!(publisher.told.rows().endpoints(), 2);
        assert!(!publisher.apply(&batch(rows[2..].to_vec(), true)));
        assert_eq!(publisher.ledger().rows().position(), before);
        // An endpoint before its service, in a batch of its own.
        let mut publisher = Publisher::load(saved.clone());
        assert!(!publisher.apply(&batch(rows[1..].to_vec(), false)));
        assert!(!publisher.apply(&batch(rows[..1].to_vec(), true)));
        assert_eq!(publisher.ledger().rows().position(), before);
        // Told less: the next revision, and only at the end of the list.
        let mut publisher = Publisher::load(saved);
        publisher.apply(&batch(rows[..2].to_vec(), false));
        assert_eq!(publisher.told.rows().endpoints(), 2);
        assert!(publisher.apply(&batch(vec![], true)));
        assert_eq!(publisher.told.rows().endpoints(), 1);
        assert_eq!(position(&publisher).unwrap(), "0007/2");
    }

    #[test]
    fn revisions_counted_twice_after_a_crash_differ_by_their_digest() {
        let mut publisher = Publisher::new(Epoch(7));
        publisher.apply(&batch(vec![service("a", 80)], true));
        let saved = publisher.save();
        publisher.apply(&batch(vec![service("b", 80)], false));
        let lost = publisher.ledger().rows().position().unwrap();
        let mut publisher = Publisher::load(saved);
        publisher.apply(&batch(vec![service("a", 80), service("c", 80)], true));
        let again = publisher.ledger().rows().position().unwrap();
        assert_eq!(lost.to_string(), again.to_string());
        assert_ne!(lost, again);
    }
}
