//! Every frontend with the backends behind it.

use std::collections::{BTreeSet, HashMap};

use isthmus_abi::{Ring, Slot};
use isthmus_core::desired::{self, BackendView, FrontendView, Rank, ServiceView};
use isthmus_core::model::{Condition, ObjectName};
use isthmus_core::store::Owner;
use isthmus_core::table::TableBackend;
use isthmus_proto::node::v1 as pb;

use super::health::{HealthRows, backend_health};
use super::lb::{
    Backend, Backends, ServiceIndices, backends_by_name, service_indices, span, tiers,
};
use super::{View, seconds_since};
use crate::api::ViewError;
use crate::datapath::MappedArray;
use crate::engine::Published;

/// What the kernel's maps say, for all services at once.
struct Kernel {
    services: ServiceIndices,
    backends: Backends,
    rings: MappedArray<Ring>,
    slots: MappedArray<Slot>,
    /// In ticks of health's rows.
    now: u64,
}

impl Kernel {
    fn backend(&self, index: Option<u32>, backend: &BackendView) -> Option<&Backend> {
        self.backends.get(&(index?, backend.address, backend.port))
    }

    fn shares(&self, index: Option<u32>) -> Shares {
        // A row that is on its way in or out may name no service.
        let index = index.filter(|index| *index < self.rings.capacity());
        index.map_or_else(Shares::default, |index| {
            let ring = self.rings.get(index);
            Shares::of(&span(&self.slots, ring), ring, index)
        })
    }
}

/// How many slots of its tier a backend has, and how many there are: by the backend's id.
#[derive(Debug, Default)]
struct Shares(HashMap<u32, (u32, u32)>);

impl Shares {
    /// From the words of the span of a service's ring. While it changes a backend may stand in two tiers: the first counts.
    fn of(words: &[u64], ring: Ring, service: u32) -> Self {
        let mut shares = HashMap::new();
        for tier in tiers(words, ring) {
            let all = u32::try_from(tier.len()).unwrap_or(u32::MAX);
            let mut in_tier = HashMap::<u32, u32>::new();
            let slots = tier.iter().map(|word| Slot(*word));
            for slot in slots.filter(|slot| slot.service() == service) {
                *in_tier.entry(slot.backend()).or_default() += 1;
            }
            for (backend, slots) in in_tier {
                shares.entry(backend).or_insert((slots, all));
            }
        }
        Self(shares)
    }
}

impl View {
    pub(super) fn services(&self) -> Result<pb::ListServicesResponse, ViewError> {
        let published = self.published();
        let kernel = self.with_datapath(|datapath| {
            let health = HealthRows::open(datapath)?;
            Ok(Kernel {
                services: service_indices(datapath)?,
                backends: backends_by_name(datapath, &health)?,
                rings: datapath.array()?,
                slots: datapath.array()?,
                now: health.now(),
            })
        })?;
        let names: Vec<&ObjectName> = published.rows.names().collect();
        let frontends = names
            .into_iter()
            .filter_map(|name| desired::view(self.here(), published.rows.group(name)))
            .flat_map(|service| self.frontends(&published, &kernel, &service))
            .collect();
        Ok(pb::ListServicesResponse {
            node: Some(self.node_info()),
            frontends,
        })
    }

    fn frontends(
        &self,
        published: &Published,
        kernel: &Kernel,
        service: &ServiceView,
    ) -> Vec<pb::Frontend> {
        service
            .frontends
            .iter()
            .map(|frontend| self.frontend(published, kernel, service, frontend))
            .collect()
    }

    fn frontend(
        &self,
        published: &Published,
        kernel: &Kernel,
        service: &ServiceView,
        view: &FrontendView,
    ) -> pb::Frontend {
        let address = view.frontend.address;
        let protocol = view.frontend.protocol;
        let index = protocol
            .and_then(|protocol| {
                kernel
                    .services
                    .get(&(address, view.frontend.port, protocol.abi()))
            })
            .copied();
        let fault = published
            .faults
            .iter()
            .find(|fault| fault.frontend == Some(view.frontend));
        let problem = match (fault, index, service.programmed) {
            (Some(fault), _, _) => fault.error.to_string(),
            (None, Some(_), _) => String::new(),
            (None, None, false) => {
                "not global, and this agent runs with --services=global".to_owned()
            }
            (None, None, true) => "not in the kernel yet".to_owned(),
        };
        let own_family = |backend: &&BackendView| backend.address.is_v4() == address.is_v4();
        let backends = view.backends.iter().filter(own_family);
        let is_out = |backend: &BackendView| {
            let row = kernel.backend(index, backend);
            row.is_some_and(|row| row.health.is_out())
        };
        let tiers = Tiers::of(backends.clone(), is_out);
        let shares = kernel.shares(index);
        pb::Frontend {
            service: service.name.to_string(),
            port_name: view.port_name.to_string(),
            address: address.to_string(),
            port: view.frontend.port.into(),
            protocol: protocol
                .map(|protocol| protocol.to_string())
                .unwrap_or_default(),
            r#type: "ClusterIP".to_owned(),
            affinity: service.affinity.to_string(),
            global: service.global,
            shared: service.shared,
            affinity_seconds: service.rules.affinity_seconds,
            no_passive_health: service.rules.no_passive_health,
            node_only: service.rules.node_only,
            service_index: index,
            problem,
            backends: backends
                .map(|backend| {
                    let row = kernel.backend(index, backend);
                    let share = row.and_then(|row| shares.0.get(&row.id)).copied();
                    let health = row.map(|row| {
                        let forgiven = published.forgiven(row.id, row.generation);
                        backend_health(&row.health, kernel.now, &forgiven)
                    });
                    let (slots, tier_slots) = share.unzip();
                    pb::ServiceBackend {
                        slots,
                        tier_slots,
                        backend_id: row.map(|row| row.id),
                        connects: row.map(|row| row.health.connects),
                        health,
                        ..self.backend(published, service, &tiers, backend, row)
                    }
                })
                .collect(),
        }
    }

