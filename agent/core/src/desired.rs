//! What the datapath should do for a service, as a pure function of what is said of it.
//!
//! The maps know *service ports*: one port of one Service (by name and protocol) in one address family, with its
//! frontends and the backends behind them, each in a tier. A tier is a [`Rank`] here; ranks without a backend are left
//! out when a ring is laid. A change of one endpoint is derived alone, so it costs the same in any service.

use std::fmt;
use std::sync::Arc;

use crate::model::{
    Address, Affinity, ClusterId, EndpointRow, ObjectName, Protocol, ServiceRow, ServiceRules,
};
use crate::store::{Dirty, Owner, ServiceGroup, Snapshot, Touched};

mod rank;
mod view;

#[cfg(test)]
mod tests;

pub use rank::{Rank, assumed};
pub use view::{BackendView, FrontendView, ServiceView, view};

/// Which Services this node programs (`--services`). The others pass unchanged to whatever else is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Programmed {
    #[default]
    All,
    Global,
}

/// What derivation needs to know of this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Here<'n> {
    pub cluster: ClusterId,
    /// This node's name, as endpoints say it.
    pub node: &'n str,
    pub programmed: Programmed,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    #[must_use]
    pub fn of(address: Address) -> Self {
        if address.is_v4() { Self::V4 } else { Self::V6 }
    }
}

/// Address, port and protocol that clients use, in the node's own network (cluster scope 0).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Frontend {
    pub address: Address,
    /// 1..=65535, or 0 with no protocol.
    pub port: u16,
    /// None marks the address itself as a service's: its unknown ports may be refused.
    pub protocol: Option<Protocol>,
}

impl Frontend {
    #[must_use]
    pub const fn address_only(address: Address) -> Self {
        Self {
            address,
            port: 0,
            protocol: None,
        }
    }
    #[must_use]
    pub const fn is_address_only(&self) -> bool {
        self.protocol.is_none()
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.protocol, self.address.is_v4()) {
            (None, _) => write!(f, "{}", self.address),
            (Some(protocol), true) => write!(f, "{}:{}/{protocol}", self.address, self.port),
            (Some(protocol), false) => write!(f, "[{}]:{}/{protocol}", self.address, self.port),
        }
    }
}

/// Names a service port within its Service.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortKey {
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub family: Family,
}

/// Names a backend within its service port. Two clusters that claim one address are two backends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BackendKey {
    pub cluster: ClusterId,
    pub address: Address,
    pub port: u16,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredPort {
    pub key: PortKey,
    /// At least one.
    pub frontends: Vec<Frontend>,
    /// For backends that are kept on trust: see [`assumed`].
    pub affinity: Affinity,
    /// May hold backends of other clusters: those kept on trust stay only then.
    pub global: bool,
    pub rules: ServiceRules,
    /// Sorted, without repeats.
    pub backends: Vec<(BackendKey, Rank)>,
}

/// All that the maps should hold of a Service. Empty if nothing: no row here, no address, or not programmed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DesiredService {
    /// Addresses to mark as ours.
    pub addresses: Vec<Address>,
    /// Sorted by key.
    pub ports: Vec<DesiredPort>,
}

/// What one endpoint gives to its service's ports: its backends by service port; what is not named is gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredEndpoint {
    pub cluster: ClusterId,
    pub address: Address,
    pub backends: Vec<(PortKey, u16, Rank)>,
}

/// A change of desired state, to be applied in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    Service(ObjectName, DesiredService),
    Endpoint(ObjectName, DesiredEndpoint),
    /// Nothing of this owner is kept on trust any longer.
    Release(Owner),
}

/// Derives what is dirty again, one service at a time, so that a backlog needs no memory of its own. Releases come last:
/// what an owner's complete list names is known by then.
pub fn changes<'a>(
    here: Here<'a>,
    rows: &'a Snapshot,
    dirty: &'a Dirty,
) -> impl Iterator<Item = Change> + use<'a> {
    let derived = dirty.services.iter().flat_map(move |(name, touched)| {
        let group = rows.group(name);
        let (whole, endpoints) = match touched {
            Touched::Whole => (
                Some(Change::Service(name.clone(), service(here, group))),
                None,
            ),
            Touched::Endpoints(keys) => (None, Some(keys)),
        };
        // Nobody speaks for this cluster but its own source.
        let own = Owner::Peer(here.cluster);
        let endpoints = endpoints
            .into_iter()
            .flatten()
            .filter(move |(owner, _)| *owner != own);
        let endpoints = endpoints.map(move |&(owner, at)| {
            Change::Endpoint(name.clone(), endpoint(here, group, owner, at))
        });
        whole.into_iter().chain(endpoints)
    });
    derived.chain(dirty.released.iter().map(|&owner| Change::Release(owner)))
}

