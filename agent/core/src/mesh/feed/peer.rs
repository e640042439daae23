use std::time::{Duration, Instant, SystemTime};

use super::super::intake::Intake;
use super::super::terms::Rules;
use super::super::{
    Age, BadRow, Beginning, Cluster, Guard, Held, LinkState, PeerReport, PeerSilence, Position,
    Quarantine, RefusalReport, Rows, SavedSilence,
};
use super::status::{PeerState, PeerStatus};
use super::{Dropped, FeedEvent, FeedSettings, SavedPeer, Standing};
use crate::model::{Batch, ClusterId, ClusterName, RowChange};

/// One linked cluster, as the agent knows it.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) name: ClusterName,
    /// Of the rows held. `None` until our mesh server began to tell them.
    pub(super) id: Option<ClusterId>,
    rows: Rows,
    intake: Intake,
    /// A list was complete since the agent started.
    complete: bool,
    /// As last reported. It does not grow by itself.
    witnessed: Duration,
    last_word: Option<Age>,
    /// What the store was told; `None`: nothing.
    standing: Option<Standing>,
    standing_since: Age,
    /// The report that came last, and when.
    report: Option<(PeerReport, Instant)>,
}

impl Peer {
    pub(super) fn new(name: ClusterName, now: Instant) -> Self {
        Self {
            name,
            id: None,
            rows: Rows::default(),
            intake: Intake::default(),
            complete: false,
            witnessed: Duration::ZERO,
            last_word: None,
            standing: None,
            standing_since: Age::zero(now),
            report: None,
        }
    }

    pub(super) fn load(saved: SavedPeer, now: Instant, wall: SystemTime) -> Self {
        Self {
            id: Some(saved.cluster.id),
            intake: Intake::default().load(&saved.rows, true),
            rows: saved.rows,
            witnessed: saved.silence.witnessed,
            last_word: saved.silence.last_word(now, wall),
            ..Self::new(saved.cluster.name, now)
        }
    }

    pub(super) fn save(&self, now: Instant, wall: SystemTime) -> Option<SavedPeer> {
        let mut rows = self.rows.clone();
        if !self.intake.is_exact() {
            rows.unsettle(); // Only a whole list can tell what of it should go.
        }
        Some(SavedPeer {
            cluster: self.cluster()?,
            silence: SavedSilence::new(self.witnessed, self.last_word, now, wall),
            rows,
        })
    }

    pub(super) fn cluster(&self) -> Option<Cluster> {
        Some(Cluster {
            name: self.name.clone(),
            id: self.id?,
        })
    }

    /// A state of the cluster with this id was held whole.
    pub(super) fn holds(&self, id: ClusterId) -> bool {
        self.id == Some(id) && self.intake.has_base()
    }

    /// Also before its rows begin.
    pub(super) fn reported(&self) -> Option<Cluster> {
        let reported = || self.report.as_ref()?.0.id;
        Some(Cluster {
            name: self.name.clone(),
            id: self.id.or_else(reported)?,
        })
    }

    /// A new stream: what is held complete.
    pub(super) fn open(&mut self) -> Option<Held> {
        let position = self.intake.open()?;
        let cluster = self.cluster()?;
        Some(Held { cluster, position })
    }

    pub(super) fn report(&mut self, report: PeerReport, now: Instant) {
        self.report = Some((report, now));
    }

    /// Our mesh server does not know how it is linked.
    pub(super) fn forget_report(&mut self) {
        self.report = None;
    }

    pub(super) fn silence(&mut self, said: &PeerSilence, now: Instant) {
        self.witnessed = said.witnessed;
        self.last_word = said.last_word.map(|age| Age::of(age, now));
    }

    /// Compares the silence with the limits, and tells the store if the answer changed.
    pub(super) fn judge(
        &mut self,
        settings: &FeedSettings,
        now: Instant,
        events: &mut Vec<FeedEvent>,
    ) {
        let Some(cluster) = self.cluster() else {
            return;
        };
        let standing = match self.witnessed {
            silent if silent >= settings.ttl => Standing::Expired,
            silent if silent >= settings.stale_after => Standing::Stale,
            _ => Standing::Live,
        };
        let before = self.standing.replace(standing);
        if before == Some(standing) {
            return;
        }
        self.standing_since = Age::zero(now);
        if standing == Standing::Expired {
            if before.is_some() {
                events.push(FeedEvent::Dropped {
                    cluster,
                    why: Dropped::Expired,
                });
            }
            return;
        }
        events.push(FeedEvent::Peer {
            cluster: cluster.clone(),
            stale: standing == Standing::Stale,
            silent: self.witnessed,
        });
        if matches!(before, None | Some(Standing::Expired)) {
            let batch = Batch {
                changes: self.rows.all(),
                complete: self.is_told_whole(),
            };
            if !batch.is_empty() {
                events.push(FeedEvent::Rows { cluster, batch });
            }
        }
    }

    /// The rows held are a complete list of this run.
    fn is_told_whole(&self) -> bool {
        self.complete && self.intake.is_still() && self.rows.position().is_some()
    }

