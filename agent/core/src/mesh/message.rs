use std::fmt;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Epoch, Guard, Position, RefusalReport, RowKey, TroubleReport};
use crate::model::{ClusterId, ClusterName, RowChange};

/// The version of the protocol that this code speaks.
pub const VERSION: u32 = 1;

/// A cluster's name and id. They travel together: a mesh has each of them once.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Cluster {
    pub name: ClusterName,
    pub id: ClusterId,
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" (id {})", self.name, self.id)
    }
}

/// What a consumer is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// Another cluster's mesh server: gets our own cluster's rows.
    MeshServer,
    /// An agent of our own cluster: gets every linked cluster's rows.
    Agent,
}

/// A complete state that a consumer holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    pub cluster: Cluster,
    pub position: Position,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConsumerHello {
    pub cluster: Cluster,
    pub role: Role,
    pub node: String,
    pub held: Vec<Held>,
    /// An agent's: silence of a peer that it wants to hear of at once.
    pub stale_after: Option<Duration>,
    pub versions: Vec<u32>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerHello {
    pub cluster: Cluster,
    pub epoch: Epoch,
    pub heartbeat: Duration,
    /// By which its agents doubt lists, its own included.
    pub guard: Guard,
    /// Where the server's own cluster has its endpoints; empty if it does not say.
    pub cidrs: Vec<IpNet>,
    pub version: u32,
}

/// A message from a mesh server, in its place in the stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sequenced {
    /// From 1, without gaps.
    pub sequence: u64,
    pub message: FromServer,
}

/// A row that came over the wire with a field missing or wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadRow {
    /// If that much could be read.
    pub key: Option<RowKey>,
    pub field: &'static str,
}

/// How a server begins to tell a cluster's rows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Beginning {
    /// With the difference from what the consumer holds.
    Resumed,
    /// With a list, because the consumer holds nothing.
    First,
    /// With a list, because what the consumer holds is not in the server's history.
    HistoryGone,
    /// With a list in the middle of a stream, because the consumer fell behind further than the history goes.
    Lagged,
    /// With a list in the middle of a stream, because the consumer asked for it.
    Asked,
}

impl Beginning {
    pub const ALL: [Self; 5] = [
        Self::Resumed,
        Self::First,
        Self::HistoryGone,
        Self::Lagged,
        Self::Asked,
    ];

    /// One word, for metrics and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Resumed => "resumed",
            Self::First => "first",
            Self::HistoryGone => "history-gone",
            Self::Lagged => "lagged",
            Self::Asked => "asked",
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FromServer {
    Hello(ServerHello),
    Start {
        cluster: Cluster,
        beginning: Beginning,
    },
    Rows {
        id: ClusterId,
        changes: Vec<RowChange>,
        /// Rows of the message that are none.
        bad: Vec<BadRow>,
        position: Option<Position>,
    },
    Complete {
        id: ClusterId,
        position: Position,
    },
    Peers {
        reports: Vec<PeerReport>,
        /// A cluster that is not named may be linked all the same.
        partial: bool,
        /// What is wrong on the server's own side.
        troubles: Vec<TroubleReport>,
    },
    Heartbeat(Vec<PeerSilence>),
}

/// How a link to a peer stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LinkState {
    #[default]
    Connecting,
    Connected,
    /// Reached, and turned down by one side: somebody has to change something.
    Refused,
}

/// Does a peer's mesh server watch ours?
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HearsUs {
    #[default]
    Unknown,
    Yes,
    No,
}

/// A peer as our mesh server sees it. Ages are those at the moment of writing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerReport {
    pub name: ClusterName,
    pub id: Option<ClusterId>,
    pub state: LinkState,
    pub state_age: Duration,
    pub hears_us: HearsUs,
    pub hears_us_age: Duration,
    /// What went wrong last, and how long ago; none since the link was connected.
    pub last_error: Option<(String, Duration)>,
    pub tries: u32,
    pub endpoint: String,
    pub refused_rows: u64,
    /// By reason.
    pub refusals: Vec<RefusalReport>,
    pub quarantine: Option<QuarantineReport>,
    pub ranges: Ranges,
}

/// Where a peer's endpoints may be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ranges {
    /// Everywhere, if there are none.
    pub allowed: Option<(RangesFrom, Vec<IpNet>)>,
    /// What the peer says itself.
    pub announced: Vec<IpNet>,
}

/// Who says where a peer's endpoints may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RangesFrom {
    /// The link's file.
    Link,
    /// The peer, when it was first connected.
    Learnt,
}

/// A [`super::Quarantine`] at the moment of writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QuarantineReport {
    pub rows: u64,
    pub held: u64,
    pub age: Duration,
    pub left: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerSilence {
    pub id: ClusterId,
    /// Silence that a living mesh server witnessed.
    pub witnessed: Duration,
    /// Age of the last word; `None` if there was none.
    pub last_word: Option<Duration>,
}

/// Checks that a stream's messages come in order. `Ok(false)`: seen before, to be ignored.
pub(super) fn in_sequence(expected: &mut u64, sequence: u64) -> Result<bool, &'static str> {
    if sequence > *expected {
        return Err("left out a message");
    }
    if sequence < *expected {
        return Ok(false);
    }
    *expected += 1;
    Ok(true)
}
