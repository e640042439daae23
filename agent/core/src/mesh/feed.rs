use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::message::in_sequence;
use super::{
    Age, Beginning, Cluster, ConsumerHello, Fault, FromServer, Guard, Patience, PeerReport,
    PeerSilence, Role, Rows, SavedSilence, Sequenced, ServerHello, Trouble, TroubleReport, VERSION,
};
use crate::model::{Batch, ClusterId, ClusterName};

mod peer;
mod status;

#[cfg(test)]
mod tests;

use peer::Peer;
pub use status::{FeedState, FeedStatus, PeerState, PeerStatus};

#[derive(Clone, Debug)]
pub struct FeedSettings {
    /// The agent's own cluster.
    pub own: Cluster,
    pub node: String,
    /// `--peer-stale-after`.
    pub stale_after: Duration,
    /// `--cluster-ttl`.
    pub ttl: Duration,
}

/// Which of a peer's backends may be used, and how.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Standing {
    Live,
    /// Silent for `stale_after`: after everything live.
    Stale,
    /// Silent for `ttl`: not at all. The feed keeps the rows and gives them again at the peer's next word.
    Expired,
}

/// Why a peer's rows went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dropped {
    /// Silent for longer than `--cluster-ttl`.
    Expired,
    /// Our mesh server is not linked with it any more.
    Unlinked,
    /// It has another id now, or another cluster has this one.
    Renumbered,
}

/// What the agent's store is to do, in this order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FeedEvent {
    /// The peer is there, live or stale. Comes before its first rows, and whenever it changes. `silent`: how long our
    /// mesh server has not heard it.
    Peer {
        cluster: Cluster,
        stale: bool,
        silent: Duration,
    },
    /// Its rows. `complete` once its list is: what the store holds of it and was never named may go.
    Rows { cluster: Cluster, batch: Batch },
    /// All of its rows go.
    Dropped { cluster: Cluster, why: Dropped },
    /// These are all linked clusters: rows of any other owner, from before the agent started, may go. Comes when the
    /// ids of all are known, and again when the list is another.
    Linked(Vec<Cluster>),
}

/// The agent's end of the stream from its own mesh server.
///
/// It holds no clock of its own over peers: they grow stale and expire by what a living mesh server reports, so nothing
/// does while the feed is lost.
#[derive(Debug)]
pub struct Feed {
    settings: FeedSettings,
    peers: BTreeMap<ClusterName, Peer>,
    stream: Option<Stream>,
    state: FeedState,
    state_since: Age,
    last_word: Option<Age>,
    resumed: u64,
    last_resumed: Option<Age>,
    last_error: Option<(String, Age)>,
    tries: u32,
    listed: bool,
    /// On our mesh server's own side, as it last said.
    troubles: Vec<(Trouble, Age)>,
    /// What the last [`FeedEvent::Linked`] said.
    linked: Option<Vec<Cluster>>,
    /// Our mesh server's, for its own lists.
    guard: Guard,
}

#[derive(Debug)]
struct Stream {
    expected: u64,
    patience: Patience,
    /// A list of this stream was resumed. Counted once a stream.
    resumed: bool,
    /// The newest heartbeat: a cluster's silence is told before its rows are.
    silences: (Vec<PeerSilence>, Instant),
}

impl Feed {
    /// What the state file held is said again: rows, stale or live as they were, but no complete list.
    #[must_use]
    pub fn new(
        settings: FeedSettings,
        saved: SavedFeed,
        now: Instant,
        wall: SystemTime,
    ) -> (Self, Vec<FeedEvent>) {
        let mut events = Vec::new();
        let mut peers = BTreeMap::new();
        for saved in saved.peers.into_iter().filter(|peer| {
            peer.cluster.id != settings.own.id && peer.cluster.name != settings.own.name
        }) {
            let mut peer = Peer::load(saved, now, wall);
            peer.judge(&settings, now, &mut events);
            peers.insert(peer.name.clone(), peer);
        }
        let feed = Self {
            settings,
            peers,
            stream: None,
            state: FeedState::Connecting,
            state_since: Age::zero(now),
            last_word: None,
            resumed: 0,
            last_resumed: None,
            last_error: None,
            tries: 0,
            listed: false,
            troubles: Vec::new(),
            linked: None,
            guard: Guard::default(),
        };
        (feed, events)
    }

    #[must_use]
    pub fn save(&self, now: Instant, wall: SystemTime) -> SavedFeed {
        SavedFeed {
            peers: self
                .peers
                .values()
                .filter_map(|peer| peer.save(now, wall))
                .collect(),
        }
    }

