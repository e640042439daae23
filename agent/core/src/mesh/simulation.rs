//! Two clusters and an agent in one process, with a network that does what networks do.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test's panic is its report"
)]

mod clocks;
mod links;
mod quarantine;
mod resume;
mod rows;
mod schedules;
mod silence;
mod terms;
mod wire;

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;

use super::*;
use crate::model::{ClusterId, ClusterName, ObjectName, RowChange};

use clocks::{Party, WallClocks};
use wire::{QUEUE, Traffic, Wire};

pub(super) use rows::{batch, endpoint, endpoint_at, private_service, service};

fn cluster(name: &str, id: u16) -> Cluster {
    Cluster {
        name: name.parse().unwrap(),
        id: id.try_into().unwrap(),
    }
}

const HEARTBEAT: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(100);
const STALE: Duration = Duration::from_secs(3);
const TTL: Duration = Duration::from_secs(300);

/// What a store would hold.
#[derive(Default)]
struct Store {
    rows: BTreeMap<ClusterId, Rows>,
    stale: BTreeMap<ClusterId, bool>,
    complete: BTreeMap<ClusterId, bool>,
    history: Vec<FeedEvent>,
}

impl Store {
    fn apply(&mut self, events: Vec<FeedEvent>) {
        for event in events {
            match &event {
                FeedEvent::Peer { cluster, stale, .. } => {
                    self.stale.insert(cluster.id, *stale);
                    self.rows.entry(cluster.id).or_default();
                }
                FeedEvent::Rows { cluster, batch } => {
                    let rows = self
                        .rows
                        .get_mut(&cluster.id)
                        .expect("a peer is named before its rows");
                    for change in &batch.changes {
                        assert!(
                            rows.apply(change) || batch.complete,
                            "an equal row woke somebody: {change:?}"
                        );
                    }
                    *self.complete.entry(cluster.id).or_default() |= batch.complete;
                }
                FeedEvent::Dropped { cluster, .. } => {
                    self.rows.remove(&cluster.id).expect("what goes was there");
                    self.stale.remove(&cluster.id);
                    self.complete.remove(&cluster.id);
                }
                FeedEvent::Linked(_) => {}
            }
            self.history.push(event);
        }
    }
}

/// West publishes, east copies, an agent of east consumes.
struct World {
    start: Instant,
    now: Instant,
    clocks: WallClocks,
    /// Of the link from east to west.
    terms: Terms,
    west: Hub,
    west_settings: HubSettings,
    west_rows: Rows,
    west_saved: SavedHub,
    west_alive: bool,
    east: Hub,
    east_saved: SavedHub,
    /// `--endpoint-cidrs` of its next life.
    east_cidrs: Vec<IpNet>,
    east_alive: bool,
    feed: Feed,
    feed_saved: SavedFeed,
    store: Store,
    link: Option<Wire>,
    agent: Option<Wire>,
    link_up: bool,
    agent_up: bool,
    last_word: Instant,
    /// The agent was told of [`late`].
    late_seen: bool,
    link_traffic: Traffic,
    agent_traffic: Traffic,
}

/// A row that west never takes back, once it has come.
fn late() -> RowKey {
    RowKey::of(&endpoint("stable", 2, true))
}

fn west() -> Cluster {
    cluster("west", 2)
}

fn east() -> Cluster {
    cluster("east", 1)
}

const GUARD: Guard = Guard {
    percent: 50,
    grace: Duration::from_secs(5),
};

