//! Which cgroup the hooks attach to, and the proof that they see sockets there.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;

/// Where the hooks go.
#[derive(Debug)]
pub struct Cgroup {
    pub fd: OwnedFd,
    /// As people know it.
    pub path: PathBuf,
    /// Reachable in this mount namespace: a probe needs to make a child there.
    pub visible: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("cannot open cgroup {path}: {cause}; is it a cgroup2 directory?")]
    Open { path: PathBuf, cause: io::Error },
    #[error(
        "no cgroup2 is mounted, and mounting one privately was refused: {0}; mount it (`mount -t cgroup2 none /sys/fs/cgroup`) or give --cgroup"
    )]
    NoMount(io::Error),
    #[error(
        "cannot enter pid 1's cgroup namespace: {0}; run in the host's cgroup namespace, or with CAP_SYS_PTRACE in the host's pid namespace, or give --cgroup"
    )]
    Namespace(io::Error),
    #[error("cannot make a probe cgroup below {path}: {cause}")]
    Probe { path: PathBuf, cause: io::Error },
    #[error(
        "a socket in {path} is not seen by our connect hook: is --cgroup the root that pods are below?"
    )]
    Blind { path: PathBuf },
}

impl Cgroup {
    /// Opens `given`, or else the cgroup2 root of pid 1's cgroup namespace. In a container with a cgroup namespace
    /// of its own, `/sys/fs/cgroup` shows the container's cgroup as the root: sockets of others would never be seen.
    ///
    /// # Errors
    /// [`CgroupError`], with the way out.
    pub fn find(given: Option<&Path>) -> Result<Self, CgroupError> {
        if let Some(path) = given {
            return Self::open(path.to_owned());
        }
        match cgroup2_mount() {
            Some(path) if our_root_holds_pid1()? => Self::open(path),
            _ => Self::mount_privately(),
        }
    }

    fn open(path: PathBuf) -> Result<Self, CgroupError> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        match nix::fcntl::open(&path, flags, Mode::empty()) {
            Ok(fd) => Ok(Self {
                fd,
                path,
                visible: true,
            }),
            Err(errno) => Err(CgroupError::Open {
                path,
                cause: errno.into(),
            }),
        }
    }

    /// Mounts cgroup2 in a mount namespace that ends with the thread; the descriptor outlives it.
    fn mount_privately() -> Result<Self, CgroupError> {
        let open = || -> Result<OwnedFd, CgroupError> {
            let namespace = File::open("/proc/1/ns/cgroup").map_err(CgroupError::Namespace)?;
            setns(namespace, CloneFlags::CLONE_NEWCGROUP)
                .map_err(|e| CgroupError::Namespace(e.into()))?;
            let no_mount = |errno: nix::Error| CgroupError::NoMount(errno.into());
            unshare(CloneFlags::CLONE_NEWNS).map_err(no_mount)?;
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
                .map_err(no_mount)?;
            // Where a cgroup2 lies on top already, as on most machines, the kernel refuses another: both are one file system,
            // whatever they show. So something else goes between.
            for kind in ["tmpfs", "cgroup2"] {
                mount(
                    Some("none"),
                    "/sys/fs/cgroup",
                    Some(kind),
                    MsFlags::empty(),
                    none,
                )
                .map_err(no_mount)?;
            }
            let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            nix::fcntl::open("/sys/fs/cgroup", flags, Mode::empty()).map_err(no_mount)
        };
        let fd = thread::scope(|scope| {
            scope
                .spawn(open)
                .join()
                .expect("the closure returns its errors")
        })?;
        Ok(Self {
            fd,
            path: PathBuf::from("/"),
            visible: false,
        })
    }

    /// Makes a child cgroup, beside that of this agent, in which a new process connects to `address`.
    /// `Ok` if the kernel refused that connect, as `address`' frontend without backends must.
    ///
    /// # Errors
    /// [`CgroupError::Blind`] if it was not refused, or [`CgroupError::Probe`].
    pub fn prove(&self, address: SocketAddr) -> Result<(), CgroupError> {
        let failed = |cause| CgroupError::Probe {
            path: self.path.clone(),
            cause,
        };
        let child = probe_dir(&self.path).map_err(failed)?;
        let status = Command::new("/proc/self/exe")
            .arg("probe-connect")
            .arg(&child)
            .arg(address.to_string())
            .stdin(Stdio::null())
            .status();
        let seen = status
            .map_err(failed)
            .map(|status| status.code() == Some(PROBE_REFUSED));
        fs::remove_dir(&child).map_err(failed)?;
        if seen? {
            Ok(())
        } else {
            Err(CgroupError::Blind { path: child })
        }
    }
}

const PROBE: &str = "isthmus-probe-";

