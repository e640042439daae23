//! A mesh server under any messages of its peers: its own agent is never told anything that breaks the protocol, and in
//! the end agent and peers hold what it holds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use isthmus_core::mesh::{
    Cluster, ConsumerHello, Epoch, Feed, Hub, HubSettings, Role, SavedFeed, SavedHub, Sequenced,
    Terms, VERSION, Watcher,
};
use isthmus_core::model::{Batch, ClusterName};
use isthmus_mesh::{feed, hub};

use crate::feed::settings;
use crate::peers::{
    EAST, GUARD, HEARTBEAT, Liar, STALE_AFTER, Step, Store, Who, change, cross, steps,
};
use crate::state::kept;

const PAUSES: [Duration; 4] = [
    Duration::from_millis(100),
    HEARTBEAT,
    STALE_AFTER,
    Duration::from_secs(600),
];
/// Messages after which a consumer that is told nothing new must have been told all.
const MESSAGES_MAX: usize = 4096;

/// Those that our mesh server may be linked with, by number.
const PEERS: [u8; 3] = [1, 2, 3];

struct World {
    now: Instant,
    wall: SystemTime,
    hub: Hub,
    wanted: BTreeMap<ClusterName, Terms>,
    /// By the number of [`PEERS`], and whether the stream is open.
    liars: [(Liar, bool); 4],
    guests: Vec<ConsumerHello>,
    feed: Feed,
    store: Store,
    agent: Option<Stream>,
    /// Another cluster's mesh server, which keeps the protocol and hears ours.
    far: Hub,
    far_stream: Option<Stream>,
}

pub(crate) fn hub_settings(own: Cluster) -> HubSettings {
    HubSettings {
        own,
        heartbeat: HEARTBEAT,
        guard: GUARD,
        cidrs: Vec::new(),
        seed: 0,
    }
}

/// The server's end of a consumer's stream.
struct Stream {
    hello: ConsumerHello,
    watcher: Watcher,
}

fn far() -> Cluster {
    Cluster {
        name: "far".parse().expect("a name by the rule"),
        id: 9.try_into().expect("1..=511"),
    }
}

pub(crate) fn check(input: &[u8]) {
    let mut world = World::new();
    for step in steps(input) {
        world.step(step);
        world.store.agrees(&world.feed, world.now, world.wall);
    }
    world.settle();
}

impl World {
    fn new() -> Self {
        let (now, wall) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let fresh = |own, epoch| {
            let saved = SavedHub::empty(Epoch(epoch));
            Hub::new(hub_settings(own), saved, now, wall)
        };
        let (feed, _) = Feed::new(settings(), SavedFeed::default(), now, wall);
        let mut world = Self {
            now,
            wall,
            hub: fresh(EAST.cluster(), 1),
            wanted: BTreeMap::new(),
            liars: std::array::from_fn(|_| (Liar::new(), false)),
            guests: Vec::new(),
            feed,
            store: Store::default(),
            agent: None,
            far: fresh(far(), 2),
            far_stream: None,
        };
        let east = EAST.cluster();
        let links = [(east.name, Terms::default())].into();
        world.far.set_links(&links, true, now);
        world.link(0b011, 0, true);
        world
    }

    fn step(&mut self, step: Step) {
        match step.what & 15 {
            0 => self.pause(PAUSES[usize::from(step.a & 3)], step.b & 1 == 0),
            1 => self.link(step.a, step.b, step.c & 1 == 0),
            2 => self.close(PEERS[usize::from(step.a) % 3], "cut", step.b & 1 == 0),
            3 => {
                let batch = Batch {
                    changes: vec![change(step.a), change(step.b)],
                    complete: step.c & 1 == 0,
                };
                self.hub.publish(&batch, self.now);
            }
            4 => self.cut_agent(),
            5 => self.cut_far(),
            6 => drop(self.tell_agent(step.a.into())),
            7 => drop(self.tell_far(step.a.into())),
            8 => self.restart_hub(),
            9 => self.restart_agent(),
            10 => self.guest(step),
            _ => self.hear(step),
        }
    }

