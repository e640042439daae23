use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use isthmus_core::mesh::{Beginning, FromServer, Role};
use tokio::sync::Semaphore;

use super::STREAMS_MAX;
use super::listen::CONNECTIONS_MAX;

/// What a mesh server has served since it started, and how full it is: for metrics.
#[derive(Debug)]
pub struct Served {
    to: [Audience; 2],
    stalled: AtomicU64,
    pub(super) streams: Arc<Semaphore>,
    pub(super) connections: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Audience {
    begun: [AtomicU64; Beginning::ALL.len()],
    rows: AtomicU64,
}

/// How much of something is in use, and of how much.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fill {
    pub used: usize,
    pub capacity: usize,
}

impl Default for Served {
    fn default() -> Self {
        Self {
            to: Default::default(),
            stalled: AtomicU64::new(0),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        }
    }
}

impl Served {
    pub(super) fn note(&self, role: Role, said: &FromServer) {
        let audience = &self.to[role as usize];
        match said {
            FromServer::Start { beginning, .. } => {
                audience.begun[*beginning as usize].fetch_add(1, Relaxed);
            }
            FromServer::Rows { changes, .. } => {
                audience.rows.fetch_add(changes.len() as u64, Relaxed);
            }
            _ => {}
        }
    }

    pub(super) fn note_stalled(&self) {
        self.stalled.fetch_add(1, Relaxed);
    }

    /// How often a cluster's rows began to be told in this way.
    #[must_use]
    pub fn begun(&self, role: Role, beginning: Beginning) -> u64 {
        self.to[role as usize].begun[beginning as usize].load(Relaxed)
    }

    /// Rows told, repeated ones counted again.
    #[must_use]
    pub fn rows(&self, role: Role) -> u64 {
        self.to[role as usize].rows.load(Relaxed)
    }

    /// Streams that were ended because their consumer did not read.
    #[must_use]
    pub fn stalled(&self) -> u64 {
        self.stalled.load(Relaxed)
    }

    #[must_use]
    pub fn streams(&self) -> Fill {
        fill(&self.streams, STREAMS_MAX)
    }

    #[must_use]
    pub fn connections(&self) -> Fill {
        fill(&self.connections, CONNECTIONS_MAX)
    }
}

fn fill(room: &Semaphore, capacity: usize) -> Fill {
    let used = capacity - room.available_permits().min(capacity);
    Fill { used, capacity }
}
