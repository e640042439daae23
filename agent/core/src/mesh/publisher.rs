use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::guard::Withheld;
use super::{Epoch, Guard, Ledger, Position, Quarantine, RowKey, Rows, SavedHistory};
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
    /// Rows that an earlier run told, and that the source's first list left out.
    withheld: Option<Withheld>,
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
            withheld: None,
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

    #[must_use]
    pub fn quarantine(&self) -> Option<Quarantine> {
        self.withheld.as_ref().map(Withheld::quarantine)
    }

    /// Applies what the source says; true if peers are told something new. If the source's first list leaves out more of
    /// what an earlier run told than `guard` lets pass, that stays for the guard's grace time.
    pub fn apply(&mut self, batch: &Batch, guard: Guard, now: Instant) -> bool {
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
            let told = self.told.rows();
            let held = told.len();
            let unfounded = told.keys().filter(|key| self.wanted(key).is_none());
            let unfounded: BTreeSet<RowKey> = unfounded.collect();
            if guard.doubts(held, unfounded.len()) {
                self.withheld = Some(Withheld::new(unfounded, held, guard, now));
            } else {
                for key in unfounded.into_iter().rev() {
                    changed |= self.tell(key.gone());
                }
            }
        }
        self.settle(changed, settled || self.complete);
        changed || settled != self.told.rows().position().is_some()
    }

    /// Lets go of what was withheld for long enough; how many rows.
    pub fn release(&mut self, now: Instant) -> usize {
        let Some(withheld) = self.withheld.take_if(|withheld| withheld.is_over(now)) else {
            return 0;
        };
        let keys = withheld.rows().iter().rev();
        let unfounded = keys.filter(|key| self.wanted(key).is_none());
        let gone: Vec<RowChange> = unfounded.cloned().map(RowKey::gone).collect();
        let gone = gone
            .into_iter()
            .filter(|gone| self.tell(gone.clone()))
            .count();
        self.settle(gone > 0, true);
        gone
    }

    /// Gives the rows told their newest name, if they are a state.
    fn settle(&mut self, changed: bool, whole: bool) {
        if changed {
            self.revision += 1;
        }
        if whole {
            self.told.settle(Position {
                epoch: self.epoch,
                revision: self.revision,
                digest: self.digest,
            });
        }
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
        let wanted = self.wanted(&key);
        if let Some(withheld) = &mut self.withheld {
            if wanted.is_none() && withheld.rows().contains(&key) {
                return false; // The source has not named it: its time is the quarantine's.
            }
            withheld.named(&key);
            self.withheld.take_if(|withheld| withheld.is_empty());
        }
        self.tell(wanted.unwrap_or_else(|| key.gone()))
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

    fn apply(publisher: &mut Publisher, batch: Batch) -> bool {
        publisher.apply(&batch, Guard::default(), Instant::now())
    }

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
            !apply(&mut publisher, batch(vec![endpoint("a", 1, true)], false)),
            "its service is not known yet"
        );
        assert!(apply(&mut publisher, batch(vec![service("a", 80)], false)));
        assert_eq!(
            position(&publisher),
            None,
            "nothing is settled before the first list is complete"
        );
        assert!(apply(
            &mut publisher,
            batch(vec![private_service("b"), endpoint("b", 2, true)], true)
        ));
        assert_eq!(position(&publisher).unwrap(), "19c0/1");
        assert_eq!(
            (
                publisher.told.rows().services(),
                publisher.told.rows().endpoints()
            ),
            (1, 1)
        );
        assert!(!apply(&mut publisher, batch(vec![service("a", 80)], false)));
        // No longer shared: its endpoints go with it.
        assert!(apply(
            &mut publisher,
            batch(vec![private_service("a")], false)
        ));
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
        apply(&mut publisher, batch(rows.clone(), true));
        let before = publisher.ledger().rows().position();
        let saved = publisher.save();
        let mut publisher = Publisher::load(saved.clone());
        assert_eq!(publisher.ledger().rows().position(), before);
        assert!(!apply(&mut publisher, batch(rows[..2].to_vec(), false)));
        assert_eq!(publisher.told.rows().endpoints(), 2);
        assert!(!apply(&mut publisher, batch(rows[2..].to_vec(), true)));
        assert_eq!(publisher.ledger().rows().position(), before);
        // An endpoint before its service, in a batch of its own.
        let mut publisher = Publisher::load(saved.clone());
        assert!(!apply(&mut publisher, batch(rows[1..].to_vec(), false)));
        assert!(!apply(&mut publisher, batch(rows[..1].to_vec(), true)));
        assert_eq!(publisher.ledger().rows().position(), before);
        // Told less: the next revision, and only at the end of the list.
        let mut publisher = Publisher::load(saved);
        apply(&mut publisher, batch(rows[..2].to_vec(), false));
        assert_eq!(publisher.told.rows().endpoints(), 2);
        assert!(apply(&mut publisher, batch(vec![], true)));
        assert_eq!(publisher.told.rows().endpoints(), 1);
        assert_eq!(position(&publisher).unwrap(), "0007/2");
    }

    #[test]
    fn revisions_counted_twice_after_a_crash_differ_by_their_digest() {
        let mut publisher = Publisher::new(Epoch(7));
        apply(&mut publisher, batch(vec![service("a", 80)], true));
        let saved = publisher.save();
        apply(&mut publisher, batch(vec![service("b", 80)], false));
        let lost = publisher.ledger().rows().position().unwrap();
        let mut publisher = Publisher::load(saved);
        apply(
            &mut publisher,
            batch(vec![service("a", 80), service("c", 80)], true),
        );
        let again = publisher.ledger().rows().position().unwrap();
        assert_eq!(lost.to_string(), again.to_string());
        assert_ne!(lost, again);
    }

    #[test]
    fn a_source_that_lost_its_objects_empties_nothing_at_once() {
        let guard = Guard::default();
        let start = Instant::now();
        let mut rows = vec![service("a", 80)];
        rows.extend((0..40).map(|n| endpoint("a", n, true)));
        let mut publisher = Publisher::new(Epoch(7));
        assert!(apply(&mut publisher, batch(rows.clone(), true)));
        let saved = publisher.save();
        let restarted = || Publisher::load(saved.clone());

        // Told in the middle of a life, it is believed.
        assert!(apply(
            &mut publisher,
            batch(
                rows.iter().map(|row| RowKey::of(row).gone()).collect(),
                false
            )
        ));
        assert_eq!(
            (publisher.told.rows().len(), publisher.quarantine()),
            (0, None)
        );

        // As the first list of another life, it is not.
        let mut publisher = restarted();
        assert!(!publisher.apply(&batch(vec![], true), guard, start));
        assert_eq!(publisher.told.rows().len(), 41);
        assert_eq!(
            position(&publisher).unwrap(),
            "0007/1",
            "peers hear nothing new"
        );
        let quarantine = publisher.quarantine().unwrap();
        assert_eq!((quarantine.rows, quarantine.held), (41, 41));
        assert_eq!(quarantine.until, start + guard.grace);
        // What comes back is taken up, and a service's return does not give up its endpoints.
        assert!(!publisher.apply(&batch(rows[..2].to_vec(), false), guard, start));
        assert_eq!(publisher.quarantine().unwrap().rows, 39);
        assert_eq!(publisher.release(quarantine.until - guard.grace / 2), 0);
        assert_eq!(publisher.release(quarantine.until), 39);
        assert_eq!(publisher.told.rows().all(), {
            let mut told = rows[..2].to_vec();
            told.iter_mut().for_each(without_addresses);
            told
        });
        assert_eq!(position(&publisher).unwrap(), "0007/2");

        // All of it back in time: nothing ever changed.
        let mut publisher = restarted();
        publisher.apply(&batch(vec![], true), guard, start);
        assert!(!publisher.apply(&batch(rows.clone(), false), guard, start));
        assert_eq!(publisher.quarantine(), None);
        assert_eq!(position(&publisher).unwrap(), "0007/1");

        // A few rows less are an ordinary change.
        let mut publisher = restarted();
        assert!(publisher.apply(&batch(rows[..30].to_vec(), true), guard, start));
        assert_eq!(
            (publisher.told.rows().len(), publisher.quarantine()),
            (30, None)
        );
    }

    /// As peers are told of it.
    fn without_addresses(row: &mut RowChange) {
        if let RowChange::Service(row) = row {
            let row = Arc::make_mut(row);
            row.addresses = Vec::new();
            row.affinity = Affinity::None;
        }
    }
}