    /// What is wanted of it; `row` is what the kernel holds.
    fn backend(
        &self,
        published: &Published,
        service: &ServiceView,
        tiers: &Tiers,
        backend: &BackendView,
        row: Option<&Backend>,
    ) -> pb::ServiceBackend {
        let local = backend.cluster == self.cluster_id;
        let owner = if local {
            Owner::Local
        } else {
            Owner::Peer(backend.cluster)
        };
        let stale = published
            .rows
            .peer(backend.cluster)
            .is_some_and(|peer| peer.stale);
        let changed = published
            .changed
            .get(&(owner, service.name.clone(), backend.address));
        let state = match backend.condition {
            Condition::NotReady => pb::BackendState::NotReady,
            _ if backend.elsewhere => pb::BackendState::Elsewhere,
            _ if stale => pb::BackendState::Stale,
            Condition::Ready => pb::BackendState::Active,
            Condition::ServingTerminating => pb::BackendState::Terminating,
        };
        pb::ServiceBackend {
            address: backend.address.to_string(),
            port: backend.port.into(),
            cluster: self.cluster_name(published, backend.cluster.get()),
            cluster_id: backend.cluster.get().into(),
            local,
            node: backend.node.to_string(),
            zone: backend.zone.to_string(),
            state: state.into(),
            reason: backend.reason.to_string(),
            state_seconds: changed.map(|at| seconds_since(*at)),
            tier: backend.rank.and_then(|rank| tiers.place(rank)),
            tier_name: backend
                .rank
                .map(|rank| rank.name(service.affinity).to_owned())
                .unwrap_or_default(),
            preferred: backend.rank.is_some()
                && backend.rank == tiers.serving
                && (tiers.fallen_open || row.is_none_or(|row| !row.health.is_out())),
            ..pb::ServiceBackend::default()
        }
    }
}

/// Ranks that have a backend, in order: the tiers of the ring.
struct Tiers {
    ranks: Vec<Rank>,
    /// Where connections go: the first tier with a backend that is not ejected.
    serving: Option<Rank>,
    /// There is none: the first tier serves as if none of it were ejected.
    fallen_open: bool,
}

impl Tiers {
    fn of<'a>(
        backends: impl Iterator<Item = &'a BackendView> + Clone,
        is_out: impl Fn(&BackendView) -> bool,
    ) -> Self {
        let ranks = backends.clone().filter_map(|backend| backend.rank);
        let ranks: Vec<Rank> = ranks.collect::<BTreeSet<_>>().into_iter().collect();
        let able = backends
            .filter(|backend| !is_out(backend))
            .filter_map(|backend| backend.rank)
            .min();
        Self {
            serving: able.or(ranks.first().copied()),
            fallen_open: able.is_none(),
            ranks,
        }
    }

    fn place(&self, rank: Rank) -> Option<u32> {
        self.ranks
            .binary_search(&rank)
            .ok()
            .and_then(|place| u32::try_from(place).ok())
    }
}

#[cfg(test)]
mod tests {
    use isthmus_abi::TierHead;

    use super::*;

    #[test]
    fn shares_are_counted_in_the_ring() {
        // Backend 1 twice and 2 once in the first tier, 3 and a slot of another service in the second; 1 stands in both.
        let slot = |backend, service| Slot::new(backend, service).0;
        let words = [
            TierHead::new(4, 3).0,
            slot(1, 7),
            slot(2, 7),
            slot(1, 7),
            slot(3, 7),
            slot(4, 8),
            slot(1, 7),
        ];
        let ring = Ring::new(100, 2, 3);
        let shares = Shares::of(&words, ring, 7).0;
        let wanted = [(1, (2, 3)), (2, (1, 3)), (3, (1, 3))];
        assert_eq!(shares, HashMap::from(wanted));
        // A ring that moved meanwhile.
        assert_eq!(Shares::of(&words[..5], ring, 7).0.len(), 2);
        assert_eq!(Shares::of(&[], Ring::EMPTY, 7).0, HashMap::new());
    }
}