    /// Its rows go, and so does its id if another cluster has it now.
    pub(super) fn renumber(&mut self, id: Option<ClusterId>, events: &mut Vec<FeedEvent>) {
        self.drop_rows(Dropped::Renumbered, events);
        self.id = id;
        self.rows = Rows::default();
        self.intake = Intake::default();
        self.complete = false;
        self.standing = None;
        self.witnessed = Duration::ZERO;
    }

    pub(super) fn drop_rows(&mut self, why: Dropped, events: &mut Vec<FeedEvent>) {
        if let (Some(cluster), Some(Standing::Live | Standing::Stale)) =
            (self.cluster(), self.standing)
        {
            events.push(FeedEvent::Dropped { cluster, why });
        }
        self.standing = None;
    }

    pub(super) fn start(&mut self, beginning: Beginning) -> Result<(), &'static str> {
        self.intake.start(beginning, &self.rows)
    }

    pub(super) fn rows(
        &mut self,
        changes: Vec<RowChange>,
        bad: Vec<BadRow>,
        position: Option<Position>,
        events: &mut Vec<FeedEvent>,
    ) -> Result<(), &'static str> {
        let (table, rules) = (&mut self.rows, &Rules::NONE);
        let changes = self.intake.rows(table, changes, bad, position, rules)?;
        self.tell(changes, false, events);
        Ok(())
    }

    pub(super) fn complete(
        &mut self,
        position: Position,
        guard: Guard,
        now: Instant,
        events: &mut Vec<FeedEvent>,
    ) -> Result<(), &'static str> {
        let table = &mut self.rows;
        let changes = self.intake.complete(table, position, guard, now)?;
        let first = !std::mem::replace(&mut self.complete, true);
        self.tell(changes, first, events);
        Ok(())
    }

    /// When rows that a doubted list left out are to go.
    pub(super) fn next_release(&self) -> Option<Instant> {
        self.intake.next_deadline()
    }

    pub(super) fn release(&mut self, now: Instant, events: &mut Vec<FeedEvent>) {
        let gone = self.intake.release(&mut self.rows, now);
        self.tell(gone, false, events);
    }

    fn tell(&self, changes: Vec<RowChange>, complete: bool, events: &mut Vec<FeedEvent>) {
        let batch = Batch { changes, complete };
        if let (Some(cluster), Some(Standing::Live | Standing::Stale)) =
            (self.cluster(), self.standing)
            && !batch.is_empty()
        {
            events.push(FeedEvent::Rows { cluster, batch });
        }
    }

    /// Ours, or else our mesh server's.
    fn quarantine(&self) -> Option<Quarantine> {
        let reported = || {
            let (report, at) = self.report.as_ref()?;
            let quarantine = report.quarantine?;
            let rows = |rows| usize::try_from(rows).unwrap_or(usize::MAX);
            Some(Quarantine {
                rows: rows(quarantine.rows),
                held: rows(quarantine.held),
                since: Age::of(quarantine.age, *at),
                until: at.checked_add(quarantine.left).unwrap_or(*at),
            })
        };
        self.intake.quarantine().or_else(reported)
    }

    pub(super) fn status(&self, settings: &FeedSettings) -> PeerStatus {
        let link = self.report.as_ref().map(|(report, _)| report);
        let aged = |age: Duration| self.report.as_ref().map(|(_, at)| Age::of(age, *at));
        let link_since = link.and_then(|report| aged(report.state_age));
        let (state, state_since) = match (self.standing, link.map(|report| report.state)) {
            (Some(Standing::Expired), _) => (PeerState::Dropped, Some(self.standing_since)),
            (_, Some(LinkState::Refused)) => (PeerState::Refused, link_since),
            (Some(Standing::Stale), _) => (PeerState::Stale, Some(self.standing_since)),
            (_, Some(LinkState::Connected)) => (PeerState::Connected, link_since),
            (_, Some(LinkState::Connecting) | None) => (PeerState::Connecting, link_since),
        };
        PeerStatus {
            name: self.name.clone(),
            id: self.id.or(link.and_then(|report| report.id)),
            state,
            state_since,
            last_word: self.last_word,
            hears_us: link.map(|report| report.hears_us).unwrap_or_default(),
            hears_us_since: link.and_then(|report| aged(report.hears_us_age)),
            position: self.rows.position(),
            complete: self.complete,
            services: self.rows.services(),
            endpoints: self.rows.endpoints(),
            last_error: link
                .and_then(|report| report.last_error.clone())
                .and_then(|(text, age)| Some((text, aged(age)?))),
            tries: link.map_or(0, |report| report.tries),
            endpoint: link
                .map(|report| report.endpoint.clone())
                .unwrap_or_default(),
            dropped_in: (self.standing == Some(Standing::Stale))
                .then(|| settings.ttl.saturating_sub(self.witnessed)),
            refused_rows: link.map_or(0, |report| report.refused_rows)
                + self.intake.refused().total(),
            refusals: RefusalReport::merge(
                link.map(|report| report.refusals.clone())
                    .unwrap_or_default(),
                self.intake.refused().report(),
            ),
            quarantine: self.quarantine(),
            ranges: link.map(|report| report.ranges.clone()).unwrap_or_default(),
        }
    }
}
