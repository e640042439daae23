//! What is in the directory, by names and stat alone.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Deeper directories are not looked into: a link that leads to itself ends there at the latest.
const DEPTH_MAX: usize = 32;

/// Larger files are not read.
const FILE_MAX: u64 = 64 << 20;

/// The clock of files ticks coarsely: what changed within it may change again unseen.
const TICK: Duration = Duration::from_millis(50);

/// Which file it is, and which version of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Version {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Version {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Changed longer ago than `age`. A clock that was set back makes it old: events tell of the rest.
    pub(super) fn is_older_than(&self, age: Duration) -> bool {
        let (seconds, nanos) = self.changed;
        let since_epoch = Duration::new(
            u64::try_from(seconds).unwrap_or(0),
            u32::try_from(nanos).unwrap_or(0),
        );
        let changed = SystemTime::UNIX_EPOCH + since_epoch;
        SystemTime::now()
            .duration_since(changed)
            .map_or(true, |passed| passed > age)
    }

    /// Another change of the file would show in its version.
    pub(super) fn is_settled(&self) -> bool {
        self.is_older_than(TICK)
    }
}

/// Device and inode of a directory, and its birth: inodes are used again, soon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct DirectoryId {
    device: u64,
    inode: u64,
    /// None where the file system does not keep it.
    born: Option<SystemTime>,
}

impl DirectoryId {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            born: metadata.created().ok(),
        }
    }
}

pub(super) fn directory_id(path: &Path) -> io::Result<DirectoryId> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_dir() {
        return Err(io::Error::new(
            io::ErrorKind::NotADirectory,
            "is no directory",
        ));
    }
    Ok(DirectoryId::of(&metadata))
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Listed {
    pub(super) version: Version,
    /// A link leads to it: it was made elsewhere, and is whole.
    pub(super) linked: bool,
}

/// Everything below the root.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// By path relative to the root.
    pub(super) files: BTreeMap<String, Listed>,
    /// Directories below the root that could not be listed, with the cause: what was known of them stays.
    pub(super) unlisted: Vec<(String, io::Error)>,
}

/// Lists the root. `enter` is called for each directory before it is listed, so that a watch set there misses nothing.
pub(super) fn list(root: &Path, enter: &mut dyn FnMut(&str, &Path)) -> io::Result<Listing> {
    let mut listing = Listing::default();
    let id = directory_id(root)?;
    let linked = fs::symlink_metadata(root)?.is_symlink();
    descend(root, "", linked, &mut vec![id], enter, &mut listing)?;
    Ok(listing)
}

fn descend(
    path: &Path,
    relative: &str,
    linked: bool,
    above: &mut Vec<DirectoryId>,
    enter: &mut dyn FnMut(&str, &Path),
    listing: &mut Listing,
) -> io::Result<()> {
    enter(relative, path);
    let entries = fs::read_dir(path)?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        // A name that is no UTF-8 has no place in a message, nor in a mesh.
        let Some(name) = name.to_str().filter(|name| !is_hidden(name)) else {
            continue;
        };
        let below = join(relative, name);
        let kind = entry.file_type()?;
        let linked = linked || kind.is_symlink();
        let is_manifest = is_manifest(name);
        if kind.is_file() && !is_manifest {
            continue;
        }
        // Gone in the meantime, or a link that leads nowhere.
        let Ok(metadata) = fs::metadata(entry.path()) else {
            continue;
        };
        if metadata.is_dir() {
            let id = DirectoryId::of(&metadata);
            if above.contains(&id) || above.len() >= DEPTH_MAX {
                continue;
            }
            above.push(id);
            if let Err(error) = descend(&entry.path(), &below, linked, above, enter, listing) {
                listing.unlisted.push((below, error));
            }
            above.pop();
        } else if is_manifest {
            listing.files.insert(
                below,
                Listed {
                    version: Version::of(&metadata),
                    linked,
                },
            );
        }
    }
    Ok(())
}

pub(super) fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() {
        name.to_owned()
    } else {
        format!("{directory}/{name}")
    }
}

/// Whether `path` is in `directory`, at any depth.
pub(super) fn is_below(path: &str, directory: &str) -> bool {
    directory.is_empty()
        || path
            .strip_prefix(directory)
            .is_some_and(|rest| rest.starts_with('/'))
}

/// Names that the source does not see: dot files, Kubernetes' own (`..data`), and editors' (`#x#`, `.#x`, `x~`).
pub(super) fn is_hidden(name: &str) -> bool {
    name.starts_with(['.', '#']) || name.ends_with('~')
}

pub(super) fn is_manifest(name: &str) -> bool {
    let manifest = |ending: &str| {
        name.strip_suffix(ending)
            .is_some_and(|stem| !stem.is_empty())
    };
    !is_hidden(name) && (manifest(".yaml") || manifest(".yml") || manifest(".json"))
}

/// A path that events speak of, as it is now.
#[derive(Debug)]
pub(super) enum Found {
    Gone,
    File,
    /// A link to a file, or one of a file's several names: whole from its first moment.
    Linked,
    Directory,
    /// A pipe or a device, which no reading would ever end.
    Other,
}

pub(super) fn look(path: &Path) -> Found {
    let Ok(own) = fs::symlink_metadata(path) else {
        return Found::Gone;
    };
    let Ok(metadata) = fs::metadata(path) else {
        return Found::Gone;
    };
    match () {
        () if metadata.is_dir() => Found::Directory,
        () if !metadata.is_file() => Found::Other,
        () if own.is_symlink() || metadata.nlink() > 1 => Found::Linked,
        () => Found::File,
    }
}

/// Reads a file whole, with the version that was read: of the open file, not of whatever has its name by then.
pub(super) fn read(root: &Path, relative: &str) -> io::Result<(Vec<u8>, Version)> {
    let path: PathBuf = root.join(relative);
    // Opening a pipe would wait for its writer.
    let mut file = File::options()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("is no regular file"));
    }
    if metadata.len() > FILE_MAX {
        let message = format!("is larger than {} MiB; split it", FILE_MAX >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    Read::take(&mut file, FILE_MAX).read_to_end(&mut bytes)?;
    Ok((bytes, Version::of(&metadata)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_manifests() {
        for good in ["a.yaml", "a.yml", "a.json", "a.b.yaml", "-.yaml"] {
            assert!(is_manifest(good), "{good}");
        }
        let bad = [
            ".a.yaml",
            "..data",
            ".yaml",
            "a.yaml~",
            "#a.yaml#",
            ".#a.yaml",
            "a.yaml.swp",
            "4913",
            "a.YAML",
            "a.yaml.tmp",
        ];
        for bad in bad {
            assert!(!is_manifest(bad), "{bad}");
        }
        assert!(
            is_below("a/b.yaml", "a")
                && is_below("a", "")
                && !is_below("ab/c", "a")
                && !is_below("a", "a")
        );
    }
}
