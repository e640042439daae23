//! Running other programs: as the person who called, or as root, and never with another build's environment.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::{env, fs};

use anyhow::{Context as _, Result, bail, ensure};

use crate::root::{self, Need, THEN_AGAIN};

/// Who called, and so who owns what is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// This process is root already.
    pub(crate) root: bool,
    /// Root by `sudo`: cargo runs as this user, not as root.
    behind: Option<User>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct User {
    uid: u32,
    gid: u32,
    name: String,
    home: PathBuf,
}

impl Caller {
    pub(crate) fn find() -> Result<Self> {
        // /proc/self belongs to the effective user.
        let root = fs::metadata("/proc/self")
            .context("cannot read /proc/self: is /proc mounted?")?
            .uid()
            == 0;
        let id = |name: &str| {
            env::var(name)
                .ok()
                .and_then(|value| value.parse::<u32>().ok())
        };
        let behind = match (root, id("SUDO_UID"), id("SUDO_GID")) {
            (true, Some(uid), Some(gid)) if uid != 0 => Some(User::look_up(uid, gid)?),
            _ => None,
        };
        Ok(Self { root, behind })
    }

    /// A command of the person who called: never root when that person is not.
    pub(crate) fn user(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        clean(&mut command);
        if let Some(user) = &self.behind {
            command.uid(user.uid).gid(user.gid);
            command
                .env("HOME", &user.home)
                .env("USER", &user.name)
                .env("LOGNAME", &user.name);
            for name in ["SUDO_UID", "SUDO_GID", "SUDO_USER", "SUDO_COMMAND"] {
                command.env_remove(name);
            }
        }
        command
    }

    /// A command of root, asked for once.
    pub(crate) fn root(
        &self,
        need: &Need,
        program: impl AsRef<OsStr>,
        environment: &[(&str, OsString)],
    ) -> Result<Command> {
        if self.root {
            let mut command = Command::new(program);
            clean(&mut command);
            command.envs(environment.iter().map(|(name, value)| (name, value)));
            return Ok(command);
        }
        root::obtain(need)?;
        let mut command = Command::new("sudo");
        clean(&mut command);
        command.args(["--non-interactive", "--", "env"]);
        for (name, value) in environment {
            let mut pair = OsString::from(name);
            pair.push("=");
            pair.push(value);
            command.arg(pair);
        }
        command.arg(program);
        Ok(command)
    }

    /// The home directory of the person who called.
    pub(crate) fn home(&self) -> Option<PathBuf> {
        match &self.behind {
            Some(user) => Some(user.home.clone()),
            None => env::var_os("HOME").map(PathBuf::from),
        }
    }

    /// Gives what root left under `tree` back to its owner. `cargo` itself may have run under sudo before this program
    /// could say no, and a lab run as root may have written a report.
    pub(crate) fn give_back(&self, tree: &Path) -> Result<()> {
        let Ok(metadata) = fs::metadata(tree.parent().unwrap_or(tree)) else {
            return Ok(());
        };
        let (uid, gid) = match &self.behind {
            Some(user) => (user.uid, user.gid),
            None if self.root => return Ok(()),
            None => (metadata.uid(), metadata.gid()),
        };
        if !tree.exists() || uid == 0 {
            return Ok(());
        }
        let found = Command::new("find")
            .arg(tree)
            .args(["-user", "root", "-print", "-quit"])
            .output()
            .context("find does not start")?;
        if found.stdout.is_empty() {
            return Ok(());
        }
        let owner = format!("{uid}:{gid}");
        let need = Need {
            reason: "to give files in target/ back to you",
            by_hand: format!(
                "chown --recursive --from=root {owner} {}\n{THEN_AGAIN}",
                tree.display()
            ),
        };
        let mut command = self.root(&need, "chown", &[])?;
        command
            .args(["--recursive", "--from=root", &owner])
            .arg(tree);
        run(&mut command)
    }
}

impl User {
    fn look_up(uid: u32, gid: u32) -> Result<Self> {
        let line = output(Command::new("getent").args(["passwd", &uid.to_string()]))
            .with_context(|| format!("SUDO_UID is {uid}, and no such user exists"))?;
        let fields: Vec<&str> = line.trim().split(':').collect();
        ensure!(
            fields.len() >= 6,
            "getent passwd {uid} printed {line:?}, which is no passwd entry"
        );
        Ok(Self {
            uid,
            gid,
            name: fields[0].to_owned(),
            home: PathBuf::from(fields[5]),
        })
    }
}

/// What `cargo run` and rustup's proxies say to their children is about this program, not about what it builds.
fn clean(command: &mut Command) {
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(belongs_to_this_build) {
            command.env_remove(name);
        }
    }
}