    fn pause(&mut self, pause: Duration, awake: bool) {
        (self.now, self.wall) = (self.now + pause, self.wall + pause);
        if awake {
            self.hub.tick(self.now);
        }
        self.far.tick(self.now);
        match self.feed.tick(self.now) {
            Ok(events) => self.store.apply(events),
            Err(_) => self.cut_agent(),
        }
    }

    fn link(&mut self, names: u8, pinned: u8, complete: bool) {
        let bit = |bits: u8, peer: u8| bits & (1 << (peer - 1)) != 0;
        let named = PEERS.into_iter().filter(|peer| bit(names, *peer));
        let link = |peer| {
            let cluster = Who::honest(peer).cluster();
            let terms = Terms {
                id: bit(pinned, peer).then_some(cluster.id),
                ..Terms::default()
            };
            (cluster.name, terms)
        };
        self.wanted = named.map(link).collect();
        self.hub.set_links(&self.wanted, complete, self.now);
    }

    /// A peer says something, over a stream that is opened first if need be.
    fn hear(&mut self, step: Step) {
        let peer = PEERS[usize::from(step.what >> 4) % 3];
        let name = Who::honest(peer).cluster().name;
        let (liar, open) = &mut self.liars[usize::from(peer)];
        if !*open {
            self.hub.dial(&name, "192.0.2.1:4260");
            if self.hub.open(&name, "n").is_none() {
                return;
            }
            liar.restart();
            *open = true;
        }
        let who = if step.a < 128 {
            Who::honest(peer)
        } else {
            Who::of(step.a)
        };
        let held = self.hub.save(self.now, self.wall);
        let held = held.links.iter().find(|link| link.cluster.name == name);
        let said = liar.say(who, step, held.and_then(|link| link.rows.position()));
        if let Err(fault) = self.hub.receive(&name, said, self.now) {
            self.close(peer, &fault.to_string(), fault.is_refusal());
        }
    }

    fn close(&mut self, peer: u8, error: &str, refused: bool) {
        let name = Who::honest(peer).cluster().name;
        self.hub.close(&name, error.to_owned(), refused, self.now);
        self.liars[usize::from(peer)].1 = false;
    }

    /// Some mesh server comes to hear us, or goes.
    fn guest(&mut self, step: Step) {
        if step.b & 1 == 0 {
            let hello = ConsumerHello {
                cluster: Who::of(step.a).cluster(),
                role: Role::MeshServer,
                node: String::new(),
                held: Vec::new(),
                stale_after: None,
                versions: vec![VERSION],
            };
            if self.hub.admit(&hello).is_ok() {
                self.guests.push(hello);
            }
        } else if let Some(hello) = self.guests.pop() {
            self.hub.leave(&hello);
        }
    }

    fn admit(&mut self, hello: ConsumerHello) -> Stream {
        self.hub
            .admit(&hello)
            .expect("an honest consumer is let in");
        let view = self.hub.view(self.now);
        let watcher = Watcher::new(hello.clone(), &view, self.now).expect("one version");
        Stream { hello, watcher }
    }

    /// Up to `most` messages to the agent. True if there is nothing more to say.
    fn tell_agent(&mut self, most: usize) -> bool {
        let mut stream = match self.agent.take() {
            Some(stream) => stream,
            None => {
                self.feed.dial();
                let hello = self.feed.open(self.now);
                self.admit(hello)
            }
        };
        let mut told = 0;
        while told < most
            && let Some(said) = next(&mut stream, &mut self.hub, self.now)
        {
            told += 1;
            match self.feed.receive(said, self.now) {
                Ok(events) => self.store.apply(events),
                Err(fault) => panic!("our agent turns our mesh server down: {fault}"),
            }
        }
        self.agent = Some(stream);
        told < most
    }

