//! When the programs take over these maps, and when these maps are known to hold all that there is.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use isthmus_core::model::ClusterId;
use isthmus_core::store::Owner;
use isthmus_mesh::http::Hold;
use tracing::{info, warn};

use super::{Engine, lock};

/// How long programs of an earlier version go on serving while the mesh's rows for the new maps have not come.
const REPLACE_WAIT: Duration = Duration::from_secs(5);
/// How long after the start it is taken for certain that what is nowhere is gone: files may be half written at first, and be read
/// again five seconds later.
const UNSEEN_WAIT: Duration = Duration::from_secs(8);
/// How soon a refused attachment is tried again.
const ATTACH_RETRY: Duration = Duration::from_secs(5);

/// What an agent finds when it starts.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// Programs of an earlier agent serve these maps.
    pub serving: bool,
    /// Programs of an earlier version serve other maps.
    pub replaces: bool,
    /// Programs of an earlier agent are linked, over whichever maps.
    pub follows: bool,
}

/// How far the programs are from serving these maps.
#[derive(Debug)]
pub(super) struct Attach {
    done: bool,
    /// An earlier version's programs serve meanwhile: these maps should be full before they take over.
    replaces: bool,
    /// As soon as the mesh has said which.
    pub(super) linked: Option<BTreeSet<ClusterId>>,
    since: Instant,
    retry_at: Option<Instant>,
    hold: Option<Hold>,
}

impl Attach {
    pub(super) fn new(start: &Start, hold: Hold) -> Self {
        Self {
            done: false,
            replaces: start.replaces,
            linked: None,
            since: Instant::now(),
            retry_at: None,
            hold: Some(hold),
        }
    }
}

impl Engine {
    /// These maps serve, and hold all that there is: what they do not hold is gone.
    pub(super) fn is_whole(&self, now: Instant) -> bool {
        let counts = self.reconciler.counts();
        self.attach.done
            && now >= self.attach.since + UNSEEN_WAIT
            && self.sound
            && self.mesh_told()
            && (counts.pending, counts.failing) == (0, 0)
    }

    /// Whether every linked cluster's first list is complete.
    fn mesh_told(&self) -> bool {
        let told = |id: &ClusterId| self.store.now().has_passport(Owner::Peer(*id));
        self.attach
            .linked
            .as_ref()
            .is_some_and(|linked| linked.iter().all(told))
    }

    /// Attaches once these maps hold what they should. Returns when to look again.
    pub(super) fn attach_if_due(&mut self, now: Instant) -> Option<Instant> {
        let attach = &self.attach;
        if attach.done {
            return None;
        }
        if !self.store.now().has_passport(Owner::Local) {
            return None;
        }
        let patience = attach.since + REPLACE_WAIT;
        if attach.replaces && !self.mesh_told() && now < patience {
            return Some(patience);
        }
        if let Some(at) = attach.retry_at.filter(|at| now < *at) {
            return Some(at);
        }
        self.try_attach(now);
        self.attach.retry_at
    }

    pub(super) fn try_attach(&mut self, now: Instant) {
        let result = lock(&self.datapath).attach();
        match result {
            Ok(()) => {
                info!("programs attached");
                if self.unseen {
                    info!(
                        "UDP sockets of backends that went meanwhile are looked for when all is told, by the files and by every peer, \
                         and nothing fails"
                    );
                }
                self.attach.done = true;
                self.attach.retry_at = None;
                self.attach.hold = None;
                self.published.attached = true;
                self.published.attach_error = None;
            }
            Err(error) => {
                warn!(%error, "programs not attached; trying again in {ATTACH_RETRY:?}");
                self.attach.retry_at = Some(now + ATTACH_RETRY);
                if let Some(hold) = &self.attach.hold {
                    hold.because(error.to_string());
                }
                self.published.attach_error = Some(error.to_string());
            }
        }
    }
}
