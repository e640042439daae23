//! This node: what feeds it, what it has in the kernel, what stands between the two.

use std::time::Instant;

use isthmus_core::model::{Problem, ProblemKind};
use isthmus_core::reconcile::{Fault, ReconcileError};
use isthmus_core::table::TableError;
use isthmus_proto::node::v1 as pb;

use super::{View, seconds_since};
use crate::api::ViewError;
use crate::datapath::{Datapath, Hook, MapUse, Proof};
use crate::engine::{NoGrace, Published};

impl View {
    pub(super) fn status(&self) -> Result<pb::GetStatusResponse, ViewError> {
        let published = self.published();
        self.with_datapath(|datapath| {
            Ok(pb::GetStatusResponse {
                node: Some(self.node_info()),
                not_ready_because: self.readiness.causes(),
                sources: vec![self.source()],
                programs: programs(datapath, &published),
                maps: datapath
                    .map_uses()
                    .iter()
                    .map(|map| usage(map, &published))
                    .collect(),
                reconcile: Some(reconcile(&published)),
                kernel: Some(self.kernel(datapath, &published)),
                health: Some(self.health(datapath, &published)?),
            })
        })
    }

    fn source(&self) -> pb::Source {
        let source = self.source.borrow().clone();
        pb::Source {
            name: source.location.clone(),
            files: source.files as u64,
            services: source.services as u64,
            endpoints: source.endpoints as u64,
            complete: source.complete,
            last_change_seconds: source.last_change.map(seconds_since),
            unreadable_because: source
                .unreadable
                .as_ref()
                .map(|(cause, _)| cause.clone())
                .unwrap_or_default(),
            unreadable_seconds: source
                .unreadable
                .as_ref()
                .map(|(_, since)| seconds_since(*since)),
            problems: source.problems.iter().map(problem).collect(),
            unknown_kinds: source
                .unknown_kinds
                .iter()
                .map(|(kind, count)| unknown_kind(kind, *count))
                .collect(),
        }
    }

    fn kernel(&self, datapath: &Datapath, published: &Published) -> pb::Kernel {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cgroup = datapath.cgroup().display().to_string();
        let (cgroup_proved, cgroup_proof) = match (&published.attach_error, datapath.proof()) {
            (Some(cause), _) => (Some(false), cause.as_str()),
            (None, Proof::Missing) => (None, "programs are not attached yet"),
            (None, Proof::Seen) => (
                Some(true),
                "a socket in another cgroup met connect4 when the programs were attached",
            ),
            (None, Proof::OutOfReach) => (
                None,
                "the cgroup is mounted for this agent alone, so no probe can join it",
            ),
            (None, Proof::NoRoom) => (
                None,
                "frontends4 had no room for a probe; raise --lb-services-max",
            ),
        };
        pb::Kernel {
            release: release.trim().to_owned(),
            cgroup,
            cgroup_proved,
            cgroup_proof: cgroup_proof.to_owned(),
            bpffs: self.bpffs.display().to_string(),
        }
    }
}

fn problem((problem, since): &(Problem, Instant)) -> pb::Problem {
    pb::Problem {
        kind: match problem.kind {
            ProblemKind::Broken => pb::ProblemKind::Broken,
            ProblemKind::Conflict => pb::ProblemKind::Conflict,
            ProblemKind::NotHandled => pb::ProblemKind::NotHandled,
        }
        .into(),
        place: problem.place.clone(),
        object: problem.object.clone(),
        field: problem.field.clone(),
        message: problem.message.clone(),
        age_seconds: Some(seconds_since(*since)),
    }
}

/// `Deployment.apps` is `Deployment` of `apps`.
fn unknown_kind(kind: &str, count: usize) -> pb::UnknownKind {
    let (kind, group) = kind.split_once('.').unwrap_or((kind, "v1"));
    pb::UnknownKind {
        api_version: group.to_owned(),
        kind: kind.to_owned(),
        objects: count as u64,
    }
}

fn programs(datapath: &Datapath, published: &Published) -> Vec<pb::Program> {
    datapath
        .hooks()
        .iter()
        .map(|hook| program(hook, published))
        .collect()
}

fn program(hook: &Hook, published: &Published) -> pb::Program {
    let place = hook
        .programs
        .iter()
        .position(|program| program.link_id.is_some());
    let ours = place.map(|place| &hook.programs[place]);
    let position = |place: usize| u32::try_from(place + 1).unwrap_or(u32::MAX);
    let missing = || {
        published
            .attach_error
            .clone()
            .unwrap_or_else(|| "the maps are being filled first".to_owned())
    };
    pb::Program {
        name: hook.name.to_owned(),
        hook: hook.attach_name().to_owned(),
        link_id: ours.and_then(|ours| ours.link_id),
        program_id: ours.map(|ours| ours.id),
        position: place.map(position),
        missing_because: if ours.is_some() {
            String::new()
        } else {
            missing()
        },
        foreign: hook
            .programs
            .iter()
            .enumerate()
            .filter(|(_, program)| program.link_id.is_none())
            .map(|(at, program)| pb::ForeignProgram {
                name: program.name.clone(),
                program_id: program.id,
                position: position(at),
                hides_services: hook.name.starts_with("connect")
                    && place.is_some_and(|place| at < place),
            })
            .collect(),
    }
}

