//! The thread that watches: from events and scans to updates.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use isthmus_core::manifest::{FileContent, ManifestOptions, Manifests};
use isthmus_core::model::{Problem, ProblemKind};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::events::{Events, Happened};
use super::removal::{Missing, Removals};
use super::tree::{self, DirectoryId, Found, Listing, Version, is_below};
use super::{SourceStatus, SourceUpdate, ages};

/// Between two scans; more if a scan takes more than a hundredth of it.
const SCAN_EVERY: Duration = Duration::from_secs(5);
/// While the directory is missing.
const SCAN_MISSING: Duration = Duration::from_millis(250);
/// A file that changed more recently than this may be half written, if no event says that it was closed.
const UNFINISHED: Duration = Duration::from_secs(1);
/// A directory in the root's place is filled by then, even if it never comes to rest.
const REFILL_MAX: Duration = Duration::from_secs(10);
/// Who writes for so long without a pause of this length keeps a file from being read by a scan.
const WRITER_PAUSE: Duration = Duration::from_secs(60);

pub(super) fn spawn(
    root: PathBuf,
    options: ManifestOptions,
    updates: mpsc::Sender<SourceUpdate>,
    shutdown: CancellationToken,
) {
    let location = format!("dir:{}", root.display());
    let ends = match UnixStream::pair() {
        Ok(ends) => ends,
        Err(cause) => {
            return error!(%location, %cause, "cannot watch the source: too many open files?");
        }
    };
    let (wake, waker) = ends;
    let reader = updates.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = reader.closed() => {}
        }
        // The thread sees the other end close.
        drop(waker);
    });
    let watcher = Watcher::new(root, location.clone(), options);
    let thread = thread::Builder::new()
        .name("source".to_owned())
        .spawn(move || watcher.run(&wake, &updates));
    if let Err(cause) = thread {
        error!(%location, %cause, "cannot watch the source: no thread to be had");
    }
}

struct Watcher {
    root: PathBuf,
    manifests: Manifests,
    /// None where inotify is not to be had: scans alone find changes.
    events: Option<Events>,
    /// Why events are not complete.
    events_fault: Option<Problem>,
    unlisted: Vec<Problem>,
    /// Files that the manifests were told of, with the version if another one would differ from it.
    known: BTreeMap<String, Option<Version>>,
    /// Files that somebody has open, and when they were last written to.
    writing: HashMap<String, Instant>,
    removals: Removals,
    /// The directory that was last listed with files in it, or first.
    root_id: Option<DirectoryId>,
    /// That directory was seen to go: one in its place is another, be its number the same.
    root_lost: bool,
    /// Since when the root is another directory, perhaps still being filled.
    refilling: Option<Instant>,
    listed: bool,
    next_scan: Instant,
    /// The first sign of what is not told yet.
    seen: Option<Instant>,
    started: Instant,
    status: Arc<SourceStatus>,
    /// The status of the last update.
    told: Arc<SourceStatus>,
    problems_revision: u64,
    /// Ages in problems have passed.
    ages_passed: bool,
}

impl Watcher {
    fn new(root: PathBuf, location: String, options: ManifestOptions) -> Self {
        let now = Instant::now();
        let status = Arc::new(SourceStatus::new(location));
        let (events, events_fault) = match Events::open() {
            Ok(events) => (Some(events), None),
            Err(cause) => (None, Some(unwatched("", &cause))),
        };
        Self {
            root,
            manifests: Manifests::new(options),
            events,
            events_fault,
            unlisted: Vec::new(),
            known: BTreeMap::new(),
            writing: HashMap::new(),
            removals: Removals::default(),
            root_id: None,
            root_lost: false,
            refilling: None,
            listed: false,
            next_scan: now,
            seen: None,
            started: now,
            told: status.clone(),
            status,
            problems_revision: 0,
            ages_passed: false,
        }
    }

    fn run(mut self, wake: &UnixStream, updates: &mpsc::Sender<SourceUpdate>) {
        loop {
            let now = Instant::now();
            if now >= self.next_scan {
                self.seen.get_or_insert(now);
                self.scan();
            }
            self.believe(Instant::now());
            if let Some(update) = self.update()
                && updates.blocking_send(update).is_err()
            {
                return;
            }
            match self.wait(wake) {
                Ok(false) => {}
                Ok(true) => return,
                Err(cause) => {
                    error!(location = %self.status.location, %cause, "the source cannot be watched any more");
                    return;
                }
            }
            if let Some(events) = &mut self.events {
                let now = Instant::now();
                let happened = events.read();
                if happened != Happened::default() {
                    self.seen.get_or_insert(now);
                }
                self.apply(happened);
            }
        }
    }

