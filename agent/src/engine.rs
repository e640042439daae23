//! The one task that owns the store and the reconciler: what the world says goes in, writes to the kernel come out.
//!
//! It takes what has come, derives, and writes, in rounds; it never waits for a source, a peer or a grace period.

mod attach;
mod grace;
mod kernel;
mod ports;
mod published;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::mpsc as thread_channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use isthmus_abi::{EventKind, EventRow};
use isthmus_core::desired::{self, Here, Programmed};
use isthmus_core::model::{Batch, ClusterId, RowChange};
use isthmus_core::reconcile::{GraceTicket, Reconciler};
use isthmus_core::store::{Dirty, Owner, PeerState, Store};
use isthmus_mesh::http::Hold;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::datapath::{
    Datapath, DatapathError, Orphans, Removed, clock, grace_period, start_orphans,
};
use crate::events::{Happening, Monitors, Now, What, understand};
use crate::tally::Tally;

pub use attach::Start;
pub use grace::{EngineError, NoGrace};
pub use ports::PortIndex;
pub use published::{Forgiven, Published};

use attach::Attach;
use kernel::KernelRows;
use ports::Ports;

/// Writes in one round, after which new events are looked at.
const ROUND_WRITES: u32 = 4096;
/// Events taken in before they are derived and written.
const ROUND_EVENTS: usize = 256;
/// Failing pieces of work that are shown; the rest is counted.
const FAULTS_MAX: usize = 100;

/// How often what programs ejected is looked at, if nobody tells.
const LIMITS_EVERY: Duration = Duration::from_secs(1);

/// What the engine is told.
#[derive(Debug)]
pub enum Event {
    /// Rows of an owner, and whether its list is complete with them.
    Rows {
        owner: Owner,
        batch: Batch,
        /// When the owner's source saw the first sign of them.
        seen: Instant,
    },
    /// Who a peer is, and whether it is stale.
    Peer(ClusterId, PeerState),
    /// A peer's rows are to go: its link was removed, or its TTL is over.
    Drop(ClusterId),
    /// All linked clusters: what the maps hold of others is to go.
    Linked(BTreeSet<ClusterId>),
    /// Whether the cluster's own source could read all that it has, and finds nothing wrong with it.
    Sound(bool),
    /// What programs tell.
    Kernel(Vec<EventRow>),
}

/// What the engine is made of.
#[derive(Debug)]
pub struct Engine {
    cluster: ClusterId,
    node: String,
    programmed: Programmed,
    store: Store,
    reconciler: Reconciler,
    datapath: Arc<Mutex<Datapath>>,
    kernel: KernelRows,
    monitors: Arc<Monitors>,
    tally: Arc<Tally>,
    ports: Ports,
    /// When to look again at what programs ejected.
    limits_at: Instant,
    /// Where it is told which backends of UDP are gone.
    orphans: thread_channel::Sender<Removed>,
    attach: Attach,
    /// Sockets may be connected to backends that went when no agent saw it, and are to be looked for.
    unseen: bool,
    /// What the cluster's own source said last: see [`Event::Sound`].
    sound: bool,
    publish: watch::Sender<Arc<Published>>,
    published: Published,
    /// When the first change was seen that has not led to all its writes yet.
    seen: Option<Instant>,
}

impl Engine {
    /// `reconciler` has adopted what the maps held. `hold` keeps the agent from being ready until the programs are on.
    ///
    /// # Errors
    /// If the kernel does not map what programs count into this process.
    pub fn new(
        here: Here<'_>,
        reconciler: Reconciler,
        datapath: Arc<Mutex<Datapath>>,
        monitors: Arc<Monitors>,
        tally: Arc<Tally>,
        start: &Start,
        hold: Hold,
    ) -> Result<(Self, watch::Receiver<Arc<Published>>), DatapathError> {
        let kernel = KernelRows::new(&lock(&datapath))?;
        let orphans = start_orphans(Orphans::open(&lock(&datapath))?);
        let (publish, published) = watch::channel(Arc::new(Published::default()));
        let engine = Self {
            cluster: here.cluster,
            node: here.node.to_owned(),
            programmed: here.programmed,
            store: Store::new(),
            reconciler,
            datapath,
            kernel,
            monitors,
            tally,
            ports: Ports::default(),
            limits_at: Instant::now(),
            orphans,
            attach: Attach::new(start, hold),
            unseen: start.follows,
            sound: false,
            publish,
            published: Published::default(),
            seen: None,
        };
        Ok((engine, published))
    }

