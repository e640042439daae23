//! Makes the maps equal to what is desired, in an order that no reader and no crash can see through.
//!
//! - *Make before break.* Backend rows, then a ring's slots, then the ring's word, then frontends; removal the other way
//!   round. A crash between any two writes leaves rings that are the old ones or the new ones, and things nothing leads
//!   to, which [`Reconciler::adopt`] finds.
//! - *What is handed over is not taken away between.* A service port that takes another's frontends takes its place.
//! - *One word moves a ring.* One backend more or less is patched where it stands: append and then the length, or the
//!   last slot over the removed one and then the length. Anything else is laid into a fresh span.
//! - *Reuse waits* for a grace period: spans, backend ids, services' indices. So does the insertion of frontends after
//!   one was deleted, because a hash hands out a deleted element's memory at once.
//! - *Nothing is removed on trust.* What was found in the maps stays until its owner's list is complete, or the owner is
//!   dropped.
//! - *No port is refused that should answer.* An address is ours for refusals only when each port that we know of answers
//!   there, and not while a fault keeps one out.
//! - *Faults stay where they are.* Each piece of work retries by itself with backoff; a round is bounded by its writes.
//!
//! The caller owns time and threads:
//!
//! ```
//! # use std::time::Instant;
//! # use isthmus_core::{desired::*, model::*, reconcile::*, store::*, table::*};
//! # let sizes = Sizes { frontends: 8, services: 8, slots: 64, backends: 8 };
//! # let memory = MemoryTable::new(MemoryMaps::new(sizes));
//! # let cluster = ClusterId::try_from(1)?;
//! # let batch = Batch::default();
//! let mut store = Store::new();
//! let here = Here { cluster, node: "node-1", programmed: Programmed::All };
//! // A grace period has passed since the last writer ended.
//! let (mut reconciler, _adopted) = Reconciler::adopt(memory.tables(), cluster)?;
//! // A source speaks:
//! let dirty = store.apply(Owner::Local, &batch);
//! for change in changes(here, store.now(), &dirty) {
//!     reconciler.apply(change);
//! }
//! // After that, when `next_deadline` comes, and when a grace period has passed:
//! loop {
//!     let progress = reconciler.step(Instant::now(), 4096);
//!     if let Some(ticket) = progress.want_grace {
//!         // Start `membarrier` on a side thread; when it returns, `reconciler.grace_passed(ticket)`, and step again.
//! #       reconciler.grace_passed(ticket);
//! #       continue;
//!     }
//!     if progress.idle {
//!         break;
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::desired::{BackendKey, Frontend, PortKey, Rank};
use crate::model::{Address, ClusterId, ObjectName};
use crate::table::{TableError, Tables};

mod adopt;
mod frontends;
mod grace;
mod handover;
mod ids;
mod layout;
mod limits;
mod marks;
mod queue;
mod removed;
mod ring;
mod services;
mod spans;
mod status;
mod want;
mod write;

#[cfg(test)]
mod tests;

pub use adopt::Adopted;
pub use grace::GraceTicket;
pub use status::{BackendDump, Counts, Fault, LettingGo, ServiceDump};

use grace::Grace;
use ids::{Backends, Ids};
use layout::LiveRing;
use limits::Limits;
use marks::KeptOut;
use queue::{Queues, Work};
use services::Services;
use spans::Spans;

/// Why a piece of work could not be done. It is tried again.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("{frontend} belongs to service {holder}; give one of the two another address or port")]
    FrontendTaken {
        frontend: Frontend,
        holder: ObjectName,
    },
}

/// What a round did, and what the caller owes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Writes tried in this round.
    pub writes: u32,
    /// Begin a grace period now; say when it has passed. Given once; see [`Reconciler::grace_in_flight`].
    pub want_grace: Option<GraceTicket>,
    /// Nothing can be done before a grace period passes, the deadline comes, or desired state changes.
    pub idle: bool,
    /// When failed work is due again.
    pub next_deadline: Option<Instant>,
}

