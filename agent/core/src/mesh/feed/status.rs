use std::time::Duration;

use super::super::{Age, HearsUs, Position, Quarantine, Ranges, RefusalReport, Trouble};
use crate::model::{ClusterId, ClusterName};

/// How the stream from our own mesh server stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FeedState {
    /// Never connected since the agent started.
    #[default]
    Connecting,
    Connected,
    /// Was connected. Peers stay as they are.
    Lost,
}

/// How a peer stands, for people. A state later in this list hides an earlier one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerState {
    /// Linked, and not connected now.
    Connecting,
    Connected,
    /// Silent for `--peer-stale-after`.
    Stale,
    /// Turned down by one side; `last_error` says why. Its rows, if any, stand as its silence lets them.
    Refused,
    /// Silent for `--cluster-ttl`: its rows are gone.
    Dropped,
}

/// What `clustermesh status` shows. Ages are moments: ask them for their age when you show them.
#[derive(Clone, PartialEq, Debug)]
pub struct FeedStatus {
    pub state: FeedState,
    pub state_since: Age,
    pub last_word: Option<Age>,
    /// Streams since the agent started that took up where one had ended.
    pub resumed: u64,
    pub last_resumed: Option<Age>,
    /// What went wrong last; none since the feed was connected.
    pub last_error: Option<(String, Age)>,
    /// Tries to connect since then.
    pub tries: u32,
    /// The newest list of our mesh server names every linked cluster.
    pub listed: bool,
    /// What is wrong on our mesh server's own side, as it last said.
    pub troubles: Vec<(Trouble, Age)>,
    /// By name.
    pub peers: Vec<PeerStatus>,
}

#[derive(Clone, PartialEq, Debug)]
pub struct PeerStatus {
    pub name: ClusterName,
    pub id: Option<ClusterId>,
    pub state: PeerState,
    pub state_since: Option<Age>,
    /// Heard by our mesh server.
    pub last_word: Option<Age>,
    pub hears_us: HearsUs,
    pub hears_us_since: Option<Age>,
    /// Of the rows held; `None` before the first list is complete, and in the middle of another.
    pub position: Option<Position>,
    /// A list was complete since the agent started.
    pub complete: bool,
    pub services: usize,
    pub endpoints: usize,
    /// What went wrong last on the link; none since it was connected.
    pub last_error: Option<(String, Age)>,
    pub tries: u32,
    /// HOST:PORT that our mesh server tries.
    pub endpoint: String,
    /// Until its rows are dropped, as of the last word of our mesh server; `None` unless that clock runs.
    pub dropped_in: Option<Duration>,
    pub refused_rows: u64,
    /// By reason, once each: what our mesh server refused and what this agent could not read.
    pub refusals: Vec<RefusalReport>,
    /// Rows that stay though a list left them out.
    pub quarantine: Option<Quarantine>,
    /// Where its endpoints may be.
    pub ranges: Ranges,
}
