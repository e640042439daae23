//! How far programs may go with a service: what they may eject, and for how long clients keep their backend.

use isthmus_abi::{ServiceLimitsRow, service_flags};

use super::{Reconciler, Sid};
use crate::model::ServiceRules;
use crate::table::TableError;

/// What a service's row of limits should say, and says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Limits {
    pub(super) rules: ServiceRules,
    written: Option<ServiceLimitsRow>,
}

impl Limits {
    /// As an earlier agent wrote them.
    pub(super) fn found(row: ServiceLimitsRow) -> Self {
        Self {
            rules: ServiceRules {
                affinity_seconds: row.affinity_seconds,
                no_passive_health: row.flags & service_flags::NO_PASSIVE_HEALTH != 0,
            },
            written: Some(row),
        }
    }
}

impl Reconciler {
    /// Ejections are allowed for as many backends as the service has, beyond those that were: each can be ejected once
    /// with no agent at all. `ejected` are those of the service so far.
    fn limits_row(&self, sid: Sid, ejected: u64) -> Option<ServiceLimitsRow> {
        let service = self.services.get(sid)?;
        let rules = service.limits.rules;
        Some(ServiceLimitsRow {
            allowed_total: ejected + u64::from(service.members),
            affinity_seconds: rules.affinity_seconds,
            flags: if rules.no_passive_health {
                service_flags::NO_PASSIVE_HEALTH
            } else {
                0
            },
        })
    }

    pub(super) fn write_limits(&mut self, sid: Sid, index: u32) -> Result<(), TableError> {
        let before = self
            .services
            .get(sid)
            .and_then(|service| service.limits.written);
        // With more ejections than we know of, `allow_ejections` follows.
        let known = before.map_or(0, |row| row.allowed_total);
        let Some(mut row) = self.limits_row(sid, 0) else {
            return Ok(());
        };
        row.allowed_total = row.allowed_total.max(known);
        if before == Some(row) {
            return Ok(());
        }
        self.put_limits(index, row)?;
        if let Some(service) = self.services.get_mut(sid) {
            service.limits.written = Some(row);
        }
        Ok(())
    }

    /// Keeps the limits ahead of what was ejected. `ejected` tells it of a service by its index in the maps. Call it when
    /// something was ejected, and from time to time.
    pub fn allow_ejections(&mut self, ejected: impl Fn(u32) -> u64) {
        let behind: Vec<_> = self
            .services
            .iter()
            .filter_map(|(sid, service)| {
                let index = service.index?;
                let row = self.limits_row(sid, ejected(index))?;
                (service.limits.written != Some(row)).then_some((sid, index, row))
            })
            .collect();
        for (sid, index, row) in behind {
            // What failed is behind at the next call too.
            if self.put_limits(index, row).is_ok()
                && let Some(service) = self.services.get_mut(sid)
            {
                service.limits.written = Some(row);
            }
        }
    }
}
