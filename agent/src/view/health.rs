//! What programs hold of backends and services, out of the maps.

use isthmus_abi::{
    BackendFailuresRow, BackendHealthRow, Counter, EPOCH_SHIFT, HealthState, MARKS,
    ServiceHealthRow, Standing, TICK_SHIFT, health_kind,
};
use isthmus_core::model::Address;
use isthmus_proto::node::v1 as pb;

use super::View;
use super::lb::each_backend;
use crate::datapath::{Datapath, DatapathError, MappedArray, clock};
use crate::engine::Published;

/// Backends that `status` names.
const LISTED_MAX: usize = 32;

/// Rows by backend id, at one moment.
#[derive(Debug)]
pub(crate) struct HealthRows {
    health: MappedArray<BackendHealthRow>,
    failures: MappedArray<BackendFailuresRow>,
    nanoseconds: u64,
}

/// A backend's rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct HealthRow {
    pub(crate) connects: u64,
    pub(crate) state: HealthState,
    pub(crate) closed: u32,
    pub(crate) failures: BackendFailuresRow,
}

impl HealthRow {
    /// Out of draws, but for a trial.
    pub(crate) fn is_out(&self) -> bool {
        matches!(self.state.kind(), health_kind::EJECTED | health_kind::TRIAL)
    }
}

impl HealthRows {
    pub(crate) fn open(datapath: &Datapath) -> Result<Self, DatapathError> {
        Ok(Self {
            health: datapath.array()?,
            failures: datapath.array()?,
            nanoseconds: clock(),
        })
    }

    pub(crate) fn get(&self, id: u32) -> HealthRow {
        let health = self.health.get(id);
        HealthRow {
            connects: health.connects,
            state: HealthState(health.state),
            closed: closed(&health, self.now()),
            failures: self.failures.get(id),
        }
    }

    /// Now, in the rows' ticks.
    pub(crate) fn now(&self) -> u64 {
        self.nanoseconds >> TICK_SHIFT
    }
}

/// Clients that stand in this epoch or in the last, by a row's two words.
pub(super) fn standing(words: [u64; 2], nanoseconds: u64) -> u32 {
    let epoch = nanoseconds >> EPOCH_SHIFT;
    let of = |epoch: u64| Standing(words[usize::from(epoch & 1 == 1)]).of(epoch);
    (of(epoch) | of(epoch.wrapping_sub(1))).count_ones()
}

/// Seconds from one tick to a later one.
fn apart(from: u64, to: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "48 bits of ticks fit")]
    let ticks = to.saturating_sub(from) as f64;
    ticks * f64::from(1_u32 << TICK_SHIFT) / 1e9
}

/// How a backend stands at `now`, in ticks. `forgiven` is what had failed there when it last returned.
pub(super) fn backend_health(
    row: &HealthRow,
    now: u64,
    forgiven: &BackendFailuresRow,
) -> pb::BackendHealth {
    let kind = match row.state.kind() {
        health_kind::HEALTHY => pb::HealthKind::Healthy,
        health_kind::SUSPECT => pb::HealthKind::Suspect,
        health_kind::EJECTED => pb::HealthKind::Ejected,
        _ => pb::HealthKind::Trial,
    };
    let time = row.state.time();
    let since = match kind {
        pb::HealthKind::Suspect => Some(time),
        _ if row.is_out() => row.failures.out_since(),
        _ => None,
    };
    pb::BackendHealth {
        kind: kind.into(),
        since_seconds: since.map(|since| apart(since, now)),
        until_seconds: row.is_out().then(|| apart(now, time)),
        doublings: if row.is_out() {
            row.state.doublings()
        } else {
            0
        },
        failures: Some(failure_counts(&row.failures, forgiven)),
        closed_clients: row.closed,
    }
}

pub(super) fn failure_counts(
    failures: &BackendFailuresRow,
    forgiven: &BackendFailuresRow,
) -> pb::FailureCounts {
    pb::FailureCounts {
        refused: failures.refused.saturating_sub(forgiven.refused),
        unreachable: failures.unreachable.saturating_sub(forgiven.unreachable),
        timed_out: failures.timed_out.saturating_sub(forgiven.timed_out),
        unanswered: failures.unanswered.saturating_sub(forgiven.unanswered),
    }
}

/// Score and number of accusers of what counts against a backend: none while it is out.
pub(super) fn run(row: &HealthRow) -> (u32, u32) {
    if row.is_out() {
        return (0, 0);
    }
    let word = row.failures.run;
    let score = u32::try_from(word >> MARKS.count_ones()).expect("the top byte");
    (score, (word & MARKS).count_ones())
}

/// Clients to which a backend is closed at `now`, in ticks.
fn closed(health: &BackendHealthRow, now: u64) -> u32 {
    if now < health.closed_until {
        (health.closed & MARKS).count_ones()
    } else {
        0
    }
}

