use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;

use super::super::intake::Intake;
use super::super::message::in_sequence;
use super::super::salt::{Instances, Salt};
use super::super::silence::{Silence, Wakefulness};
use super::super::terms::Rules;
use super::super::{
    Age, Beginning, Cluster, ClusterView, Fault, FromServer, Guard, HearsUs, Held, Ledger,
    LinkState, PeerView, Quarantine, Ranges, RangesFrom, Refusal, Rows, Sequenced, ServerHello,
    Terms, VERSION,
};
use super::SavedLink;
use crate::model::{ClusterId, ClusterName};

/// One linked cluster: its rows, and how the stream from it stands.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) name: ClusterName,
    /// Named by a link of this run, not by an earlier run's state file alone. Only then are its terms known.
    pub(super) configured: bool,
    terms: Terms,
    /// What the peer announced when it was first connected.
    learnt: Option<Vec<IpNet>>,
    /// What it announces now.
    announced: Vec<IpNet>,
    /// As the cluster said, now or before.
    pub(super) id: Option<ClusterId>,
    pub(super) silence: Silence,
    pub(super) state: LinkState,
    pub(super) state_since: Age,
    pub(super) hears_us: HearsUs,
    pub(super) hears_us_since: Age,
    ledger: Ledger,
    intake: Intake,
    /// The peer has told them whole since this mesh server started.
    confirmed: bool,
    stream: Option<Stream>,
    endpoint: String,
    tries: u32,
    last_error: Option<(String, Age)>,
    /// Rows that are refused may be accepted now: all of them are to be told again.
    wants: Want,
    /// When a list was last asked for.
    asked: Option<Instant>,
}

/// The least time between two lists that are asked for.
const ASK_PAUSE: Duration = Duration::from_secs(60);

/// A whole list, wanted whatever is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Want {
    Nothing,
    List,
    /// The list is under way, and may yet break off.
    ListsEnd,
}

#[derive(Debug)]
struct Stream {
    /// The next message's number.
    expected: u64,
    greeted: bool,
}

fn rules<'a>(terms: &'a Terms, learnt: Option<&'a [IpNet]>, own: &'a [IpNet]) -> Rules<'a> {
    Rules {
        allowed: terms.cidrs.as_deref().or(learnt),
        own,
        rows_max: terms.rows_max,
        bytes_max: terms.bytes_max,
    }
}

/// What a link must know of its hub to judge a message.
pub(super) struct Around<'a> {
    pub(super) own: &'a Cluster,
    /// Where our own cluster has its endpoints.
    pub(super) cidrs: &'a [IpNet],
    pub(super) guard: Guard,
    /// Who else has the id that a hello names.
    pub(super) taken: Option<ClusterName>,
    /// For a peer that comes with another id: its table is another.
    pub(super) instances: &'a mut Instances,
}

/// What a message did.
pub(super) enum Effect {
    /// To rows or to the link's state.
    Seen,
    /// It was a sign of life.
    Counted,
}

/// What a message led to.
pub(super) struct Heard {
    pub(super) effect: Effect,
    /// The peer is to tell all of its rows again.
    pub(super) ask: bool,
    /// Where the peer's endpoints are from now on.
    pub(super) learnt: Option<Vec<IpNet>>,
}

impl Link {
    pub(super) fn new(
        name: ClusterName,
        (instance, salt): (u64, Salt),
        clock: &Wakefulness,
        now: Instant,
    ) -> Self {
        Self {
            name,
            configured: false,
            terms: Terms::default(),
            learnt: None,
            announced: Vec::new(),
            id: None,
            silence: Silence::begin(clock, now),
            state: LinkState::Connecting,
            state_since: Age::zero(now),
            hears_us: HearsUs::Unknown,
            hears_us_since: Age::zero(now),
            ledger: Ledger::new(instance, Rows::default()),
            intake: Intake::salted(salt),
            confirmed: false,
            stream: None,
            endpoint: String::new(),
            tries: 0,
            last_error: None,
            wants: Want::Nothing,
            asked: None,
        }
    }

    pub(super) fn load(
        saved: SavedLink,
        (instance, salt): (u64, Salt),
        clock: &Wakefulness,
        now: Instant,
        wall: SystemTime,
    ) -> Self {
        Self {
            id: Some(saved.cluster.id),
            learnt: saved.learnt,
            silence: Silence::load(&saved.silence, clock, now, wall),
            intake: Intake::salted(salt).load(&saved.rows, saved.exact),
            ledger: Ledger::load(instance, saved.rows, saved.history),
            ..Self::new(saved.cluster.name, (instance, salt), clock, now)
        }
    }

    pub(super) fn save(
        &self,
        clock: &Wakefulness,
        now: Instant,
        wall: SystemTime,
    ) -> Option<SavedLink> {
        Some(SavedLink {
            cluster: Cluster {
                name: self.name.clone(),
                id: self.id?,
            },
            silence: self.silence.save(clock, now, wall),
            rows: self.ledger.rows().clone(),
            history: self.ledger.history(),
            exact: self.intake.is_exact(),
            learnt: self.learnt.clone(),
        })
    }