    /// Programs of an agent before this one serve these very maps: put ours in their place now.
    pub fn take_over(&mut self) {
        self.try_attach(Instant::now());
    }

    /// Works until `shutdown`, or until nobody is left to tell it anything.
    ///
    /// # Errors
    /// If the thread of grace periods is not to be had, or ended.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        shutdown: CancellationToken,
    ) -> Result<(), EngineError> {
        let (ask, mut waited) = grace::spawn(grace_period)?;
        loop {
            let now = Instant::now();
            let deadline = self.round(now, &ask)?;
            let wait = deadline.map_or(Duration::from_secs(3600), |at| {
                at.saturating_duration_since(Instant::now())
            });
            if wait.is_zero() {
                // There is more to write: take in what has come meanwhile, without waiting for it.
                tokio::task::yield_now().await;
                self.take(&mut events, None);
                while let Ok(said) = waited.try_recv() {
                    self.note_grace(said);
                }
                if shutdown.is_cancelled() {
                    return Ok(());
                }
                continue;
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                event = events.recv() => match event {
                    Some(event) => self.take(&mut events, Some(event)),
                    None => return Ok(()),
                },
                said = waited.recv() => self.note_grace(said.ok_or(EngineError::GraceEnded)?),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn grace_passed(&mut self, ticket: GraceTicket) {
        let going = self.reconciler.letting_go();
        self.tally.look_at_last(&going, &self.ports.index);
        self.reconciler.grace_passed(ticket);
    }

    /// Takes in `first` and what else is already there, and derives what it changes.
    fn take(&mut self, events: &mut mpsc::Receiver<Event>, first: Option<Event>) {
        let mut dirty = Dirty::default();
        let mut first_seen = Instant::now();
        let more = std::iter::from_fn(|| events.try_recv().ok());
        for event in first.into_iter().chain(more).take(ROUND_EVENTS) {
            match event {
                Event::Rows { owner, batch, seen } => {
                    first_seen = first_seen.min(seen);
                    self.note_conditions(owner, &batch);
                    dirty.merge(self.store.apply(owner, &batch));
                }
                Event::Peer(id, state) => dirty.merge(self.store.set_peer(id, state)),
                Event::Drop(id) => {
                    self.published
                        .changed
                        .retain(|(owner, _, _), _| *owner != Owner::Peer(id));
                    dirty.merge(self.store.drop_peer(id));
                }
                Event::Linked(clusters) => {
                    self.release_unlinked(&clusters, &mut dirty);
                    self.attach.linked = Some(clusters);
                }
                Event::Sound(sound) => self.sound = sound,
                Event::Kernel(rows) => self.hear(&rows),
            }
        }
        if !dirty.is_empty() {
            let before = self.seen.unwrap_or(first_seen);
            self.seen = Some(before.min(first_seen));
            self.ports.touch(dirty.services.keys());
            let here = Here {
                cluster: self.cluster,
                node: &self.node,
                programmed: self.programmed,
            };
            for change in desired::changes(here, self.store.now(), &dirty) {
                self.reconciler.apply(change);
            }
        }
    }

    /// Tells people what programs say.
    fn hear(&mut self, rows: &[EventRow]) {
        let now = Now {
            nanoseconds: clock(),
            instant: Instant::now(),
        };
        for row in rows {
            let port = self.ports.index.get(&row.service).cloned();
            let of_service = matches!(
                EventKind::from_abi(row.kind),
                Some(EventKind::Refused | EventKind::AllEjected | EventKind::Capped)
            );
            if row.kind == EventKind::Ejected as u8 {
                // The service's limit is one nearer.
                self.limits_at = now.instant;
            }
            let backend = self.kernel.backend(row).filter(|_| !of_service);
            let Some(happening) = understand(row, now, port, backend) else {
                continue;
            };
            self.forgive(row, &happening);
            self.monitors.tell(happening);
        }
    }

    /// Programs count failures since a backend has its id; people ask for those since it last returned.
    fn forgive(&mut self, row: &EventRow, happening: &Happening) {
        let What::Health(health) = &happening.what else {
            return;
        };
        if let (EventKind::Returned, Some(backend)) = (health.kind, health.backend) {
            let forgiven = Forgiven {
                generation: row.generation,
                failures: self.kernel.failures.get(backend.id),
            };
            self.published.forgiven.insert(backend.id, forgiven);
        }
    }

    /// Remembers when a known endpoint's condition changes, so that people can be told its age.
    fn note_conditions(&mut self, owner: Owner, batch: &Batch) {
        let now = Instant::now();
        for change in &batch.changes {
            match change {
                RowChange::Endpoint(row) => {
                    let before = self
                        .store
                        .now()
                        .group(&row.service)
                        .endpoint(owner, row.address);
                    if before.is_some_and(|before| before.condition != row.condition) {
                        let key = (owner, row.service.clone(), row.address);
                        self.published.changed.insert(key, now);
                    }
                }
                RowChange::EndpointGone(key) => {
                    self.published
                        .changed
                        .remove(&(owner, key.service.clone(), key.address));
                }
                RowChange::Service(_) | RowChange::ServiceGone(_) => {}
            }
        }
    }

    /// One round of writes. Returns when the next one is due; `None` if only an event can make one.
    fn round(
        &mut self,
        now: Instant,
        ask: &thread_channel::Sender<GraceTicket>,
    ) -> Result<Option<Instant>, EngineError> {
        let progress = self.reconciler.step(now, ROUND_WRITES);
        if let Some(ticket) = progress.want_grace {
            ask.send(ticket).map_err(|_| EngineError::GraceEnded)?;
        }
        let removed = self.reconciler.take_removed();
        if !removed.is_empty() {
            self.look_for_orphans(removed.into())?;
        }
        if now >= self.limits_at {
            self.keep_limits_ahead(now);
        }
        if progress.writes > 0 {
            let end = Instant::now();
            self.published.last_write = Some(end);
            self.published.last_latency = self.seen.map(|seen| end.duration_since(seen));
        }
        if progress.idle {
            self.seen = None;
        }
        let attach_due = if progress.idle {
            self.tell_tiers();
            if self.unseen && self.is_whole(now) {
                self.unseen = false;
                self.look_for_orphans(Removed::ANYWHERE)?;
            }
            self.attach_if_due(now)
        } else {
            None
        };
        self.published.rows = self.store.snapshot();
        self.published.counts = self.reconciler.counts();
        self.published.faults = self.reconciler.faults().take(FAULTS_MAX).collect();
        self.publish.send_replace(Arc::new(self.published.clone()));
        if !progress.idle {
            return Ok(Some(now));
        }
        let due = [progress.next_deadline, attach_due, Some(self.limits_at)];
        Ok(due.into_iter().flatten().min())
    }

    /// A grace period has passed, or is not to be had for now.
    fn note_grace(&mut self, said: Result<GraceTicket, Arc<NoGrace>>) {
        match said {
            Ok(ticket) => {
                self.published.no_grace = None;
                self.grace_passed(ticket);
            }
            Err(fault) => self.published.no_grace = Some(fault),
        }
    }

    /// Programs may eject as many backends as a service has, beyond those that they did.
    fn keep_limits_ahead(&mut self, now: Instant) {
        let rows = &self.kernel.service_health;
        self.reconciler
            .allow_ejections(|service| rows.get(service).ejected_total);
        self.limits_at = now + LIMITS_EVERY;
    }

    /// Tells of services whose connections go to another tier now.
    fn tell_tiers(&mut self) {
        for moved in self.ports.review(&self.reconciler, self.store.now()) {
            let what = What::Tier {
                before: moved.before,
                now: moved.now,
                port: moved.port,
            };
            self.monitors.tell(Happening {
                at: Instant::now(),
                what,
            });
        }
        self.published.ports = self.ports.index.clone();
    }

    fn look_for_orphans(&self, removed: Removed) -> Result<(), EngineError> {
        let sent = self.orphans.send(removed);
        sent.map_err(|_| EngineError::OrphansEnded)
    }

    /// Clusters that the maps still hold backends of, on trust, and that nobody is linked with any more.
    fn release_unlinked(&self, linked: &BTreeSet<ClusterId>, dirty: &mut Dirty) {
        let held = self
            .reconciler
            .dump()
            .flat_map(|service| service.backends)
            .map(|backend| backend.key.cluster);
        let gone = held
            .filter(|id| *id != self.cluster && !linked.contains(id))
            .map(Owner::Peer);
        dirty.released.extend(gone);
    }
}

/// Nothing that holds the lock leaves the datapath half changed: each kernel call stands for itself.
pub fn lock(datapath: &Mutex<Datapath>) -> std::sync::MutexGuard<'_, Datapath> {
    datapath
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
