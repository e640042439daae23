//! What a lab needs of the machine. Nothing here skips: what is missing is said in one sentence.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};

use crate::layout::{PIN_ROOT, STATE_ROOT};

const BPFFS: &str = "/sys/fs/bpf";

/// The machine, found fit for a lab.
#[derive(Clone, Debug)]
pub struct Host {
    /// Where cgroup2 is mounted.
    pub cgroup2: PathBuf,
}

impl Host {
    /// Checks root and the tools, finds or mounts cgroup2 and bpffs.
    pub fn prepare() -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "a lab makes network namespaces, cgroups and BPF programs: run it as root"
        );
        for (tool, package) in [("ip", "iproute2"), ("nft", "nftables")] {
            Command::new(tool)
                .arg("-V")
                .output()
                .with_context(|| format!("`{tool}` is not there: apt-get install {package}"))?;
        }
        std::fs::create_dir_all(STATE_ROOT).with_context(|| format!("cannot make {STATE_ROOT}"))?;
        ensure_bpffs()?;
        Ok(Self {
            cgroup2: find_or_mount_cgroup2()?,
        })
    }
}

fn ensure_bpffs() -> Result<()> {
    if mounts()?
        .iter()
        .any(|m| m.fs == "bpf" && m.point == Path::new(BPFFS))
    {
        return Ok(());
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700")).with_context(|| {
        format!("cannot mount bpffs at {BPFFS}: does this kernel have CONFIG_BPF_SYSCALL, and may this user mount?")
    })?;
    Ok(())
}

fn find_or_mount_cgroup2() -> Result<PathBuf> {
    if let Some(found) = mounts()?
        .into_iter()
        .find(|m| m.fs == "cgroup2" && m.root == "/")
    {
        return Ok(found.point);
    }
    let point = Path::new(STATE_ROOT).join(".cgroup2");
    std::fs::create_dir_all(&point)?;
    mount(Some("cgroup2"), &point, Some("cgroup2"), MsFlags::empty(), None::<&str>).context(
        "cgroup2 is mounted nowhere and cannot be mounted: a lab needs a kernel with CONFIG_CGROUPS and CONFIG_CGROUP_BPF",
    )?;
    Ok(point)
}

struct Mount {
    root: String,
    point: PathBuf,
    fs: String,
}

/// proc(5): `id parent major:minor ROOT POINT options … - FS source options`.
fn mounts() -> Result<Vec<Mount>> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    Ok(text.lines().filter_map(parse_mount).collect())
}

fn parse_mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut fields = left.split(' ').skip(3);
    Some(Mount {
        root: fields.next()?.to_owned(),
        point: PathBuf::from(fields.next()?),
        fs: right.split(' ').next()?.to_owned(),
    })
}

/// Runs a command, gives its standard output, and says all that it said if it failed.
pub fn run(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command
        .output()
        .with_context(|| format!("cannot run {shown}"))?;
    if !output.status.success() {
        bail!(
            "{shown}: {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim(),
            String::from_utf8_lossy(&output.stdout).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Removes the directory of all pins if no agent of any lab or of this host is left in it.
pub(crate) fn drop_empty_pin_root() {
    // Not empty is the answer "somebody still uses it".
    let _ = std::fs::remove_dir(PIN_ROOT);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_with_and_without_optional_fields() {
        for line in [
            "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw",
            "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 master:2 - cgroup2 none rw",
        ] {
            let found = parse_mount(line).expect("a mount");
            assert_eq!((found.fs.as_str(), found.root.as_str()), ("cgroup2", "/"));
            assert_eq!(found.point, Path::new("/sys/fs/cgroup/unified"));
        }
    }
}
