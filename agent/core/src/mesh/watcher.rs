use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use imbl::OrdMap;

use super::{
    Age, Changes, Cluster, ConsumerHello, Epoch, Fault, FromServer, HearsUs, Held, Ledger,
    LinkState, PeerReport, PeerSilence, Position, Role, RowKey, Rows, Sequenced, ServerHello,
    VERSION,
};
use crate::model::{ClusterId, ClusterName};

/// Rows in one message. Far below gRPC's limit of 4 MiB even with long names.
const ROWS_MAX: usize = 512;
/// A stretch beyond which a view's silences are not stretched: whoever makes views was stopped then.
const VIEW_FRESH: Duration = Duration::from_millis(1500);

/// What a mesh server knows at one moment. Cheap to make and to clone.
#[derive(Clone, Debug)]
pub struct View {
    pub own: ClusterView,
    pub epoch: Epoch,
    pub heartbeat: Duration,
    /// Linked clusters whose id is known.
    pub clusters: OrdMap<ClusterId, ClusterView>,
    /// Every link that is known; replaced whenever anything but a silence changes.
    pub peers: Arc<Vec<PeerView>>,
    /// These are all links: a cluster that is not among them is not linked.
    pub listed: bool,
    /// As of `made`.
    pub silences: Arc<Vec<(ClusterId, Duration, Option<Age>)>>,
    pub made: Instant,
}

#[derive(Clone, Debug)]
pub struct ClusterView {
    pub cluster: Cluster,
    pub ledger: Ledger,
}

/// A link, as agents are told of it.
#[derive(Clone, PartialEq, Debug)]
pub struct PeerView {
    pub name: ClusterName,
    pub id: Option<ClusterId>,
    pub state: LinkState,
    pub state_since: Age,
    pub hears_us: HearsUs,
    pub hears_us_since: Age,
    pub last_error: Option<(String, Age)>,
    pub tries: u32,
    pub endpoint: String,
    pub refused_rows: u64,
}

impl PeerView {
    fn report(&self, now: Instant) -> PeerReport {
        PeerReport {
            name: self.name.clone(),
            id: self.id,
            state: self.state,
            state_age: self.state_since.at(now),
            hears_us: self.hears_us,
            hears_us_age: self.hears_us_since.at(now),
            last_error: self
                .last_error
                .as_ref()
                .map(|(text, since)| (text.clone(), since.at(now))),
            tries: self.tries,
            endpoint: self.endpoint.clone(),
            refused_rows: self.refused_rows,
        }
    }
}

/// One cluster's way down a stream.
#[derive(Debug)]
enum Stage {
    /// A page at a time, from the snapshot that was newest when it began.
    Listing {
        snapshot: Ledger,
        last: Option<RowKey>,
    },
    /// All pages are sent; the end mark waits for a settled state.
    Catching {
        place: u64,
    },
    /// The end mark is all there is to send.
    Resumed,
    Live {
        place: u64,
        told: Option<Position>,
    },
}

#[derive(Debug)]
struct Told {
    name: ClusterName,
    instance: u64,
    stage: Stage,
}

/// The server's side of one stream: asked for the next message, it compares what the consumer was told with the view.
#[derive(Debug)]
pub struct Watcher {
    role: Role,
    held: Vec<Held>,
    stale_after: Option<Duration>,
    heartbeat: Duration,
    sequence: u64,
    greeted: bool,
    /// What was told of links, and whether those were all.
    peers: Option<(Arc<Vec<PeerView>>, bool)>,
    told: BTreeMap<ClusterId, Told>,
    next_heartbeat: Instant,
    /// Peers whose silence was told to have reached `stale_after`.
    silent: Vec<ClusterId>,
    heard: Instant,
}

impl Watcher {
    /// # Errors
    /// If the two sides share no version.
    pub fn new(hello: ConsumerHello, view: &View, now: Instant) -> Result<Self, Fault> {
        if !hello.versions.contains(&VERSION) {
            return Err(Fault::NoCommonVersion {
                theirs: hello.versions,
                ours: VERSION,
            });
        }
        Ok(Self {
            role: hello.role,
            held: hello.held,
            stale_after: hello.stale_after,
            heartbeat: view.heartbeat,
            sequence: 0,
            greeted: false,
            peers: None,
            told: BTreeMap::new(),
            // At once: an agent judges a peer by its silence before it hears its rows.
            next_heartbeat: now,
            silent: Vec::new(),
            heard: now,
        })
    }

