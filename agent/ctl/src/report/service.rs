//! `service list`: every frontend with every backend.

mod text;

#[cfg(test)]
mod tests;

use isthmus_proto::node::v1 as proto;
use schemars::JsonSchema;
use serde::Serialize;

use super::Node;
use super::health::Health;
use crate::output::{Report, Style};
use crate::text::Seconds;

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceList {
    pub node: Node,
    /// By service, then port, then address.
    pub frontends: Vec<Frontend>,
    /// What differs from what a reader would take for granted, a sentence each.
    pub remarks: Vec<String>,
}

/// An address, port and protocol that clients use.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Frontend {
    /// NAMESPACE/NAME.
    pub service: String,
    /// Null for an unnamed single port.
    pub port_name: Option<String>,
    /// Null if the service has none; then `problem` says why.
    pub address: Option<String>,
    pub port: u32,
    pub protocol: String,
    #[serde(rename = "type")]
    pub service_type: String,
    pub affinity: String,
    /// Takes backends of other clusters.
    pub global: bool,
    /// Lends its backends to other clusters.
    pub shared: bool,
    pub rules: Rules,
    /// Its ring's index in the kernel; null if the datapath does not serve it.
    pub service_index: Option<u32>,
    /// Why the datapath does not serve it, or not as wanted.
    pub problem: Option<String>,
    pub backends: Vec<Backend>,
}

/// What a Service asks beside its backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rules {
    /// A client keeps its backend for so long after its last connect; null if each connection is drawn anew.
    pub session_affinity_seconds: Option<u32>,
    /// Failures eject backends.
    pub passive_health: bool,
    /// Connections stay on the client's node.
    pub node_only: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    pub address: String,
    pub port: u32,
    pub cluster: String,
    pub cluster_id: u32,
    /// Of this node's own cluster.
    pub local: bool,
    pub node: Option<String>,
    pub zone: Option<String>,
    pub state: BackendState,
    /// The state as the table shows it.
    pub state_text: String,
    /// Why it is not active.
    pub reason: Option<String>,
    pub state_seconds: Option<Seconds>,
    /// From 0; tiers are tried in that order. Null if no connection goes to it.
    pub tier: Option<u32>,
    pub tier_name: Option<String>,
    /// New connections go to it now: it is of the first tier with a backend that is not ejected, and is not ejected itself;
    /// or every backend is ejected, and it is of the first tier.
    pub preferred: bool,
    /// Its share of the tier's connections, 0 to 1.
    pub tier_share: Option<f64>,
    /// Its id in the kernel.
    pub backend_id: Option<u32>,
    /// Connects that the kernel sent there since it has that id.
    pub connects: Option<u64>,
    /// What the kernel holds of it; null if it has no id there.
    pub health: Option<Health>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum BackendState {
    Active,
    /// On its way out and still answering.
    Terminating,
    NotReady,
    /// Of a peer that fell silent.
    Stale,
    /// Of another node, and the service keeps connections on theirs.
    Elsewhere,
    /// This agentctl does not know what the agent said.
    Unknown,
}

impl ServiceList {
    pub fn new(answer: proto::ListServicesResponse) -> Self {
        let frontends: Vec<Frontend> = answer.frontends.into_iter().map(Frontend::from).collect();
        let mut remarks: Vec<String> = frontends.iter().filter_map(text::remark).collect();
        // Two ports of a service are mostly in the same state.
        remarks.dedup();
        Self {
            node: answer.node.into(),
            frontends,
            remarks,
        }
    }
}

impl Report for ServiceList {
    const KIND: &'static str = "ServiceList";

    fn text(&self, wide: bool, style: Style) -> String {
        text::render(self, wide, style)
    }
    fn is_bad(&self) -> bool {
        false
    }
}

fn known(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

impl From<proto::Frontend> for Frontend {
    fn from(frontend: proto::Frontend) -> Self {
        // "Preferred" is worth a word only where something else is not.
        let remarkable = frontend.backends.iter().any(|backend| !backend.preferred);
        let backends = frontend.backends.into_iter();
        Self {
            service: frontend.service,
            port_name: known(frontend.port_name),
            address: known(frontend.address),
            port: frontend.port,
            protocol: frontend.protocol,
            service_type: frontend.r#type,
            affinity: frontend.affinity,
            global: frontend.global,
            shared: frontend.shared,
            rules: Rules {
                session_affinity_seconds: (frontend.affinity_seconds > 0)
                    .then_some(frontend.affinity_seconds),
                passive_health: !frontend.no_passive_health,
                node_only: frontend.node_only,
            },
            service_index: frontend.service_index,
            problem: known(frontend.problem),
            backends: backends
                .map(|backend| Backend::new(backend, remarkable))
                .collect(),
        }
    }
}

impl Backend {
    fn new(backend: proto::ServiceBackend, preference_is_remarkable: bool) -> Self {
        let state = match backend.state() {
            proto::BackendState::Active => BackendState::Active,
            proto::BackendState::Terminating => BackendState::Terminating,
            proto::BackendState::NotReady => BackendState::NotReady,
            proto::BackendState::Stale => BackendState::Stale,
            proto::BackendState::Elsewhere => BackendState::Elsewhere,
            proto::BackendState::Unspecified => BackendState::Unknown,
        };
        let state_seconds = Seconds::known(backend.state_seconds);
        let reason = known(backend.reason);
        let marked = backend.preferred && preference_is_remarkable;
        let health = backend.health.map(Health::from);
        let share = backend.slots.zip(backend.tier_slots);
        Self {
            address: backend.address,
            port: backend.port,
            cluster: backend.cluster,
            cluster_id: backend.cluster_id,
            local: backend.local,
            node: known(backend.node),
            zone: known(backend.zone),
            state,
            state_text: text::state(state, state_seconds, reason.as_deref(), health, marked),
            reason,
            state_seconds,
            tier: backend.tier,
            tier_name: known(backend.tier_name),
            preferred: backend.preferred,
            tier_share: share
                .filter(|(_, all)| *all > 0)
                .map(|(slots, all)| f64::from(slots) / f64::from(all)),
            backend_id: backend.backend_id,
            connects: backend.connects,
            health,
        }
    }
}