    /// A try to connect begins.
    pub fn dial(&mut self) {
        self.tries = self.tries.saturating_add(1);
    }

    /// The transport stands: what to say first.
    pub fn open(&mut self, now: Instant) -> ConsumerHello {
        self.stream = Some(Stream {
            expected: 1,
            patience: Patience::new(now),
            resumed: false,
            silences: (Vec::new(), now),
        });
        let held = self.peers.values_mut().filter_map(Peer::open).collect();
        ConsumerHello {
            cluster: self.settings.own.clone(),
            role: Role::Agent,
            node: self.settings.node.clone(),
            held,
            stale_after: Some(self.settings.stale_after),
            versions: vec![VERSION],
        }
    }

    /// The stream ended, or a try to connect failed. Peers stay as they are.
    pub fn close(&mut self, error: String, now: Instant) {
        self.stream = None;
        if self.state == FeedState::Connected {
            (self.state, self.state_since) = (FeedState::Lost, Age::zero(now));
        }
        if self
            .last_error
            .as_ref()
            .is_none_or(|(before, _)| *before != error)
        {
            self.last_error = Some((error, Age::zero(now)));
        }
    }

    /// When to call [`Self::tick`], if nothing is received before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let stream = self.stream.as_ref()?;
        let releases = self.peers.values().filter_map(Peer::next_release);
        releases.chain([stream.patience.deadline()]).min()
    }

    /// # Errors
    /// The stream has been silent for too long: close it.
    pub fn tick(&mut self, now: Instant) -> Result<Vec<FeedEvent>, Fault> {
        let mut events = Vec::new();
        let Some(stream) = &mut self.stream else {
            return Ok(events);
        };
        stream.patience.judge(now)?;
        for peer in self.peers.values_mut() {
            peer.release(now, &mut events);
        }
        Ok(events)
    }

    /// The stream said something.
    ///
    /// # Errors
    /// The stream is to be closed, with [`Self::close`].
    pub fn receive(&mut self, said: Sequenced, now: Instant) -> Result<Vec<FeedEvent>, Fault> {
        let mut events = Vec::new();
        let stream = self.stream.as_mut().ok_or(Fault::Unlinked)?;
        stream.patience.hear(now);
        self.last_word = Some(Age::zero(now));
        if !in_sequence(&mut stream.expected, said.sequence).map_err(broke)? {
            return Ok(events);
        }
        match said.message {
            FromServer::Hello(hello) => self.greet(&hello, now)?,
            _ if !stream.patience.is_greeted() => return Err(broke("did not begin with a hello")),
            FromServer::Peers {
                reports,
                partial,
                troubles,
            } => {
                let since = |report: TroubleReport| (report.trouble, Age::of(report.age, now));
                self.troubles = troubles.into_iter().map(since).collect();
                self.list(reports, partial, now, &mut events);
            }
            FromServer::Heartbeat(silences) => {
                self.heartbeat(&silences, now, &mut events);
                stream_of(&mut self.stream)?.silences = (silences, now);
            }
            FromServer::Start { cluster, beginning } => {
                if cluster.id == self.settings.own.id || cluster.name == self.settings.own.name {
                    return Err(broke("tells our own cluster's rows as a peer's"));
                }
                let resumed = beginning == Beginning::Resumed;
                if resumed && !std::mem::replace(&mut stream.resumed, true) {
                    self.resumed += 1;
                    self.last_resumed = Some(Age::zero(now));
                }
                self.start(&cluster, beginning, now, &mut events)?;
            }
            FromServer::Rows {
                id,
                changes,
                bad,
                position,
            } => {
                known(&mut self.peers, id)?
                    .rows(changes, bad, position, &mut events)
                    .map_err(broke)?;
            }
            FromServer::Complete { id, position } => {
                known(&mut self.peers, id)?
                    .complete(position, self.guard, now, &mut events)
                    .map_err(broke)?;
            }
        }
        Ok(events)
    }

    fn greet(&mut self, hello: &ServerHello, now: Instant) -> Result<(), Fault> {
        if hello.cluster != self.settings.own {
            let (server, agent) = (hello.cluster.clone(), self.settings.own.clone());
            return Err(Fault::ForeignMeshServer { server, agent });
        }
        if hello.version != VERSION {
            return Err(Fault::NoCommonVersion {
                theirs: vec![hello.version],
                ours: VERSION,
            });
        }
        if hello.heartbeat < Duration::from_millis(10) || hello.heartbeat > Duration::from_secs(60)
        {
            return Err(broke("asks for a heartbeat outside 10ms..60s"));
        }
        if let Some(stream) = &mut self.stream {
            if stream.patience.is_greeted() {
                return Err(broke("said hello twice"));
            }
            stream.patience.greet(hello.heartbeat);
        }
        self.guard = hello.guard;
        (self.state, self.state_since) = (FeedState::Connected, Age::zero(now));
        (self.last_error, self.tries) = (None, 0);
        Ok(())
    }

    fn list(
        &mut self,
        reports: Vec<PeerReport>,
        partial: bool,
        now: Instant,
        events: &mut Vec<FeedEvent>,
    ) {
        let names: Vec<&ClusterName> = reports.iter().map(|report| &report.name).collect();
        self.peers.retain(|name, peer| {
            let named = names.contains(&name);
            if !named && partial {
                peer.forget_report();
            } else if !named {
                peer.drop_rows(Dropped::Unlinked, events);
            }
            named || partial
        });
        for report in reports {
            let name = report.name.clone();
            self.peers
                .entry(name.clone())
                .or_insert_with(|| Peer::new(name, now))
                .report(report, now);
        }
        self.listed = !partial;
        if partial {
            return;
        }
        let linked: Option<Vec<_>> = self.peers.values().map(Peer::reported).collect();
        if linked.is_some() && linked != self.linked {
            events.extend(linked.clone().map(FeedEvent::Linked));
            self.linked = linked;
        }
    }

    fn heartbeat(&mut self, silences: &[PeerSilence], now: Instant, events: &mut Vec<FeedEvent>) {
        for peer in self.peers.values_mut() {
            if let Some(silence) = silences.iter().find(|silence| Some(silence.id) == peer.id) {
                peer.silence(silence, now);
                peer.judge(&self.settings, now, events);
            }
        }
    }

    fn start(
        &mut self,
        cluster: &Cluster,
        beginning: Beginning,
        now: Instant,
        events: &mut Vec<FeedEvent>,
    ) -> Result<(), Fault> {
        // Before anything is dropped: what a failed message did would never be told.
        let known = self.peers.get(&cluster.name);
        if beginning == Beginning::Resumed && known.is_none_or(|peer| !peer.holds(cluster.id)) {
            return Err(broke("resumes what is not held"));
        }
        for other in self
            .peers
            .values_mut()
            .filter(|peer| peer.id == Some(cluster.id) && peer.name != cluster.name)
        {
            other.renumber(None, events);
        }
        let peer = self
            .peers
            .entry(cluster.name.clone())
            .or_insert_with(|| Peer::new(cluster.name.clone(), now));
        if peer.id != Some(cluster.id) {
            peer.renumber(Some(cluster.id), events);
        }
        if let Some(Stream {
            silences: (silences, at),
            ..
        }) = &self.stream
            && let Some(silence) = silences.iter().find(|silence| silence.id == cluster.id)
        {
            peer.silence(silence, *at);
        }
        peer.start(beginning).map_err(broke)?;
        peer.judge(&self.settings, now, events);
        Ok(())
    }

    #[must_use]
    pub fn status(&self) -> FeedStatus {
        FeedStatus {
            state: self.state,
            state_since: self.state_since,
            last_word: self.last_word,
            resumed: self.resumed,
            last_resumed: self.last_resumed,
            last_error: self.last_error.clone(),
            tries: self.tries,
            listed: self.listed,
            troubles: self.troubles.clone(),
            peers: self
                .peers
                .values()
                .map(|peer| peer.status(&self.settings))
                .collect(),
        }
    }
}

fn broke(what: &'static str) -> Fault {
    Fault::PeerBroke {
        who: "our mesh server".to_owned(),
        what,
    }
}

fn stream_of(stream: &mut Option<Stream>) -> Result<&mut Stream, Fault> {
    stream.as_mut().ok_or(Fault::Unlinked)
}

fn known(peers: &mut BTreeMap<ClusterName, Peer>, id: ClusterId) -> Result<&mut Peer, Fault> {
    peers
        .values_mut()
        .find(|peer| peer.id == Some(id))
        .ok_or_else(|| broke("tells rows of a cluster that it did not name"))
}

/// A [`Feed`] as a state file holds it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct SavedFeed {
    pub peers: Vec<SavedPeer>,
}

/// A peer as the agent's state file holds it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SavedPeer {
    pub cluster: Cluster,
    pub silence: SavedSilence,
    pub rows: Rows,
}