    pub(super) fn view(&self) -> PeerView {
        PeerView {
            name: self.name.clone(),
            id: self.id.or(self.terms.id),
            state: self.state,
            state_since: self.state_since,
            hears_us: self.hears_us,
            hears_us_since: self.hears_us_since,
            last_error: self.last_error.clone(),
            tries: self.tries,
            endpoint: self.endpoint.clone(),
            refused_rows: self.intake.refused().total(),
            refusals: self.intake.refused().report(),
            quarantine: self.intake.quarantine(),
            ranges: Ranges {
                allowed: match (&self.terms.cidrs, &self.learnt) {
                    (Some(cidrs), _) => Some((RangesFrom::Link, cidrs.clone())),
                    (None, Some(cidrs)) => Some((RangesFrom::Learnt, cidrs.clone())),
                    (None, None) => None,
                },
                announced: self.announced.clone(),
            },
            rows_max: self.terms.rows_max,
            bytes_max: self.terms.bytes_max,
        }
    }

    /// What the link allows now. Rows that it does not allow any more go at once; what was refused is asked for again.
    /// Rows from a state file were held to the rules of then: they are judged whatever the terms are.
    pub(super) fn set_terms(&mut self, terms: &Terms, own: &[IpNet]) {
        let judged = std::mem::replace(&mut self.configured, true);
        if !judged || self.terms != *terms {
            self.terms.clone_from(terms);
            self.asked = None;
            self.revise(own);
        }
    }

    fn revise(&mut self, own: &[IpNet]) {
        let rows = self.ledger.rows();
        let too_many =
            rows.len() as u64 > self.terms.rows_max || rows.bytes() > self.terms.bytes_max;
        if too_many || !self.intake.refused().is_empty() {
            self.wants = Want::List;
        }
        let rules = rules(&self.terms, self.learnt.as_deref(), own);
        self.intake.enforce(&mut self.ledger, &rules);
    }

    /// Rows that a quota kept out are asked for again when there is room for them.
    fn seek_room(&mut self) {
        let (rows, waiting) = (self.ledger.rows(), self.intake.refused().by_quota());
        let room = rows.len() as u64 + waiting <= self.terms.rows_max
            && rows.bytes() <= self.terms.bytes_max / 16 * 15;
        if waiting > 0 && room && self.intake.is_still() {
            self.wants = Want::List;
        }
    }

    /// Whether the peer is to tell all of its rows again.
    fn ask(&mut self, now: Instant) -> bool {
        let paused = |asked| now.saturating_duration_since(asked) < ASK_PAUSE;
        let due = self.wants == Want::List && !self.asked.is_some_and(paused);
        if due {
            self.asked = Some(now);
        }
        due
    }

    /// Refusals that should be logged now: why, how many, and some of their names.
    pub(super) fn take_log(&mut self, now: Instant) -> Vec<(Refusal, u64, Vec<String>)> {
        self.intake.refused_mut().take_log(now)
    }

    pub(super) fn cluster_view(&self, id: ClusterId) -> ClusterView {
        ClusterView {
            cluster: Cluster {
                name: self.name.clone(),
                id,
            },
            ledger: self.ledger.clone(),
            confirmed: self.confirmed,
            quarantine: self.intake.quarantine(),
        }
    }

    pub(super) fn quarantine(&self) -> Option<Quarantine> {
        self.intake.quarantine()
    }

    /// Lets go of rows that a doubted list left out. Not while the peer is silent: it may come back with more.
    pub(super) fn release(&mut self, now: Instant) -> usize {
        if self.state != LinkState::Connected {
            return 0;
        }
        self.intake.release(&mut self.ledger, now).len()
    }

    pub(super) fn dial(&mut self, endpoint: &str) {
        self.tries = self.tries.saturating_add(1);
        endpoint.clone_into(&mut self.endpoint);
    }

    pub(super) fn open(&mut self) -> Option<Held> {
        self.stream = Some(Stream {
            expected: 1,
            greeted: false,
        });
        if self.wants == Want::ListsEnd {
            self.wants = Want::List;
        }
        let cluster = Cluster {
            name: self.name.clone(),
            id: self.id?,
        };
        let held = self.intake.open();
        let position = held.filter(|_| self.wants == Want::Nothing)?;
        Some(Held { cluster, position })
    }

    pub(super) fn close(&mut self, error: String, refused: bool, now: Instant) {
        self.stream = None;
        self.set_state(
            if refused {
                LinkState::Refused
            } else {
                LinkState::Connecting
            },
            now,
        );
        self.set_error(error, now);
    }

    fn set_state(&mut self, state: LinkState, now: Instant) {
        if state != self.state {
            (self.state, self.state_since) = (state, Age::zero(now));
        }
    }

    /// The same error again keeps its age: people ask since when, and `tries` says how often.
    fn set_error(&mut self, error: String, now: Instant) {
        if self
            .last_error
            .as_ref()
            .is_none_or(|(before, _)| *before != error)
        {
            self.last_error = Some((error, Age::zero(now)));
        }
    }

