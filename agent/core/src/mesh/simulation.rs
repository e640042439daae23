//! Two clusters and an agent in one process, with a network that does what networks do.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test's panic is its report"
)]

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use proptest::prelude::*;

use super::*;
use crate::model::{
    Affinity, Batch, ClusterId, ClusterName, Condition, EndpointPort, EndpointRow, ObjectName,
    PortRow, Protocol, RowChange, ServiceRow, ServiceRules,
};

pub(super) fn service(name: &str, port: u16) -> RowChange {
    RowChange::Service(Arc::new(service_row(name, port, true)))
}

pub(super) fn private_service(name: &str) -> RowChange {
    RowChange::Service(Arc::new(service_row(name, 80, false)))
}

fn service_row(name: &str, port: u16, shared: bool) -> ServiceRow {
    ServiceRow {
        name: ObjectName::new("n", name),
        addresses: vec!["10.96.0.1".parse().unwrap()],
        ports: vec![PortRow {
            name: "".into(),
            protocol: Protocol::Tcp,
            port,
        }],
        global: shared,
        shared,
        affinity: Affinity::Local,
        rules: ServiceRules::default(),
    }
}

pub(super) fn endpoint(service: &str, number: u32, ready: bool) -> RowChange {
    RowChange::Endpoint(Arc::new(EndpointRow {
        service: ObjectName::new("n", service),
        address: Ipv4Addr::from_bits(0x0a00_0000 + number).into(),
        ports: vec![EndpointPort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        condition: if ready {
            Condition::Ready
        } else {
            Condition::NotReady
        },
        reason: if ready { "" } else { "Pod condition" }.into(),
        node: "".into(),
        zone: "".into(),
    }))
}

pub(super) fn batch(changes: Vec<RowChange>, complete: bool) -> Batch {
    Batch { changes, complete }
}

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

/// One stream: what the server wrote and the consumer has not read.
struct Wire {
    watcher: Watcher,
    hello: ConsumerHello,
    queue: VecDeque<Sequenced>,
    /// Half-open: both sides write, nothing arrives.
    void: bool,
    heard: Instant,
}

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
    west: Hub,
    west_rows: Rows,
    west_saved: SavedHub,
    west_alive: bool,
    east: Hub,
    east_saved: SavedHub,
    east_alive: bool,
    feed: Feed,
    feed_saved: SavedFeed,
    store: Store,
    link: Option<Wire>,
    agent: Option<Wire>,
    link_up: bool,
    agent_up: bool,
    last_word: Instant,
}

