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
                // Which backends there are is not the limits' affair.
                node_only: false,
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

    /// Writes the limits of a service that has none yet, or other rules than written. That it grows or shrinks is for
    /// [`Self::allow_ejections`].
    pub(super) fn write_limits(&mut self, sid: Sid, index: u32) -> Result<(), TableError> {
        let Some(service) = self.services.get(sid) else {
            return Ok(());
        };
        let before = service.limits.written;
        let Some(mut row) = self.limits_row(sid, 0) else {
            return Ok(());
        };
        let rules = |row: ServiceLimitsRow| (row.affinity_seconds, row.flags);
        if before.is_some_and(|before| rules(before) == rules(row)) {
            return Ok(());
        }
        // More may have been ejected than we know of.
        row.allowed_total = before.map_or(row.allowed_total, |before| before.allowed_total);
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