    fn broke(&self, what: &'static str) -> Fault {
        Fault::PeerBroke {
            who: format!("the mesh server of \"{}\"", self.name),
            what,
        }
    }

    /// Applies a message.
    pub(super) fn receive(
        &mut self,
        said: Sequenced,
        around: Around<'_>,
        now: Instant,
    ) -> Result<Heard, Fault> {
        let known = self.learnt.is_some();
        let effect = self.apply(said, around, now)?;
        self.seek_room();
        Ok(Heard {
            effect,
            ask: self.ask(now),
            learnt: self.learnt.clone().filter(|_| !known),
        })
    }

    fn apply(
        &mut self,
        said: Sequenced,
        around: Around<'_>,
        now: Instant,
    ) -> Result<Effect, Fault> {
        let name = self.name.clone();
        let broke = |what| Fault::PeerBroke {
            who: format!("the mesh server of \"{name}\""),
            what,
        };
        let stream = self.stream.as_mut().ok_or(Fault::Unlinked)?;
        if !in_sequence(&mut stream.expected, said.sequence).map_err(broke)? {
            return Ok(Effect::Counted);
        }
        if let FromServer::Hello(hello) = said.message {
            if std::mem::replace(&mut stream.greeted, true) {
                return Err(broke("said hello twice"));
            }
            self.greet(hello, around, now)?;
            return Ok(Effect::Seen);
        }
        let Some(id) = self.id.filter(|_| stream.greeted) else {
            return Err(broke("did not begin with a hello"));
        };
        match said.message {
            FromServer::Start { cluster, .. } if cluster.id != id || cluster.name != name => {
                self.refuse(cluster.id, 0);
            }
            FromServer::Rows {
                id: other, changes, ..
            } if other != id => self.refuse(other, changes.len()),
            FromServer::Complete { id: other, .. } if other != id => self.refuse(other, 0),
            FromServer::Start { beginning, .. } => {
                self.intake.start(beginning, &self.ledger).map_err(broke)?;
                if beginning != Beginning::Resumed && self.wants == Want::List {
                    self.wants = Want::ListsEnd;
                }
            }
            FromServer::Rows {
                changes,
                bad,
                position,
                ..
            } => {
                let rules = rules(&self.terms, self.learnt.as_deref(), around.cidrs);
                let table = &mut self.ledger;
                let told = self.intake.rows(table, changes, bad, position, &rules);
                told.map_err(broke)?;
            }
            FromServer::Complete { position, .. } => {
                let table = &mut self.ledger;
                let ended = self.intake.complete(table, position, around.guard, now);
                ended.map_err(broke)?;
                self.confirmed = true;
                if self.wants == Want::ListsEnd {
                    self.wants = Want::Nothing;
                }
            }
            // What a peer says of third clusters is hearsay.
            FromServer::Peers { .. } | FromServer::Heartbeat(_) => return Ok(Effect::Counted),
            FromServer::Hello(_) => return Err(broke("said hello twice")),
        }
        Ok(Effect::Seen)
    }

    fn greet(&mut self, hello: ServerHello, around: Around<'_>, now: Instant) -> Result<(), Fault> {
        let (own, found) = (around.own, hello.cluster);
        if hello.version != VERSION {
            return Err(Fault::NoCommonVersion {
                theirs: vec![hello.version],
                ours: VERSION,
            });
        }
        if hello.heartbeat < Duration::from_millis(10) || hello.heartbeat > Duration::from_secs(60)
        {
            return Err(self.broke("asks for a heartbeat outside 10ms..60s"));
        }
        if found.name == own.name && found.id != own.id {
            return Err(Fault::DuplicateName {
                name: found.name,
                one: own.id,
                other: found.id,
            });
        }
        if found.name != self.name {
            return Err(Fault::WrongCluster {
                link: self.name.clone(),
                found,
            });
        }
        if let Some(pinned) = self.terms.id.filter(|pinned| *pinned != found.id) {
            return Err(Fault::WrongId { pinned, found });
        }
        if let Some(one) = around.taken {
            return Err(Fault::DuplicateId {
                id: found.id,
                one,
                other: found.name,
            });
        }
        if self.id != Some(found.id) {
            if self.id.is_some() {
                // Another id is another owner: consumers list anew.
                let (instance, salt) = around.instances.give();
                self.ledger = Ledger::new(instance, Rows::default());
                self.intake = Intake::salted(salt);
                self.learnt = None;
                self.confirmed = false;
            }
            self.id = Some(found.id);
        }
        self.announced = hello.cidrs;
        if self.terms.cidrs.is_none() && self.learnt.is_none() && !self.announced.is_empty() {
            self.learnt = Some(self.announced.clone());
            self.revise(around.cidrs);
        }
        self.set_state(LinkState::Connected, now);
        (self.tries, self.last_error) = (0, None);
        Ok(())
    }

    fn refuse(&mut self, other: ClusterId, rows: usize) {
        let example = format!("cluster id {other}");
        let refused = self.intake.refused_mut();
        refused.note_unnamed(Refusal::ForeignCluster, rows as u64, example);
    }
}