impl Published {
    /// What had failed at a backend, in this life of its id, when it last returned.
    pub(super) fn forgiven(&self, id: u32, generation: u32) -> BackendFailuresRow {
        let known = self.forgiven.get(&id);
        let known = known.filter(|known| known.generation == generation);
        known.map(|known| known.failures).unwrap_or_default()
    }
}

impl View {
    /// What programs hold of all backends.
    pub(super) fn health(
        &self,
        datapath: &Datapath,
        published: &Published,
    ) -> Result<pb::Health, DatapathError> {
        let rows = HealthRows::open(datapath)?;
        let mut health = pb::Health {
            passive: self.passive_health,
            ..pb::Health::default()
        };
        let mut out = Vec::new();
        each_backend(datapath, &mut |id, backend| {
            let row = rows.get(id);
            match row.state.kind() {
                health_kind::SUSPECT => health.suspect += 1,
                health_kind::EJECTED => health.ejected += 1,
                health_kind::TRIAL => health.on_trial += 1,
                _ => {}
            }
            if row.is_out() {
                let forgiven = published.forgiven(id, backend.generation);
                let port = published.ports.get(&backend.service);
                out.push(pb::EjectedBackend {
                    service: port.map_or_else(String::new, |port| port.service.to_string()),
                    address: Address::from_words(backend.address).to_string(),
                    port: backend.net_port().to_host().into(),
                    cluster: self.cluster_name(published, backend.cluster),
                    health: Some(backend_health(&row, rows.now(), &forgiven)),
                });
            }
        })?;
        let services = datapath.array::<ServiceHealthRow>()?;
        for service in published.ports.keys() {
            let row = services.get(*service);
            health.ejections += row.ejected_total;
            health.refused += row.refused;
            health.all_ejected += row.all_ejected;
        }
        let counters = datapath.counters()?;
        let counter = |counter: Counter| counters.get(counter as usize).copied().unwrap_or(0);
        health.capped = counter(Counter::EjectionCapped);
        health.not_counted = counter(Counter::FailureNotCounted);
        out.sort_by(|a, b| (&a.service, &a.address, a.port).cmp(&(&b.service, &b.address, b.port)));
        health.not_listed = out.len().saturating_sub(LISTED_MAX) as u64;
        out.truncate(LISTED_MAX);
        health.backends = out;
        Ok(health)
    }
}

#[cfg(test)]
mod tests {
    use isthmus_abi::ticks;

    use super::*;

    fn row(state: HealthState) -> HealthRow {
        HealthRow {
            state,
            failures: BackendFailuresRow {
                refused: 5,
                ..BackendFailuresRow::default()
            },
            ..HealthRow::default()
        }
    }

    #[test]
    fn a_state_has_its_age_and_its_end() {
        let now = ticks(60_000);
        let none = BackendFailuresRow::default();
        let forgiven = BackendFailuresRow { refused: 2, ..none };
        let mut ejected = row(HealthState::ejected(now + ticks(3_000), 1));
        ejected.failures.run = now - ticks(2_000);
        let told = backend_health(&ejected, now, &forgiven);
        assert_eq!(told.kind(), pb::HealthKind::Ejected);
        assert_eq!(told.failures.map(|f| f.refused), Some(3));
        assert!(
            told.since_seconds
                .is_some_and(|age| (age - 2.0).abs() < 0.001)
        );
        assert_eq!(run(&ejected), (0, 0), "an age is no score");
        assert!(
            told.until_seconds
                .is_some_and(|left| (left - 3.0).abs() < 0.001)
        );
        assert_eq!(told.doublings, 1);
        assert_eq!(told.closed_clients, 0);
        // Another CPU's failure of just then was added to it.
        ejected.failures.run += 5 << MARKS.count_ones();
        ejected.closed = 2;
        let told = backend_health(&ejected, now, &none);
        assert_eq!(told.since_seconds, None);
        assert_eq!(told.failures.map(|f| f.refused), Some(5));
        assert_eq!(told.closed_clients, 2);

        let due = row(HealthState::ejected(now - 1, 0));
        assert_eq!(backend_health(&due, now, &none).until_seconds, Some(0.0));
        let suspect = row(HealthState::suspect(now - ticks(400)));
        let told = backend_health(&suspect, now, &none);
        assert!(
            told.since_seconds
                .is_some_and(|age| (age - 0.4).abs() < 0.001)
        );
        assert_eq!(told.until_seconds, None);
        let healthy = backend_health(&row(HealthState::HEALTHY), now, &none);
        assert_eq!((healthy.since_seconds, healthy.until_seconds), (None, None));
    }

    #[test]
    fn clients_stand_for_two_epochs() {
        let nanoseconds = |epoch: u64| epoch << EPOCH_SHIFT;
        let words = [Standing::new(8, 0b011).0, Standing::new(7, 0b110).0];
        assert_eq!(standing(words, nanoseconds(8)), 3);
        assert_eq!(standing(words, nanoseconds(9)), 2);
        assert_eq!(standing(words, nanoseconds(10)), 0);
    }
}
