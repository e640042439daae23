use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::silence::Wakefulness;
use super::{
    Age, Cluster, ClusterView, ConsumerHello, Epoch, Fault, HearsUs, LinkState, PeerView,
    Publisher, Role, Rows, SavedHistory, SavedPublisher, SavedSilence, Sequenced, VERSION, View,
};
use crate::model::{Batch, ClusterId, ClusterName};

mod link;

use link::{Effect, Link};

/// A peer that has just come back gets this long to watch us before we say that it does not.
const HEARS_US_GRACE: Duration = Duration::from_secs(5);

/// What a mesh server knows: its own cluster's rows, every linked cluster's, and who hears whom.
///
/// The shell around it owns the sockets: it dials links, hands on what they say, and gives [`View`]s to watchers.
#[derive(Debug)]
pub struct Hub {
    own: Cluster,
    heartbeat: Duration,
    publisher: Publisher,
    clock: Wakefulness,
    started: Instant,
    links: BTreeMap<ClusterName, Link>,
    /// The links are known, so that a cluster without one is not linked.
    listed: bool,
    /// Mesh servers that watch us: their id, and how many streams.
    watching: BTreeMap<ClusterName, (ClusterId, usize)>,
    agents: usize,
    instances: u64,
    peers: Arc<Vec<PeerView>>,
    peers_made: Instant,
    news: News,
}

/// How soon watchers should see what changed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum News {
    None,
    /// Silences, counts, errors' ages.
    Soon,
    /// Rows, or the state of a link.
    Now,
}

impl Hub {
    #[must_use]
    pub fn new(
        own: Cluster,
        heartbeat: Duration,
        saved: SavedHub,
        now: Instant,
        wall: SystemTime,
    ) -> Self {
        let clock = Wakefulness::new(now);
        let mut hub = Self {
            own,
            heartbeat,
            publisher: Publisher::load(saved.publisher),
            clock,
            started: now,
            links: BTreeMap::new(),
            listed: false,
            watching: BTreeMap::new(),
            agents: 0,
            instances: 0,
            peers: Arc::default(),
            peers_made: now,
            news: News::Now,
        };
        // Of a time when this cluster had another name or id.
        let is_own = |other: &Cluster| other.id == hub.own.id || other.name == hub.own.name;
        let links: Vec<SavedLink> = saved
            .links
            .into_iter()
            .filter(|link| !is_own(&link.cluster))
            .collect();
        for saved in links {
            hub.instances += 1;
            let link = Link::load(saved, hub.instances, &hub.clock, now, wall);
            hub.links.insert(link.name.clone(), link);
        }
        hub
    }

    #[must_use]
    pub fn save(&self, now: Instant, wall: SystemTime) -> SavedHub {
        let links = self
            .links
            .values()
            .filter_map(|link| link.save(&self.clock, now, wall))
            .collect();
        SavedHub {
            publisher: self.publisher.save(),
            links,
        }
    }

    #[must_use]
    pub fn own(&self) -> &Cluster {
        &self.own
    }

    /// What our own source says.
    pub fn publish(&mut self, batch: &Batch) {
        if self.publisher.apply(batch) {
            self.news = News::Now;
        }
    }

    /// Takes over the configured links: name, pinned id. What was linked and is not named goes, with its rows: a link of
    /// this run at once, one of an earlier run (known from the state file) only if `complete`, that is, if every link
    /// could be read.
    pub fn set_links(
        &mut self,
        wanted: &BTreeMap<ClusterName, Option<ClusterId>>,
        complete: bool,
        now: Instant,
    ) {
        self.links
            .retain(|name, link| wanted.contains_key(name) || !(link.configured || complete));
        for (name, pinned) in wanted {
            self.instances += 1;
            let (instance, clock) = (self.instances, &self.clock);
            let link = self
                .links
                .entry(name.clone())
                .or_insert_with(|| Link::new(name.clone(), instance, clock, now));
            link.configured = true;
            link.pinned = *pinned;
        }
        self.listed |= complete;
        self.news = News::Now;
    }

