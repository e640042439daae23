use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;

use super::salt::Instances;
use super::silence::Wakefulness;
use super::trouble::Troubles;
use super::{
    Age, Cluster, ClusterView, ConsumerHello, Fault, Guard, HearsUs, LinkState, PeerView,
    Publisher, Quarantine, Role, Sequenced, Terms, Trouble, TroubleSource, VERSION, View,
};
use crate::model::{Batch, ClusterId, ClusterName};

mod link;
mod notice;
mod saved;

use link::{Around, Effect, Link};
pub use notice::Notice;
pub use saved::{SavedHub, SavedLink};

/// A peer that has just come back gets this long to watch us before we say that it does not.
const HEARS_US_GRACE: Duration = Duration::from_secs(5);

/// What does not change while a mesh server runs.
#[derive(Clone, Debug)]
pub struct HubSettings {
    pub own: Cluster,
    pub heartbeat: Duration,
    pub guard: Guard,
    /// Where this cluster has its endpoints: peers are told, and no peer's may be there. Empty: not said.
    pub cidrs: Vec<IpNet>,
    /// Random: tells this run's names from another's.
    pub seed: u64,
}

/// What a mesh server knows: its own cluster's rows, every linked cluster's, and who hears whom.
///
/// The shell around it owns the sockets: it dials links, hands on what they say, and gives [`View`]s to watchers.
#[derive(Debug)]
pub struct Hub {
    settings: HubSettings,
    publisher: Publisher,
    clock: Wakefulness,
    started: Instant,
    links: BTreeMap<ClusterName, Link>,
    /// The links are known, so that a cluster without one is not linked.
    listed: bool,
    /// Mesh servers that watch us: their id, and how many streams.
    watching: BTreeMap<ClusterName, (ClusterId, usize)>,
    agents: usize,
    instances: Instances,
    peers: Arc<Vec<PeerView>>,
    peers_made: Instant,
    news: News,
    notices: Vec<Notice>,
    troubles: Troubles,
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
    pub fn new(settings: HubSettings, saved: SavedHub, now: Instant, wall: SystemTime) -> Self {
        let clock = Wakefulness::new(now);
        let instances = Instances::new(settings.seed);
        let mut hub = Self {
            publisher: Publisher::load(saved.publisher, settings.cidrs.clone()),
            settings,
            clock,
            started: now,
            links: BTreeMap::new(),
            listed: false,
            watching: BTreeMap::new(),
            agents: 0,
            instances,
            peers: Arc::default(),
            peers_made: now,
            news: News::Now,
            notices: Vec::new(),
            troubles: Troubles::default(),
        };
        // Of a time when this cluster had another name or id.
        let own = hub.settings.own.clone();
        let is_own = |other: &Cluster| other.id == own.id || other.name == own.name;
        for saved in saved.links {
            if is_own(&saved.cluster) {
                continue;
            }
            let instance = hub.instances.give();
            let link = Link::load(saved, instance, &hub.clock, now, wall);
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
        &self.settings.own
    }

    /// What our own source says.
    pub fn publish(&mut self, batch: &Batch, now: Instant) {
        let before = self.publisher.quarantine();
        if self.publisher.apply(batch, self.settings.guard, now) {
            self.news = News::Now;
        }
        let after = self.publisher.quarantine();
        let notice = Notice::of_quarantine(&self.settings.own.name, before, after);
        self.notices.extend(notice);
    }

    /// What is wrong here, as `source` sees it now.
    pub fn set_troubles(&mut self, source: TroubleSource, found: Vec<Trouble>, now: Instant) {
        if self.troubles.set(source, found, now) {
            self.news = News::Now;
        }
    }

    /// What happened that an operator should read in the log, since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Takes over the configured links. What was linked and is not named goes, with its rows: a link of
    /// this run at once, one of an earlier run (known from the state file) only if `complete`, that is, if every link
    /// could be read.
    pub fn set_links(
        &mut self,
        wanted: &BTreeMap<ClusterName, Terms>,
        complete: bool,
        now: Instant,
    ) {
        self.links
            .retain(|name, link| wanted.contains_key(name) || !(link.configured || complete));
        for (name, terms) in wanted {
            let (clock, instances) = (&self.clock, &mut self.instances);
            let link = self
                .links
                .entry(name.clone())
                .or_insert_with(|| Link::new(name.clone(), instances.give(), clock, now));
            link.set_terms(terms, &self.settings.cidrs);
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
            cluster: self.settings.own.clone(),
            role: Role::MeshServer,
            node: node.to_owned(),
            held: held.into_iter().collect(),
            stale_after: None,
            versions: vec![VERSION],
        })
    }