    /// The consumer sent a heartbeat.
    pub fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// The consumer has said nothing for three heartbeats.
    #[must_use]
    pub fn is_deserted(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heard) >= 3 * self.heartbeat
    }

    /// When to look again, if no view comes before.
    #[must_use]
    pub fn next_deadline(&self, view: &View) -> Instant {
        let deserted = self.heard + 3 * self.heartbeat;
        let crossing = self
            .stale_after
            .filter(|_| self.role == Role::Agent)
            .and_then(|limit| {
                let still = view
                    .silences
                    .iter()
                    .filter(|(id, ..)| !self.silent.contains(id));
                still
                    .map(|(_, silence, _)| view.made + limit.saturating_sub(*silence))
                    .min()
            });
        let next = self.next_heartbeat.min(deserted);
        crossing.map_or(next, |crossing| next.min(crossing))
    }

    /// The next message, if there is one to send now.
    pub fn poll(&mut self, view: &View, now: Instant) -> Option<Sequenced> {
        let message = self.next(view, now)?;
        self.sequence += 1;
        Some(Sequenced {
            sequence: self.sequence,
            message,
        })
    }

    fn next(&mut self, view: &View, now: Instant) -> Option<FromServer> {
        if !self.greeted {
            self.greeted = true;
            let (cluster, epoch, heartbeat) =
                (view.own.cluster.clone(), view.epoch, view.heartbeat);
            return Some(FromServer::Hello(ServerHello {
                cluster,
                epoch,
                heartbeat,
                version: VERSION,
            }));
        }
        // Liveness before rows: a long list must not look like silence.
        if let Some(heartbeat) = self.heartbeat(view, now) {
            return Some(heartbeat);
        }
        if self.role == Role::MeshServer {
            return self.rows(&view.own);
        }
        let told =
            |(peers, listed): &(_, bool)| Arc::ptr_eq(peers, &view.peers) && *listed == view.listed;
        if !self.peers.as_ref().is_some_and(told) {
            self.peers = Some((view.peers.clone(), view.listed));
            return Some(FromServer::Peers {
                reports: view.peers.iter().map(|peer| peer.report(now)).collect(),
                partial: !view.listed,
            });
        }
        self.told.retain(|id, _| view.clusters.contains_key(id));
        view.clusters
            .values()
            .find_map(|cluster| self.rows(cluster))
    }

    fn heartbeat(&mut self, view: &View, now: Instant) -> Option<FromServer> {
        let mut silences = Vec::new();
        let mut silent = Vec::new();
        if self.role == Role::Agent {
            let stretch = now.saturating_duration_since(view.made).min(VIEW_FRESH);
            for (id, silence, last_word) in view.silences.iter() {
                let witnessed = silence.saturating_add(stretch);
                silences.push(PeerSilence {
                    id: *id,
                    witnessed,
                    last_word: last_word.map(|age| age.at(now)),
                });
                if self.stale_after.is_some_and(|limit| witnessed >= limit) {
                    silent.push(*id);
                }
            }
        }
        if now < self.next_heartbeat && silent == self.silent {
            return None;
        }
        self.silent = silent;
        self.next_heartbeat = now + self.heartbeat;
        Some(FromServer::Heartbeat(silences))
    }

    fn rows(&mut self, view: &ClusterView) -> Option<FromServer> {
        let (id, ledger) = (view.cluster.id, &view.ledger);
        let told = match self.told.get_mut(&id) {
            Some(told) if told.name == view.cluster.name && told.instance == ledger.instance() => {
                told
            }
            _ => return Some(self.start(view)),
        };
        match &mut told.stage {
            Stage::Listing { snapshot, last } => {
                let changes = snapshot.rows().page(last.as_ref(), ROWS_MAX);
                let Some(end) = changes.last() else {
                    told.stage = Stage::Catching {
                        place: snapshot.head(),
                    };
                    return self.rows(view);
                };
                *last = Some(RowKey::of(end));
                Some(FromServer::Rows {
                    id,
                    changes,
                    position: None,
                })
            }
            Stage::Resumed => {
                let position = ledger.rows().position();
                let Some(position) =
                    position.filter(|position| is_held(&self.held, &view.cluster, *position))
                else {
                    return Some(self.start(view)); // It went on since: list.
                };
                told.stage = Stage::Live {
                    place: ledger.head(),
                    told: Some(position),
                };
                Some(FromServer::Complete { id, position })
            }
            Stage::Catching { place } => match ledger.since(*place, ROWS_MAX) {
                Changes::Forgotten => Some(self.start(view)),
                Changes::Some {
                    changes,
                    place: reached,
                    position,
                } => {
                    *place = reached;
                    if !changes.is_empty() {
                        return Some(FromServer::Rows {
                            id,
                            changes,
                            position: None,
                        });
                    }
                    let position = position?;
                    told.stage = Stage::Live {
                        place: reached,
                        told: Some(position),
                    };
                    Some(FromServer::Complete { id, position })
                }
            },
            Stage::Live { place, told: at } => match ledger.since(*place, ROWS_MAX) {
                Changes::Forgotten => Some(self.start(view)),
                Changes::Some {
                    changes,
                    place: reached,
                    position,
                } => {
                    if changes.is_empty() && (position.is_none() || position == *at) {
                        return None;
                    }
                    (*place, *at) = (reached, position);
                    Some(FromServer::Rows {
                        id,
                        changes,
                        position,
                    })
                }
            },
        }
    }

    fn start(&mut self, view: &ClusterView) -> FromServer {
        let rows: &Rows = view.ledger.rows();
        let first = !self.told.contains_key(&view.cluster.id);
        let resumed = first
            && rows
                .position()
                .is_some_and(|position| is_held(&self.held, &view.cluster, position));
        let stage = if resumed {
            Stage::Resumed
        } else {
            Stage::Listing {
                snapshot: view.ledger.clone(),
                last: None,
            }
        };
        let told = Told {
            name: view.cluster.name.clone(),
            instance: view.ledger.instance(),
            stage,
        };
        self.told.insert(view.cluster.id, told);
        FromServer::Start {
            cluster: view.cluster.clone(),
            resumed,
        }
    }
}

fn is_held(held: &[Held], cluster: &Cluster, position: Position) -> bool {
    held.iter()
        .any(|held| held.cluster == *cluster && held.position == position)
}
