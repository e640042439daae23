//! Every write goes through here, and is counted.

use isthmus_abi::{
    BackendFailuresRow, BackendHealthRow, BackendRow, Frontend4Key, Frontend6Key, FrontendValue,
    NetPort, Ring, ScopeProtocol, ServiceHealthRow, ServiceLimitsRow, Slot,
};

use super::Reconciler;
use crate::desired::Frontend;
use crate::model::{Address, Protocol};
use crate::table::TableError;

/// The flags that size the tables, for errors of our own allocators.
pub(super) const SERVICES_FLAG: &str = "--lb-services-max";
pub(super) const BACKENDS_FLAG: &str = "--lb-backends-max";
pub(super) const SLOTS_FLAG: &str = "--lb-ring-slots-max";

pub(super) enum FrontendKey {
    V4(Frontend4Key),
    V6(Frontend6Key),
}

impl FrontendKey {
    pub(super) fn of(frontend: Frontend) -> Self {
        let protocol = frontend
            .protocol
            .map_or(ScopeProtocol::ADDRESS_ONLY, Protocol::abi);
        let scope_protocol = ScopeProtocol::new(0, protocol);
        let port = NetPort::from_host(frontend.port);
        match frontend.address.v4() {
            Some(v4) => Self::V4(Frontend4Key {
                address: u32::from_ne_bytes(v4.octets()),
                port,
                scope_protocol,
            }),
            None => Self::V6(Frontend6Key {
                address: frontend.address.words(),
                port,
                scope_protocol,
            }),
        }
    }
}

/// The frontend that a key stands for; None if it is none of ours (another cluster's scope, an unknown protocol).
pub(super) fn frontend_of(
    address: Address,
    port: NetPort,
    scope_protocol: ScopeProtocol,
) -> Option<Frontend> {
    let port = port.to_host();
    match (scope_protocol.scope(), scope_protocol.protocol()) {
        (0, ScopeProtocol::ADDRESS_ONLY) if port == 0 => Some(Frontend::address_only(address)),
        (0, protocol) => Some(Frontend {
            address,
            port,
            protocol: Some(Protocol::from_abi(protocol)?),
        }),
        _ => None,
    }
}

impl Reconciler {
    fn tried(&mut self, result: Result<(), TableError>) -> Result<(), TableError> {
        self.writes += 1;
        if result.is_err() {
            self.writes_failed += 1;
        }
        result
    }

    pub(super) fn put_frontend(
        &mut self,
        frontend: Frontend,
        service: u32,
    ) -> Result<(), TableError> {
        let value = FrontendValue {
            service,
            reserved: 0,
        };
        let result = match FrontendKey::of(frontend) {
            FrontendKey::V4(key) => self.tables.frontends4.put(key, value),
            FrontendKey::V6(key) => self.tables.frontends6.put(key, value),
        };
        self.tried(result)?;
        if self.frontends.insert(frontend, service).is_none() {
            self.frontends6 += u32::from(!frontend.address.is_v4());
        }
        Ok(())
    }

    pub(super) fn remove_frontend(&mut self, frontend: Frontend) -> Result<(), TableError> {
        let result = match FrontendKey::of(frontend) {
            FrontendKey::V4(key) => self.tables.frontends4.remove(key),
            FrontendKey::V6(key) => self.tables.frontends6.remove(key),
        };
        self.tried(result)?;
        if self.frontends.remove(&frontend).is_some() {
            self.frontends6 -= u32::from(!frontend.address.is_v4());
        }
        self.kept.remove(&frontend);
        self.grace.frontend_deleted();
        Ok(())
    }

    pub(super) fn put_ring(&mut self, index: u32, ring: Ring) -> Result<(), TableError> {
        let result = self.tables.rings.put(index, ring);
        self.tried(result)
    }

    pub(super) fn put_slot(&mut self, at: u32, slot: Slot) -> Result<(), TableError> {
        let result = self.tables.slots.put(at, slot);
        self.tried(result)
    }

    pub(super) fn put_backend(&mut self, id: u32, row: BackendRow) -> Result<(), TableError> {
        let result = self.tables.backends.put(id, row);
        self.tried(result)?;
        self.backends.set_row(id, row);
        Ok(())
    }

    /// What programs counted and learned of an earlier life of this id.
    pub(super) fn forget_backend(&mut self, id: u32) -> Result<(), TableError> {
        let result = self
            .tables
            .backend_health
            .put(id, BackendHealthRow::default());
        self.tried(result)?;
        let result = self
            .tables
            .backend_failures
            .put(id, BackendFailuresRow::default());
        self.tried(result)
    }

    /// What programs counted and learned of an earlier life of this index.
    pub(super) fn forget_service(&mut self, index: u32) -> Result<(), TableError> {
        let result = self
            .tables
            .service_health
            .put(index, ServiceHealthRow::default());
        self.tried(result)
    }

    pub(super) fn put_limits(
        &mut self,
        index: u32,
        limits: ServiceLimitsRow,
    ) -> Result<(), TableError> {
        let result = self.tables.service_limits.put(index, limits);
        self.tried(result)
    }
}
