//! The load balancer's maps as the kernel holds them.

use std::collections::{BTreeSet, HashMap};

use isthmus_abi::{
    BackendFailuresRow, BackendRow, Counter, Frontend4Key, Frontend6Key, FrontendValue, Ring,
    ScopeProtocol, ServiceHealthRow, ServiceLimitsRow, Slot, TierHead, backend_state,
};
use isthmus_core::model::{Address, Protocol};
use isthmus_core::table::TableBackend;
use isthmus_proto::node::v1 as pb;

use super::View;
use super::health::{HealthRow, HealthRows, failure_counts, run, standing};
use crate::api::ViewError;
use crate::datapath::{Datapath, DatapathError, MappedArray, clock};

/// A backend's row, by what names it.
pub(super) type Backends = HashMap<(u32, Address, u16), Backend>;

/// A backend as the kernel has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backend {
    pub(super) id: u32,
    pub(super) generation: u32,
    pub(super) health: HealthRow,
}

/// A frontend, by address, port and protocol number.
pub(super) type ServiceIndices = HashMap<(Address, u16, u16), u32>;

impl View {
    pub(super) fn dump_lb(&self) -> Result<pb::DumpLbResponse, ViewError> {
        self.with_datapath(|datapath| {
            let health = HealthRows::open(datapath)?;
            let frontends = frontends(datapath)?;
            let rings = rings(datapath)?;
            Ok(pb::DumpLbResponse {
                node: Some(self.node_info()),
                services: services(datapath, &frontends, &rings)?,
                frontends,
                rings,
                backends: backends(datapath, &health)?,
                counters: counters(datapath)?,
                now_ticks: health.now(),
            })
        })
    }
}

/// What is held of services that a frontend or a ring names.
fn services(
    datapath: &Datapath,
    frontends: &[pb::LbFrontend],
    rings: &[pb::LbRing],
) -> Result<Vec<pb::LbService>, DatapathError> {
    let health = datapath.array::<ServiceHealthRow>()?;
    let limits = datapath.array::<ServiceLimitsRow>()?;
    let now = clock();
    // The row of an address alone names no service.
    let named = frontends.iter().map(|row| row.service);
    let named: BTreeSet<u32> = named
        .chain(rings.iter().map(|row| row.service))
        .filter(|service| *service < health.capacity())
        .collect();
    let row = |service| {
        let (health, limits) = (health.get(service), limits.get(service));
        pb::LbService {
            service,
            standing: standing(health.standing, now),
            refused: health.refused,
            all_ejected: health.all_ejected,
            ejected_total: health.ejected_total,
            allowed_total: limits.allowed_total,
            affinity_seconds: limits.affinity_seconds,
            flags: limits.flags,
        }
    };
    Ok(named.into_iter().map(row).collect())
}

/// Shows every frontend: address, host port, protocol number, scope, service.
fn each_frontend(
    datapath: &Datapath,
    visit: &mut dyn FnMut(Address, u16, ScopeProtocol, u32),
) -> Result<(), DatapathError> {
    let four = datapath.hash::<Frontend4Key, FrontendValue>("frontends4", "")?;
    four.for_each(&mut |key, value| {
        let address = Address::from_words([0, 0, 0xffff_u32.to_be(), key.address]);
        visit(
            address,
            key.port.to_host(),
            key.scope_protocol,
            value.service,
        );
    })?;
    let six = datapath.hash::<Frontend6Key, FrontendValue>("frontends6", "")?;
    six.for_each(&mut |key, value| {
        let address = Address::from_words(key.address);
        visit(
            address,
            key.port.to_host(),
            key.scope_protocol,
            value.service,
        );
    })?;
    Ok(())
}

fn protocol_name(number: u16) -> String {
    Protocol::from_abi(number).map_or_else(|| "any".to_owned(), |protocol| protocol.to_string())
}

