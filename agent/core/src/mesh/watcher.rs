use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use imbl::OrdMap;
use ipnet::IpNet;

use super::{
    Age, Beginning, Changes, Cluster, ConsumerHello, Epoch, Fault, FromServer, Guard, HearsUs,
    Held, Ledger, LinkState, Patience, PeerReport, PeerSilence, Position, Quarantine,
    QuarantineReport, Ranges, RefusalReport, Role, RowKey, Sequenced, ServerHello, Trouble,
    TroubleReport, VERSION,
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
    pub guard: Guard,
    pub cidrs: Vec<IpNet>,
    /// Linked clusters whose id is known.
    pub clusters: OrdMap<ClusterId, ClusterView>,
    /// Every link that is known; replaced whenever anything but a silence changes.
    pub peers: Arc<Vec<PeerView>>,
    /// These are all links: a cluster that is not among them is not linked.
    pub listed: bool,
    /// What is wrong on the mesh server's own side; replaced whenever it changes.
    pub troubles: Arc<Vec<(Trouble, Age)>>,
    /// As of `made`.
    pub silences: Arc<Vec<(ClusterId, Duration, Option<Age>)>>,
    pub made: Instant,
}

#[derive(Clone, Debug)]
pub struct ClusterView {
    pub cluster: Cluster,
    pub ledger: Ledger,
    /// Whoever these rows come from has confirmed them since this mesh server started. Before that they may be older than
    /// what consumers were told by an earlier run.
    pub confirmed: bool,
    /// Of rows that the newest list left out.
    pub quarantine: Option<Quarantine>,
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
    pub refusals: Vec<RefusalReport>,
    pub quarantine: Option<Quarantine>,
    pub ranges: Ranges,
    /// What the link allows of it.
    pub rows_max: u64,
    pub bytes_max: u64,
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
            refusals: self.refusals.clone(),
            ranges: self.ranges.clone(),
            quarantine: self.quarantine.map(|quarantine| QuarantineReport {
                rows: quarantine.rows as u64,
                held: quarantine.held as u64,
                age: quarantine.since.at(now),
                left: quarantine.left(now),
            }),
        }
    }
}

/// One cluster's way down a stream. It holds no rows: a slow consumer costs a few words, however much changes.
#[derive(Debug)]
struct Told {
    name: ClusterName,
    /// Of the ledger that `place` is in.
    instance: u64,
    /// Changes after it are still to be told.
    place: u64,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// A page at a time, of the newest rows. Changes since the list began come after its last page.
    Listing {
        last: Option<RowKey>,
    },
    /// All pages are sent, or none is needed; the end mark waits for a settled state.
    Catching,
    Live {
        position: Option<Position>,
    },
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
    peers: Option<PeersTold>,
    told: BTreeMap<ClusterId, Told>,
    /// Whose rows the consumer wants told again.
    asked: BTreeSet<ClusterId>,
    /// Whose rows were told last: the others come first.
    turn: Option<ClusterId>,
    next_heartbeat: Instant,
    /// Peers whose silence was told to have reached `stale_after`.
    silent: Vec<ClusterId>,
    patience: Patience,
}

/// What was told of links: who they are, whether those were all, and what is wrong on this side.
#[derive(Debug)]
struct PeersTold {
    peers: Arc<Vec<PeerView>>,
    listed: bool,
    troubles: Arc<Vec<(Trouble, Age)>>,
}

