//! What sources and peers say, as typed tables with one writer.
//!
//! Rows are kept by owner: an owner's batch touches its own rows only. The tables are persistent trees, so that a
//! [`Snapshot`] costs nothing to take, and a change costs the logarithm of all rows, whatever the size of its service.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use crate::model::{
    Address, Batch, ClusterId, ClusterName, EndpointRow, ObjectName, RowChange, ServiceRow,
};

mod rows;

#[cfg(test)]
mod tests;

use rows::{At, Rows};

/// Who said it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Owner {
    /// This node's own source.
    Local,
    /// Another cluster, through the mesh.
    Peer(ClusterId),
}

/// What desired state needs to know of a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerState {
    pub name: ClusterName,
    /// Silent for too long: its backends are the last resort.
    pub stale: bool,
}

/// All rows at one moment. A clone is O(1), may go to any thread, and never changes.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    services: Rows<ServiceRow>,
    endpoints: Rows<EndpointRow>,
    peers: OrdMap<ClusterId, PeerState>,
    passports: OrdSet<Owner>,
}

/// The one writer's side.
#[derive(Debug, Default)]
pub struct Store {
    now: Snapshot,
}

/// How much of a service may have another desired state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Touched {
    /// Its own rows, its addresses, or everything of a peer in it.
    Whole,
    /// These endpoints only.
    Endpoints(BTreeSet<(Owner, Address)>),
}

/// What to derive again. Two of them join by [`Dirty::merge`], so that a busy agent can apply several batches first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Dirty {
    pub services: BTreeMap<ObjectName, Touched>,
    /// Owners of whom nothing needs to be kept on trust any longer: their first list is complete, or they are dropped.
    pub released: BTreeSet<Owner>,
}

impl Dirty {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.released.is_empty()
    }

    pub fn merge(&mut self, other: Self) {
        self.released.extend(other.released);
        for (name, touched) in other.services {
            match touched {
                Touched::Whole => self.whole(&name),
                Touched::Endpoints(keys) => keys
                    .into_iter()
                    .for_each(|(owner, at)| self.endpoint(&name, owner, at)),
            }
        }
    }

    fn whole(&mut self, name: &ObjectName) {
        self.services.insert(name.clone(), Touched::Whole);
    }

    fn endpoint(&mut self, name: &ObjectName, owner: Owner, address: Address) {
        match self.services.get_mut(name) {
            Some(Touched::Whole) => {}
            Some(Touched::Endpoints(keys)) => {
                keys.insert((owner, address));
            }
            None => {
                self.services.insert(
                    name.clone(),
                    Touched::Endpoints(BTreeSet::from([(owner, address)])),
                );
            }
        }
    }
}

