//! `clustermesh status`: the feed and the peers.

mod judge;
mod text;

#[cfg(test)]
mod tests;

use isthmus_proto::node::v1 as proto;
use schemars::JsonSchema;
use serde::Serialize;
use time::OffsetDateTime;

use super::{Attention, Node, has_fault};
use crate::output::{Report, Style};
use crate::text::Seconds;

pub use judge::other_side;

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterMeshStatus {
    pub node: Node,
    /// The stream from this cluster's mesh server; null if the agent was given none.
    pub feed: Option<Feed>,
    /// By name.
    pub peers: Vec<Peer>,
    /// Peers that are named in a fault of `attention`.
    pub peers_needing_attention: usize,
    /// A peer silent for longer is stale.
    pub peer_stale_after_seconds: Seconds,
    /// The rows of a peer silent for longer are dropped.
    pub cluster_ttl_seconds: Seconds,
    pub attention: Vec<Attention>,
}

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Feed {
    /// As given to the agent: HOST:PORT or unix:PATH.
    pub server: String,
    pub state: FeedState,
    pub state_seconds: Seconds,
    pub last_word_seconds: Option<Seconds>,
    /// Reconnects that took up where the stream had stopped, since the agent started.
    pub resumed: u64,
    pub last_resumed_seconds: Option<Seconds>,
    pub last_error: Option<LinkError>,
    /// The agent's; null on a unix socket.
    pub certificate: Option<Certificate>,
    /// True if `peers` are all linked clusters, as the mesh server last said.
    pub listed: bool,
    /// What is wrong with the files and rows of this cluster's own side.
    pub troubles: Vec<Trouble>,
}

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Trouble {
    /// `link west.yaml:6`, `state file`, `certificate`.
    pub about: String,
    pub cause: String,
    pub way_out: String,
    pub age_seconds: Option<Seconds>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FeedState {
    Connecting,
    Connected,
    Lost,
    /// This agentctl does not know what the agent said.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    pub name: String,
    pub id: Option<u32>,
    /// While the feed is lost, the last known.
    pub state: PeerState,
    pub state_seconds: Option<Seconds>,
    pub last_word_seconds: Option<Seconds>,
    /// True if its mesh server watches this cluster.
    pub hears_us: Option<bool>,
    pub hears_us_seconds: Option<Seconds>,
    /// Life of its store: 16 hexadecimal digits.
    pub epoch: Option<String>,
    pub revision: Option<u64>,
    /// True once its first snapshot was complete.
    pub complete: bool,
    pub services: u64,
    pub endpoints: u64,
    /// Where it is tried: HOST:PORT.
    pub endpoint: Option<String>,
    pub last_error: Option<LinkError>,
    pub dropped_in_seconds: Option<Seconds>,
    /// Rows refused since our mesh server started; a row that is said again is refused again.
    pub refused_rows: u64,
    /// The same by reason.
    pub refusals: Vec<Refusal>,
    /// Where its endpoints may be.
    pub cidrs: Cidrs,
    /// Rows that stay though its newest list left them out; null if there are none.
    pub quarantine: Option<Quarantine>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// `foreign-cluster`, `malformed`, `special-address`, `own-address`, `outside-address`, `too-many-rows` or
    /// `too-many-bytes`.
    pub reason: String,
    /// Of the rows that the peer says now.
    pub rows: u64,
    /// Since our mesh server started.
    pub total: u64,
    /// The row that came last.
    pub example: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cidrs {
    /// Null: everywhere.
    pub allowed: Option<Vec<String>>,
    /// `link`, the link's file; `learnt`, the peer itself when it was first connected; null: nobody.
    pub from: Option<String>,
    /// What the peer says now.
    pub announced: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Quarantine {
    /// Rows that the list left out, and that were not named since.
    pub rows: u64,
    /// Rows that were held when it came.
    pub held: u64,
    /// Since it came.
    pub age_seconds: Seconds,
    /// Until the rows go; none goes while the peer is not connected.
    pub left_seconds: Seconds,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PeerState {
    Connecting,
    Connected,
    Stale,
    Dropped,
    Refused,
    /// This agentctl does not know what the agent said.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LinkError {
    pub text: String,
    pub age_seconds: Seconds,
    /// Tries in a row that failed.
    pub tries: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Certificate {
    pub name: String,
    /// RFC 3339.
    #[serde(with = "time::serde::rfc3339")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub not_after: OffsetDateTime,
}

impl ClusterMeshStatus {
    /// `now` judges certificates, and nothing else.
    pub fn new(answer: proto::GetClusterMeshResponse, now: OffsetDateTime) -> Self {
        let mut status = Self {
            node: answer.node.into(),
            feed: answer.feed.map(Feed::from),
            peers: answer.peers.into_iter().map(Peer::from).collect(),
            peers_needing_attention: 0,
            peer_stale_after_seconds: Seconds::new(answer.peer_stale_after_seconds),
            cluster_ttl_seconds: Seconds::new(answer.cluster_ttl_seconds),
            attention: Vec::new(),
        };
        status.attention = judge::attention(&status, now);
        let in_need = |peer: &&Peer| {
            let mut faults = status.attention.iter().filter(|a| a.is_fault());
            faults.any(|fault| fault.about == peer.name)
        };
        status.peers_needing_attention = status.peers.iter().filter(in_need).count();
        status
    }
    /// What `--wait` still waits for, one sentence each: at least one linked cluster, all of them known, and each of them
    /// connected, told whole and hearing us. Nothing for a cluster alone, which has no mesh server.
    pub fn awaited(&self) -> Vec<String> {
        let Some(feed) = &self.feed else {
            return Vec::new();
        };
        let mut awaited = Vec::new();
        if feed.state != FeedState::Connected {
            awaited.push("the mesh server to be reached".to_owned());
        } else if !feed.listed {
            awaited.push(
                "the mesh server to know all of its links (its --links directory, and each file in it)"
                    .to_owned(),
            );
        } else if self.peers.is_empty() {
            awaited.push("a cluster to be linked".to_owned());
        }
        for peer in &self.peers {
            let name = &peer.name;
            if peer.state != PeerState::Connected {
                awaited.push(format!("{name} to be connected"));
            } else if !peer.complete {
                awaited.push(format!("{name} to tell all of its rows"));
            } else if peer.hears_us != Some(true) {
                awaited.push(format!("{name} to watch {}", self.node.cluster));
            }
        }
        if awaited.is_empty() {
            let faults = self.attention.iter().filter(|item| item.is_fault());
            awaited.extend(faults.map(|fault| format!("{} to be mended", fault.about)));
        }
        awaited
    }
    pub fn is_settled(&self) -> bool {
        self.awaited().is_empty()
    }
    /// True once `name` is connected and its first snapshot is here.
    pub fn is_connected(&self, name: &str) -> bool {
        let feed = self.feed.as_ref();
        feed.is_some_and(|feed| feed.state == FeedState::Connected)
            && self.peers.iter().any(|peer| {
                peer.name == name && peer.state == PeerState::Connected && peer.complete
            })
    }
    /// The feed's trouble if it has any, else the peer's.
    pub fn why_not_connected(&self, name: &str) -> String {
        let faults = || self.attention.iter().filter(|item| item.is_fault());
        let about = |about: &str| faults().find(|fault| fault.about == about);
        let Some(fault) = about("feed").or_else(|| about(name)) else {
            let known = self.peers.iter().any(|peer| peer.name == name);
            let cause = match (&self.feed, known) {
                (None, _) => "this node's agent was given no mesh server (isthmus-agent --mesh)",
                (Some(_), false) => {
                    "the mesh server does not know the link: does its --links name this directory?"
                }
                (Some(_), true) => "its first list is not complete yet",
            };
            return cause.to_owned();
        };
        let lines = std::iter::once(&fault.cause).chain(&fault.way_out);
        lines.cloned().collect::<Vec<_>>().join(" ")
    }
    /// Where peers reach this cluster's mesh server, if that can be told: the agent's own way to it, unless that is a
    /// socket of this host's.
    pub fn own_endpoint(&self) -> Option<&str> {
        let server = self.feed.as_ref()?.server.as_str();
        let host = server.rsplit_once(':').map_or("", |(host, _)| host);
        let own = server.starts_with("unix:")
            || host == "localhost"
            || host == "[::1]"
            || host.starts_with("127.");
        (!own).then_some(server)
    }
    /// The mesh in one line, for `status`.
    pub fn summary(&self) -> String {
        text::summary(self)
    }
}

impl Report for ClusterMeshStatus {
    const KIND: &'static str = "ClusterMeshStatus";

    fn text(&self, wide: bool, style: Style) -> String {
        text::render(self, wide, style)
    }
    fn is_bad(&self) -> bool {
        has_fault(&self.attention)
    }
}

impl From<proto::Feed> for Feed {
    fn from(feed: proto::Feed) -> Self {
        let state = match feed.state() {
            proto::FeedState::Connecting => FeedState::Connecting,
            proto::FeedState::Connected => FeedState::Connected,
            proto::FeedState::Lost => FeedState::Lost,
            proto::FeedState::Unspecified => FeedState::Unknown,
        };
        Self {
            server: feed.server,
            state,
            state_seconds: Seconds::new(feed.state_seconds),
            last_word_seconds: Seconds::known(feed.last_word_seconds),
            resumed: feed.resumed,
            last_resumed_seconds: Seconds::known(feed.last_resumed_seconds),
            last_error: feed.last_error.map(LinkError::from),
            certificate: feed.certificate.and_then(Certificate::new),
            listed: feed.listed,
            troubles: feed.troubles.into_iter().map(Trouble::from).collect(),
        }
    }
}

impl From<proto::Trouble> for Trouble {
    fn from(trouble: proto::Trouble) -> Self {
        Self {
            about: trouble.about,
            cause: trouble.cause,
            way_out: trouble.way_out,
            age_seconds: Seconds::known(trouble.age_seconds),
        }
    }
}

impl From<proto::Peer> for Peer {
    fn from(peer: proto::Peer) -> Self {
        let state = match peer.state() {
            proto::PeerState::Connecting => PeerState::Connecting,
            proto::PeerState::Connected => PeerState::Connected,
            proto::PeerState::Stale => PeerState::Stale,
            proto::PeerState::Dropped => PeerState::Dropped,
            proto::PeerState::Refused => PeerState::Refused,
            proto::PeerState::Unspecified => PeerState::Unknown,
        };
        Self {
            name: peer.name,
            id: peer.id,
            state,
            state_seconds: Seconds::known(peer.state_seconds),
            last_word_seconds: Seconds::known(peer.last_word_seconds),
            hears_us: peer.hears_us,
            hears_us_seconds: Seconds::known(peer.hears_us_seconds),
            epoch: peer.epoch.map(|epoch| format!("{epoch:016x}")),
            revision: peer.revision,
            complete: peer.complete,
            services: peer.services,
            endpoints: peer.endpoints,
            endpoint: (!peer.endpoint.is_empty()).then_some(peer.endpoint),
            last_error: peer.last_error.map(LinkError::from),
            dropped_in_seconds: Seconds::known(peer.dropped_in_seconds),
            refused_rows: peer.refused_rows,
            refusals: peer.refusals.into_iter().map(Refusal::from).collect(),
            cidrs: Cidrs {
                allowed: (!peer.cidrs_from.is_empty()).then_some(peer.allowed_cidrs),
                from: (!peer.cidrs_from.is_empty()).then_some(peer.cidrs_from),
                announced: peer.announced_cidrs,
            },
            quarantine: peer.quarantine.map(|quarantine| Quarantine {
                rows: quarantine.rows,
                held: quarantine.held,
                age_seconds: Seconds::new(quarantine.age_seconds),
                left_seconds: Seconds::new(quarantine.left_seconds),
            }),
        }
    }
}

impl From<proto::Refusal> for Refusal {
    fn from(refusal: proto::Refusal) -> Self {
        Self {
            reason: refusal.reason,
            rows: refusal.rows,
            total: refusal.total,
            example: refusal.example,
        }
    }
}

impl From<proto::LinkError> for LinkError {
    fn from(error: proto::LinkError) -> Self {
        Self {
            text: error.text,
            age_seconds: Seconds::new(error.age_seconds),
            tries: error.tries,
        }
    }
}

impl Certificate {
    /// None if the date is none.
    fn new(certificate: proto::Certificate) -> Option<Self> {
        let seconds = certificate.not_after_unix_seconds;
        Some(Self {
            name: certificate.name,
            not_after: OffsetDateTime::from_unix_timestamp(seconds).ok()?,
        })
    }
}
