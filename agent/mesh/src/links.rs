//! The directory of links: one `ClusterLink` a file. It is looked at twice a second, which sees renames, symlink swaps,
//! bind mounts and remote file systems alike; a file is read only if it changed. A file is gone if two looks do not find it:
//! editors set the old one aside before they write the new one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use isthmus_core::mesh::Fault;
use isthmus_core::model::{ClusterName, Problem, ProblemKind};

use crate::config::TlsPaths;
use crate::link::LinkSpec;

mod file;
mod keeper;

#[cfg(test)]
mod tests;

use file::{at, broken, read};
pub use keeper::spawn;

/// Ids end at 511.
const LINKS_MAX: usize = 511;

/// What tells that a file changed.
type Stamp = (SystemTime, u64, u64);

#[derive(Debug, Default)]
struct Entry {
    stamp: Option<Stamp>,
    /// As it was last good.
    good: Option<Arc<LinkSpec>>,
    problem: Option<Problem>,
    /// The last look did not find it.
    missing: bool,
}

/// The directory as last seen.
#[derive(Debug)]
pub struct Links {
    directory: PathBuf,
    own: ClusterName,
    tls: Option<TlsPaths>,
    entries: BTreeMap<PathBuf, Entry>,
    /// Of the whole directory.
    problem: Option<Problem>,
    looked: bool,
    /// It was told that there is no directory yet.
    absent: bool,
}

/// What [`Links::look`] makes of all files.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Wanted {
    pub links: BTreeMap<ClusterName, Arc<LinkSpec>>,
    pub problems: Vec<Problem>,
    /// Every file was understood: a cluster without a link is not linked.
    pub complete: bool,
    /// There is no directory yet; the first link makes it.
    pub absent: bool,
}

impl Links {
    /// `tls` is what links without their own use.
    #[must_use]
    pub fn new(directory: PathBuf, own: ClusterName, tls: Option<TlsPaths>) -> Self {
        Self {
            directory,
            own,
            tls,
            entries: BTreeMap::new(),
            problem: None,
            looked: false,
            absent: false,
        }
    }

    /// Looks at the directory. `None` if nothing changed.
    pub fn look(&mut self) -> Option<Wanted> {
        let found = match list(&self.directory) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.looked => {
                let first = !std::mem::replace(&mut self.absent, true);
                return first.then(|| Wanted {
                    absent: true,
                    ..self.wanted(false)
                });
            }
            Err(error) => {
                // A directory that vanished unlinks nobody.
                let message = format!("cannot be read: {error}; the links known so far stay");
                let problem = Some(Problem {
                    place: self.directory.display().to_string(),
                    ..broken(message)
                });
                if self.problem == problem {
                    return None;
                }
                self.problem = problem;
                return Some(self.wanted(false));
            }
        };
        let mut changed =
            self.problem.take().is_some() || !std::mem::replace(&mut self.looked, true);
        self.entries.retain(|path, entry| {
            let missing = !found.contains_key(path);
            let stays = !missing || !std::mem::replace(&mut entry.missing, true);
            changed |= !stays;
            stays
        });
        for (path, stamp) in found {
            let entry = self.entries.entry(path.clone()).or_default();
            entry.missing = false;
            if entry.stamp == Some(stamp) {
                continue;
            }
            changed = true;
            entry.stamp = Some(stamp);
            match read(&path, &self.own, self.tls.as_ref()) {
                Ok(spec) => (entry.good, entry.problem) = (Some(Arc::new(spec)), None),
                Err(mut problem) => {
                    if entry.good.is_some() {
                        problem.message.push_str("; the last good version stays");
                    }
                    entry.problem = Some(problem);
                }
            }
        }
        changed.then(|| self.wanted(true))
    }

    fn wanted(&self, readable: bool) -> Wanted {
        let mut wanted = Wanted {
            complete: readable,
            ..Wanted::default()
        };
        wanted.problems.extend(self.problem.clone());
        let (missing, present): (Vec<_>, Vec<_>) =
            self.entries.values().partition(|entry| entry.missing);
        for entry in present {
            wanted.problems.extend(entry.problem.clone());
            let Some(spec) = &entry.good else {
                wanted.complete = false;
                continue;
            };
            if wanted.links.len() == LINKS_MAX {
                wanted.problems.push(at(
                    &spec.file,
                    0,
                    "",
                    format!("is one link too many: {LINKS_MAX} are held"),
                ));
                continue;
            }
            if let Some(first) = wanted.links.get(&spec.name) {
                let message = format!(
                    "links \"{}\", as {} does; that one holds",
                    spec.name,
                    first.file.display()
                );
                wanted.problems.push(Problem {
                    kind: ProblemKind::Conflict,
                    ..at(&spec.file, 0, "metadata.name", message)
                });
                continue;
            }
            let mut others = wanted.links.values();
            let pinned = spec.terms.id;
            let same = others.find(|other| pinned.is_some() && other.terms.id == pinned);
            if let (Some(id), Some(other)) = (pinned, same) {
                let (one, other) = (other.name.clone(), spec.name.clone());
                let message = Fault::DuplicateId { id, one, other }.to_string();
                wanted.problems.push(Problem {
                    kind: ProblemKind::Conflict,
                    ..at(&spec.file, 0, "spec.id", message)
                });
                continue;
            }
            wanted.links.insert(spec.name.clone(), spec.clone());
        }
        for entry in missing {
            let Some(spec) = &entry.good else {
                wanted.complete = false;
                continue;
            };
            // Its file, or the cluster, may have another name by now.
            let mut others = wanted.links.values();
            let id = spec.terms.id;
            let again =
                others.any(|now| now.name == spec.name || id.is_some() && now.terms.id == id);
            if !again && wanted.links.len() < LINKS_MAX {
                wanted.links.insert(spec.name.clone(), spec.clone());
            }
        }
        wanted
    }
}

fn list(directory: &Path) -> io::Result<BTreeMap<PathBuf, Stamp>> {
    use std::os::unix::fs::MetadataExt;
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let yaml = path
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml");
        if !yaml || name.starts_with(['.', '#']) {
            continue;
        }
        // Through symlinks. A file that went since is not there.
        if let Ok(metadata) = fs::metadata(&path)
            && metadata.is_file()
        {
            found.insert(path, (metadata.modified()?, metadata.len(), metadata.ino()));
        }
    }
    Ok(found)
}
