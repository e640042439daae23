//! `monitor`: one event.

mod text;

#[cfg(test)]
mod tests;

use isthmus_proto::node::v1 as proto;
use schemars::JsonSchema;
use serde::Serialize;
use time::OffsetDateTime;

use super::mesh::PeerState;
use crate::cli::EventType;
use crate::output::{Report, Style};
use crate::text::Seconds;

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MonitorEvent {
    /// RFC 3339.
    #[serde(with = "time::serde::rfc3339")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub time: OffsetDateTime,
    pub event: Happened,
    /// NAMESPACE/NAME; null if it is of no service, or of one that has gone meanwhile.
    pub service: Option<String>,
    /// Null for an unnamed single port.
    pub port_name: Option<String>,
    pub protocol: Option<String>,
    /// Its ring's index in the kernel.
    pub service_index: Option<u32>,
    /// The backend's; null if it is of no backend, or of one that has gone meanwhile.
    pub address: Option<String>,
    pub port: Option<u32>,
    /// The backend's cluster, or the peer.
    pub cluster: Option<String>,
    pub cluster_id: Option<u32>,
    /// Why: a failure's cause, a refusal's reason, a link's last error.
    pub cause: Option<String>,
    /// From the event to its end.
    pub lasts_seconds: Option<Seconds>,
    /// Ejections since the last success but one.
    pub doublings: Option<u32>,
    /// Tells clients (network namespaces) apart, 0 to 55; two of many can share one.
    pub client: Option<u32>,
    /// The tier to which connections went; null for no backend at all.
    pub tier_before: Option<String>,
    /// The tier to which they go now.
    pub tier: Option<String>,
    /// Null for a cluster that was not linked.
    pub peer_before: Option<PeerState>,
    /// Null for a cluster that is not linked any more.
    pub peer: Option<PeerState>,
    /// How many events were lost.
    pub lost: Option<u64>,
    /// The event as the plain line tells it.
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Happened {
    Ejected,
    TrialBegan,
    TrialFailed,
    TrialAbandoned,
    Returned,
    /// To one client alone.
    Closed,
    /// A client's failures do not count until it succeeds.
    Disbelieved,
    /// A service's limit did not allow an ejection.
    Capped,
    /// A connect, by us.
    Refused,
    AllEjected,
    /// Connections go to another tier.
    Tier,
    /// A peer changed its state.
    Peer,
    /// Too many came at once to be told one by one.
    Untold,
    /// This monitor was too slow.
    Lost,
    /// This agentctl does not know what the agent said.
    Unknown,
}

impl MonitorEvent {
    pub fn new(event: proto::MonitorEvent, now: OffsetDateTime) -> Self {
        let happened = Happened::from(event.kind());
        let peer = happened == Happened::Peer;
        let lost = matches!(happened, Happened::Lost | Happened::Untold);
        let health = event.service_index.is_some() && !event.address.is_empty();
        let age = std::time::Duration::try_from_secs_f64(event.age_seconds).unwrap_or_default();
        let (before, after) = (event.peer_before(), event.peer());
        let mut told = Self {
            time: now - age,
            event: happened,
            service: known(event.service),
            port_name: known(event.port_name),
            protocol: known(event.protocol),
            service_index: event.service_index,
            port: (!event.address.is_empty()).then_some(event.port),
            address: known(event.address),
            cluster: known(event.cluster),
            cluster_id: event.cluster_id,
            cause: known(event.cause),
            lasts_seconds: Seconds::known(event.lasts_seconds),
            doublings: health.then_some(event.doublings),
            client: event.client,
            tier_before: known(event.tier_before),
            tier: known(event.tier),
            peer_before: peer.then(|| linked(before)).flatten(),
            peer: peer.then(|| linked(after)).flatten(),
            lost: lost.then_some(event.lost),
            text: String::new(),
        };
        told.text = text::sentence(&told);
        told
    }
}

/// None for a cluster that is not linked.
fn linked(state: proto::PeerState) -> Option<PeerState> {
    match state {
        proto::PeerState::Connecting => Some(PeerState::Connecting),
        proto::PeerState::Connected => Some(PeerState::Connected),
        proto::PeerState::Stale => Some(PeerState::Stale),
        proto::PeerState::Dropped => Some(PeerState::Dropped),
        proto::PeerState::Refused => Some(PeerState::Refused),
        proto::PeerState::Unspecified => None,
    }
}

fn known(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

impl Report for MonitorEvent {
    const KIND: &'static str = "MonitorEvent";

    fn text(&self, _wide: bool, style: Style) -> String {
        text::line(self, style)
    }
    fn is_bad(&self) -> bool {
        false
    }
}

impl From<proto::MonitorKind> for Happened {
    fn from(kind: proto::MonitorKind) -> Self {
        match kind {
            proto::MonitorKind::Ejected => Self::Ejected,
            proto::MonitorKind::TrialBegan => Self::TrialBegan,
            proto::MonitorKind::TrialFailed => Self::TrialFailed,
            proto::MonitorKind::TrialAbandoned => Self::TrialAbandoned,
            proto::MonitorKind::Returned => Self::Returned,
            proto::MonitorKind::Closed => Self::Closed,
            proto::MonitorKind::Disbelieved => Self::Disbelieved,
            proto::MonitorKind::Capped => Self::Capped,
            proto::MonitorKind::Refused => Self::Refused,
            proto::MonitorKind::AllEjected => Self::AllEjected,
            proto::MonitorKind::Tier => Self::Tier,
            proto::MonitorKind::Peer => Self::Peer,
            proto::MonitorKind::Untold => Self::Untold,
            proto::MonitorKind::Lost => Self::Lost,
            proto::MonitorKind::Unspecified => Self::Unknown,
        }
    }
}

/// What the agent is asked for, for a `--type`.
pub fn kinds(kind: EventType) -> &'static [proto::MonitorKind] {
    match kind {
        EventType::Ejection => &[proto::MonitorKind::Ejected],
        EventType::Trial => &[
            proto::MonitorKind::TrialBegan,
            proto::MonitorKind::TrialFailed,
            proto::MonitorKind::TrialAbandoned,
        ],
        EventType::Return => &[proto::MonitorKind::Returned],
        EventType::Closed => &[proto::MonitorKind::Closed],
        EventType::Disbelieved => &[proto::MonitorKind::Disbelieved],
        EventType::Capped => &[proto::MonitorKind::Capped],
        EventType::Refusal => &[proto::MonitorKind::Refused],
        EventType::AllEjected => &[proto::MonitorKind::AllEjected],
        EventType::Tier => &[proto::MonitorKind::Tier],
        EventType::Peer => &[proto::MonitorKind::Peer],
    }
}
