//! Every frontend with the backends behind it.

use std::collections::HashMap;

use isthmus_core::desired::{self, BackendView, FrontendView, Rank, ServiceView};
use isthmus_core::model::{Condition, ObjectName};
use isthmus_core::store::Owner;
use isthmus_proto::node::v1 as pb;

use super::health::{HealthRows, backend_health};
use super::lb::{Backend, Backends, ServiceIndices, backends_by_name, service_indices};
use super::{View, seconds_since};
use crate::api::ViewError;
use crate::engine::Published;

/// What the kernel's maps say, for all services at once.
struct Kernel {
    services: ServiceIndices,
    backends: Backends,
    /// In ticks of health's rows.
    now: u64,
}

impl Kernel {
    fn backend(&self, index: Option<u32>, backend: &BackendView) -> Option<&Backend> {
        self.backends.get(&(index?, backend.address, backend.port))
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
                .map(|backend| self.backend(published, kernel, service, &tiers, index, backend))
                .collect(),
        }
    }

    fn backend(
        &self,
        published: &Published,
        kernel: &Kernel,
        service: &ServiceView,
        tiers: &Tiers,
        index: Option<u32>,
        backend: &BackendView,
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
        let row = kernel.backend(index, backend);
        let health = row.map(|row| {
            let heard = published.heard_of(row.id, row.generation);
            backend_health(&row.health, kernel.now, heard)
        });
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
            slots: backend.rank.map(|_| 1),
            tier_slots: backend.rank.map(|rank| tiers.size(rank)),
            backend_id: row.map(|row| row.id),
            connects: row.map(|row| row.health.connects),
            health,
        }
    }
}

/// Ranks that have a backend, in order: the tiers of the ring.
struct Tiers {
    ranks: Vec<Rank>,
    sizes: HashMap<Rank, u32>,
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
        let mut sizes = HashMap::new();
        for rank in backends.clone().filter_map(|backend| backend.rank) {
            *sizes.entry(rank).or_default() += 1;
        }
        let mut ranks: Vec<Rank> = sizes.keys().copied().collect();
        ranks.sort_unstable();
        let able = backends
            .filter(|backend| !is_out(backend))
            .filter_map(|backend| backend.rank)
            .min();
        Self {
            serving: able.or(ranks.first().copied()),
            fallen_open: able.is_none(),
            ranks,
            sizes,
        }
    }

    fn place(&self, rank: Rank) -> Option<u32> {
        self.ranks
            .binary_search(&rank)
            .ok()
            .and_then(|place| u32::try_from(place).ok())
    }

    fn size(&self, rank: Rank) -> u32 {
        self.sizes.get(&rank).copied().unwrap_or_default()
    }
}
