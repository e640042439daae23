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

#[cfg(test)]
mod tests;

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

/// Where an endpoint's row stands: services' rows lie together, then owners'.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct EndpointAt {
    service: ObjectName,
    owner: Owner,
    address: Address,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct ServiceAt {
    service: ObjectName,
    owner: Owner,
}

/// All rows at one moment. A clone is O(1), may go to any thread, and never changes.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    services: OrdMap<ServiceAt, Arc<ServiceRow>>,
    endpoints: OrdMap<EndpointAt, Arc<EndpointRow>>,
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
        let mut dirty = Dirty::default();
        for change in &batch.changes {
            match change {
                RowChange::Service(row) => self.put_service(owner, row, &mut dirty),
                RowChange::ServiceGone(name) => {
                    if self
                        .now
                        .services
                        .remove(&ServiceAt {
                            service: name.clone(),
                            owner,
                        })
                        .is_some()
                    {
                        dirty.whole(name);
                    }
                }
                RowChange::Endpoint(row) => self.put_endpoint(owner, row, &mut dirty),
                RowChange::EndpointGone(key) => {
                    let at = EndpointAt {
                        service: key.service.clone(),
                        owner,
                        address: key.address,
                    };
                    if self.now.endpoints.remove(&at).is_some() {
                        dirty.endpoint(&key.service, owner, key.address);
                    }
                }
            }
        }
        if batch.complete && self.now.passports.insert(owner).is_none() {
            dirty.released.insert(owner);
        }
        dirty
    }

    fn put_service(&mut self, owner: Owner, row: &Arc<ServiceRow>, dirty: &mut Dirty) {
        let at = ServiceAt {
            service: row.name.clone(),
            owner,
        };
        if self.now.services.get(&at) != Some(row) {
            self.now.services.insert(at, row.clone());
            dirty.whole(&row.name);
        }
    }

    fn put_endpoint(&mut self, owner: Owner, row: &Arc<EndpointRow>, dirty: &mut Dirty) {
        let at = EndpointAt {
            service: row.service.clone(),
            owner,
            address: row.address,
        };
        if self.now.endpoints.get(&at) != Some(row) {
            self.now.endpoints.insert(at, row.clone());
            dirty.endpoint(&row.service, owner, row.address);
        }
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
            for at in self
                .now
                .endpoints
                .keys()
                .filter(|at| at.owner == Owner::Peer(id))
            {
                // Rows of a service lie together: one name is inserted once, not once an endpoint.
                if dirty
                    .services
                    .last_key_value()
                    .is_none_or(|(last, _)| *last != at.service)
                {
                    dirty.whole(&at.service);
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
        let services: Vec<_> = self
            .now
            .services
            .keys()
            .filter(|at| at.owner == owner)
            .cloned()
            .collect();
        for at in services {
            dirty.whole(&at.service);
            self.now.services.remove(&at);
        }
        let endpoints: Vec<_> = self
            .now
            .endpoints
            .keys()
            .filter(|at| at.owner == owner)
            .cloned()
            .collect();
        for at in endpoints {
            dirty.whole(&at.service);
            self.now.endpoints.remove(&at);
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
        self.services
            .keys()
            .map(|at| &at.service)
            .filter(move |name| last.replace(*name) != Some(*name))
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
        (
            self.services.keys().filter(|at| at.owner == owner).count(),
            self.endpoints.keys().filter(|at| at.owner == owner).count(),
        )
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
        self.rows.services.get(&ServiceAt {
            service: self.name.clone(),
            owner,
        })
    }

    /// One endpoint, in O(log n).
    #[must_use]
    pub fn endpoint(&self, owner: Owner, address: Address) -> Option<&'a Arc<EndpointRow>> {
        self.rows.endpoints.get(&EndpointAt {
            service: self.name.clone(),
            owner,
            address,
        })
    }

    /// All endpoints, by owner and address.
    pub fn endpoints(&self) -> impl Iterator<Item = (Owner, &'a Arc<EndpointRow>)> + use<'a> {
        let first = EndpointAt {
            service: self.name.clone(),
            owner: Owner::Local,
            address: Address::from_octets([0; 16]),
        };
        let name = self.name;
        self.rows
            .endpoints
            .range(first..)
            .take_while(move |(at, _)| at.service == *name)
            .map(|(at, row)| (at.owner, row))
    }
}
