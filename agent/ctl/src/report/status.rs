//! `status`: this node.

mod judge;
mod text;

#[cfg(test)]
mod tests;

use isthmus_proto::node::v1 as proto;
use schemars::JsonSchema;
use serde::Serialize;

use super::health::Health;
use super::mesh::{ClusterMeshStatus, FeedState};
use super::{Attention, Node, has_fault};
use crate::output::{Report, Style};
use crate::text::Seconds;

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    pub node: Node,
    /// What the agent still waits for; empty once it is ready.
    pub not_ready_because: Vec<String>,
    pub kernel: Kernel,
    pub mesh: Mesh,
    pub reconcile: Reconcile,
    /// What the kernel holds of backends; null if the agent does not say.
    pub health: Option<HealthTotals>,
    pub sources: Vec<Source>,
    pub programs: Vec<Program>,
    pub maps: Vec<MapUsage>,
    pub attention: Vec<Attention>,
}

/// Where the programs are attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Kernel {
    pub release: String,
    pub cgroup: String,
    /// True if a hook saw a socket of that cgroup; null if that is still to be tried.
    pub cgroup_proved: Option<bool>,
    pub cgroup_proof: String,
    pub bpffs: String,
}

/// The mesh in one line; `ClusterMeshStatus` has the peers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Mesh {
    /// Null if the agent was given no mesh server.
    pub feed: Option<FeedState>,
    pub peers: usize,
    pub peers_needing_attention: usize,
    pub summary: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthTotals {
    /// Failures eject backends (`--passive-health`).
    pub passive: bool,
    /// Backends that are left out now.
    pub ejected: u64,
    pub on_trial: u64,
    pub suspect: u64,
    /// Of the services that are served now, but for those after a failed trial.
    pub ejections: u64,
    /// Connects to the services that are served now that the datapath refused.
    pub refused: u64,
    /// Draws of the services that are served now that found every backend ejected.
    pub all_ejected: u64,
    /// Ejections that a limit did not allow.
    pub capped: u64,
    /// Failures of clients whose failures do not count.
    pub not_counted: u64,
    /// Backends that are ejected or on trial, as far as the agent lists them.
    pub backends: Vec<EjectedBackend>,
    pub not_listed: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EjectedBackend {
    /// NAMESPACE/NAME; null if it has gone meanwhile.
    pub service: Option<String>,
    pub address: String,
    pub port: u32,
    pub cluster: String,
    pub health: Health,
}

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reconcile {
    /// Rows that the kernel does not hold as wanted yet, failing ones included.
    pub pending: u64,
    /// Rows whose last write failed, as far as the agent lists them.
    pub failing: Vec<FailingRow>,
    pub failing_not_listed: u64,
    /// Since the agent started.
    pub writes: u64,
    pub failed_writes: u64,
    /// Since the last write that changed the kernel.
    pub last_change_seconds: Option<Seconds>,
    /// From the change in a source to the kernel holding it, for the last change.
    pub last_latency_seconds: Option<Seconds>,
    /// Spans and backend ids that wait for programs to forget them.
    pub retiring: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailingRow {
    pub table: String,
    pub row: Option<String>,
    pub service: Option<String>,
    pub error: String,
    /// Since its first failure.
    pub age_seconds: Seconds,
    pub tries: u64,
    /// Null if a try is under way.
    pub next_try_seconds: Option<Seconds>,
}

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    pub name: String,
    pub files: u64,
    pub services: u64,
    pub endpoints: u64,
    /// True once its first list was complete.
    pub complete: bool,
    pub last_change_seconds: Option<Seconds>,
    pub unreadable_because: Option<String>,
    pub unreadable_seconds: Option<Seconds>,
    pub problems: Vec<Problem>,
    pub unknown_kinds: Vec<UnknownKind>,
}

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    pub kind: ProblemKind,
    /// File and line.
    pub place: Option<String>,
    pub object: Option<String>,
    pub field: Option<String>,
    pub message: String,
    pub age_seconds: Option<Seconds>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub enum ProblemKind {
    /// Not used as it stands; its last good version, if any, stays.
    Broken,
    /// Two things contradict each other.
    Conflict,
    /// Understood, and not done by this version.
    NotHandled,
    /// This agentctl does not know what the agent said.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnknownKind {
    pub api_version: String,
    pub kind: String,
    pub objects: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Program {
    pub name: String,
    pub hook: String,
    /// Null if it is not attached.
    pub link_id: Option<u32>,
    /// Null if it is not loaded.
    pub program_id: Option<u32>,
    /// Place in the order in which the kernel runs the hook's programs, from 1.
    pub position: Option<u32>,
    pub missing_because: Option<String>,
    /// Programs of others on the same hook.
    pub foreign: Vec<ForeignProgram>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ForeignProgram {
    pub name: Option<String>,
    pub program_id: u32,
    pub position: u32,
    /// True if it runs before ours and can change the address: what it translates, ours never sees.
    pub hides_services: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MapUsage {
    pub name: String,
    pub map_id: Option<u32>,
    pub entries: Option<u64>,
    pub capacity: u64,
    pub memlock_bytes: Option<u64>,
    /// The agent's flag that makes it larger.
    pub flag: Option<String>,
}

impl NodeStatus {
    pub fn new(answer: proto::GetStatusResponse, mesh: &ClusterMeshStatus) -> Self {
        let mut status = Self {
            node: answer.node.into(),
            not_ready_because: answer.not_ready_because,
            kernel: Kernel::from(answer.kernel.unwrap_or_default()),
            mesh: Mesh {
                feed: mesh.feed.as_ref().map(|feed| feed.state),
                peers: mesh.peers.len(),
                peers_needing_attention: mesh.peers_needing_attention,
                summary: mesh.summary(),
            },
            reconcile: Reconcile::from(answer.reconcile.unwrap_or_default()),
            health: answer.health.map(HealthTotals::from),
            sources: answer.sources.into_iter().map(Source::from).collect(),
            programs: answer.programs.into_iter().map(Program::from).collect(),
            maps: answer.maps.into_iter().map(MapUsage::from).collect(),
            attention: Vec::new(),
        };
        status.attention = judge::attention(&status, mesh.is_bad());
        status
    }
}

impl Report for NodeStatus {
    const KIND: &'static str = "NodeStatus";

    fn text(&self, wide: bool, style: Style) -> String {
        text::render(self, wide, style)
    }
    fn is_bad(&self) -> bool {
        has_fault(&self.attention)
    }
}

fn known(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

impl From<proto::Kernel> for Kernel {
    fn from(kernel: proto::Kernel) -> Self {
        Self {
            release: kernel.release,
            cgroup: kernel.cgroup,
            cgroup_proved: kernel.cgroup_proved,
            cgroup_proof: kernel.cgroup_proof,
            bpffs: kernel.bpffs,
        }
    }
}

impl From<proto::Health> for HealthTotals {
    fn from(health: proto::Health) -> Self {
        let backends = health.backends.into_iter().map(|backend| EjectedBackend {
            service: known(backend.service),
            address: backend.address,
            port: backend.port,
            cluster: backend.cluster,
            health: backend.health.unwrap_or_default().into(),
        });
        Self {
            passive: health.passive,
            ejected: health.ejected,
            on_trial: health.on_trial,
            suspect: health.suspect,
            ejections: health.ejections,
            refused: health.refused,
            all_ejected: health.all_ejected,
            capped: health.capped,
            not_counted: health.not_counted,
            backends: backends.collect(),
            not_listed: health.not_listed,
        }
    }
}

impl From<proto::Reconcile> for Reconcile {
    fn from(reconcile: proto::Reconcile) -> Self {
        let failing = reconcile.failing.into_iter().map(|row| FailingRow {
            table: row.table,
            row: known(row.row),
            service: known(row.service),
            error: row.error,
            age_seconds: Seconds::new(row.age_seconds),
            tries: row.tries,
            next_try_seconds: Seconds::known(row.next_try_seconds),
        });
        Self {
            pending: reconcile.pending,
            failing: failing.collect(),
            failing_not_listed: reconcile.failing_not_listed,
            writes: reconcile.writes,
            failed_writes: reconcile.failed_writes,
            last_change_seconds: Seconds::known(reconcile.last_change_seconds),
            last_latency_seconds: Seconds::known(reconcile.last_latency_seconds),
            retiring: reconcile.retiring,
        }
    }
}

impl From<proto::Source> for Source {
    fn from(source: proto::Source) -> Self {
        let unknown_kinds = source.unknown_kinds.into_iter().map(|unknown| UnknownKind {
            api_version: unknown.api_version,
            kind: unknown.kind,
            objects: unknown.objects,
        });
        Self {
            name: source.name,
            files: source.files,
            services: source.services,
            endpoints: source.endpoints,
            complete: source.complete,
            last_change_seconds: Seconds::known(source.last_change_seconds),
            unreadable_because: known(source.unreadable_because),
            unreadable_seconds: Seconds::known(source.unreadable_seconds),
            problems: source.problems.into_iter().map(Problem::from).collect(),
            unknown_kinds: unknown_kinds.collect(),
        }
    }
}

impl From<proto::Problem> for Problem {
    fn from(problem: proto::Problem) -> Self {
        let kind = match problem.kind() {
            proto::ProblemKind::Broken => ProblemKind::Broken,
            proto::ProblemKind::Conflict => ProblemKind::Conflict,
            proto::ProblemKind::NotHandled => ProblemKind::NotHandled,
            proto::ProblemKind::Unspecified => ProblemKind::Unknown,
        };
        Self {
            kind,
            place: known(problem.place),
            object: known(problem.object),
            field: known(problem.field),
            message: problem.message,
            age_seconds: Seconds::known(problem.age_seconds),
        }
    }
}

impl From<proto::Program> for Program {
    fn from(program: proto::Program) -> Self {
        let foreign = program.foreign.into_iter().map(|foreign| ForeignProgram {
            name: known(foreign.name),
            program_id: foreign.program_id,
            position: foreign.position,
            hides_services: foreign.hides_services,
        });
        Self {
            name: program.name,
            hook: program.hook,
            link_id: program.link_id,
            program_id: program.program_id,
            position: program.position,
            missing_because: known(program.missing_because),
            foreign: foreign.collect(),
        }
    }
}

impl From<proto::MapUsage> for MapUsage {
    fn from(usage: proto::MapUsage) -> Self {
        Self {
            name: usage.name,
            map_id: usage.map_id,
            entries: usage.entries,
            capacity: usage.capacity,
            memlock_bytes: usage.memlock_bytes,
            flag: known(usage.flag),
        }
    }
}
