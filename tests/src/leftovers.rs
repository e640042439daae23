//! What killed processes of ours left: cgroups and pins that are named by their process.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use isthmus_agent::datapath::cleanup;

use crate::cgroup::Cgroup;
use crate::layout::PIN_ROOT;

/// Removes cgroups, with all processes in them, and directories of pins whose name is the prefix and the number of a process
/// that is gone.
pub fn sweep(cgroup2: &Path, cgroups: &str, pins: &str) -> Result<()> {
    for cgroup in left(cgroup2, cgroups)? {
        let cgroup = Cgroup::new(cgroup);
        cgroup.kill()?;
        cgroup.remove()?;
    }
    for pins in left(Path::new(PIN_ROOT), pins)? {
        cleanup(&pins)?;
    }
    Ok(())
}

pub(crate) fn left(dir: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(Vec::new());
    };
    let gone = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        let pid = name.and_then(|name| name.strip_prefix(prefix)?.split('-').next());
        pid.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists())
    };
    let paths = entries.map(|entry| Ok(entry?.path()));
    Ok(paths
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .filter(gone)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_of_a_process_that_is_gone_is_left() {
        let dir = tempfile::tempdir().expect("a directory");
        let own = std::process::id();
        // Above the highest number that a process may have.
        let gone = (1 << 22) + 1;
        for name in [
            format!("rows-{own}"),
            format!("rows-{gone}"),
            format!("rows-{gone}-defaults"),
            format!("bench-{gone}"),
            "rows-".to_owned(),
            "rows-of-others".to_owned(),
        ] {
            fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        let mut names: Vec<_> = left(dir.path(), "rows-")
            .expect("a listing")
            .iter()
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
            .collect();
        names.sort();
        assert_eq!(
            names,
            [format!("rows-{gone}"), format!("rows-{gone}-defaults")]
        );
        assert!(
            left(&dir.path().join("nothing"), "rows-")
                .expect("none")
                .is_empty()
        );
    }
}
