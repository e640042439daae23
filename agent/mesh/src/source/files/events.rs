//! inotify, in the words of the source: which path, and what happened to it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use super::tree::{is_hidden, is_manifest, join};

/// What one reading of the queue said, the order of paths kept.
#[derive(PartialEq, Eq, Debug, Default)]
pub(super) struct Happened {
    /// Files that somebody wrote and closed, put there by rename, or linked.
    pub(super) arrived: Vec<String>,
    /// New names, which may be a file somebody is about to write.
    pub(super) created: Vec<String>,
    /// Written to, not closed yet.
    pub(super) writing: Vec<String>,
    /// Modes or owners that changed.
    pub(super) permissions: Vec<String>,
    pub(super) left: Vec<Left>,
    /// Other names that came or went: perhaps a link to a directory.
    pub(super) others: Vec<String>,
    /// The root itself was removed, renamed or unmounted, whatever is in its place now.
    pub(super) root_lost: bool,
    /// Directories came or went, a link changed unseen names, or events were lost: only a scan tells.
    pub(super) scan: bool,
}

#[derive(PartialEq, Eq, Debug)]
pub(super) struct Left {
    pub(super) path: String,
    /// Renamed to a name that the source does not see, next to it: an editor is about to write it anew.
    pub(super) set_aside: bool,
}

/// The watched directories.
#[derive(Debug)]
pub(super) struct Events {
    inotify: Inotify,
    /// Relative paths. A directory that two links lead to has two.
    watched: HashMap<WatchDescriptor, Vec<String>>,
    /// The root's parent, and the root's name in it.
    parent: Option<(WatchDescriptor, OsString)>,
}

impl Events {
    pub(super) fn open() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        Ok(Self {
            inotify,
            watched: HashMap::new(),
            parent: None,
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Watches the name of the root in its parent: it may be a link that is swapped, or come back after it went.
    pub(super) fn watch_parent(&mut self, root: &Path) {
        let Some(name) = root.file_name() else { return };
        let parent = match root.parent() {
            Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
            Some(parent) => parent.to_owned(),
            None => return,
        };
        let mask = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_ONLYDIR;
        // A parent that is not there leaves the root to the scan.
        self.parent = self
            .inotify
            .add_watch(&parent, mask)
            .ok()
            .map(|watch| (watch, name.to_owned()));
    }

    /// Begins a new set of directories; those that [`Self::keep`] does not name before [`Self::settle`] are let go.
    pub(super) fn renew(&mut self) -> HashMap<WatchDescriptor, Vec<String>> {
        std::mem::take(&mut self.watched)
    }

    pub(super) fn keep(&mut self, relative: &str, path: &Path) -> io::Result<()> {
        let mask = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let watch = self.inotify.add_watch(path, mask)?;
        self.watched
            .entry(watch)
            .or_default()
            .push(relative.to_owned());
        Ok(())
    }

    pub(super) fn settle(&mut self, before: &HashMap<WatchDescriptor, Vec<String>>) {
        for watch in before.keys() {
            let is_parent = self
                .parent
                .as_ref()
                .is_some_and(|(parent, _)| parent == watch);
            if !is_parent && !self.watched.contains_key(watch) {
                // Gone by itself, most often.
                let _ = self.inotify.rm_watch(*watch);
            }
        }
    }

    /// All that is queued now.
    pub(super) fn read(&mut self) -> Happened {
        let mut happened = Happened::default();
        let mut moved_from: HashMap<u32, String> = HashMap::new();
        loop {
            match self.inotify.read_events() {
                Ok(events) => events
                    .into_iter()
                    .for_each(|event| self.sort(event, &mut happened, &mut moved_from)),
                Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        // Renamed out of sight of all watches: as good as removed.
        let lost = moved_from.into_values().map(|path| Left {
            path,
            set_aside: false,
        });
        happened.left.extend(lost);
        happened
    }

    fn sort(
        &self,
        event: InotifyEvent,
        happened: &mut Happened,
        moved_from: &mut HashMap<u32, String>,
    ) {
        let mask = event.mask;
        let any = |flags: AddWatchFlags| mask.intersects(flags);
        if any(AddWatchFlags::IN_Q_OVERFLOW) {
            happened.scan = true;
            return;
        }
        if let Some((parent, root)) = &self.parent
            && *parent == event.wd
            && event.name.as_ref() == Some(root)
        {
            happened.scan = true;
        }
        let Some(directories) = self.watched.get(&event.wd) else {
            return;
        };
        let gone = AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_UNMOUNT
            | AddWatchFlags::IN_IGNORED;
        if any(gone) {
            happened.scan = true;
            happened.root_lost |= directories.iter().any(String::is_empty);
            return;
        }
        let Some(name) = event.name.as_deref().and_then(|name| name.to_str()) else {
            return;
        };
        if any(AddWatchFlags::IN_ISDIR) {
            let structure = AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_MOVED_FROM
                | AddWatchFlags::IN_MOVED_TO
                | AddWatchFlags::IN_ATTRIB;
            happened.scan |= any(structure) && !is_hidden(name);
            return;
        }
        for directory in directories {
            let path = join(directory, name);
            if !is_manifest(name) {
                let structure = AddWatchFlags::IN_CREATE
                    | AddWatchFlags::IN_DELETE
                    | AddWatchFlags::IN_MOVED_FROM
                    | AddWatchFlags::IN_MOVED_TO;
                if any(structure) {
                    // `..data` is what visible names lead through.
                    happened.scan |= name.starts_with("..");
                    if !is_hidden(name) {
                        happened.others.push(path);
                    }
                }
                if any(AddWatchFlags::IN_MOVED_TO)
                    && let Some(path) = moved_from.remove(&event.cookie)
                {
                    happened.left.push(Left {
                        path,
                        set_aside: true,
                    });
                }
                continue;
            }
            if any(AddWatchFlags::IN_CLOSE_WRITE) {
                happened.arrived.push(path);
            } else if any(AddWatchFlags::IN_MOVED_TO) {
                if let Some(path) = moved_from.remove(&event.cookie) {
                    happened.left.push(Left {
                        path,
                        set_aside: false,
                    });
                }
                happened.arrived.push(path);
            } else if any(AddWatchFlags::IN_MOVED_FROM) {
                moved_from.insert(event.cookie, path);
            } else if any(AddWatchFlags::IN_DELETE) {
                happened.left.push(Left {
                    path,
                    set_aside: false,
                });
            } else if any(AddWatchFlags::IN_CREATE) {
                happened.created.push(path);
            } else if any(AddWatchFlags::IN_MODIFY) {
                happened.writing.push(path);
            } else if any(AddWatchFlags::IN_ATTRIB) {
                happened.permissions.push(path);
            }
        }
    }
}