    fn tell_far(&mut self, most: usize) -> bool {
        let east = EAST.cluster().name;
        let mut stream = match self.far_stream.take() {
            Some(stream) => stream,
            None => {
                self.far.dial(&east, "192.0.2.1:4260");
                let hello = self.far.open(&east, "n").expect("it is linked");
                self.admit(hello)
            }
        };
        let mut told = 0;
        while told < most
            && let Some(said) = next(&mut stream, &mut self.hub, self.now)
        {
            told += 1;
            match self.far.receive(&east, said, self.now) {
                Ok(Some(id)) => stream.watcher.relist(id),
                Ok(None) => {}
                Err(fault) => panic!("a peer turns our mesh server down: {fault}"),
            }
        }
        self.far_stream = Some(stream);
        told < most
    }

    fn cut_agent(&mut self) {
        if let Some(stream) = self.agent.take() {
            self.hub.leave(&stream.hello);
        }
        self.feed.close("cut".to_owned(), self.now);
    }

    fn cut_far(&mut self) {
        if let Some(stream) = self.far_stream.take() {
            self.hub.leave(&stream.hello);
        }
        let east = EAST.cluster().name;
        self.far.close(&east, "cut".to_owned(), false, self.now);
    }

    fn restart_hub(&mut self) {
        self.cut_agent();
        self.cut_far();
        let saved: SavedHub = kept(hub::KIND, &self.hub.save(self.now, self.wall));
        let settings = hub_settings(EAST.cluster());
        self.hub = Hub::new(settings, saved.clone(), self.now, self.wall);
        assert_eq!(
            self.hub.save(self.now, self.wall),
            saved,
            "a restart forgot"
        );
        self.guests.clear();
        for (_, open) in &mut self.liars {
            *open = false;
        }
    }

    fn restart_agent(&mut self) {
        self.cut_agent();
        let saved: SavedFeed = kept(feed::KIND, &self.feed.save(self.now, self.wall));
        let (feed, events) = Feed::new(settings(), saved, self.now, self.wall);
        (self.feed, self.store) = (feed, Store::default());
        self.store.apply(events);
    }

    /// Everybody is told everything that there is to tell.
    fn settle(&mut self) {
        self.hub.set_links(&self.wanted, true, self.now);
        let complete = true;
        let changes = Vec::new();
        self.hub.publish(&Batch { changes, complete }, self.now);
        // Long enough for what was doubted.
        for pause in [HEARTBEAT, GUARD.grace, HEARTBEAT] {
            self.pause(pause, true);
            assert!(
                self.tell_agent(MESSAGES_MAX),
                "the agent is told without end"
            );
            assert!(self.tell_far(MESSAGES_MAX), "a peer is told without end");
        }
        self.store.agrees(&self.feed, self.now, self.wall);
        let (view, held) = (self.hub.view(self.now), self.feed.save(self.now, self.wall));
        for peer in &held.peers {
            let name = &peer.cluster.name;
            assert!(
                self.wanted.contains_key(name),
                "{name} is not linked any more"
            );
        }
        for cluster in view.clusters.values() {
            let rows = cluster.ledger.rows();
            let ours = held
                .peers
                .iter()
                .find(|peer| peer.cluster == cluster.cluster);
            let ours = ours.expect("an agent is told of every cluster");
            // Rows of before a restart are told, and nobody is told that they are all.
            if rows.position().is_some() && cluster.confirmed {
                assert!(ours.rows.same_rows(rows), "{ours:?} is not {rows:?}");
                assert_eq!(ours.rows.position(), rows.position());
            }
        }
        let far = self.far.view(self.now);
        let told = far.clusters.get(&EAST.cluster().id).expect("it was told");
        let own = view.own.ledger.rows();
        assert!(told.ledger.rows().same_rows(own), "{told:?} is not {own:?}");
        assert_eq!(told.ledger.rows().position(), own.position());
    }
}

/// What the server says next, as the consumer hears it.
fn next(stream: &mut Stream, hub: &mut Hub, now: Instant) -> Option<Sequenced> {
    stream.watcher.heard(now);
    let said = stream.watcher.poll(&hub.view(now), now)?;
    Some(Sequenced {
        message: cross(said.message),
        ..said
    })
}