fn belongs_to_this_build(name: &str) -> bool {
    name.starts_with("CARGO_PKG_")
        || name.starts_with("CARGO_MANIFEST_")
        || [
            "CARGO",
            "CARGO_BIN_NAME",
            "CARGO_CRATE_NAME",
            "CARGO_PRIMARY_PACKAGE",
            "OUT_DIR",
            "RUST_RECURSION_COUNT",
        ]
        .contains(&name)
}

/// Also forgets every compiler, flag and wrapper that was chosen for the host: for the eBPF build, which has its own.
pub(crate) fn forget_host_toolchain(command: &mut Command) {
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(chooses_host_toolchain) {
            command.env_remove(name);
        }
    }
}

fn chooses_host_toolchain(name: &str) -> bool {
    name.starts_with("CARGO_BUILD_")
        || name.starts_with("CARGO_PROFILE_")
        || name.starts_with("CARGO_TARGET_")
        || [
            "CARGO",
            "CARGO_ENCODED_RUSTFLAGS",
            "LD_LIBRARY_PATH",
            "RUSTC",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_WRAPPER",
            "RUSTDOC",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
            "RUST_TARGET_PATH",
        ]
        .contains(&name)
}

/// Runs to the end; an error carries the command line.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("{} does not start", line(command)))?;
    ensure!(
        status.success(),
        "{} failed: {}",
        line(command),
        ended(status)
    );
    Ok(())
}

/// Runs to the end without a word, and shows what the command said only when it failed.
pub(crate) fn run_quietly(command: &mut Command) -> Result<()> {
    let mut said = Vec::new();
    let status = run_lines(command, |line| said.push(line.to_owned()))?;
    if !status.success() {
        let tail = said[said.len().saturating_sub(40)..].join("\n");
        bail!("{} failed: {}\n{tail}", line(command), ended(status));
    }
    Ok(())
}

/// Runs to the end and gives each line of standard output and standard error, in the order they were written.
pub(crate) fn run_lines(command: &mut Command, mut each: impl FnMut(&str)) -> Result<ExitStatus> {
    let (reader, writer) = std::io::pipe().context("no pipe")?;
    let shown = line(command);
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("no pipe")?)
        .stderr(writer);
    let mut child = command
        .spawn()
        .with_context(|| format!("{shown} does not start"))?;
    // The command holds the writing ends until they are replaced: without this the reader never sees the end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut reader = BufReader::new(reader);
    let mut bytes = Vec::new();
    while reader
        .read_until(b'\n', &mut bytes)
        .with_context(|| format!("cannot read what {shown} says"))?
        > 0
    {
        each(String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']));
        bytes.clear();
    }
    child
        .wait()
        .with_context(|| format!("cannot wait for {shown}"))
}

/// Standard output of a command that succeeded.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = line(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{shown} does not start"))?;
    ensure!(
        output.status.success(),
        "{shown} failed: {}\n{}",
        ended(output.status),
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    String::from_utf8(output.stdout).with_context(|| format!("{shown} printed no UTF-8"))
}

/// The command as one would type it, without its environment.
pub(crate) fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    for argument in command.get_args() {
        let word = argument.to_string_lossy();
        words.push(if word.contains([' ', '*', '"', '\'']) {
            format!("'{word}'")
        } else {
            word.into_owned()
        });
    }
    words.join(" ")
}

fn ended(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("exit status {code}"),
        None => status.to_string(),
    }
}

/// The first executable of that name on the PATH, then among the person's own cargo tools and the system's.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    env::split_paths(&path)
        .chain(home.map(|home| home.join("bin")))
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

    use super::*;

    #[test]
    fn the_host_toolchain_is_forgotten_and_the_registry_is_not() {
        for name in [
            "RUSTUP_TOOLCHAIN",
            "RUSTFLAGS",
            "CARGO",
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_DIR",
            "LD_LIBRARY_PATH",
        ] {
            assert!(chooses_host_toolchain(name), "{name}");
        }
        for name in [
            "CARGO_HOME",
            "CARGO_NET_OFFLINE",
            "CARGO_HTTP_PROXY",
            "CARGO_REGISTRIES_X_INDEX",
            "PATH",
            "HOME",
        ] {
            assert!(!chooses_host_toolchain(name), "{name}");
            assert!(!belongs_to_this_build(name), "{name}");
        }
    }

    #[test]
    fn both_outputs_come_as_lines_and_the_status_is_kept() {
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo error >&2; exit 3"]);
        let status = run_lines(&mut command, |line| lines.push(line.to_owned())).unwrap();
        assert_eq!(
            (lines, status.code()),
            (vec!["out".to_owned(), "error".to_owned()], Some(3))
        );
    }

    #[test]
    fn a_quiet_failure_shows_what_was_said() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo the cause; exit 1"]);
        let report = run_quietly(&mut command).unwrap_err().to_string();
        assert!(
            report.contains("exit status 1") && report.contains("the cause"),
            "{report}"
        );
    }
}
