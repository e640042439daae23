use std::sync::Arc;
use std::time::{Duration, Instant};

use imbl::HashMap;
use isthmus_abi::BackendFailuresRow;
use isthmus_core::model::{Address, ObjectName};
use isthmus_core::reconcile::{Counts, Fault};
use isthmus_core::store::{Owner, Snapshot};

use super::{NoGrace, PortIndex};

/// What had failed at a backend when it last returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Forgiven {
    /// The life of the backend's id that it is about.
    pub generation: u32,
    pub failures: BackendFailuresRow,
}

/// What others may look at, as of the last round.
#[derive(Clone, Debug, Default)]
pub struct Published {
    pub rows: Snapshot,
    pub counts: Counts,
    /// A bounded part of the pieces of work that fail.
    pub faults: Vec<Fault>,
    /// Since the last round that wrote.
    pub last_write: Option<Instant>,
    /// From the moment at which a source saw a change to the end of the writes that it led to, for the last that led to
    /// any: reading, parsing, and waiting for the engine are in it.
    pub last_latency: Option<Duration>,
    /// When an endpoint's condition last changed. Endpoints that never changed since the start are not here.
    pub changed: HashMap<(Owner, ObjectName, Address), Instant>,
    pub attached: bool,
    pub attach_error: Option<String>,
    /// Why no grace period passes; what was freed stays unused meanwhile.
    pub no_grace: Option<Arc<NoGrace>>,
    /// Service ports by their index in the maps.
    pub ports: PortIndex,
    /// By backend id.
    pub forgiven: HashMap<u32, Forgiven>,
}
