//! A service as people see it: every frontend with every endpoint that could stand behind it.

use std::sync::Arc;

use super::{Family, Frontend, Here, Lender, PortKey, Rank, cluster_of, meeting, programmed};
use crate::model::{Address, Affinity, ClusterId, Condition, ObjectName, ServiceRules};
use crate::store::{Owner, ServiceGroup};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceView {
    pub name: ObjectName,
    pub global: bool,
    pub shared: bool,
    pub affinity: Affinity,
    pub rules: ServiceRules,
    /// Is it in the maps, or left to others (`--services=global`)?
    pub programmed: bool,
    /// Empty for a headless service.
    pub frontends: Vec<FrontendView>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrontendView {
    pub frontend: Frontend,
    pub port_name: Arc<str>,
    /// By cluster, this one first, then address and port. Endpoints of clusters that do not lend are left out.
    pub backends: Vec<BackendView>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackendView {
    pub address: Address,
    pub port: u16,
    pub cluster: ClusterId,
    /// None for this cluster, and for a peer whose name nobody said.
    pub cluster_name: Option<Arc<str>>,
    pub node: Arc<str>,
    pub zone: Arc<str>,
    pub condition: Condition,
    /// Why it is not ready; empty if it is.
    pub reason: Arc<str>,
    /// Of another node, and the service keeps connections on theirs.
    pub elsewhere: bool,
    /// None if it is in no tier.
    pub rank: Option<Rank>,
    /// In the first tier: where new connections go.
    pub preferred: bool,
}

impl BackendView {
    /// The tier's name; `not ready` in none.
    #[must_use]
    pub fn tier(&self, affinity: Affinity) -> &'static str {
        self.rank.map_or("not ready", |rank| rank.name(affinity))
    }
}

/// None if this cluster has no such Service.
#[must_use]
pub fn view(here: Here<'_>, group: ServiceGroup<'_>) -> Option<ServiceView> {
    let row = group.service(Owner::Local)?;
    let frontends = row
        .ports
        .iter()
        .flat_map(|port| row.addresses.iter().map(move |&address| (port, address)));
    let frontends = frontends.map(|(port, address)| {
        let key = PortKey {
            name: port.name.clone(),
            protocol: port.protocol,
            family: Family::of(address),
        };
        let frontend = Frontend {
            address,
            port: port.port,
            protocol: Some(port.protocol),
        };
        let mut lender = Lender::new(here, group, row);
        let mut backends = Vec::new();
        for (owner, endpoint) in group.endpoints() {
            if lender.lends(owner).is_none() {
                continue;
            }
            let rank = lender.rank(owner, endpoint).map(|(_, rank)| rank);
            let elsewhere = lender.keeps_away(owner, endpoint);
            backends.extend(meeting(endpoint, &key).map(|port| BackendView {
                address: endpoint.address,
                port,
                cluster: cluster_of(here, owner),
                cluster_name: cluster_name(group, owner),
                node: endpoint.node.clone(),
                zone: endpoint.zone.clone(),
                condition: endpoint.condition,
                reason: endpoint.reason.clone(),
                elsewhere,
                rank,
                preferred: false,
            }));
        }
        let first = backends.iter().filter_map(|backend| backend.rank).min();
        for backend in &mut backends {
            backend.preferred = first.is_some() && backend.rank == first;
        }
        FrontendView {
            frontend,
            port_name: port.name.clone(),
            backends,
        }
    });
    Some(ServiceView {
        name: group.name().clone(),
        global: row.global,
        shared: row.shared,
        affinity: row.affinity,
        rules: row.rules,
        programmed: programmed(here, group).is_some(),
        frontends: frontends.collect(),
    })
}

fn cluster_name(group: ServiceGroup<'_>, owner: Owner) -> Option<Arc<str>> {
    match owner {
        Owner::Local => None,
        Owner::Peer(id) => group
            .snapshot()
            .peer(id)
            .map(|peer| peer.name.as_str().into()),
    }
}
