//! One cgroup2 subtree a lab. A cgroup is also how the lab ends processes: `cgroup.kill` misses no grandchild.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait::wait_until;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }
    /// Makes it and its parents.
    pub fn create(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path)
            .with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        Ok(Self { path })
    }
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
    #[must_use]
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }
    /// Kills all processes in it and below, and waits until they are gone. A zombie counts as gone.
    pub fn kill(&self) -> Result<()> {
        match fs::write(self.path.join("cgroup.kill"), "1") {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            done => {
                done.with_context(|| format!("cannot kill what is in {}", self.path.display()))?
            }
        }
        wait_until(
            "the cgroup's processes are gone",
            Duration::from_secs(10),
            || {
                let events =
                    fs::read_to_string(self.path.join("cgroup.events")).unwrap_or_default();
                !events.contains("populated 1")
            },
        )?;
        Ok(())
    }
    /// Removes it with all below; it must hold no process.
    pub fn remove(&self) -> Result<()> {
        let children = match fs::read_dir(&self.path) {
            Ok(children) => children,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e).with_context(|| self.path.display().to_string()),
        };
        for child in children {
            let child = child?;
            if child.file_type()?.is_dir() {
                Self::new(child.path()).remove()?;
            }
        }
        // The kernel lets go of a killed process' cgroup a moment after the process is gone.
        let mut last = None;
        wait_until(
            "the cgroup lets itself be removed",
            Duration::from_secs(5),
            || {
                last = fs::remove_dir(&self.path)
                    .err()
                    .filter(|e| e.kind() != ErrorKind::NotFound);
                last.is_none()
            },
        )
        .with_context(|| format!("{}: {last:?}", self.path.display()))?;
        Ok(())
    }
}