    /// Until something is to be done. True to end.
    fn wait(&self, wake: &UnixStream) -> nix::Result<bool> {
        let until = self
            .removals
            .next()
            .map_or(self.next_scan, |due| due.min(self.next_scan));
        let timeout = TimeSpec::from_duration(until.saturating_duration_since(Instant::now()));
        let mut fds = vec![PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            self.events
                .as_ref()
                .map(|events| PollFd::new(events.fd(), PollFlags::POLLIN)),
        );
        match ppoll(&mut fds, Some(timeout), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
        Ok(fds[0].revents().is_some_and(|events| !events.is_empty()))
    }

    fn apply(&mut self, happened: Happened) {
        if happened == Happened::default() {
            return;
        }
        let now = Instant::now();
        let Happened {
            arrived,
            created,
            writing,
            permissions,
            left,
            others,
            root_lost,
            mut scan,
        } = happened;
        self.root_lost |= root_lost && self.listed;
        for path in writing {
            self.writing.insert(path, now);
        }
        for left in left {
            let missing = if left.set_aside {
                Missing::SetAside
            } else {
                Missing::Removed
            };
            self.missing(left.path, missing, now);
        }
        for path in created {
            match tree::look(&self.root.join(&path)) {
                Found::Linked => self.take(&path, now),
                Found::Directory => scan = true,
                // It is closed when it is written.
                Found::File | Found::Other | Found::Gone => {}
            }
        }
        for path in permissions {
            if !self.writing.contains_key(&path) {
                self.take(&path, now);
            }
        }
        for path in arrived {
            self.writing.remove(&path);
            self.take(&path, now);
        }
        for path in others {
            let leads_on = matches!(tree::look(&self.root.join(&path)), Found::Directory);
            scan |= leads_on || self.known.keys().any(|known| is_below(known, &path));
        }
        if self
            .refilling
            .is_some_and(|since| now.duration_since(since) < REFILL_MAX)
        {
            self.removals.refill(now);
        }
        if scan {
            self.scan();
        }
    }

    /// Reads a file.
    fn take(&mut self, path: &str, now: Instant) {
        let content = match tree::read(&self.root, path) {
            Ok((bytes, version)) => {
                self.known
                    .insert(path.to_owned(), version.is_settled().then_some(version));
                FileContent::Present(bytes.into())
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                return self.missing(path.to_owned(), Missing::Removed, now);
            }
            Err(cause) => {
                self.known.insert(path.to_owned(), None);
                FileContent::Unreadable(words(&cause))
            }
        };
        self.removals.cancel(path);
        self.manifests.update(path, content, self.started.elapsed());
    }

    fn missing(&mut self, path: String, missing: Missing, now: Instant) {
        self.writing.remove(&path);
        if self.known.contains_key(&path) {
            let missing = if self.refilling.is_some() {
                Missing::Refilled
            } else {
                missing
            };
            self.removals.add(path, missing, now);
        }
    }

    /// Removals whose time has come.
    fn believe(&mut self, now: Instant) {
        let due = self.removals.take(now);
        if due.is_empty() {
            return;
        }
        let id = tree::directory_id(&self.root).ok();
        if self.root_lost || id.is_none() || id != self.root_id {
            // All of it is gone: that is no removal.
            self.removals.cancel_all();
            self.scan();
            return;
        }
        self.refilling = None;
        for path in due {
            if let Found::Gone = tree::look(&self.root.join(&path)) {
                self.known.remove(&path);
                self.manifests
                    .update(&path, FileContent::Removed, self.started.elapsed());
            } else {
                self.take(&path, now);
            }
        }
    }

    /// Looks at everything.
    fn scan(&mut self) {
        let start = Instant::now();
        self.ages_passed = true;
        let before = self.events.as_mut().map(|events| {
            events.watch_parent(&self.root);
            events.renew()
        });
        let mut fault = None;
        let (root, events) = (&self.root, &mut self.events);
        let listing = tree::list(root, &mut |relative, path| {
            let watched = events
                .as_mut()
                .map_or(Ok(()), |events| events.keep(relative, path));
            if let Err(cause) = watched
                && cause.kind() != io::ErrorKind::NotFound
            {
                fault.get_or_insert_with(|| unwatched(relative, &cause));
            }
        });
        if let (Some(events), Some(before)) = (&mut self.events, before) {
            events.settle(&before);
            self.events_fault = fault;
        }
        let found = listing.and_then(|listing| Ok((listing, tree::directory_id(&self.root)?)));
        let pause = match found {
            Ok((listing, id)) => self.compare(listing, id, start),
            Err(cause) => self.vanished(&words(&cause)),
        };
        let end = Instant::now();
        self.next_scan = end + pause.max((end - start) * 100);
    }

    /// The directory cannot be listed: what is known stays. When to look again.
    fn vanished(&mut self, cause: &str) -> Duration {
        self.removals.cancel_all();
        self.root_lost |= self.listed;
        let status = Arc::make_mut(&mut self.status);
        match &mut status.unreadable {
            Some((known, _)) => cause.clone_into(known),
            none => {
                warn!(location = %status.location, cause, "the source is gone; what was read before stays");
                *none = Some((cause.to_owned(), Instant::now()));
            }
        }
        SCAN_MISSING
    }

    /// From what is there to what is new. When to look again.
    fn compare(&mut self, listing: Listing, id: DirectoryId, now: Instant) -> Duration {
        let another = self.root_lost || self.root_id.is_some_and(|known| known != id);
        if another && listing.files.is_empty() && !self.known.is_empty() {
            return self.vanished(
                "is another directory than before, and empty: unmounted, or about to be filled?",
            );
        }
        if another {
            self.refilling = Some(now);
        }
        self.root_id = Some(id);
        self.root_lost = false;
        self.listed = true;
        let status = Arc::make_mut(&mut self.status);
        status.unreadable = None;
        self.unlisted = listing
            .unlisted
            .iter()
            .map(|(path, cause)| unlisted(path, cause))
            .collect();
        let gone: Vec<_> = self
            .known
            .keys()
            .filter(|path| !listing.files.contains_key(*path))
            .filter(|path| {
                !listing
                    .unlisted
                    .iter()
                    .any(|(directory, _)| is_below(path, directory))
            })
            .cloned()
            .collect();
        for path in gone {
            if let Found::Gone = tree::look(&self.root.join(&path)) {
                self.missing(path, Missing::Removed, now);
            }
        }
        self.writing.retain(|path, last| {
            listing.files.contains_key(path) && now.duration_since(*last) < WRITER_PAUSE
        });
        let mut pause = SCAN_EVERY;
        for (path, listed) in listing.files {
            self.removals.cancel(&path);
            let known = self.known.get(&path);
            if known == Some(&Some(listed.version)) {
                continue;
            }
            let recent = !listed.linked && !listed.version.is_older_than(UNFINISHED);
            if self.writing.contains_key(&path) || known.is_some() && recent {
                pause = UNFINISHED;
                continue;
            }
            self.take(&path, now);
        }
        pause
    }

    /// What to tell, if anything.
    fn update(&mut self) -> Option<SourceUpdate> {
        let mut batch = self.manifests.take_batch();
        let status = Arc::make_mut(&mut self.status);
        batch.complete = self.listed && !status.complete;
        status.complete |= self.listed;
        if !batch.changes.is_empty() {
            status.last_change = Some(Instant::now());
        }
        let summary = self.manifests.summary();
        status.files = summary.files;
        status.services = summary.services;
        status.endpoints = summary.endpoints;
        status.unknown_kinds = summary.unknown_kinds;
        let revision = self.manifests.problems_revision();
        if revision != self.problems_revision || self.ages_passed {
            self.problems_revision = revision;
            self.ages_passed = false;
            let mut problems = self.manifests.problems(self.started.elapsed());
            problems.extend(self.unlisted.iter().chain(&self.events_fault).cloned());
            let problems = ages::since(&status.problems, problems, Instant::now());
            if *status.problems != *problems {
                status.problems = problems.into();
            }
        }
        // A removal that waits for company was seen when it came.
        let waits = batch.is_empty() && self.removals.next().is_some();
        let seen = if waits { self.seen } else { self.seen.take() };
        if batch.is_empty() && self.told == self.status {
            return None;
        }
        self.told = self.status.clone();
        Some(SourceUpdate {
            batch,
            status: self.status.clone(),
            seen: seen.unwrap_or_else(Instant::now),
        })
    }
}

/// The cause as people say it, without the number.
fn words(cause: &io::Error) -> String {
    let text = cause.to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    text[..end].to_lowercase()
}

fn unlisted(path: &str, cause: &io::Error) -> Problem {
    Problem {
        kind: ProblemKind::Broken,
        place: path.to_owned(),
        object: String::new(),
        field: String::new(),
        message: format!(
            "cannot be listed: {}; what was read of it before stays",
            words(cause)
        ),
    }
}

fn unwatched(path: &str, cause: &io::Error) -> Problem {
    let limit = match cause.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE) => "; raise the sysctl fs.inotify.max_user_instances",
        Some(Errno::ENOSPC) => "; raise the sysctl fs.inotify.max_user_watches",
        _ => "",
    };
    Problem {
        kind: ProblemKind::Broken,
        place: path.to_owned(),
        object: String::new(),
        field: String::new(),
        message: format!(
            "cannot be watched: {}{limit}; changes are seen within {} s",
            words(cause),
            SCAN_EVERY.as_secs()
        ),
    }
}
