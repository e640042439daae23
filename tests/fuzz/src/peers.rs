//! A small world of clusters and rows, so that steps meet, and what holds of anybody in it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant, SystemTime};

use isthmus_core::mesh::{
    Beginning, Cluster, Epoch, Feed, FeedEvent, FromServer, Guard, HearsUs, LinkState, PeerReport,
    PeerSilence, Position, Ranges, Rows, Sequenced, ServerHello, VERSION,
};
use isthmus_core::model::{
    Affinity, ClusterId, Condition, EndpointKey, EndpointPort, EndpointRow, ObjectName, PortRow,
    Protocol, RowChange, ServiceRow, ServiceRules,
};
use isthmus_mesh::wire;
use isthmus_proto::mesh::v1 as proto;
use prost::Message as _;

pub(crate) const HEARTBEAT: Duration = Duration::from_secs(1);
pub(crate) const STALE_AFTER: Duration = Duration::from_secs(3);
pub(crate) const GUARD: Guard = Guard {
    percent: 50,
    grace: Duration::from_secs(60),
};
pub(crate) const TTL: Duration = Duration::from_secs(300);

/// A cluster by number: its name, with any of the ids.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Who {
    name: u8,
    id: u8,
}

pub(crate) const EAST: Who = Who::honest(0);

impl Who {
    pub(crate) const fn honest(name: u8) -> Self {
        Self { name, id: name }
    }

    /// One of four clusters; every fourth number has another's id.
    pub(crate) const fn of(byte: u8) -> Self {
        let name = byte & 3;
        let strange = byte & 0b1100 == 0b1100;
        let id = if strange { (byte >> 4) & 3 } else { name };
        Self { name, id }
    }

    pub(crate) fn cluster(self) -> Cluster {
        let name = ["east", "west", "north", "south"][usize::from(self.name & 3)];
        Cluster {
            name: name.parse().expect("a name by the rule"),
            id: (u16::from(self.id & 3) + 1).try_into().expect("1..=4"),
        }
    }
}

/// Any of 256 changes: four services with four endpoints each, in a few states.
pub(crate) fn change(byte: u8) -> RowChange {
    let (kind, service, which, state) = (byte & 3, (byte >> 2) & 3, (byte >> 4) & 3, byte >> 6);
    let name = ObjectName::new("n", ["a", "b", "c", "d"][usize::from(service)]);
    let address = if which < 2 {
        Ipv4Addr::new(10, 0, service, which + 1).into()
    } else {
        std::net::IpAddr::V6(Ipv6Addr::new(
            0xfd00,
            0,
            0,
            0,
            0,
            0,
            service.into(),
            which.into(),
        ))
        .into()
    };
    match kind {
        0 => RowChange::Service(
            ServiceRow {
                name,
                addresses: Vec::new(),
                ports: vec![PortRow {
                    name: "http".into(),
                    protocol: Protocol::Tcp,
                    port: 80 + u16::from(which),
                }],
                global: state != 0,
                shared: state > 1,
                affinity: Affinity::None,
                rules: ServiceRules::default(),
            }
            .into(),
        ),
        1 if which == 0 => RowChange::ServiceGone(name),
        1 => RowChange::EndpointGone(EndpointKey {
            service: name,
            address,
        }),
        _ => RowChange::Endpoint(
            EndpointRow {
                service: name,
                address,
                ports: vec![EndpointPort {
                    name: "http".into(),
                    protocol: Protocol::Tcp,
                    port: 8080 + u16::from(kind),
                }],
                condition: [
                    Condition::Ready,
                    Condition::Ready,
                    Condition::ServingTerminating,
                    Condition::NotReady,
                ][usize::from(state)],
                reason: "".into(),
                node: "n1".into(),
                zone: "".into(),
            }
            .into(),
        ),
    }
}

/// Over the wire and back: what one side says, the other hears.
pub(crate) fn cross(message: FromServer) -> FromServer {
    let said = Sequenced {
        sequence: 1,
        message,
    };
    let bytes = wire::say(said.clone()).encode_to_vec();
    let decoded = proto::WatchResponse::decode(bytes.as_slice()).expect("what is encoded decodes");
    let heard = wire::hear(decoded).expect("what is said is heard");
    assert_eq!(heard, said, "something else is heard than was said");
    heard.message
}

/// A step of a history: four bytes of an input.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) what: u8,
    pub(crate) a: u8,
    pub(crate) b: u8,
    pub(crate) c: u8,
}

/// Steps of one input that are taken.
const STEPS_MAX: usize = 256;

pub(crate) fn steps(input: &[u8]) -> impl Iterator<Item = Step> {
    let (steps, _) = input.as_chunks::<4>();
    steps
        .iter()
        .take(STEPS_MAX)
        .map(|&[what, a, b, c]| Step { what, a, b, c })
}

/// Says what a peer might: mostly in turn, now and then not.
#[derive(Debug)]
pub(crate) struct Liar {
    sequence: u64,
    /// Positions are never given twice, or two states had one, and no listener could know.
    revision: u64,
    /// The list that began last is a resumed one.
    resumes: bool,
}

impl Liar {
    pub(crate) fn new() -> Self {
        Self {
            sequence: 0,
            revision: 0,
            resumes: false,
        }
    }

    /// A new stream.
    pub(crate) fn restart(&mut self) {
        (self.sequence, self.resumes) = (0, false);
    }