fn frontends(datapath: &Datapath) -> Result<Vec<pb::LbFrontend>, DatapathError> {
    let mut rows = Vec::new();
    each_frontend(datapath, &mut |address, port, scope_protocol, service| {
        let row = pb::LbFrontend {
            address: address.to_string(),
            port: port.into(),
            protocol: protocol_name(scope_protocol.protocol()),
            scope: scope_protocol.scope().into(),
            service,
        };
        rows.push((address, row));
    })?;
    rows.sort_by(|(a, left), (b, right)| {
        (a, left.port, &left.protocol).cmp(&(b, right.port, &right.protocol))
    });
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

fn rings(datapath: &Datapath) -> Result<Vec<pb::LbRing>, DatapathError> {
    let slots = datapath.array::<Slot>()?;
    let mut rows = Vec::new();
    datapath.array::<Ring>()?.for_each(&mut |service, ring| {
        rows.push(pb::LbRing {
            service,
            word: ring.0,
            slots: span(&slots, ring),
        });
    })?;
    Ok(rows)
}

/// The words of a ring's span: heads, then every tier's slots. A ring that moved meanwhile gives what is there now.
pub(super) fn span(slots: &MappedArray<Slot>, ring: Ring) -> Vec<u64> {
    let heads = u32::from(ring.tiers()).saturating_sub(1);
    let first_end = heads.saturating_add(ring.len());
    let word = |offset: u32| {
        let index = ring
            .span()
            .checked_add(offset)
            .filter(|index| *index < slots.capacity())?;
        Some(slots.get(index).0)
    };
    let end = (0..heads)
        .filter_map(word)
        .map(|head| TierHead(head).offset().saturating_add(TierHead(head).len()))
        .fold(first_end, u32::max)
        .min(slots.capacity());
    (0..end).map_while(word).collect()
}

/// Every tier's slots in the words of a span; of a ring that moved meanwhile, those that are there.
pub(super) fn tiers(words: &[u64], ring: Ring) -> impl Iterator<Item = &[u64]> {
    let heads = usize::from(ring.tiers()).saturating_sub(1);
    let first = (heads, ring.len() as usize);
    let others = words.iter().take(heads).map(|head| {
        let head = TierHead(*head);
        (head.offset() as usize, head.len() as usize)
    });
    std::iter::once(first)
        .chain(others)
        .map(|(offset, len)| words.get(offset..offset + len).unwrap_or_default())
}

fn backends(datapath: &Datapath, health: &HealthRows) -> Result<Vec<pb::LbBackend>, DatapathError> {
    let mut rows = Vec::new();
    each_backend(datapath, &mut |id, row| {
        let health_row = health.get(id);
        let (score, accusers) = run(&health_row);
        rows.push(pb::LbBackend {
            id,
            address: Address::from_words(row.address).to_string(),
            port: row.net_port().to_host().into(),
            protocol: protocol_name(row.protocol.into()),
            cluster: row.cluster.into(),
            service: row.service,
            generation: row.generation,
            connects: health_row.connects,
            health_word: health_row.state.0,
            failures: Some(failure_counts(
                &health_row.failures,
                &BackendFailuresRow::default(),
            )),
            score,
            accusers,
            closed: health_row.closed,
        });
    })?;
    Ok(rows)
}

pub(crate) fn each_backend(
    datapath: &Datapath,
    visit: &mut dyn FnMut(u32, BackendRow),
) -> Result<(), DatapathError> {
    datapath.array::<BackendRow>()?.for_each(&mut |id, row| {
        if row.state != backend_state::FREE {
            visit(id, row);
        }
    })?;
    Ok(())
}

fn counters(datapath: &Datapath) -> Result<Vec<pb::LbCounter>, DatapathError> {
    let values = datapath.counters()?;
    Ok(Counter::ALL
        .into_iter()
        .zip(values)
        .map(|(counter, value)| pb::LbCounter {
            number: counter as u32,
            name: counter.name().to_owned(),
            value,
        })
        .collect())
}

/// Services' indices by frontend, as the kernel has them.
pub(super) fn service_indices(datapath: &Datapath) -> Result<ServiceIndices, DatapathError> {
    let mut indices = HashMap::new();
    each_frontend(datapath, &mut |address, port, scope_protocol, service| {
        if scope_protocol.scope() == 0 && scope_protocol.protocol() != ScopeProtocol::ADDRESS_ONLY {
            indices.insert((address, port, scope_protocol.protocol()), service);
        }
    })?;
    Ok(indices)
}

/// Backends as the kernel has them.
pub(super) fn backends_by_name(
    datapath: &Datapath,
    health: &HealthRows,
) -> Result<Backends, DatapathError> {
    let mut backends = HashMap::new();
    each_backend(datapath, &mut |id, row| {
        let key = (
            row.service,
            Address::from_words(row.address),
            row.net_port().to_host(),
        );
        let backend = Backend {
            id,
            generation: row.generation,
            health: health.get(id),
        };
        backends.insert(key, backend);
    })?;
    Ok(backends)
}