/// Derives a Service from all that is said of it, in O(n log n).
#[must_use]
pub fn service(here: Here<'_>, group: ServiceGroup<'_>) -> DesiredService {
    let Some(row) = programmed(here, group) else {
        return DesiredService::default();
    };
    let mut ports: Vec<DesiredPort> = Vec::with_capacity(row.ports.len());
    for port in &row.ports {
        for &address in &row.addresses {
            let frontend = Frontend {
                address,
                port: port.port,
                protocol: Some(port.protocol),
            };
            let key = PortKey {
                name: port.name.clone(),
                protocol: port.protocol,
                family: Family::of(address),
            };
            match ports.iter_mut().find(|known| known.key == key) {
                Some(known) if known.frontends.contains(&frontend) => {}
                Some(known) => known.frontends.push(frontend),
                None => ports.push(DesiredPort {
                    key,
                    frontends: vec![frontend],
                    affinity: row.affinity,
                    global: row.global && !row.rules.node_only,
                    rules: row.rules,
                    backends: vec![],
                }),
            }
        }
    }
    ports.sort_by(|a, b| a.key.cmp(&b.key));
    let mut lender = Lender::new(here, group, row);
    for (owner, endpoint) in group.endpoints() {
        let Some((cluster, rank)) = lender.rank(owner, endpoint) else {
            continue;
        };
        for port in &mut ports {
            let backends = meeting(endpoint, &port.key);
            port.backends.extend(backends.map(|port| {
                (
                    BackendKey {
                        cluster,
                        address: endpoint.address,
                        port,
                    },
                    rank,
                )
            }));
        }
    }
    for port in &mut ports {
        port.backends.sort_unstable();
        port.backends.dedup();
    }
    DesiredService {
        addresses: row.addresses.clone(),
        ports,
    }
}

/// Derives what one endpoint gives, in O(log n). Agrees with [`service`] as long as nothing but endpoints changed.
#[must_use]
pub fn endpoint(
    here: Here<'_>,
    group: ServiceGroup<'_>,
    owner: Owner,
    address: Address,
) -> DesiredEndpoint {
    let cluster = cluster_of(here, owner);
    let mut backends = Vec::new();
    if let (Some(row), Some(endpoint)) = (programmed(here, group), group.endpoint(owner, address))
        && let Some((_, rank)) = Lender::new(here, group, row).rank(owner, endpoint)
        && let family = Family::of(address)
        && row
            .addresses
            .iter()
            .any(|&frontend| Family::of(frontend) == family)
    {
        for port in &row.ports {
            let key = PortKey {
                name: port.name.clone(),
                protocol: port.protocol,
                family,
            };
            backends.extend(meeting(endpoint, &key).map(|port| (key.clone(), port, rank)));
        }
    }
    backends.sort_unstable();
    backends.dedup();
    DesiredEndpoint {
        cluster,
        address,
        backends,
    }
}

/// This cluster's own row, if the node programs the service at all.
fn programmed<'a>(here: Here<'_>, group: ServiceGroup<'a>) -> Option<&'a Arc<ServiceRow>> {
    let row = group.service(Owner::Local)?;
    (here.programmed == Programmed::All || row.global).then_some(row)
}

fn cluster_of(here: Here<'_>, owner: Owner) -> ClusterId {
    match owner {
        Owner::Local => here.cluster,
        Owner::Peer(id) => id,
    }
}

/// The ports on which an endpoint serves a service port: those of its name, protocol and family.
fn meeting<'a>(endpoint: &'a EndpointRow, key: &'a PortKey) -> impl Iterator<Item = u16> + 'a {
    let family = Family::of(endpoint.address) == key.family;
    let ports = endpoint.ports.iter().filter(move |_| family);
    ports
        .filter(|port| port.name == key.name && port.protocol == key.protocol)
        .map(|port| port.port)
}

/// Who lends endpoints to this service, and into which tier. Remembers the last owner: endpoints come by owner.
struct Lender<'a> {
    here: Here<'a>,
    group: ServiceGroup<'a>,
    row: &'a ServiceRow,
    last: Option<(Owner, Option<Loan>)>,
}

#[derive(Clone, Copy)]
struct Loan {
    cluster: ClusterId,
    local: bool,
    stale: bool,
}

impl<'a> Lender<'a> {
    fn new(here: Here<'a>, group: ServiceGroup<'a>, row: &'a ServiceRow) -> Self {
        Self {
            here,
            group,
            row,
            last: None,
        }
    }

    /// None for an endpoint that no connection goes to.
    fn rank(&mut self, owner: Owner, endpoint: &EndpointRow) -> Option<(ClusterId, Rank)> {
        let loan = self.lends(owner)?;
        if self.keeps_away(owner, endpoint) {
            return None;
        }
        let (affinity, local, stale) = (self.row.affinity, loan.local, loan.stale);
        let rank = Rank::of(affinity, local, stale, endpoint.condition)?;
        Some((loan.cluster, rank))
    }

    /// With `internalTrafficPolicy: Local` connections stay on their node. Where it has no backend they are refused
    /// (KEP-2086).
    fn keeps_away(&self, owner: Owner, endpoint: &EndpointRow) -> bool {
        self.row.rules.node_only && !(owner == Owner::Local && *endpoint.node == *self.here.node)
    }

    /// None if nothing of this owner is used.
    fn lends(&mut self, owner: Owner) -> Option<Loan> {
        match self.last {
            Some((last, loan)) if last == owner => loan,
            _ => {
                let loan = self.loan(owner);
                self.last = Some((owner, loan));
                loan
            }
        }
    }

    /// Remote backends are used if and only if the service is global on both sides and the other shares it (Cilium
    /// Cluster Mesh, "Load-balancing & Service Discovery"). What this cluster itself shares plays no part.
    fn loan(&self, owner: Owner) -> Option<Loan> {
        match owner {
            Owner::Local => Some(Loan {
                cluster: self.here.cluster,
                local: true,
                stale: false,
            }),
            // A peer's rows under our own id are refused by the mesh; were one here, it would be taken for ours.
            Owner::Peer(id) if id == self.here.cluster => None,
            Owner::Peer(id) => {
                let theirs = self.group.service(owner)?;
                let stale = self
                    .group
                    .snapshot()
                    .peer(id)
                    .is_some_and(|peer| peer.stale);
                let lent = self.row.global && theirs.global && theirs.shared;
                lent.then_some(Loan {
                    cluster: id,
                    local: false,
                    stale,
                })
            }
        }
    }
}
