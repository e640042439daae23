//! What happens, for those who want to be told at once: from programs, from the engine and from the mesh, to any number
//! of monitors and to the metrics. Nobody who tells waits for anybody who listens.

mod ring;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use isthmus_abi::{EventKind, EventRow, FailureCause, NO_MARK, Refusal, TICK_SHIFT};
use isthmus_core::desired::PortKey;
use isthmus_core::mesh::PeerState;
use isthmus_core::model::{Address, ClusterId, ClusterName, ObjectName};
use tokio::sync::broadcast;

pub use ring::{read_ring, watch_peers};

/// Happenings that a monitor may lag behind; older ones are lost to it, and it is told how many.
const BACKLOG: usize = 4096;
/// One thing that happened.
#[derive(Clone, PartialEq, Debug)]
pub struct Happening {
    pub at: Instant,
    pub what: What,
}

#[derive(Clone, PartialEq, Debug)]
pub enum What {
    Health(Health),
    /// Connections of a service port go to another tier than before.
    Tier {
        port: Arc<ServicePort>,
        /// The tiers' names; none for no backend at all.
        before: Option<&'static str>,
        now: Option<&'static str>,
    },
    Peer {
        name: ClusterName,
        id: Option<ClusterId>,
        /// None for a cluster that was not linked, or is not any more.
        before: Option<PeerState>,
        now: Option<PeerState>,
        /// What went wrong last on the link.
        error: Option<String>,
    },
    /// Programs counted so many happenings that they did not tell one by one: too many came at once.
    Untold(u64),
}

/// A program's word on a backend's health, or on a service.
#[derive(Clone, PartialEq, Debug)]
pub struct Health {
    pub kind: EventKind,
    /// Index into `services`.
    pub service: u32,
    /// None if the service has gone meanwhile.
    pub port: Option<Arc<ServicePort>>,
    /// None for a word on the whole service, and if the backend's row is another's by now.
    pub backend: Option<Backend>,
    /// After what; empty if nothing failed.
    pub cause: &'static str,
    /// Until it is over: an ejection, or a backend's being closed to a client.
    pub until: Option<Instant>,
    /// Ejections since the last success but one.
    pub doublings: u8,
    /// Whose connect it was, as health tells clients apart.
    pub client: Option<u8>,
}

/// A service port by its names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    pub service: ObjectName,
    pub key: PortKey,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backend {
    pub id: u32,
    pub cluster: ClusterId,
    pub address: Address,
    pub port: u16,
}

/// Now, by the clock of programs and by ours.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub nanoseconds: u64,
    pub instant: Instant,
}

impl Now {
    /// When the programs' clock shows, or showed, `nanoseconds`.
    #[must_use]
    pub fn moment(self, nanoseconds: u64) -> Instant {
        let apart = Duration::from_nanos(nanoseconds.abs_diff(self.nanoseconds));
        let moment = if nanoseconds >= self.nanoseconds {
            self.instant.checked_add(apart)
        } else {
            self.instant.checked_sub(apart)
        };
        moment.unwrap_or(self.instant)
    }
}

/// A program's record in words. None for a kind that this agent does not know.
#[must_use]
pub fn understand(
    row: &EventRow,
    now: Now,
    port: Option<Arc<ServicePort>>,
    backend: Option<Backend>,
) -> Option<Happening> {
    let kind = EventKind::from_abi(row.kind)?;
    let cause = match kind {
        EventKind::Refused => Refusal::ALL
            .get(usize::from(row.cause))
            .map_or("", |refusal| refusal.name()),
        _ => FailureCause::from_abi(row.cause).map_or("", FailureCause::name),
    };
    let lasts = matches!(
        kind,
        EventKind::Ejected | EventKind::TrialFailed | EventKind::Closed
    );
    Some(Happening {
        at: now.moment(row.at),
        what: What::Health(Health {
            kind,
            service: row.service,
            port,
            backend,
            cause,
            until: lasts.then(|| now.moment(row.until << TICK_SHIFT)),
            doublings: row.doublings,
            client: (u32::from(row.mark) != NO_MARK).then_some(row.mark),
        }),
    })
}

/// Everybody who wants to be told.
#[derive(Debug)]
pub struct Monitors {
    sender: broadcast::Sender<Arc<Happening>>,
    told: [AtomicU64; EventKind::ALL.len()],
    /// Happenings that some monitor was too slow for.
    missed: AtomicU64,
}

impl Default for Monitors {
    fn default() -> Self {
        Self {
            sender: broadcast::Sender::new(BACKLOG),
            told: Default::default(),
            missed: AtomicU64::new(0),
        }
    }
}

impl Monitors {
    pub fn tell(&self, happening: Happening) {
        if let What::Health(health) = &happening.what {
            self.told[health.kind as usize - 1].fetch_add(1, Ordering::Relaxed);
        }
        // Nobody listens: nothing is lost.
        let _ = self.sender.send(Arc::new(happening));
    }

    /// From now on.
    #[must_use]
    pub fn listen(&self) -> broadcast::Receiver<Arc<Happening>> {
        self.sender.subscribe()
    }

    pub fn note_missed(&self, number: u64) {
        self.missed.fetch_add(number, Ordering::Relaxed);
    }

    /// Events that monitors were too slow for, since the agent started.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// How often programs told of each kind since the agent started.
    pub fn told(&self) -> impl Iterator<Item = (EventKind, u64)> {
        EventKind::ALL
            .into_iter()
            .map(|kind| (kind, self.told[kind as usize - 1].load(Ordering::Relaxed)))
    }
}
