//! What people and metrics can see of reconciliation.

use std::time::Instant;

use isthmus_abi::Ring;

use super::grace::Retired;
use super::queue::Work;
use super::{ReconcileError, Reconciler};
use crate::desired::{BackendKey, Frontend, PortKey, Rank};
use crate::model::ObjectName;

/// Numbers for gauges and `status`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Rows in use, and the tables' sizes.
    pub services: u32,
    pub services_max: u32,
    pub backends: u32,
    pub backends_max: u32,
    /// Slots in spans that are in use, their slack included.
    pub ring_slots: u32,
    pub ring_slots_max: u32,
    /// Rows of frontends, those of addresses alone included.
    pub frontends4: u32,
    pub frontends6: u32,
    /// Work that is queued or waits for a grace period.
    pub pending: u32,
    /// Work that failed and is to be tried again.
    pub failing: u32,
    /// Things that wait for a grace period to be reused.
    pub retired: u32,
    /// Writes tried since the start, and those of them that failed.
    pub writes: u64,
    pub writes_failed: u64,
}

/// Work that failed, for `status`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The Service, where the work belongs to one.
    pub service: Option<ObjectName>,
    /// Where its clients would connect to, where the work belongs to one of its ports.
    pub frontend: Option<Frontend>,
    pub error: ReconcileError,
    /// The first failure since it last succeeded.
    pub since: Instant,
    pub attempts: u32,
    pub retry_at: Instant,
}

/// Ids that will be given again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LettingGo {
    pub services: Vec<u32>,
    pub backends: Vec<u32>,
}

/// A service port as its rows stand in the maps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceDump {
    pub index: u32,
    /// None for one found in the maps that nobody wants yet.
    pub name: Option<(ObjectName, PortKey)>,
    pub frontends: Vec<Frontend>,
    pub ring: Ring,
    pub backends: Vec<BackendDump>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackendDump {
    pub id: u32,
    pub key: BackendKey,
    pub generation: u32,
    /// Its tier in the ring and slot in the tier; None if no slot names it.
    pub place: Option<(u8, u32)>,
    pub rank: Option<Rank>,
}

impl Reconciler {
    #[must_use]
    pub fn counts(&self) -> Counts {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Counts {
            services: self.indices.taken(),
            services_max: self.indices.capacity(),
            backends: self.backends.ids.taken(),
            backends_max: self.backends.ids.capacity(),
            ring_slots: self.spans.taken(),
            ring_slots_max: self.spans.capacity(),
            frontends4: count(self.frontends.len()).saturating_sub(self.frontends6),
            frontends6: self.frontends6,
            pending: count(self.queues.pending()),
            failing: count(self.queues.failures().count()),
            retired: count(self.grace.waiting()),
            writes: self.writes,
            writes_failed: self.writes_failed,
        }
    }

    /// What [`Self::grace_passed`] will free: the rows can be looked at for the last time.
    #[must_use]
    pub fn letting_go(&self) -> LettingGo {
        let mut going = LettingGo::default();
        for retired in self.grace.letting_go() {
            match retired {
                Retired::Span(_) => {}
                Retired::Backend(id) => going.backends.push(*id),
                Retired::Service {
                    index, backends, ..
                } => {
                    going.services.push(*index);
                    going.backends.extend(backends);
                }
            }
        }
        going
    }

    /// What fails now. A success takes it off the list.
    pub fn faults(&self) -> impl Iterator<Item = Fault> + '_ {
        self.queues.failures().map(|(work, failure)| {
            let (service, frontend) = match work {
                Work::Settle(sid) | Work::Trim(sid) => {
                    let port = self.services.get(*sid);
                    let name = port.and_then(|port| Some(port.name.as_ref()?.0.clone()));
                    let mut frontends = port
                        .into_iter()
                        .flat_map(|port| port.wanted.iter().chain(&port.present));
                    (name, frontends.next().copied())
                }
                Work::Mark(name) => (Some(name.clone()), None),
                Work::Unmark(_) | Work::LetGo(_) => (None, None),
            };
            Fault {
                service,
                frontend,
                error: failure.error.clone(),
                since: failure.since,
                attempts: failure.attempts,
                retry_at: failure.retry_at,
            }
        })
    }

    /// Is everything of this Service as desired? False while work on it is pending or fails.
    #[must_use]
    pub fn is_settled(&self, name: &ObjectName) -> bool {
        self.objects.get(name).is_none_or(|object| {
            object
                .ports
                .iter()
                .filter_map(|&sid| self.services.get(sid))
                .all(|service| {
                    !service.is_going()
                        && service.is_settled()
                        && service.pending == super::Pending::Nothing
                })
        })
    }

    /// The index of a service port in `services`, once it has one.
    #[must_use]
    pub fn service_index(&self, name: &ObjectName, port: &PortKey) -> Option<u32> {
        let services = self
            .objects
            .get(name)?
            .ports
            .iter()
            .filter_map(|&sid| self.services.get(sid));
        services
            .filter(|s| s.name.as_ref().is_some_and(|(_, key)| key == port))
            .filter(|s| !s.is_going())
            .find_map(|service| service.index)
    }

    /// Who a service index belongs to.
    #[must_use]
    pub fn service_name(&self, index: u32) -> Option<&(ObjectName, PortKey)> {
        self.services
            .get(self.services.by_index(index)?)?
            .name
            .as_ref()
    }

    /// The ports of a Service that have an index, each with the first tier of its ring: where its connections go. None for
    /// an empty ring.
    pub fn ports(&self, name: &ObjectName) -> impl Iterator<Item = (u32, &PortKey, Option<Rank>)> {
        let ports = self.objects.get(name).map(|object| object.ports.as_slice());
        ports.unwrap_or_default().iter().filter_map(|&sid| {
            let service = self.services.get(sid)?;
            let first = service.ring.tiers.first().map(|tier| tier.rank);
            Some((service.index?, &service.name.as_ref()?.1, first))
        })
    }

    /// Every service port that has an index, as we know it to stand in the maps.
    pub fn dump(&self) -> impl Iterator<Item = ServiceDump> + '_ {
        self.services.iter().filter_map(|(sid, service)| {
            let backends =
                self.members
                    .range(Self::member_range(sid))
                    .filter_map(|((_, key), member)| {
                        let id = member.id?;
                        Some(BackendDump {
                            id,
                            key: *key,
                            generation: self.backends.row(id).generation,
                            place: member.place.map(|place| (place.tier, place.slot)),
                            rank: member.wanted,
                        })
                    });
            Some(ServiceDump {
                index: service.index?,
                name: service.name.clone(),
                frontends: service.present.clone(),
                ring: service.ring.word(),
                backends: backends.collect(),
            })
        })
    }
}
