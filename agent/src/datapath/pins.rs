//! The agent's directory in bpffs: there at all, one agent's at a time, and gone when asked.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use tracing::{info, warn};

use super::DatapathError;
use super::plan::{LoadPlan, VERSION_PREFIX};

pub(super) fn ensure_bpffs(dir: &Path) -> Result<(), DatapathError> {
    const ROOT: &str = "/sys/fs/bpf";
    let is_bpffs = |path: &Path| {
        path.ancestors()
            .find(|path| path.exists())
            .and_then(|path| statfs(path).ok())
            .is_some_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
    };
    if !is_bpffs(dir) && dir.starts_with(ROOT) {
        mount(
            Some("bpf"),
            ROOT,
            Some("bpf"),
            MsFlags::empty(),
            Some("mode=0700"),
        )
        .map_err(|errno| DatapathError::NoBpffs(dir.to_owned(), errno.into()))?;
        info!("mounted bpffs at {ROOT}");
    }
    if is_bpffs(dir) {
        return Ok(());
    }
    Err(DatapathError::NoBpffs(
        dir.to_owned(),
        io::Error::other("another file system is there"),
    ))
}

/// Takes the right to write the maps below `bpffs`; it ends with the process at the latest.
pub(super) fn lock_dir(bpffs: &Path) -> Result<Flock<File>, DatapathError> {
    let failed = |cause| DatapathError::Path {
        path: bpffs.to_owned(),
        cause,
    };
    let dir = File::open(bpffs).map_err(failed)?;
    Flock::lock(dir, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => DatapathError::InUse(bpffs.to_owned()),
        other => failed(other.into()),
    })
}

/// Detaches and unpins everything below `bpffs`. Returns how many pins there were.
///
/// # Errors
/// If an agent works there, or a pin cannot be removed.
pub fn cleanup(bpffs: &Path) -> Result<usize, DatapathError> {
    fn remove(dir: &Path) -> io::Result<usize> {
        let mut pins = 0;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pins += remove(&entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
                pins += 1;
            }
        }
        fs::remove_dir(dir)?;
        Ok(pins)
    }
    if !bpffs.exists() {
        return Ok(0);
    }
    let _lock = lock_dir(bpffs)?;
    let failed = |cause| DatapathError::Path {
        path: bpffs.to_owned(),
        cause,
    };
    // Links first: a hook must not run with half of its maps' names gone.
    let links = bpffs.join("links");
    let detached = if links.exists() {
        remove(&links).map_err(failed)?
    } else {
        0
    };
    Ok(detached + remove(bpffs).map_err(failed)?)
}

/// Removes the maps of versions that nothing is attached to any more.
pub(super) fn remove_other_versions(plan: &LoadPlan) {
    let Some(parent) = plan.version_dir.parent() else {
        return;
    };
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let version = name
            .strip_prefix(VERSION_PREFIX)
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        if version && path != plan.version_dir {
            match fs::remove_dir_all(&path) {
                Ok(()) => {
                    info!(path = %path.display(), "removed the maps of an earlier version")
                }
                Err(error) => {
                    warn!(path = %path.display(), %error, "cannot remove the maps of an earlier version")
                }
            }
        }
    }
}