    /// A link's stream said something. `Some`: the peer is to be asked for a list of this cluster.
    ///
    /// # Errors
    /// The stream is to be closed, with [`Self::close`].
    pub fn receive(
        &mut self,
        name: &ClusterName,
        said: Sequenced,
        now: Instant,
    ) -> Result<Option<ClusterId>, Fault> {
        // Only a hello can collide, and only once a stream.
        let taken = match &said.message {
            super::FromServer::Hello(hello) => self.holder(hello.cluster.id, name),
            _ => None,
        };
        let link = self.links.get_mut(name).ok_or(Fault::Unlinked)?;
        let long_silent =
            link.silence.witnessed(&self.clock, now) > self.settings.heartbeat * 3 / 2;
        let around = Around {
            own: &self.settings.own,
            cidrs: &self.settings.cidrs,
            guard: self.settings.guard,
            taken,
            instances: &mut self.instances,
        };
        let before = link.quarantine();
        let heard = link.receive(said, around, now)?;
        link.silence.word(&self.clock, now);
        let notice = Notice::of_quarantine(name, before, link.quarantine());
        self.notices.extend(notice);
        if let Some(cidrs) = heard.learnt {
            let cluster = name.clone();
            self.notices.push(Notice::Learnt { cluster, cidrs });
        }
        let ask = heard.ask.then_some(link.id).flatten();
        let news = match heard.effect {
            Effect::Seen => News::Now,
            Effect::Counted if !long_silent => News::Soon,
            Effect::Counted => News::Now,
        };
        self.news = self.news.max(news);
        Ok(ask)
    }

    /// Who has this id, `name` aside.
    fn holder(&self, id: ClusterId, name: &ClusterName) -> Option<ClusterName> {
        if id == self.settings.own.id {
            return Some(self.settings.own.name.clone());
        }
        let mut others = self.links.values().filter(|link| link.name != *name);
        others
            .find(|link| link.id == Some(id))
            .map(|link| link.name.clone())
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
            if *cluster != self.settings.own {
                return Err(Fault::ForeignAgent {
                    agent: cluster.clone(),
                    server: self.settings.own.clone(),
                });
            }
            self.agents += 1;
            return Ok(());
        }
        let (name, id) = (&cluster.name, cluster.id);
        if *name == self.settings.own.name {
            return Err(Fault::DuplicateName {
                name: name.clone(),
                one: self.settings.own.id,
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
        let own = (id == self.settings.own.id).then_some(&self.settings.own.name);
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
        self.release(now);
        self.log_refusals(now);
    }

    /// Lets go of what was in quarantine for long enough.
    fn release(&mut self, now: Instant) {
        let own = (&self.settings.own.name, self.publisher.release(now));
        let peers = self.links.values_mut();
        let gone = peers.map(|link| {
            let rows = link.release(now);
            (&link.name, rows)
        });
        for (cluster, rows) in gone.chain([own]).filter(|(_, rows)| *rows > 0) {
            let cluster = cluster.clone();
            self.notices.push(Notice::Released { cluster, rows });
            self.news = News::Now;
        }
    }

    fn log_refusals(&mut self, now: Instant) {
        for link in self.links.values_mut() {
            let log = link.take_log(now).into_iter();
            let notices = log.map(|(reason, rows, names)| Notice::Refused {
                cluster: link.name.clone(),
                reason,
                rows,
                names,
            });
            self.notices.extend(notices);
        }
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
            || now.saturating_duration_since(self.peers_made) >= self.settings.heartbeat
        {
            let peers: Vec<PeerView> = self.links.values().map(Link::view).collect();
            if peers != *self.peers {
                self.peers = Arc::new(peers);
            }
            self.peers_made = now;
        }
        self.news = News::None;
        let doubt = self.publisher.quarantine().map(doubted);
        let doubt = doubt.into_iter().collect();
        self.troubles.set(TroubleSource::Rows, doubt, now);
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
                cluster: self.settings.own.clone(),
                ledger: self.publisher.ledger().clone(),
                confirmed: self.publisher.is_complete(),
                quarantine: self.publisher.quarantine(),
            },
            epoch: self.publisher.epoch(),
            heartbeat: self.settings.heartbeat,
            guard: self.settings.guard,
            cidrs: self.settings.cidrs.clone(),
            clusters: known()
                .map(|(id, link)| (id, link.cluster_view(id)))
                .collect(),
            peers: self.peers.clone(),
            listed: self.listed,
            troubles: self.troubles.shown(),
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

/// Our own source's list left out much of what peers were told before a restart.
fn doubted(quarantine: Quarantine) -> Trouble {
    let Quarantine { rows, held, .. } = quarantine;
    Trouble {
        about: "source".to_owned(),
        cause: format!(
            "the first list of this cluster's own source left out {rows} of the {held} rows that peers know: they stay \
             for --quarantine-time."
        ),
        way_out: "If they should stay for good: is the source whole, and --source the right one?"
            .to_owned(),
    }
}
