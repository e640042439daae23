//! A directory of manifests, watched.
//!
//! A thread of its own reads the files, so that a file system that hangs holds up nobody. It wakes on inotify; a slow
//! scan of everything, by the files' stat alone, finds what events missed.
//!
//! - *What is taken*: files named `*.yaml`, `*.yml` or `*.json`, at any depth. Names that start with a dot are not, nor
//!   what is below them, nor editors' copies. Links are followed, so Kubernetes' `..data` swap is a change like others.
//! - *When*: on close after writing, on a rename into place, on a new link; never while somebody writes.
//! - *Removal* waits a millisecond for company. Alone, it is a user's word. With others, it waits until they end, and is
//!   forgotten if the directory itself is gone then: `rm -r` and an unmount remove nothing.

mod ages;
mod events;
mod removal;
mod tree;
mod watcher;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use isthmus_core::manifest::ManifestOptions;
use isthmus_core::model::{Batch, Problem, ProblemKind};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What the directory says at once.
#[derive(Clone, Debug)]
pub struct SourceUpdate {
    /// Empty if only the status changed.
    pub batch: Batch,
    pub status: Arc<SourceStatus>,
    /// When the first sign of any of it was seen: before anything was read.
    pub seen: Instant,
}

/// How the source is.
#[derive(Clone, PartialEq, Debug)]
pub struct SourceStatus {
    /// `dir:PATH`.
    pub location: String,
    /// The first list was complete: the passport was given.
    pub complete: bool,
    pub files: usize,
    pub services: usize,
    pub endpoints: usize,
    /// Objects of kinds that Isthmus does not know, by `Kind.group`.
    pub unknown_kinds: BTreeMap<String, usize>,
    /// What is wrong with, or not done for, the objects, and since when. Ages in the words are those of the last look.
    pub problems: Arc<[(Problem, Instant)]>,
    /// When rows last changed.
    pub last_change: Option<Instant>,
    /// Why the directory cannot be listed, and since when; what was read before stays.
    pub unreadable: Option<(String, Instant)>,
}

impl SourceStatus {
    /// Of a source that was not looked at yet.
    #[must_use]
    pub fn new(location: String) -> Self {
        Self {
            location,
            complete: false,
            files: 0,
            services: 0,
            endpoints: 0,
            unknown_kinds: BTreeMap::new(),
            problems: Arc::default(),
            last_change: None,
            unreadable: None,
        }
    }

    /// All that there is was read, and nothing is wrong with it. What this version does not do makes no difference.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let mut kinds = self.problems.iter().map(|(problem, _)| problem.kind);
        self.complete
            && self.unreadable.is_none()
            && kinds.all(|kind| kind == ProblemKind::NotHandled)
    }
}

/// Updates that wait for their reader; then the watcher waits, and gives the rest as one.
const UPDATES_MAX: usize = 16;

/// Watches `dir` until `shutdown`, or until nobody reads. The first batch that is `complete` comes once all of it was
/// read; a directory that is not there yet is waited for. Call it within a runtime.
#[must_use]
pub fn watch(
    dir: PathBuf,
    options: ManifestOptions,
    shutdown: CancellationToken,
) -> mpsc::Receiver<SourceUpdate> {
    let (updates, receiver) = mpsc::channel(UPDATES_MAX);
    watcher::spawn(dir, options, updates, shutdown);
    receiver
}

#[cfg(test)]
mod tests;
