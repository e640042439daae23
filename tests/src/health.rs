//! What the kernel holds of a service and its backends, read from its maps: no agent is asked, so none need live.

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context, Result};
use isthmus_abi::{
    BackendHealthRow, EPOCH_SHIFT, EndpointRow, HealthState, ServiceHealthRow, ServiceRow,
    Standing, health_kind,
};
use isthmus_test_programs::map_by_id;

use crate::client::monotonic;
use crate::kernel::map_row;
use crate::lab::Node;
use crate::view::Frontend;

/// Where the rows of one frontend's service are, as long as no backend comes or goes. When another version of the maps has
/// taken over, they can still be read.
#[derive(Clone, Debug)]
pub struct KernelHealth {
    rows: u32,
    failures: u32,
    services: u32,
    service: u32,
    /// Backend ids.
    backends: BTreeMap<SocketAddr, u32>,
    _held: Arc<[OwnedFd; 3]>,
}

/// A backend's rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackendCounts {
    pub connects: u64,
    pub state: HealthState,
    pub refused: u64,
    pub unreachable: u64,
    pub timed_out: u64,
    pub unanswered: u64,
}

/// A service's row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServiceCounts {
    /// Connects that we refused.
    pub refused: u64,
    pub all_ejected: u64,
    pub ejections: u64,
    /// By the epoch's lowest bit.
    pub standing: [Standing; 2],
}

impl ServiceCounts {
    /// Of a row that nothing was counted in.
    pub const NONE: Self = Self {
        refused: 0,
        all_ejected: 0,
        ejections: 0,
        standing: [Standing(0); 2],
    };
    /// Whether the client of this mark stands at the service now: its failures count.
    #[must_use]
    pub fn stands(&self, mark: u32) -> bool {
        let epoch = monotonic() >> EPOCH_SHIFT;
        let of = |epoch: u64| self.standing[usize::from(epoch & 1 == 1)].of(epoch);
        (of(epoch) | of(epoch.wrapping_sub(1))) & 1 << mark != 0
    }
}

impl BackendCounts {
    /// Of a row that nothing was counted in.
    pub const NONE: Self = Self {
        connects: 0,
        state: HealthState(0),
        refused: 0,
        unreachable: 0,
        timed_out: 0,
        unanswered: 0,
    };
    /// Left out of draws, but for a trial.
    #[must_use]
    pub fn is_out(&self) -> bool {
        matches!(self.state.kind(), health_kind::EJECTED | health_kind::TRIAL)
    }
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.refused + self.unreachable + self.timed_out
    }
}

impl BackendCounts {
    /// What was counted after `before`. The state is that of now.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            connects: self.connects - before.connects,
            state: self.state,
            refused: self.refused - before.refused,
            unreachable: self.unreachable - before.unreachable,
            timed_out: self.timed_out - before.timed_out,
            unanswered: self.unanswered - before.unanswered,
        }
    }
}

impl Node<'_> {
    /// Where the rows of a frontend's service are now.
    pub fn health_of(&self, frontend: &Frontend) -> Result<KernelHealth> {
        let service = frontend
            .service_index
            .with_context(|| format!("{} is not in the kernel", frontend.service))?;
        let place =
            |b: &crate::view::Backend| Some((SocketAddr::new(b.address, b.port), b.backend_id?));
        let [rows, failures, services] = [
            self.map_id("backends")?,
            self.map_id("backend_failures")?,
            self.map_id("services")?,
        ];
        let held = [map_by_id(rows)?, map_by_id(failures)?, map_by_id(services)?];
        Ok(KernelHealth {
            rows,
            failures,
            services,
            service,
            _held: Arc::new(held),
            backends: frontend.backends.iter().filter_map(place).collect(),
        })
    }
}

impl KernelHealth {
    pub fn backend(&self, address: SocketAddr) -> Result<BackendCounts> {
        let id = self.backends.get(&address);
        let id = id.with_context(|| format!("the kernel had no backend {address}"))?;
        let [connects, state] = words(self.rows, *id, offset_of!(EndpointRow, health))?;
        let [refused, unreachable, timed_out, unanswered] = words(self.failures, *id, 0)?;
        Ok(BackendCounts {
            connects,
            state: HealthState(state),
            refused,
            unreachable,
            timed_out,
            unanswered,
        })
    }
    pub fn backends(&self) -> Result<BTreeMap<SocketAddr, BackendCounts>> {
        let all = self.backends.keys();
        all.map(|address| Ok((*address, self.backend(*address)?)))
            .collect()
    }
    pub fn service(&self) -> Result<ServiceCounts> {
        const _: () = assert!(offset_of!(ServiceHealthRow, standing) == 0);
        let [even, odd, refused, all_ejected, ejections] =
            words(self.services, self.service, offset_of!(ServiceRow, health))?;
        Ok(ServiceCounts {
            standing: [Standing(even), Standing(odd)],
            refused,
            all_ejected,
            ejections,
        })
    }
}

/// Words of an array's row, from so many bytes on.
fn words<const N: usize>(map: u32, index: u32, from: usize) -> Result<[u64; N]> {
    let row = map_row(map, &index.to_ne_bytes())?;
    let (words, _) = row.as_chunks::<8>();
    let words: Vec<u64> = words.iter().map(|word| u64::from_ne_bytes(*word)).collect();
    words
        .get(from / 8..)
        .and_then(|words| words.first_chunk().copied())
        .with_context(|| format!("map {map} has rows of {} bytes", row.len()))
}

/// The connects in a backend's row.
pub(crate) fn connects_of(map: u32, backend: u32) -> Result<u64> {
    const _: () = assert!(offset_of!(BackendHealthRow, connects) == 0);
    words(map, backend, offset_of!(EndpointRow, health)).map(|[connects]| connects)
}
