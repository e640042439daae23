//! An agent's feed: whatever its mesh server says, the store is told what the feed holds, and a restart forgets nothing.

use std::time::{Duration, Instant, SystemTime};

use isthmus_core::mesh::{Feed, FeedSettings, Position, SavedFeed};
use isthmus_mesh::feed::KIND;

use crate::peers::{EAST, HEARTBEAT, Liar, STALE_AFTER, Step, Store, TTL, Who, steps};
use crate::state::kept;

const PAUSES: [Duration; 4] = [
    Duration::from_millis(100),
    HEARTBEAT,
    STALE_AFTER,
    Duration::from_secs(600),
];

pub(crate) fn settings() -> FeedSettings {
    FeedSettings {
        own: EAST.cluster(),
        node: "east-1".to_owned(),
        stale_after: STALE_AFTER,
        ttl: TTL,
    }
}

struct World {
    now: Instant,
    wall: SystemTime,
    feed: Feed,
    store: Store,
    server: Liar,
    open: bool,
}

pub(crate) fn check(input: &[u8]) {
    let (now, wall) = (Instant::now(), SystemTime::UNIX_EPOCH);
    let (feed, _) = Feed::new(settings(), SavedFeed::default(), now, wall);
    let mut world = World {
        now,
        wall,
        feed,
        store: Store::default(),
        server: Liar::new(),
        open: false,
    };
    for step in steps(input) {
        world.step(step);
        world.store.agrees(&world.feed, world.now, world.wall);
    }
    world.restart();
}

impl World {
    fn step(&mut self, step: Step) {
        match step.what & 15 {
            0 => {
                let pause = PAUSES[usize::from(step.a & 3)];
                (self.now, self.wall) = (self.now + pause, self.wall + pause);
                match self.feed.tick(self.now) {
                    Ok(events) => self.store.apply(events),
                    Err(_) => self.close(),
                }
            }
            1 => self.close(),
            2 => self.restart(),
            _ => self.hear(step),
        }
    }

    fn hear(&mut self, step: Step) {
        if !std::mem::replace(&mut self.open, true) {
            self.feed.dial();
            self.feed.open(self.now);
            self.server.restart();
        }
        let who = Who::of(step.a);
        let held = self.held(who);
        let said = self.server.say(who, step, held);
        match self.feed.receive(said, self.now) {
            Ok(events) => self.store.apply(events),
            Err(_) => self.close(),
        }
    }

    fn held(&self, who: Who) -> Option<Position> {
        let cluster = who.cluster();
        let status = self.feed.status();
        let peer = status
            .peers
            .into_iter()
            .find(|peer| peer.name == cluster.name)?;
        peer.position
    }

    fn close(&mut self) {
        self.open = false;
        self.feed.close("cut".to_owned(), self.now);
    }

    /// The agent is stopped and started again, with what its state file held.
    fn restart(&mut self) {
        let saved: SavedFeed = kept(KIND, &self.feed.save(self.now, self.wall));
        let (feed, events) = Feed::new(settings(), saved.clone(), self.now, self.wall);
        assert_eq!(feed.save(self.now, self.wall), saved, "a restart forgot");
        (self.feed, self.store, self.open) = (feed, Store::default(), false);
        self.store.apply(events);
    }
}