impl Store {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The rows as they are now, in O(1).
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.now.clone()
    }

    /// Looks without taking a snapshot.
    #[must_use]
    pub fn now(&self) -> &Snapshot {
        &self.now
    }

    /// Applies a batch whole. Rows that equal those already here make nothing dirty.
    pub fn apply(&mut self, owner: Owner, batch: &Batch) -> Dirty {
        let (rows, mut dirty) = (&mut self.now, Dirty::default());
        for change in &batch.changes {
            match change {
                RowChange::Service(row) => {
                    if rows.services.insert(owner, row) {
                        dirty.whole(&row.name);
                    }
                }
                RowChange::ServiceGone(service) => {
                    if rows.services.remove(At {
                        service,
                        owner,
                        address: None,
                    }) {
                        dirty.whole(service);
                    }
                }
                RowChange::Endpoint(row) => {
                    if rows.endpoints.insert(owner, row) {
                        dirty.endpoint(&row.service, owner, row.address);
                    }
                }
                RowChange::EndpointGone(key) => {
                    let at = At {
                        service: &key.service,
                        owner,
                        address: Some(key.address),
                    };
                    if rows.endpoints.remove(at) {
                        dirty.endpoint(&key.service, owner, key.address);
                    }
                }
            }
        }
        if batch.complete && rows.passports.insert(owner).is_none() {
            dirty.released.insert(owner);
        }
        dirty
    }

    /// Says who a peer is and whether it is stale. Only staleness makes services dirty: those with rows of the peer.
    pub fn set_peer(&mut self, id: ClusterId, state: PeerState) -> Dirty {
        let mut dirty = Dirty::default();
        let stale = state.stale;
        let before = self
            .now
            .peers
            .insert(id, state)
            .is_some_and(|peer| peer.stale);
        if before != stale {
            for (owner, row) in self.now.endpoints.iter() {
                // Rows of a service lie together: one name is inserted once, not once an endpoint.
                let last = dirty.services.last_key_value();
                if owner == Owner::Peer(id) && last.is_none_or(|(last, _)| *last != row.service) {
                    dirty.whole(&row.service);
                }
            }
        }
        dirty
    }

    /// Forgets a peer and all its rows: its TTL is over, or its link was removed.
    pub fn drop_peer(&mut self, id: ClusterId) -> Dirty {
        let owner = Owner::Peer(id);
        let mut dirty = Dirty {
            released: BTreeSet::from([owner]),
            ..Dirty::default()
        };
        for row in self.now.services.remove_owner(owner) {
            dirty.whole(&row.name);
        }
        for row in self.now.endpoints.remove_owner(owner) {
            dirty.whole(&row.service);
        }
        self.now.peers.remove(&id);
        self.now.passports.remove(&owner);
        dirty
    }
}

impl Snapshot {
    /// Every service's name that any owner has a row of, in order.
    pub fn names(&self) -> impl Iterator<Item = &ObjectName> {
        let mut last = None;
        let names = self.services.iter().map(|(_, row)| &row.name);
        names.filter(move |name| last.replace(*name) != Some(*name))
    }

    /// Everything that is said of one service.
    #[must_use]
    pub fn group<'a>(&'a self, name: &'a ObjectName) -> ServiceGroup<'a> {
        ServiceGroup { name, rows: self }
    }

    #[must_use]
    pub fn peer(&self, id: ClusterId) -> Option<&PeerState> {
        self.peers.get(&id)
    }

    pub fn peers(&self) -> impl Iterator<Item = (ClusterId, &PeerState)> {
        self.peers.iter().map(|(id, state)| (*id, state))
    }

    /// Was this owner's first list complete?
    #[must_use]
    pub fn has_passport(&self, owner: Owner) -> bool {
        self.passports.contains(&owner)
    }

    /// Rows that an owner has: services, endpoints. Counts them, so O(all rows).
    #[must_use]
    pub fn count(&self, owner: Owner) -> (usize, usize) {
        let services = self.services.iter().filter(|(other, _)| *other == owner);
        let endpoints = self.endpoints.iter().filter(|(other, _)| *other == owner);
        (services.count(), endpoints.count())
    }
}

/// All owners' rows of one service name, read from a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct ServiceGroup<'a> {
    name: &'a ObjectName,
    rows: &'a Snapshot,
}

impl<'a> ServiceGroup<'a> {
    #[must_use]
    pub fn name(&self) -> &'a ObjectName {
        self.name
    }

    #[must_use]
    pub fn snapshot(&self) -> &'a Snapshot {
        self.rows
    }

    /// An owner's row of the service.
    #[must_use]
    pub fn service(&self, owner: Owner) -> Option<&'a Arc<ServiceRow>> {
        self.rows.services.get(At {
            service: self.name,
            owner,
            address: None,
        })
    }

    /// One endpoint, in O(log n).
    #[must_use]
    pub fn endpoint(&self, owner: Owner, address: Address) -> Option<&'a Arc<EndpointRow>> {
        self.rows.endpoints.get(At {
            service: self.name,
            owner,
            address: Some(address),
        })
    }

    /// All endpoints, by owner and address.
    pub fn endpoints(&self) -> impl Iterator<Item = (Owner, &'a Arc<EndpointRow>)> + use<'a> {
        self.rows.endpoints.of_service(self.name)
    }
}