/// A child cgroup for this process's probe. An agent that was killed in the middle of its own may have left one, and a
/// container's agent has the same process id in every life.
fn probe_dir(root: &Path) -> io::Result<PathBuf> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(PROBE));
        let process = process.and_then(|process| process.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            // One that cannot be removed is in nobody's way.
            let _ = fs::remove_dir(entry.path());
        }
    }
    let child = root.join(format!("{PROBE}{}", std::process::id()));
    match fs::create_dir(&child) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(child),
    }
}

/// Exit code of a probe whose connect was refused.
const PROBE_REFUSED: i32 = 17;

/// The probe's own process: joins `cgroup`, connects a UDP socket (which sends nothing), and exits with the answer.
///
/// # Errors
/// If the cgroup cannot be joined or no socket be had.
pub fn probe_connect(cgroup: &Path, address: SocketAddr) -> io::Result<i32> {
    fs::write(cgroup.join("cgroup.procs"), "0")?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let refused = socket.connect(address).is_err_and(|error| {
        matches!(
            error.raw_os_error(),
            Some(libc::ECONNREFUSED | libc::EHOSTUNREACH)
        )
    });
    Ok(if refused { PROBE_REFUSED } else { 0 })
}

/// Whether the root that this process sees is that of pid 1's cgroup namespace, or above it.
///
/// Where pid 1 is says it without any privilege. Its namespace's number, asked for on kernels that do not say (cgroup2
/// was never mounted), is shown to those only who may trace pid 1.
fn our_root_holds_pid1() -> Result<bool, CgroupError> {
    let place = fs::read_to_string("/proc/1/cgroup").map_err(CgroupError::Namespace)?;
    if let Some(within) = parse_is_below_our_root(&place) {
        return Ok(within);
    }
    let namespace = |pid| fs::read_link(format!("/proc/{pid}/ns/cgroup"));
    let first = namespace("1").map_err(CgroupError::Namespace)?;
    Ok(namespace("self").is_ok_and(|ours| ours == first))
}

/// `0::PATH` (cgroups(7)) begins with `/..` for a process that is outside the reader's root. None if there is no cgroup2.
fn parse_is_below_our_root(proc_cgroup: &str) -> Option<bool> {
    let path = proc_cgroup
        .lines()
        .find_map(|line| line.strip_prefix("0::"))?;
    Some(path != "/.." && !path.starts_with("/../"))
}

/// The first cgroup2 mount that shows its root.
fn cgroup2_mount() -> Option<PathBuf> {
    parse_cgroup2_mount(&fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// Fields of proc_pid_mountinfo(5): `id parent device root point options… - type source super-options`.
fn parse_cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (root == "/" && kind.starts_with("cgroup2 ")).then(|| PathBuf::from(point))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_namespace_shows_pid_1_outside() {
        let rows = [
            ("0::/init.scope\n", Some(true)),
            ("0::/\n", Some(true)),
            ("0::/..strange\n", Some(true)),
            ("0::/../../../init.scope\n", Some(false)),
            ("0::/..\n", Some(false)),
            (
                "12:cpu:/..\n1:name=systemd:/init.scope\n0::/init.scope\n",
                Some(true),
            ),
            ("1:name=systemd:/init.scope\n", None),
        ];
        for (text, wanted) in rows {
            assert_eq!(parse_is_below_our_root(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn what_a_killed_probe_left_is_no_obstacle() -> io::Result<()> {
        let root = tempfile::tempdir()?;
        let names = || -> io::Result<Vec<String>> {
            let entries = fs::read_dir(root.path())?;
            let name = |entry: io::Result<fs::DirEntry>| {
                Ok(entry?.file_name().to_string_lossy().into_owned())
            };
            let mut names = entries.map(name).collect::<io::Result<Vec<_>>>()?;
            names.sort();
            Ok(names)
        };
        let own = probe_dir(root.path())?;
        // Beyond every process id; one that lives; and no process id.
        for other in [
            "isthmus-probe-4194305",
            "isthmus-probe-1",
            "isthmus-probe-x",
        ] {
            fs::create_dir(root.path().join(other))?;
        }
        assert_eq!(probe_dir(root.path())?, own);
        let ours = format!("isthmus-probe-{}", std::process::id());
        let mut wanted = vec![
            "isthmus-probe-1".to_owned(),
            "isthmus-probe-x".to_owned(),
            ours,
        ];
        wanted.sort();
        assert_eq!(names()?, wanted);
        Ok(())
    }

    #[test]
    fn cgroup2_is_found_among_other_mounts() {
        let text = "24 1 0:22 / /sys rw - sysfs sysfs rw\n\
            30 24 0:27 /kubepods/x /mnt rw - cgroup2 cgroup2 rw\n\
            31 24 0:27 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            parse_cgroup2_mount(text),
            Some(PathBuf::from("/sys/fs/cgroup/unified"))
        );
        assert_eq!(
            parse_cgroup2_mount("24 1 0:22 / /sys rw - sysfs sysfs rw\n"),
            None
        );
    }
}