/// One writer of the maps. See the module's text for its rules.
#[derive(Debug)]
pub struct Reconciler {
    tables: Tables,
    local: ClusterId,
    objects: BTreeMap<ObjectName, Object>,
    services: Services,
    /// What is wanted and what stands in rings, of all services: one tree, so that a small service costs little.
    members: BTreeMap<(Sid, BackendKey), Member>,
    /// The rows of `frontends4` and `frontends6`: a service's index, or [`ADDRESS_ONLY`].
    frontends: HashMap<Frontend, u32>,
    /// Those of `frontends6`.
    frontends6: u32,
    /// Frontends found in the maps that nobody wants, until Local's list is complete.
    kept: BTreeSet<Frontend>,
    /// How many objects want an address to be marked as ours.
    marks: HashMap<Address, u32>,
    kept_out: KeptOut,
    indices: Ids,
    backends: Backends,
    spans: Spans,
    /// See [`Self::lets_others_first`].
    deferred: BTreeSet<Sid>,
    grace: Grace,
    removed: BTreeSet<(Address, u16)>,
    queues: Queues,
    /// Writes tried since the start, and those that failed.
    writes: u64,
    writes_failed: u64,
    /// The round ends when `writes` reaches this.
    round_end: u64,
}

/// A service port's place in [`Services`]. Not its index in the maps, which it may have to wait for.
type Sid = u32;

/// What the row of an address alone holds in place of a service.
const ADDRESS_ONLY: u32 = u32::MAX;

const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// A Service of which something is wanted, or still present.
#[derive(Debug, Default)]
struct Object {
    addresses: Vec<Address>,
    ports: Vec<Sid>,
}

/// A service port.
#[derive(Debug)]
struct Service {
    /// None for one found in the maps that nobody has wanted yet.
    name: Option<(ObjectName, PortKey)>,
    /// Empty if the service is to go.
    wanted: Vec<Frontend>,
    /// Those whose rows lead here.
    present: Vec<Frontend>,
    index: Option<u32>,
    limits: Limits,
    ring: LiveRing,
    pending: Pending,
    members: u32,
}

/// Whose place in the ring may not be what is wanted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
enum Pending {
    #[default]
    Nothing,
    Backends(Vec<BackendKey>),
    Whole,
    /// As [`Self::Whole`]; the ring was another Service's, and is rather emptied than left as it is.
    Foreign,
}

/// A backend of a service port, wanted or still in its ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Member {
    wanted: Option<Rank>,
    id: Option<u32>,
    /// Where its slot stands.
    place: Option<Place>,
    /// Found in the maps, and its owner has not yet said everything.
    kept: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    tier: u8,
    slot: u32,
}

impl Member {
    const NEW: Self = Self {
        wanted: None,
        id: None,
        place: None,
        kept: false,
    };

    /// The tier that it should stand in now: none without a row that slots can name.
    fn target(&self) -> Option<Rank> {
        self.wanted.filter(|_| self.id.is_some())
    }
}

impl Reconciler {
    /// The lowest and the highest key that a member of this service can have.
    fn member_range(sid: Sid) -> std::ops::Range<(Sid, BackendKey)> {
        let first = |sid| {
            let cluster = ClusterId::try_from(1).expect("1 is a cluster id");
            (
                sid,
                BackendKey {
                    cluster,
                    address: Address::from_octets([0; 16]),
                    port: 0,
                },
            )
        };
        first(sid)..first(sid + 1)
    }

    /// Works off what is due, until nothing is or `max_writes` were tried; the ring in hand is still finished, so a round
    /// may run over by one service's slots and frontends. Call it when desired state changed, a grace period passed, or the deadline
    /// came, and again while it is not idle.
    pub fn step(&mut self, now: Instant, max_writes: u32) -> Progress {
        let start = self.writes;
        self.round_end = start + u64::from(max_writes.max(1));
        self.queues.wake(now);
        while self.writes < self.round_end {
            let Some(work) = self.queues.pop() else { break };
            let done = self.run(&work);
            if let Work::Settle(sid) = work {
                self.review_marks(sid, done.is_err());
            }
            self.queues.done(now, work, done);
        }
        self.queues.shrink();
        Progress {
            writes: u32::try_from(self.writes - start).unwrap_or(u32::MAX),
            want_grace: self.grace.begin(),
            idle: self.queues.is_idle(),
            next_deadline: self.queues.next_deadline(),
        }
    }

    /// A grace period that began after `ticket` was given is over. Then call [`Self::step`].
    pub fn grace_passed(&mut self, ticket: GraceTicket) {
        for retired in self.grace.passed(ticket) {
            self.queues.push(Work::LetGo(retired));
        }
        if self.grace.may_insert_frontend() {
            self.queues.end_waiting();
        }
    }

    /// The ticket whose end is not yet told.
    #[must_use]
    pub fn grace_in_flight(&self) -> Option<GraceTicket> {
        self.grace.in_flight()
    }

    /// Room in this round for another write?
    fn has_budget(&self) -> bool {
        self.writes < self.round_end
    }
}