fn west() -> Cluster {
    cluster("west", 2)
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
            west: Hub::new(west(), HEARTBEAT, west_saved.clone(), now, wall),
            west_rows: Rows::default(),
            west_saved,
            west_alive: true,
            east: Hub::new(cluster("east", 1), HEARTBEAT, east_saved.clone(), now, wall),
            east_saved,
            east_alive: true,
            feed,
            feed_saved: SavedFeed::default(),
            store: Store::default(),
            link: None,
            agent: None,
            link_up: true,
            agent_up: true,
            last_word: now,
        };
        world.say(&[service("stable", 80), endpoint("stable", 1, true)]);
        world.west.publish(&batch(vec![], true));
        world.east.publish(&batch(vec![], true));
        world.link_east();
        world
    }

    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000) + (self.now - self.start)
    }

    fn link_east(&mut self) {
        let links: BTreeMap<ClusterName, Option<ClusterId>> = [(west().name, None)].into();
        self.east.set_links(&links, true, self.now);
    }

    fn say(&mut self, changes: &[RowChange]) {
        for change in changes {
            self.west_rows.apply(change);
        }
        if self.west_alive {
            self.west.publish(&batch(changes.to_vec(), false));
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
        if let Some(wire) = &mut self.link {
            let view = self.west.view(now);
            if self.west_alive {
                for _ in 0..3 {
                    wire.queue.extend(wire.watcher.poll(&view, now));
                }
            }
            if wire.void {
                wire.queue.clear();
            }
            if self.east_alive && !wire.void {
                wire.watcher.heard(now);
            }
            let mut fault = None;
            while let Some(said) = wire.queue.pop_front().filter(|_| self.east_alive) {
                wire.heard = now;
                self.last_word = now;
                if let Err(error) = self.east.receive(&west().name, said, now) {
                    fault = Some(error);
                    break;
                }
            }
            if fault.is_some() || now - wire.heard >= 3 * HEARTBEAT || wire.watcher.is_deserted(now)
            {
                self.cut_link();
            }
        }
        if let Some(wire) = &mut self.agent {
            if self.east_alive {
                let view = self.east.view(now);
                for _ in 0..3 {
                    wire.queue.extend(wire.watcher.poll(&view, now));
                }
            }
            if wire.void {
                wire.queue.clear();
            } else {
                wire.watcher.heard(now);
            }
            let mut fault = None;
            while let Some(said) = wire.queue.pop_front() {
                match self.feed.receive(said, now) {
                    Ok(events) => self.store.apply(events),
                    Err(error) => {
                        fault = Some(error);
                        break;
                    }
                }
            }
            if fault.is_some() || self.feed.tick(now).is_err() {
                self.cut_agent();
            }
        }
        self.check();
    }

    fn dial(&mut self) {
        let now = self.now;
        if self.link.is_none() && self.link_up && self.west_alive && self.east_alive {
            self.east.dial(&west().name, "west:4260");
            let hello = self.east.open(&west().name, "e").expect("linked");
            self.west.admit(&hello).expect("welcome");
            let watcher =
                Watcher::new(hello.clone(), &self.west.view(now), now).expect("one version");
            self.link = Some(Wire {
                watcher,
                hello,
                queue: VecDeque::new(),
                void: false,
                heard: now,
            });
        }
        if self.agent.is_none() && self.agent_up && self.east_alive {
            self.feed.dial();
            let hello = self.feed.open(now);
            self.east.admit(&hello).expect("welcome");
            let watcher =
                Watcher::new(hello.clone(), &self.east.view(now), now).expect("one version");
            self.agent = Some(Wire {
                watcher,
                hello,
                queue: VecDeque::new(),
                void: false,
                heard: now,
            });
        }
    }

    /// What holds at every moment: a complete list once seen, what west never took back is there, and a stale peer
    /// became live by a word only.
    fn check(&self) {
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
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    fn heal(&mut self) {
        (self.link_up, self.agent_up) = (true, true);
        if !self.west_alive {
            self.restart_west();
        }
        if !self.east_alive {
            self.restart_east();
        }
        self.run(Duration::from_secs(10));
    }

    fn kill_west(&mut self) {
        self.cut_link();
        self.west_alive = false;
    }

    fn restart_west(&mut self) {
        self.cut_link();
        self.west_alive = true;
        self.west = Hub::new(
            west(),
            HEARTBEAT,
            self.west_saved.clone(),
            self.now,
            self.wall(),
        );
        // The source says everything anew: endpoints first, to be nasty.
        let mut changes = self.west_rows.all();
        changes.reverse();
        self.west.publish(&batch(changes, true));
    }

    fn kill_east(&mut self) {
        self.cut_link();
        self.cut_agent();
        self.east_alive = false;
    }

    fn restart_east(&mut self) {
        self.kill_east();
        self.east_alive = true;
        self.east = Hub::new(
            cluster("east", 1),
            HEARTBEAT,
            self.east_saved.clone(),
            self.now,
            self.wall(),
        );
        self.link_east();
    }

    fn restart_agent(&mut self) {
        self.cut_agent();
        let (feed, events) = Feed::new(settings(), self.feed_saved.clone(), self.now, self.wall());
        self.feed = feed;
        self.store = Store::default();
        self.store.apply(events);
    }

    fn save(&mut self) {
        if self.west_alive {
            self.west_saved = self.west.save(self.now, self.wall());
        }
        if self.east_alive {
            self.east_saved = self.east.save(self.now, self.wall());
        }
        self.feed_saved = self.feed.save(self.now, self.wall());
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
        assert_eq!(self.peer().position, published.position());
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
        own: cluster("east", 1),
        node: "east-1".into(),
        stale_after: STALE,
        ttl: TTL,
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_cut_makes_stale_then_drops_and_a_word_brings_all_back() {
    let mut world = World::new();
    world.run(SECOND);
    world.assert_converged();
    assert!(world.store.complete[&west().id]);
    world.link_up = false;
    if let Some(wire) = &mut world.link {
        wire.void = true;
    }
    let silent_for = |world: &World| world.now - world.last_word;
    while silent_for(&world) < STALE - STEP {
        world.step();
        assert_eq!(world.peer().state, PeerState::Connected);
    }
    world.run(2 * STEP);
    assert_eq!(world.peer().state, PeerState::Stale);
    assert!(world.store.stale[&west().id]);
    assert_eq!(
        world.store.rows[&west().id].endpoints(),
        1,
        "stale rows stay"
    );
    world.run(TTL);
    assert_eq!(world.peer().state, PeerState::Dropped);
    assert!(world.store.rows.is_empty());
    world.heal();
    world.assert_converged();
    assert!(world.store.complete[&west().id]);
    let listed =
        |event: &&FeedEvent| matches!(event, FeedEvent::Rows { batch, .. } if batch.complete);
    assert_eq!(world.store.history.iter().filter(listed).count(), 2);
}

#[test]
fn while_the_feed_is_lost_nothing_grows_stale() {
    let mut world = World::new();
    world.run(SECOND);
    world.kill_east();
    world.run(2 * TTL);
    assert_eq!(world.feed.status().state, FeedState::Lost);
    assert!(!world.store.stale[&west().id]);
    // Half-open is found by silence, and is no news about west either.
    world.restart_east();
    world.run(SECOND);
    assert_eq!(world.feed.status().state, FeedState::Connected);
    world.agent.as_mut().unwrap().void = true;
    world.agent_up = false;
    world.run(TTL);
    assert_eq!(world.feed.status().state, FeedState::Lost);
    assert!(!world.store.stale[&west().id]);
    world.heal();
    world.assert_converged();
}

#[test]
fn a_restart_with_everybody_dead_loses_nothing_and_a_stale_peer_stays_stale() {
    let mut world = World::new();
    world.run(SECOND);
    world.save();
    world.kill_west();
    world.kill_east();
    world.now += 3600 * SECOND;
    world.restart_agent();
    world.run(TTL);
    let rows = &world.store.rows[&west().id];
    assert_eq!((rows.services(), rows.endpoints()), (1, 1));
    assert!(!world.store.stale[&west().id]);
    assert!(
        !world.store.complete[&west().id],
        "a state file is no passport"
    );
    // East comes back alone: from here on it witnesses the silence.
    world.restart_east();
    world.run(5 * SECOND);
    assert!(world.store.stale[&west().id]);
    world.save();
    world.restart_agent();
    assert!(world.store.stale[&west().id], "its own file says so");
    world.restart_east();
    world.run(SECOND / 2);
    assert!(world.store.stale[&west().id], "no word of west, no change");
    world.heal();
    world.assert_converged();
}

#[test]
fn a_restart_resumes_and_sends_no_row_again() {
    let mut world = World::new();
    world.run(2 * SECOND);
    world.save();
    for restart in [
        World::restart_west,
        World::restart_east,
        World::restart_agent,
        World::cut_link,
        World::cut_agent,
    ] {
        restart(&mut world);
        let resumed = world.feed.status().resumed;
        let before = world.store.history.len();
        world.run(2 * SECOND);
        world.assert_converged();
        let new = &world.store.history[before..];
        let rows = |event: &&FeedEvent| matches!(event, FeedEvent::Rows { batch, .. } if !batch.changes.is_empty());
        assert_eq!(new.iter().filter(rows).count(), 0, "{new:?}");
        assert!(world.feed.status().resumed >= resumed);
    }
    assert!(world.feed.status().resumed >= 1);
}

#[test]
fn a_mesh_server_that_was_stopped_blames_nobody() {
    let mut world = World::new();
    world.run(2 * SECOND);
    // East's mesh server does not run for an hour, then runs on: words lie in its socket.
    world.now += 3600 * SECOND;
    if let Some(wire) = &mut world.link {
        wire.heard = world.now;
        wire.watcher.heard(world.now);
    }
    world.run(2 * SECOND);
    assert!(
        world
            .store
            .history
            .iter()
            .all(|event| !matches!(event, FeedEvent::Peer { stale: true, .. }))
    );
    world.heal();
    world.assert_converged();
}

#[test]
fn a_third_clusters_rows_are_refused_counted_and_named() {
    let mut world = World::new();
    world.run(SECOND);
    let wire = world.link.as_mut().unwrap();
    let view = world.west.view(world.now);
    // West's next message is about north.
    let sequence = loop {
        match wire.watcher.poll(&view, world.now + 2 * SECOND) {
            Some(said) if matches!(said.message, FromServer::Heartbeat(_)) => break said.sequence,
            Some(_) => {}
            None => panic!("a heartbeat was due"),
        }
    };
    let north = cluster("north", 3).id;
    let message = FromServer::Rows {
        id: north,
        changes: vec![service("stolen", 80)],
        position: None,
    };
    world
        .east
        .receive(&west().name, Sequenced { sequence, message }, world.now)
        .unwrap();
    world.run(2 * SECOND);
    world.assert_converged();
    let peer = world.peer();
    assert_eq!((peer.state, peer.refused_rows), (PeerState::Connected, 1));
    assert_eq!(
        peer.last_error.unwrap().0,
        "\"west\" spoke for cluster id 3: 1 rows refused, a mesh server speaks for its own cluster only"
    );
}

#[test]
fn a_message_that_comes_again_later_changes_nothing() {
    let mut world = World::new();
    world.run(SECOND);
    let mut written = Vec::new();
    for port in [80, 81] {
        world.say(&[service("s", port)]);
        let view = world.west.view(world.now);
        written.extend(world.link.as_mut().unwrap().watcher.poll(&view, world.now));
    }
    let first = written[0].clone();
    assert!(
        matches!(first.message, FromServer::Rows { .. }),
        "{first:?}"
    );
    let queue = &mut world.link.as_mut().unwrap().queue;
    queue.extend(written);
    queue.push_back(first);
    world.run(SECOND);
    world.assert_converged();
}

#[test]
fn duplicates_are_refused_with_both_names() {
    let mut world = World::new();
    world.run(SECOND);
    let lab: ClusterName = "lab2".parse().unwrap();
    let links: BTreeMap<_, _> = [(west().name, None), (lab.clone(), None)].into();
    world.east.set_links(&links, true, world.now);
    let hello = |name: &str, id| ServerHello {
        cluster: cluster(name, id),
        epoch: Epoch(9),
        heartbeat: HEARTBEAT,
        version: 1,
    };
    let mut say = |hello: ServerHello| {
        world.east.open(&lab, "e").unwrap();
        let said = Sequenced {
            sequence: 1,
            message: FromServer::Hello(hello),
        };
        world
            .east
            .receive(&lab, said, world.now)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        say(hello("lab2", 2)),
        "cluster id 2 is taken: \"west\" and \"lab2\" both use it; give one another id in its --cluster-id, then restart it"
    );
    assert!(say(hello("lab2", 1)).starts_with("cluster id 1 is taken: \"east\" and \"lab2\""));
    assert!(
        say(hello("east", 7))
            .starts_with("cluster name \"east\" is taken: the clusters with id 1 and id 7")
    );
    assert!(say(hello("north", 7)).contains("the link \"lab2\" reached cluster \"north\" (id 7)"));
    let consumer = |name: &str, id, role| ConsumerHello {
        cluster: cluster(name, id),
        role,
        node: String::new(),
        held: vec![],
        stale_after: None,
        versions: vec![1],
    };
    let mut ask = |hello: ConsumerHello| world.east.admit(&hello).unwrap_err().to_string();
    assert!(
        ask(consumer("lab2", 2, Role::MeshServer))
            .starts_with("cluster id 2 is taken: \"west\" and \"lab2\"")
    );
    assert!(
        ask(consumer("east", 5, Role::MeshServer)).starts_with("cluster name \"east\" is taken")
    );
    assert!(ask(consumer("east", 5, Role::Agent)).contains("same --cluster-name and --cluster-id"));
    world.run(SECOND);
    world.assert_converged();
}

#[test]
fn hears_us_is_told_and_an_unlinked_cluster_goes() {
    let mut world = World::new();
    world.run(10 * SECOND);
    assert_eq!(world.peer().hears_us, HearsUs::No);
    let hello = ConsumerHello {
        cluster: west(),
        role: Role::MeshServer,
        node: String::new(),
        held: vec![],
        stale_after: None,
        versions: vec![1],
    };
    world.east.admit(&hello).unwrap();
    world.run(SECOND);
    assert_eq!(world.peer().hears_us, HearsUs::Yes);
    world.east.leave(&hello);
    world.run(SECOND);
    assert_eq!(world.peer().hears_us, HearsUs::No);
    // Unlinked while the agent is away: it hears of it when it is back.
    world.cut_agent();
    world.link_up = false;
    world.cut_link();
    world.east.set_links(&BTreeMap::new(), false, world.now);
    assert!(world.east.open(&west().name, "e").is_none());
    world.run(SECOND);
    assert!(world.store.rows.is_empty());
    let last = world
        .store
        .history
        .iter()
        .rfind(|event| matches!(event, FeedEvent::Dropped { .. }));
    assert_eq!(
        last,
        Some(&FeedEvent::Dropped {
            cluster: west(),
            why: Dropped::Unlinked
        })
    );
}

#[test]
fn long_lists_are_paged_and_changes_meanwhile_arrive() {
    let mut world = World::new();
    let many: Vec<RowChange> = (0..3000)
        .map(|n| endpoint("stable", n + 10, true))
        .collect();
    world.say(&many);
    world.step();
    world.say(&[
        RowKey::of(&many[5]).gone(),
        RowKey::of(&many[2900]).gone(),
        endpoint("stable", 9000, false),
    ]);
    world.run(3 * SECOND);
    world.assert_converged();
    assert_eq!(world.store.rows[&west().id].endpoints(), 3000);
}

#[derive(Clone, Debug)]
enum Op {
    Say(u8, u16),
    Take(u8),
    Endpoint(u8, u32, bool),
    TakeEndpoint(u8, u32),
    Steps(u8),
    Repeat(bool, usize),
    Swap(bool, usize),
    Lose(bool, usize),
    Cut(bool),
    HalfOpen(bool),
    RestartWest,
    RestartEast,
    RestartAgent,
    KillEast,
    Save,
    Jump(u16),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..4_u8, 80..83_u16).prop_map(|(n, port)| Op::Say(n, port)),
        2 => (0..4_u8).prop_map(Op::Take),
        6 => (0..4_u8, 0..6_u32, any::<bool>()).prop_map(|(n, e, ready)| Op::Endpoint(n, e, ready)),
        3 => (0..4_u8, 0..6_u32).prop_map(|(n, e)| Op::TakeEndpoint(n, e)),
        8 => (1..12_u8).prop_map(Op::Steps),
        2 => (any::<bool>(), 0..8_usize).prop_map(|(link, n)| Op::Repeat(link, n)),
        2 => (any::<bool>(), 0..4_usize).prop_map(|(link, n)| Op::Swap(link, n)),
        2 => (any::<bool>(), 0..4_usize).prop_map(|(link, n)| Op::Lose(link, n)),
        1 => any::<bool>().prop_map(Op::Cut),
        1 => any::<bool>().prop_map(Op::HalfOpen),
        1 => Just(Op::RestartWest),
        1 => Just(Op::RestartEast),
        1 => Just(Op::RestartAgent),
        1 => Just(Op::KillEast),
        2 => Just(Op::Save),
        1 => (1..30_u16).prop_map(Op::Jump),
    ]
}

fn apply(world: &mut World, op: &Op) {
    let name = |n: &u8| format!("s{n}");
    // Messages in flight are those that a step has not delivered: write some without reading.
    let fill = |wire: &mut Option<Wire>, hub: &mut Hub, now: Instant| {
        if let Some(wire) = wire {
            let view = hub.view(now);
            for _ in 0..4 {
                wire.queue.extend(wire.watcher.poll(&view, now + HEARTBEAT));
            }
        }
    };
    if let Op::Repeat(link, _) | Op::Swap(link, _) | Op::Lose(link, _) = op {
        if *link && world.west_alive {
            fill(&mut world.link, &mut world.west, world.now);
        } else if world.east_alive {
            fill(&mut world.agent, &mut world.east, world.now);
        }
    }
    match op {
        Op::Say(n, port) => world.say(&[service(&name(n), *port)]),
        Op::Take(n) => world.say(&[RowChange::ServiceGone(ObjectName::new("n", &name(n)))]),
        Op::Endpoint(n, e, ready) => world.say(&[endpoint(&name(n), *e, *ready)]),
        Op::TakeEndpoint(n, e) => world.say(&[RowKey::of(&endpoint(&name(n), *e, true)).gone()]),
        Op::Steps(n) => world.run(STEP * u32::from(*n)),
        Op::Repeat(link, n) => on_wire(world, *link, |queue| queue.extend(queue.get(*n).cloned())),
        Op::Swap(link, n) => on_wire(world, *link, |queue| {
            if n + 1 < queue.len() {
                queue.swap(*n, n + 1);
            }
        }),
        Op::Lose(link, n) => on_wire(world, *link, |queue| drop(queue.remove(*n))),
        Op::Cut(true) => world.cut_link(),
        Op::Cut(false) => world.cut_agent(),
        Op::HalfOpen(true) => world.link.iter_mut().for_each(|wire| wire.void = true),
        Op::HalfOpen(false) => world.agent.iter_mut().for_each(|wire| wire.void = true),
        Op::RestartWest => world.restart_west(),
        Op::RestartEast => world.restart_east(),
        Op::RestartAgent => world.restart_agent(),
        Op::KillEast => world.kill_east(),
        Op::Save => world.save(),
        Op::Jump(seconds) => world.now += SECOND * u32::from(*seconds),
    }
}

fn on_wire(world: &mut World, link: bool, act: impl FnOnce(&mut VecDeque<Sequenced>)) {
    let wire = if link {
        &mut world.link
    } else {
        &mut world.agent
    };
    if let Some(wire) = wire {
        act(&mut wire.queue);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever happens on the way, it ends with equal rows; and on the way no row goes that west did not take back,
    /// no equal row wakes the store, and no stale peer becomes live without a word.
    #[test]
    fn any_schedule_converges(ops in proptest::collection::vec(op(), 1..80)) {
        let mut world = World::new();
        let mut stale_since = None;
        for op in &ops {
            if matches!(op, Op::RestartEast | Op::RestartAgent) {
                stale_since = None; // An older state file may know less.
            }
            let was_stale = world.store.stale.get(&west().id).copied().unwrap_or(false);
            apply(&mut world, op);
            let is_stale = world.store.stale.get(&west().id).copied().unwrap_or(false);
            if !was_stale && is_stale {
                stale_since = Some(world.now);
            }
            if let (true, false, Some(since)) = (was_stale, is_stale, stale_since) {
                prop_assert!(world.last_word > since - STEP * 12, "live again without a word");
            }
        }
        world.heal();
        world.assert_converged();
    }
}