    fn position(&mut self) -> Position {
        self.revision += 1;
        Position {
            epoch: Epoch(0x19c0),
            revision: self.revision,
            digest: self.revision,
        }
    }

    /// A message of the kind that `step.b` names. `held` is what the listener holds, so that a resumption can be right.
    pub(crate) fn say(&mut self, who: Who, step: Step, held: Option<Position>) -> Sequenced {
        let cluster = who.cluster();
        let resumes = std::mem::replace(&mut self.resumes, step.b & 15 == 9);
        let message = match step.b & 7 {
            0 => FromServer::Hello(ServerHello {
                cluster,
                epoch: Epoch(u64::from(step.c >> 4) + 1),
                heartbeat: HEARTBEAT * u32::from(step.c & 15 != 15),
                guard: GUARD,
                cidrs: Vec::new(),
                version: VERSION + u32::from(step.c == 7),
            }),
            1 => FromServer::Start {
                cluster,
                beginning: if step.b & 8 != 0 {
                    Beginning::Resumed
                } else {
                    Beginning::ALL[usize::from(step.c) % Beginning::ALL.len()]
                },
            },
            2 | 3 => FromServer::Rows {
                id: cluster.id,
                changes: vec![change(step.c), change(step.c.rotate_left(3) ^ step.b)],
                bad: Vec::new(),
                position: (step.b & 8 != 0).then(|| self.position()),
            },
            4 | 5 => FromServer::Complete {
                id: cluster.id,
                position: held.filter(|_| resumes).unwrap_or_else(|| self.position()),
            },
            6 => FromServer::Peers {
                reports: (0..4)
                    .filter(|bit| step.c & (1 << bit) != 0)
                    .map(|name| report(Who::honest(name), step))
                    .collect(),
                partial: step.b & 16 != 0,
                troubles: Vec::new(),
            },
            _ => FromServer::Heartbeat(
                (0..4)
                    .filter(|bit| step.c & (1 << bit) != 0)
                    .map(|name| PeerSilence {
                        id: Who::honest(name).cluster().id,
                        witnessed: Duration::from_secs(match step.c >> 6 {
                            0 => 0,
                            1 => 3,
                            2 => 300,
                            _ => u64::MAX / 1000,
                        }),
                        last_word: (step.b & 8 != 0)
                            .then_some(Duration::from_millis(u64::from(step.b))),
                    })
                    .collect(),
            ),
        };
        self.sequence += match step.b >> 4 {
            14 => 0,
            15 => 2,
            _ => 1,
        };
        Sequenced {
            sequence: self.sequence,
            message: cross(message),
        }
    }
}

fn report(who: Who, step: Step) -> PeerReport {
    let cluster = who.cluster();
    PeerReport {
        name: cluster.name,
        id: (step.c & 16 == 0).then_some(cluster.id),
        state: [
            LinkState::Connecting,
            LinkState::Connected,
            LinkState::Refused,
            LinkState::Connected,
        ][usize::from(step.c >> 6)],
        state_age: Duration::from_secs(1),
        hears_us: HearsUs::Yes,
        hears_us_age: Duration::from_secs(1),
        last_error: (step.c & 32 != 0).then(|| ("refused".to_owned(), Duration::from_secs(2))),
        tries: 1,
        endpoint: "192.0.2.1:4260".to_owned(),
        refused_rows: 0,
        refusals: Vec::new(),
        quarantine: None,
        ranges: Ranges::default(),
    }
}

/// What an agent's store holds of its peers, by what a feed tells it.
#[derive(Debug, Default)]
pub(crate) struct Store {
    peers: BTreeMap<ClusterId, (Cluster, Rows)>,
}

impl Store {
    pub(crate) fn apply(&mut self, events: Vec<FeedEvent>) {
        for event in events {
            match event {
                FeedEvent::Peer { cluster, .. } => {
                    let held = self
                        .peers
                        .entry(cluster.id)
                        .or_insert_with(|| (cluster.clone(), Rows::default()));
                    assert_eq!(held.0, cluster, "two peers have one id");
                }
                FeedEvent::Rows { cluster, batch } => {
                    let (owner, rows) = self
                        .peers
                        .get_mut(&cluster.id)
                        .expect("a peer is told before its rows");
                    assert_eq!(*owner, cluster, "two peers have one id");
                    for change in &batch.changes {
                        assert!(rows.apply(change), "an equal row is told: {change:?}");
                    }
                }
                FeedEvent::Dropped { cluster, .. } => {
                    let held = self.peers.remove(&cluster.id);
                    assert_eq!(
                        held.map(|(owner, _)| owner),
                        Some(cluster),
                        "a peer goes that was not told"
                    );
                }
                FeedEvent::Linked(_) => {}
            }
        }
    }

    /// What the store was told is what the feed holds.
    pub(crate) fn agrees(&self, feed: &Feed, now: Instant, wall: SystemTime) {
        let saved = feed.save(now, wall);
        for (cluster, rows) in self.peers.values() {
            let held = saved.peers.iter().find(|peer| peer.cluster == *cluster);
            let held = held.expect("the store holds a peer that its feed does not");
            assert!(
                rows.same_rows(&held.rows),
                "of {cluster} the store holds {rows:?}, and its feed {:?}",
                held.rows
            );
        }
    }
}