    /// A try to connect begins.
    pub fn dial(&mut self, name: &ClusterName, endpoint: &str) {
        if let Some(link) = self.links.get_mut(name) {
            link.dial(endpoint);
            self.news = self.news.max(News::Soon);
        }
    }

    /// The transport stands: what to say first. `None` if the link went meanwhile.
    pub fn open(&mut self, name: &ClusterName, node: &str) -> Option<ConsumerHello> {
        let held = self.links.get_mut(name)?.open();
        Some(ConsumerHello {
            cluster: self.own.clone(),
            role: Role::MeshServer,
            node: node.to_owned(),
            held: held.into_iter().collect(),
            stale_after: None,
            versions: vec![VERSION],
        })
    }

    /// A link's stream said something.
    ///
    /// # Errors
    /// The stream is to be closed, with [`Self::close`].
    pub fn receive(
        &mut self,
        name: &ClusterName,
        said: Sequenced,
        now: Instant,
    ) -> Result<(), Fault> {
        let taken = |id: ClusterId| {
            if id == self.own.id {
                return Some(self.own.name.clone());
            }
            let other = self
                .links
                .values()
                .find(|link| link.name != *name && link.id == Some(id));
            other.map(|link| link.name.clone())
        };
        // Only a hello can collide, and only once a stream.
        let taken = match &said.message {
            super::FromServer::Hello(hello) => taken(hello.cluster.id),
            _ => None,
        };
        let link = self.links.get_mut(name).ok_or(Fault::Unlinked)?;
        let long_silent = link.silence.witnessed(&self.clock, now) > self.heartbeat * 3 / 2;
        self.instances += 1;
        let effect = link.receive(said, &self.own, taken, self.instances, now)?;
        link.silence.word(&self.clock, now);
        let news = match effect {
            Effect::Seen => News::Now,
            Effect::Counted if !long_silent => News::Soon,
            Effect::Counted => News::Now,
        };
        self.news = self.news.max(news);
        Ok(())
    }

    /// A link's stream ended, or a try to connect failed.
    pub fn close(&mut self, name: &ClusterName, error: String, refused: bool, now: Instant) {
        if let Some(link) = self.links.get_mut(name) {
            let before = link.state;
            link.close(error, refused, now);
            self.news = self.news.max(if before == link.state {
                News::Soon
            } else {
                News::Now
            });
        }
    }

    /// A consumer asks to watch. `certificate` is what its certificate proves; `None` for the unix socket, which only
    /// this host's agents can reach.
    ///
    /// # Errors
    /// It may not, for the reason given.
    pub fn admit(&mut self, hello: &ConsumerHello) -> Result<(), Fault> {
        let cluster = &hello.cluster;
        if hello.role == Role::Agent {
            if *cluster != self.own {
                return Err(Fault::ForeignAgent {
                    agent: cluster.clone(),
                    server: self.own.clone(),
                });
            }
            self.agents += 1;
            return Ok(());
        }
        let (name, id) = (&cluster.name, cluster.id);
        if *name == self.own.name {
            return Err(Fault::DuplicateName {
                name: name.clone(),
                one: self.own.id,
                other: id,
            });
        }
        if let Some((other, _)) = self.watching.get(name)
            && *other != id
        {
            return Err(Fault::DuplicateName {
                name: name.clone(),
                one: *other,
                other: id,
            });
        }
        let linked = self
            .links
            .values()
            .find(|link| link.id == Some(id))
            .map(|link| &link.name);
        let watching = self
            .watching
            .iter()
            .find(|(_, (other, _))| *other == id)
            .map(|(name, _)| name);
        let own = (id == self.own.id).then_some(&self.own.name);
        if let Some(one) = own.or(linked).or(watching).filter(|one| *one != name) {
            return Err(Fault::DuplicateId {
                id,
                one: one.clone(),
                other: name.clone(),
            });
        }
        self.watching.entry(name.clone()).or_insert((id, 0)).1 += 1;
        self.news = News::Now;
        Ok(())
    }

