use isthmus_abi::{BackendFailuresRow, BackendRow, EventRow, ServiceHealthRow, backend_state};
use isthmus_core::model::Address;
use isthmus_core::table::TableBackend;

use crate::datapath::{Datapath, DatapathError, MappedArray};
use crate::events::Backend;

/// Rows that programs and reconciliation write, to be looked at here.
#[derive(Debug)]
pub(super) struct KernelRows {
    pub(super) service_health: MappedArray<ServiceHealthRow>,
    backends: MappedArray<BackendRow>,
    pub(super) failures: MappedArray<BackendFailuresRow>,
}

impl KernelRows {
    pub(super) fn new(datapath: &Datapath) -> Result<Self, DatapathError> {
        Ok(Self {
            service_health: datapath.array()?,
            backends: datapath.array()?,
            failures: datapath.array()?,
        })
    }

    /// The backend that a program spoke of, unless its id has another life by now.
    pub(super) fn backend(&self, row: &EventRow) -> Option<Backend> {
        let known = (row.backend < self.backends.capacity())
            .then(|| self.backends.get(row.backend))
            .filter(|known| {
                known.state != backend_state::FREE
                    && known.generation == row.generation
                    && known.service == row.service
            })?;
        Some(Backend {
            id: row.backend,
            cluster: known.cluster.try_into().ok()?,
            address: Address::from_words(known.address),
            port: known.net_port().to_host(),
        })
    }
}
