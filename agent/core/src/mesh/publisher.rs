use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::guard::Withheld;
use super::terms::is_special;
use super::{Epoch, Guard, Ledger, Position, Quarantine, RowKey, Rows, SavedHistory};
use crate::model::{
    Address, Affinity, Batch, EndpointKey, ObjectName, RowChange, ServiceRow, ServiceRules,
};

/// Turns a cluster's own rows into what it tells its peers: services that are global and shared, and their endpoints.
#[derive(Debug)]
pub struct Publisher {
    epoch: Epoch,
    revision: u64,
    digest: u64,
    /// Where this cluster has its endpoints; empty: anywhere.
    cidrs: Vec<IpNet>,
    /// Endpoints of services that are lent, and that are not where they may be.
    outside: BTreeSet<EndpointKey>,
    own: Rows,
    /// What is told. After a restart it begins as it was, and stays until the source's first list is complete.
    told: Ledger,
    /// The source's first list is complete.
    complete: bool,
    /// Rows that an earlier run told, and that the source's first list left out.
    withheld: Option<Withheld>,
}

impl Publisher {
    #[must_use]
    pub fn load(saved: SavedPublisher, cidrs: Vec<IpNet>) -> Self {
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
            cidrs,
            outside: BTreeSet::new(),
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
                self.withheld = Some(Withheld::new(unfounded, self.told.rows(), held, guard, now));
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
        let keys = withheld.keys().rev();
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
        if let RowKey::Endpoint(endpoint) = &key {
            let lent = self.lent(&endpoint.service).is_some() && self.own.contains(&key);
            if lent && wanted.is_none() {
                self.outside.insert(endpoint.clone());
            } else {
                self.outside.remove(endpoint);
            }
        }
        if let Some(withheld) = &mut self.withheld {
            if wanted.is_none() && withheld.contains(&key) {
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

    /// Endpoints that are not lent though their service is, because they are outside the cluster's own ranges or mean
    /// something else elsewhere (loopback and the like).
    #[must_use]
    pub fn outside(&self) -> &BTreeSet<EndpointKey> {
        &self.outside
    }

    fn is_lendable(&self, address: Address) -> bool {
        let ip = address.ip();
        let inside = self.cidrs.is_empty() || self.cidrs.iter().any(|cidr| cidr.contains(&ip));
        inside && !is_special(address)
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
                if !self.is_lendable(endpoint.address) {
                    return None;
                }
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

impl SavedPublisher {
    /// Nothing told yet. `epoch` is random.
    #[must_use]
    pub fn empty(epoch: Epoch) -> Self {
        Self {
            epoch,
            revision: 0,
            told: Rows::default(),
            history: SavedHistory::default(),
        }
    }
}

#[cfg(test)]
mod tests;