    /// A consumer that was admitted is gone.
    pub fn leave(&mut self, hello: &ConsumerHello) {
        if hello.role == Role::Agent {
            self.agents = self.agents.saturating_sub(1);
            return;
        }
        if let Some((_, streams)) = self.watching.get_mut(&hello.cluster.name) {
            *streams -= 1;
            if *streams == 0 {
                self.watching.remove(&hello.cluster.name);
            }
        }
        self.news = News::Now;
    }

    /// Call it at least once a second: time without it is time that nobody witnessed.
    pub fn tick(&mut self, now: Instant) {
        self.clock.advance(now);
        let settled = now.saturating_duration_since(self.started) >= HEARS_US_GRACE;
        for link in self.links.values_mut() {
            let hears_us = match link.state {
                _ if self.watching.contains_key(&link.name) => HearsUs::Yes,
                LinkState::Connected if settled && link.state_since.at(now) >= HEARS_US_GRACE => {
                    HearsUs::No
                }
                LinkState::Connected if link.hears_us == HearsUs::No => HearsUs::No,
                _ => HearsUs::Unknown,
            };
            if hears_us != link.hears_us {
                (link.hears_us, link.hears_us_since) = (hears_us, Age::zero(now));
                self.news = News::Now;
            }
        }
        self.news = self.news.max(News::Soon);
    }

    /// Something happened that watchers should see at once rather than at the next tick.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.news == News::Now
    }

    /// Streams of this cluster's own agents.
    #[must_use]
    pub fn agents(&self) -> usize {
        self.agents
    }

    /// Other clusters' mesh servers that watch this one.
    #[must_use]
    pub fn watching(&self) -> usize {
        self.watching.len()
    }

    #[must_use]
    pub fn view(&mut self, now: Instant) -> View {
        if self.news == News::Now
            || now.saturating_duration_since(self.peers_made) >= self.heartbeat
        {
            let peers: Vec<PeerView> = self.links.values().map(Link::view).collect();
            if peers != *self.peers {
                self.peers = Arc::new(peers);
            }
            self.peers_made = now;
        }
        self.news = News::None;
        let known = || {
            self.links
                .values()
                .filter_map(|link| Some((link.id?, link)))
        };
        let silence = |(id, link): (ClusterId, &Link)| {
            (
                id,
                link.silence.witnessed(&self.clock, now),
                link.silence.last_word(),
            )
        };
        View {
            own: ClusterView {
                cluster: self.own.clone(),
                ledger: self.publisher.ledger().clone(),
                confirmed: self.publisher.is_complete(),
            },
            epoch: self.publisher.epoch(),
            heartbeat: self.heartbeat,
            clusters: known()
                .map(|(id, link)| (id, link.cluster_view(id)))
                .collect(),
            peers: self.peers.clone(),
            listed: self.listed,
            silences: Arc::new(known().map(silence).collect()),
            made: now,
        }
    }

    /// Our own source's first list is complete.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.publisher.is_complete()
    }
}

/// A [`Hub`] as a state file holds it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SavedHub {
    pub publisher: SavedPublisher,
    pub links: Vec<SavedLink>,
}

/// A linked cluster as a state file holds it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SavedLink {
    pub cluster: Cluster,
    pub silence: SavedSilence,
    pub rows: Rows,
    #[serde(default)]
    pub history: SavedHistory,
}

impl SavedHub {
    /// The state of a mesh server that never ran. `epoch` is random.
    #[must_use]
    pub fn empty(epoch: Epoch) -> Self {
        Self {
            publisher: SavedPublisher {
                epoch,
                revision: 0,
                told: Rows::default(),
                history: SavedHistory::default(),
            },
            links: Vec::new(),
        }
    }
}