impl PeersTold {
    fn is_of(&self, view: &View) -> bool {
        Arc::ptr_eq(&self.peers, &view.peers)
            && Arc::ptr_eq(&self.troubles, &view.troubles)
            && self.listed == view.listed
    }
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
        let mut patience = Patience::new(now);
        patience.greet(view.heartbeat);
        Ok(Self {
            role: hello.role,
            held: hello.held,
            stale_after: hello.stale_after,
            heartbeat: view.heartbeat,
            sequence: 0,
            greeted: false,
            peers: None,
            told: BTreeMap::new(),
            asked: BTreeSet::new(),
            turn: None,
            // At once: an agent judges a peer by its silence before it hears its rows.
            next_heartbeat: now,
            silent: Vec::new(),
            patience,
        })
    }

    /// The consumer sent a heartbeat.
    pub fn heard(&mut self, now: Instant) {
        self.patience.hear(now);
    }

    /// The consumer wants all rows of a cluster told again. Of one that it is not told of, it gets none.
    pub fn relist(&mut self, id: ClusterId) {
        if self.told.contains_key(&id) {
            self.asked.insert(id);
        }
    }

    /// When the consumer has said nothing for three heartbeats, if it goes on so.
    #[must_use]
    pub fn deserted_at(&self) -> Instant {
        self.patience.deadline()
    }

    /// Whether it has. If it was the server that did not run, the consumer gets one more heartbeat: its words may lie in
    /// the socket.
    #[must_use]
    pub fn is_deserted(&mut self, now: Instant) -> bool {
        self.patience.judge(now).is_err()
    }

    /// When to look again, if no view comes before.
    #[must_use]
    pub fn next_deadline(&self, view: &View) -> Instant {
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
        let next = self.next_heartbeat.min(self.deserted_at());
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
            return Some(FromServer::Hello(ServerHello {
                cluster: view.own.cluster.clone(),
                epoch: view.epoch,
                heartbeat: view.heartbeat,
                guard: view.guard,
                cidrs: view.cidrs.clone(),
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
        if !self.peers.as_ref().is_some_and(|told| told.is_of(view)) {
            self.peers = Some(PeersTold {
                peers: view.peers.clone(),
                listed: view.listed,
                troubles: view.troubles.clone(),
            });
            let troubles = view.troubles.iter().map(|(trouble, since)| TroubleReport {
                trouble: trouble.clone(),
                age: since.at(now),
            });
            return Some(FromServer::Peers {
                reports: view.peers.iter().map(|peer| peer.report(now)).collect(),
                partial: !view.listed,
                troubles: troubles.collect(),
            });
        }
        self.told.retain(|id, _| view.clusters.contains_key(id));
        let (turn, clusters) = (self.turn, || view.clusters.values());
        let later = clusters().filter(|view| Some(view.cluster.id) > turn);
        let sooner = clusters().filter(|view| Some(view.cluster.id) <= turn);
        let mut in_turn = later.chain(sooner);
        let (id, said) = in_turn.find_map(|view| Some((view.cluster.id, self.rows(view)?)))?;
        self.turn = Some(id);
        Some(said)
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
            None => return self.start(view),
            Some(told) if told.name != view.cluster.name || told.instance != ledger.instance() => {
                return Some(self.begin(view, Beginning::First));
            }
            Some(_) if self.asked.remove(&id) => return Some(self.begin(view, Beginning::Asked)),
            Some(told) => told,
        };
        let rows = |changes, position| {
            Some(FromServer::Rows {
                id,
                changes,
                bad: Vec::new(),
                position,
            })
        };
        if let Stage::Listing { last } = &mut told.stage
            && ledger.remembers(told.place)
        {
            let page = ledger.rows().page(last.as_ref(), ROWS_MAX);
            if let Some(end) = page.last() {
                *last = Some(RowKey::of(end));
                return rows(page, None);
            }
            told.stage = Stage::Catching;
        }
        let Changes::Some {
            changes,
            place,
            position,
        } = ledger.since(told.place, ROWS_MAX)
        else {
            return Some(self.begin(view, Beginning::Lagged));
        };
        told.place = place;
        match &mut told.stage {
            Stage::Live { position: at } => {
                if changes.is_empty() && (position.is_none() || position == *at) {
                    return None;
                }
                *at = position;
                rows(changes, position)
            }
            stage if changes.is_empty() => {
                // An earlier run's rows are told, and taken for whole by nobody.
                let position = position.filter(|_| view.confirmed)?;
                *stage = Stage::Live {
                    position: Some(position),
                };
                Some(FromServer::Complete { id, position })
            }
            // No state has a name before the end mark.
            _ => rows(changes, None),
        }
    }

    /// The first word of a cluster; `None` while it is better not to begin.
    fn start(&mut self, view: &ClusterView) -> Option<FromServer> {
        let held = |held: &Held| held.cluster == view.cluster;
        let Some(n) = self.held.iter().position(held) else {
            return Some(self.begin(view, Beginning::First));
        };
        let held = self.held[n].position;
        let said = match view.ledger.place_of(held) {
            Some(place) => self.tell(view, Beginning::Resumed, place, Stage::Catching),
            // A crash may have made us forget what this consumer was told last. It keeps that until we know better.
            None if !view.confirmed && !is_older(held, view.ledger.rows().position()) => {
                return None;
            }
            None => self.begin(view, Beginning::HistoryGone),
        };
        // It held that when the stream began, and from now on what it is told.
        self.held.swap_remove(n);
        Some(said)
    }

    /// A list from its first row.
    fn begin(&mut self, view: &ClusterView, beginning: Beginning) -> FromServer {
        let stage = Stage::Listing { last: None };
        self.tell(view, beginning, view.ledger.head(), stage)
    }

    fn tell(
        &mut self,
        view: &ClusterView,
        beginning: Beginning,
        place: u64,
        stage: Stage,
    ) -> FromServer {
        let told = Told {
            name: view.cluster.name.clone(),
            instance: view.ledger.instance(),
            place,
            stage,
        };
        self.told.insert(view.cluster.id, told);
        FromServer::Start {
            cluster: view.cluster.clone(),
            beginning,
        }
    }
}

fn is_older(held: Position, known: Option<Position>) -> bool {
    known.is_some_and(|known| known.epoch == held.epoch && held.revision < known.revision)
}