fn hub_settings(own: Cluster) -> HubSettings {
    HubSettings {
        own,
        heartbeat: HEARTBEAT,
        guard: GUARD,
        cidrs: Vec::new(),
        seed: 0,
    }
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let wall = SystemTime::now();
        let west_saved = SavedHub::empty(Epoch(0x19c0));
        let east_saved = SavedHub::empty(Epoch(0x7f3a));
        let (feed, _) = Feed::new(settings(), SavedFeed::default(), now, wall);
        let mut world = Self {
            start: now,
            now,
            clocks: WallClocks::default(),
            terms: Terms::default(),
            west: Hub::new(hub_settings(west()), west_saved.clone(), now, wall),
            west_settings: hub_settings(west()),
            west_rows: Rows::default(),
            west_saved,
            west_alive: true,
            east: Hub::new(hub_settings(east()), east_saved.clone(), now, wall),
            east_saved,
            east_cidrs: Vec::new(),
            east_alive: true,
            feed,
            feed_saved: SavedFeed::default(),
            store: Store::default(),
            link: None,
            agent: None,
            link_up: true,
            agent_up: true,
            last_word: now,
            late_seen: false,
            link_traffic: Traffic::default(),
            agent_traffic: Traffic::default(),
        };
        world.say(&[service("stable", 80), endpoint("stable", 1, true)]);
        world.west.publish(&batch(vec![], true), now);
        world.east.publish(&batch(vec![], true), now);
        world.link_east();
        world
    }

    /// Another for each life.
    fn seed(&self) -> u64 {
        u64::try_from((self.now - self.start).as_nanos()).unwrap()
    }

    fn wall(&self, whose: Party) -> SystemTime {
        self.clocks.at(whose, self.now - self.start)
    }

    fn link_east(&mut self) {
        let links: BTreeMap<ClusterName, Terms> = [(west().name, self.terms.clone())].into();
        self.east.set_links(&links, true, self.now);
    }

    fn say(&mut self, changes: &[RowChange]) {
        for change in changes {
            self.west_rows.apply(change);
        }
        if self.west_alive {
            self.west.publish(&batch(changes.to_vec(), false), self.now);
        }
    }

    fn cut_link(&mut self) {
        if let Some(wire) = self.link.take() {
            self.west.leave(&wire.hello);
            self.east.close(&west().name, "cut".into(), false, self.now);
        }
    }

    fn cut_agent(&mut self) {
        if let Some(wire) = self.agent.take() {
            self.east.leave(&wire.hello);
            self.feed.close("cut".into(), self.now);
        }
    }

    /// A tenth of a second of everybody's life.
    fn step(&mut self) {
        self.now += STEP;
        let now = self.now;
        if self.west_alive {
            self.west.tick(now);
        }
        if self.east_alive {
            self.east.tick(now);
        }
        self.dial();
        self.step_link();
        self.step_agent();
        self.check();
    }

    fn step_link(&mut self) {
        let now = self.now;
        let Some(wire) = &mut self.link else { return };
        if self.west_alive {
            wire.fill(&self.west.view(now), now);
        }
        let mut fault = None;
        let read = if self.east_alive { wire.read() } else { vec![] };
        for said in read {
            wire.heard = now;
            self.last_word = now;
            self.link_traffic.note(&said);
            match self.east.receive(&west().name, said, now) {
                Ok(Some(id)) => wire.watcher.relist(id),
                Ok(None) => {}
                Err(error) => {
                    fault = Some(error);
                    break;
                }
            }
        }
        if fault.is_some() || now - wire.heard >= 3 * HEARTBEAT || wire.watcher.is_deserted(now) {
            self.cut_link();
        }
    }

    fn step_agent(&mut self) {
        let now = self.now;
        let Some(wire) = &mut self.agent else { return };
        if self.east_alive {
            wire.fill(&self.east.view(now), now);
        }
        let mut fault = None;
        for said in wire.read() {
            self.agent_traffic.note(&said);
            match self.feed.receive(said, now) {
                Ok(events) => self.store.apply(events),
                Err(error) => {
                    fault = Some(error);
                    break;
                }
            }
        }
        // A stream that is to be closed is not asked for more.
        if fault.is_some() {
            return self.cut_agent();
        }
        match self.feed.tick(now) {
            Ok(events) => self.store.apply(events),
            Err(_) => self.cut_agent(),
        }
    }

    fn dial(&mut self) {
        let now = self.now;
        if self.link.is_none() && self.link_up && self.west_alive && self.east_alive {
            self.east.dial(&west().name, "west:4260");
            let hello = self.east.open(&west().name, "e").expect("linked");
            self.west.admit(&hello).expect("welcome");
            let watcher =
                Watcher::new(hello.clone(), &self.west.view(now), now).expect("one version");
            self.link = Some(Wire::new(watcher, hello, now));
        }
        if self.agent.is_none() && self.agent_up && self.east_alive {
            self.feed.dial();
            let hello = self.feed.open(now);
            self.east.admit(&hello).expect("welcome");
            let watcher =
                Watcher::new(hello.clone(), &self.east.view(now), now).expect("one version");
            self.agent = Some(Wire::new(watcher, hello, now));
        }
    }

    /// What holds at every moment: a complete list once seen, what west never took back is there, whoever crashed.
    fn check(&mut self) {
        let id = west().id;
        if self.store.complete.get(&id) == Some(&true) {
            let rows = &self.store.rows[&id];
            let RowChange::Endpoint(stable) = endpoint("stable", 1, true) else {
                panic!("an endpoint")
            };
            let mut endpoints = rows.endpoints_of(&stable.service);
            assert!(
                endpoints.any(|row| *row == stable),
                "a row went that west never took back"
            );
        }
        let late = self.store.rows.get(&id).map(|rows| rows.contains(&late()));
        assert!(
            !self.late_seen || late != Some(false),
            "the agent went back in time"
        );
        self.late_seen = late == Some(true);
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    /// What east's link to west allows from now on.
    fn allow(&mut self, terms: Terms) {
        self.terms = terms;
        if self.east_alive {
            self.link_east();
        }
    }

    fn heal(&mut self) {
        self.allow(Terms::default());
        (self.link_up, self.agent_up) = (true, true);
        if !self.west_alive {
            self.restart_west();
        }
        self.retell_west();
        if !self.east_alive {
            self.restart_east();
        }
        self.run(4 * GUARD.grace);
    }

    fn kill_west(&mut self) {
        self.cut_link();
        self.west_alive = false;
    }

    fn restart_west(&mut self) {
        self.cut_link();
        self.west_alive = true;
        let settings = HubSettings {
            seed: self.seed(),
            ..self.west_settings.clone()
        };
        self.west = Hub::new(
            settings,
            self.west_saved.clone(),
            self.now,
            self.wall(Party::West),
        );
    }

    /// West's source says everything anew: endpoints first, to be nasty.
    fn retell_west(&mut self) {
        let mut changes = self.west_rows.all();
        changes.reverse();
        self.west.publish(&batch(changes, true), self.now);
    }

    /// Another mesh server takes west's place: it has the same source, and an epoch of its own.
    fn switch_west(&mut self, epoch: u64) {
        self.west_saved = SavedHub::empty(Epoch(epoch));
        self.restart_west();
        self.retell_west();
    }

    fn kill_east(&mut self) {
        self.cut_link();
        self.cut_agent();
        self.east_alive = false;
    }

    fn restart_east(&mut self) {
        self.kill_east();
        self.east_alive = true;
        let settings = HubSettings {
            seed: self.seed(),
            cidrs: self.east_cidrs.clone(),
            ..hub_settings(east())
        };
        self.east = Hub::new(
            settings,
            self.east_saved.clone(),
            self.now,
            self.wall(Party::East),
        );
        self.link_east();
    }

    fn restart_agent(&mut self) {
        self.cut_agent();
        let (feed, events) = Feed::new(
            settings(),
            self.feed_saved.clone(),
            self.now,
            self.wall(Party::Agent),
        );
        self.feed = feed;
        self.store = Store::default();
        self.late_seen = false; // Its file may be older.
        self.store.apply(events);
    }

    fn save(&mut self) {
        if self.west_alive {
            self.west_saved = self.west.save(self.now, self.wall(Party::West));
        }
        if self.east_alive {
            self.east_saved = self.east.save(self.now, self.wall(Party::East));
        }
        self.feed_saved = self.feed.save(self.now, self.wall(Party::Agent));
        let links = self.east_saved.links.iter().map(|link| link.silence);
        let peers = self.feed_saved.peers.iter().map(|peer| peer.silence);
        for word in links.chain(peers).filter_map(|silence| silence.last_word) {
            assert!(
                word >= SystemTime::UNIX_EPOCH,
                "no state file holds {word:?}"
            );
        }
    }

    fn published(&mut self) -> Rows {
        self.west.view(self.now).own.ledger.rows().clone()
    }

    fn assert_converged(&mut self) {
        let published = self.published();
        let held = self.store.rows.get(&west().id).expect("rows of west");
        assert!(
            held.same_rows(&published),
            "agent holds {:?}, west tells {:?}",
            held.all(),
            published.all()
        );
        let copy = self.east.view(self.now).clusters[&west().id]
            .ledger
            .rows()
            .clone();
        assert_eq!(copy.position(), published.position());
        assert!(!self.store.stale[&west().id]);
        let peer = self.peer();
        assert_eq!(peer.position, published.position());
        // Of this life, whatever the wall clocks did between lives.
        let age = peer.last_word.expect("it was heard").at(self.now);
        assert!(age < 3 * HEARTBEAT, "its last word is {age:?} old");
    }

    fn peer(&self) -> PeerStatus {
        self.feed
            .status()
            .peers
            .into_iter()
            .find(|peer| peer.name == west().name)
            .expect("west")
    }
}

fn settings() -> FeedSettings {
    FeedSettings {
        own: east(),
        node: "east-1".into(),
        stale_after: STALE,
        ttl: TTL,
    }
}

const SECOND: Duration = Duration::from_secs(1);
