use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Address, Protocol};

/// `namespace/name`. Cheap to clone; orders by namespace, then name.
#[derive(Clone, Eq, Hash, Serialize, Deserialize)]
#[expect(
    clippy::derived_hash_with_manual_eq,
    reason = "equality is that of the texts, as derived; it only looks at the pointers first"
)]
pub struct ObjectName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ObjectName {
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// Rows of one service share its name, and a large service's are compared with each other more than with any other: one
/// text is equal to itself, without a look at it.
fn compared(one: &Arc<str>, other: &Arc<str>) -> Ordering {
    if Arc::ptr_eq(one, other) {
        Ordering::Equal
    } else {
        one.cmp(other)
    }
}

impl Ord for ObjectName {
    fn cmp(&self, other: &Self) -> Ordering {
        compared(&self.namespace, &other.namespace).then_with(|| compared(&self.name, &other.name))
    }
}

impl PartialOrd for ObjectName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ObjectName {
    fn eq(&self, other: &Self) -> bool {
        let same = |one: &Arc<str>, other: &Arc<str>| Arc::ptr_eq(one, other) || one == other;
        same(&self.name, &other.name) && same(&self.namespace, &other.namespace)
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which backends of a global service come first (`service.cilium.io/affinity`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Affinity {
    #[default]
    None,
    Local,
    Remote,
}

impl fmt::Display for Affinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Local => "local",
            Self::Remote => "remote",
        })
    }
}

/// One port of a Service. Ports of one service meet across clusters by name and protocol; the name is empty if the
/// Service has a single port and gives it none.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PortRow {
    pub name: Arc<str>,
    pub protocol: Protocol,
    /// The port that clients use, 1..=65535.
    pub port: u16,
}

/// A Service, as its own cluster sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceRow {
    pub name: ObjectName,
    /// ClusterIPs, given or derived; at most one of each family. Empty for a headless service, for one whose derived
    /// address another service holds, and in rows of peers (a peer's ClusterIP means nothing here).
    pub addresses: Vec<Address>,
    pub ports: Vec<PortRow>,
    /// Takes backends of other clusters.
    pub global: bool,
    /// Lends its backends to other clusters; false unless `global`.
    pub shared: bool,
    pub affinity: Affinity,
    /// What this cluster's own clients get; the default in rows of peers.
    #[serde(default)]
    pub rules: ServiceRules,
}

/// What a Service asks of the datapath beside its backends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceRules {
    /// A client keeps its backend for so many seconds after its last connect (`sessionAffinity: ClientIP`); 0 is not at all.
    pub affinity_seconds: u32,
    /// Failures are counted, and eject nobody (`mesh.isthmus.dev/passive-health: "off"`).
    pub no_passive_health: bool,
    /// Only backends of the client's own node (`internalTrafficPolicy: Local`).
    pub node_only: bool,
}

/// Can this endpoint take connections? (KEP-1669's conditions, folded.)
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    Ready,
    /// On its way out, and still answering: used when nothing ready is left.
    ServingTerminating,
    /// Not used. Kept as a row so that `service list` can show it, with its reason.
    NotReady,
}

/// A port of an endpoint: meets the service's port of this name and protocol.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct EndpointPort {
    pub name: Arc<str>,
    pub protocol: Protocol,
    /// The port the backend listens on, 1..=65535.
    pub port: u16,
}

/// An address that a service's connections may go to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndpointRow {
    pub service: ObjectName,
    pub address: Address,
    /// Sorted, without repeats.
    pub ports: Vec<EndpointPort>,
    pub condition: Condition,
    /// Why `condition` is not `Ready`, for people (`Pod condition`, `terminating`); empty if it is.
    pub reason: Arc<str>,
    /// Empty where unknown.
    pub node: Arc<str>,
    /// Empty where unknown.
    pub zone: Arc<str>,
}

/// Most ports of one row. A row with more could not be told to a peer.
pub const PORTS_MAX: usize = 1024;

/// Names an endpoint within its owner.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct EndpointKey {
    pub service: ObjectName,
    pub address: Address,
}

impl EndpointRow {
    #[must_use]
    pub fn key(&self) -> EndpointKey {
        EndpointKey {
            service: self.service.clone(),
            address: self.address,
        }
    }
}

/// One row that came, changed or went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RowChange {
    Service(Arc<ServiceRow>),
    ServiceGone(ObjectName),
    Endpoint(Arc<EndpointRow>),
    EndpointGone(EndpointKey),
}

/// What a source says at once; the store applies it whole.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Batch {
    pub changes: Vec<RowChange>,
    /// The owner's passport: with this batch its list is complete, so that what it never named may be removed.
    pub complete: bool,
}

impl Batch {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && !self.complete
    }
}

/// What is wrong with, or not done for, something that a user wrote.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Problem {
    pub kind: ProblemKind,
    /// The file and line, `backend.yaml:9`; empty if none.
    pub place: String,
    /// `Service production/backend`; empty for a whole file.
    pub object: String,
    /// `spec.ports[0].port`; empty if none.
    pub field: String,
    /// One sentence in plain English, with the way out.
    pub message: String,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum ProblemKind {
    /// The file or object is not used as it stands; its last good version, if any, stays. `status` exits 1.
    Broken,
    /// Two things contradict each other; the message names both and which one holds. `status` exits 1.
    Conflict,
    /// Understood, and not done by this version. `status` lists it and exits 0.
    NotHandled,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.place, &self.object, &self.field] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.message)
    }
}
