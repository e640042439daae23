//! Real processes in their places: the project's own binaries, started inside a namespace and a cgroup.

use std::fs::{File, OpenOptions};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::Cgroup;
use crate::netns::Netns;
use crate::wait::wait_until;

/// The directory of the project's binaries.
#[derive(Clone, Debug)]
pub struct Programs {
    dir: PathBuf,
}

impl Programs {
    #[must_use]
    pub fn in_dir(dir: PathBuf) -> Self {
        Self { dir }
    }
    /// Beside the running binary; a test of cargo's is one directory further down.
    pub fn beside_this_one() -> Result<Self> {
        let exe = std::env::current_exe().context("cannot tell which binary this is")?;
        let dir = exe.parent().context("a binary without a directory")?;
        let dir = if dir.ends_with("deps") {
            dir.parent().unwrap_or(dir)
        } else {
            dir
        };
        Ok(Self {
            dir: dir.to_owned(),
        })
    }
    /// The path of one, or a sentence that says how to make it.
    pub fn find(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        if !path.is_file() {
            let package = if name == "isthmus-lab" {
                "isthmus-tests"
            } else {
                name
            };
            bail!(
                "there is no {name} in {}: run `cargo build -p {package}`, or give --bin-dir",
                self.dir.display()
            );
        }
        Ok(path)
    }
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// Where a process runs.
#[derive(Clone, Debug)]
pub struct Place {
    pub netns: Netns,
    pub cgroup: Cgroup,
}

impl Place {
    /// A command that enters the place, then becomes `program`. The caller adds its arguments.
    pub fn command(&self, programs: &Programs, program: &Path) -> Result<Command> {
        self.entering(programs, program, &[])
    }
    /// The same for a program that lives beside the caller: Ctrl-C and the terminal's end do not reach it, so that its
    /// owner can end it in order.
    pub fn background(&self, programs: &Programs, program: &Path) -> Result<Command> {
        self.entering(programs, program, &["--detach"])
    }
    fn entering(&self, programs: &Programs, program: &Path, flags: &[&str]) -> Result<Command> {
        let mut command = Command::new(programs.find("isthmus-lab")?);
        command.arg("in").arg("--netns").arg(self.netns.path());
        command
            .arg("--cgroup")
            .arg(self.cgroup.path())
            .args(flags)
            .arg("--")
            .arg(program);
        Ok(command)
    }
}

/// A process of the lab, with a log.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it away from any terminal; what it says is appended to `log`.
    pub fn start(name: &str, mut command: Command, log: PathBuf) -> Result<Self> {
        let file = open_log(&log)?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }
    /// Takes charge of a child whose pipes the caller holds.
    pub(crate) fn adopt(name: &str, child: Child, log: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            child,
            log,
        }
    }
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .with_context(|| format!("cannot wait for {}", self.name))
    }
    /// An error with its last words, if it has ended.
    pub fn expect_alive(&mut self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => bail!("{} ended: {status}\n{}", self.name, self.last_words(15)),
        }
    }
    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child
            .kill()
            .with_context(|| format!("cannot kill {}", self.name))?;
        self.child.wait()?;
        Ok(())
    }
    /// SIGTERM; an error unless it has exited with 0 within `deadline`.
    pub fn terminate(&mut self, deadline: Duration) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("a pid beyond i32")?;
        kill(Pid::from_raw(pid), Signal::SIGTERM)?;
        let mut status = None;
        wait_until(
            &format!("{} ends after SIGTERM", self.name),
            deadline,
            || {
                status = self.child.try_wait().ok().flatten();
                status.is_some()
            },
        )?;
        match status {
            Some(status) if status.success() || status.signal() == Some(15) => Ok(()),
            other => bail!(
                "{} ended badly after SIGTERM: {other:?}\n{}",
                self.name,
                self.last_words(15)
            ),
        }
    }
    #[must_use]
    pub fn last_words(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A process that outlives its owner's handle (a kept lab) is the cgroup's to end.
        let _ = self.child.try_wait();
    }
}

pub(crate) fn open_log(path: &Path) -> Result<File> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| path.display().to_string())
}

/// The last lines of a log, indented for a report.
#[must_use]
pub fn tail(log: &Path, lines: usize) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    let shown = all[all.len().saturating_sub(lines)..].join("\n  ");
    format!("{}:\n  {shown}", log.display())
}

/// Becomes `program` in a place: joins the cgroup, enters the namespace, replaces this process.
pub fn become_in(netns: &Path, cgroup: &Path, detach: bool, program: &[String]) -> Result<()> {
    let (name, arguments) = program.split_first().context("no command to run")?;
    std::fs::write(cgroup.join("cgroup.procs"), "0")
        .with_context(|| format!("cannot join the cgroup {}", cgroup.display()))?;
    let file = File::open(netns)
        .with_context(|| format!("there is no network namespace {}", netns.display()))?;
    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).context("setns")?;
    if detach {
        // Not to be hit by the terminal's Ctrl-C or its end. It fails only for a group's leader, which has both already.
        let _ = nix::unistd::setsid();
    }
    // Whoever starts us may have blocked the signals that it waits for itself.
    nix::sys::signal::SigSet::empty()
        .thread_set_mask()
        .context("the signal mask")?;
    let error = std::os::unix::process::CommandExt::exec(Command::new(name).args(arguments));
    Err(error).with_context(|| format!("cannot run {name}"))
}