fn usage(map: &MapUse, published: &Published) -> pb::MapUsage {
    let counts = &published.counts;
    let (entries, flag) = match map.name {
        "services" => (Some(counts.services), "--lb-services-max"),
        "frontends4" => (Some(counts.frontends4), "--lb-services-max"),
        "frontends6" => (Some(counts.frontends6), "--lb-services-max"),
        "slots" => (Some(counts.ring_slots), "--lb-ring-slots-max"),
        "backends" => (Some(counts.backends), "--lb-backends-max"),
        "backend_failures" => (None, "--lb-backends-max"),
        _ => (None, ""),
    };
    pb::MapUsage {
        name: map.name.to_owned(),
        map_id: Some(map.id),
        entries: entries.map(u64::from),
        capacity: map.capacity.into(),
        memlock_bytes: (map.memlock > 0).then_some(map.memlock),
        flag: flag.to_owned(),
    }
}

fn reconcile(published: &Published) -> pb::Reconcile {
    let counts = &published.counts;
    let listed = published.faults.len() as u64;
    pb::Reconcile {
        pending: u64::from(counts.pending) + u64::from(counts.failing),
        failing: published
            .no_grace
            .as_deref()
            .map(no_grace)
            .into_iter()
            .chain(published.faults.iter().map(failing))
            .collect(),
        failing_not_listed: u64::from(counts.failing).saturating_sub(listed),
        writes: counts.writes - counts.writes_failed,
        failed_writes: counts.writes_failed,
        last_change_seconds: published.last_write.map(seconds_since),
        last_latency_seconds: published.last_latency.map(|latency| latency.as_secs_f64()),
        retiring: counts.retired.into(),
    }
}

fn table(error: &ReconcileError) -> &'static str {
    match error {
        ReconcileError::Table(
            TableError::Full { table, .. } | TableError::KernelRefused { table, .. },
        ) => table,
        ReconcileError::FrontendTaken { frontend, .. } => {
            if frontend.address.is_v4() {
                "frontends4"
            } else {
                "frontends6"
            }
        }
    }
}

/// Shown as a row, since it holds up rows: whatever is new waits for it where something was removed.
fn no_grace(fault: &NoGrace) -> pb::FailingRow {
    pb::FailingRow {
        table: "membarrier".to_owned(),
        error: format!(
            "the kernel grants no grace period: {}; what was freed stays unused until it does",
            fault.error
        ),
        age_seconds: seconds_since(fault.since),
        tries: fault.tries,
        ..pb::FailingRow::default()
    }
}

fn failing(fault: &Fault) -> pb::FailingRow {
    let until = fault.retry_at.saturating_duration_since(Instant::now());
    pb::FailingRow {
        table: table(&fault.error).to_owned(),
        row: fault
            .frontend
            .map(|frontend| frontend.to_string())
            .unwrap_or_default(),
        service: fault
            .service
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        error: fault.error.to_string(),
        age_seconds: seconds_since(fault.since),
        tries: fault.attempts.into(),
        next_try_seconds: Some(until.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use isthmus_core::reconcile::Counts;

    use super::*;

    #[test]
    fn fill_is_told_where_rows_are_counted_and_problems_have_an_age() {
        let counts = Counts {
            services: 1,
            backends: 2,
            ring_slots: 3,
            frontends4: 4,
            frontends6: 5,
            ..Counts::default()
        };
        let published = Published {
            counts,
            ..Published::default()
        };
        let rows = [
            ("services", Some(1)),
            ("backends", Some(2)),
            ("slots", Some(3)),
            ("frontends4", Some(4)),
            ("frontends6", Some(5)),
            ("sockets_spilled", None),
        ];
        for (name, wanted) in rows {
            let map = MapUse {
                name,
                id: 1,
                capacity: 8,
                memlock: 64,
            };
            assert_eq!(usage(&map, &published).entries, wanted, "{name}");
        }
        let broken = Problem {
            kind: ProblemKind::Broken,
            place: "a.yaml:1".to_owned(),
            object: String::new(),
            field: String::new(),
            message: "is no YAML".to_owned(),
        };
        let age = problem(&(broken, Instant::now())).age_seconds;
        assert!(age.is_some_and(|age| (0.0..60.0).contains(&age)));
    }
}
