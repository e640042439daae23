//! A client that connects and does not mean it, in as many ways as a pod has. It says what it did, so that the kernel's
//! counts can be held against it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use isthmus_abi::client_mark;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use nix::{getsockopt_impl, libc, sockopt_impl};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, connect, connect_unspec, socket_with, sockopt as asked,
};
use serde::{Deserialize, Serialize};

use crate::netns::Netns;

/// Connects that one child has under way when it is killed.
const EACH: u64 = 100;

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Behaviour {
    /// Connects and waits for the answer, one after another.
    Connect,
    /// Connects without waiting, and closes at once.
    Abandon,
    /// Connects without waiting, dissolves the association, and connects the same socket again.
    Dissolve,
    /// Has many connects under way for some time, then closes those without an answer.
    Hold,
    /// Is killed while connects are under way.
    Killed,
    /// Has one descriptor for all: each new socket takes the place of the one before.
    Reuse,
}

#[derive(Clone, Debug)]
pub struct Options {
    pub targets: Vec<SocketAddr>,
    pub behaviour: Behaviour,
    /// Connects in all, or a few more.
    pub connects: u64,
    /// For how long [`Behaviour::Hold`] waits.
    pub hold: Duration,
}

/// What became of the connects.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Account {
    /// Calls of connect() with an address.
    pub connects: u64,
    pub established: u64,
    /// Closed, dissolved or killed when no answer had come.
    pub abandoned: u64,
    pub refused: u64,
    pub timed_out: u64,
    /// By the error's name, each before anything was sent, or by ICMP.
    pub other: BTreeMap<String, u64>,
}

impl Account {
    #[must_use]
    pub fn and(mut self, more: &Self) -> Self {
        self.connects += more.connects;
        self.established += more.established;
        self.abandoned += more.abandoned;
        self.refused += more.refused;
        self.timed_out += more.timed_out;
        for (name, count) in &more.other {
            *self.other.entry(name.clone()).or_default() += count;
        }
        self
    }

    /// All connects have one fate each.
    #[must_use]
    pub fn balances(&self) -> bool {
        let known = self.established + self.abandoned + self.refused + self.timed_out;
        self.connects == known + self.other.values().sum::<u64>()
    }

    /// Of [`Self::other`], those whose error's name begins so.
    #[must_use]
    pub fn other_of(&self, errno: &str) -> u64 {
        let of = self
            .other
            .iter()
            .filter(|(name, _)| name.starts_with(errno));
        of.map(|(_, count)| count).sum()
    }

    /// What became of a connect whose socket its owner is about to let go.
    fn let_go(&mut self, socket: &OwnedFd) -> Result<()> {
        match asked::socket_error(socket)? {
            Err(errno) => self.failed(errno),
            Ok(()) if rustix::net::getpeername(socket).is_ok() => self.established += 1,
            Ok(()) => self.abandoned += 1,
        }
        Ok(())
    }

    fn failed(&mut self, errno: Errno) {
        match errno {
            Errno::CONNREFUSED => self.refused += 1,
            Errno::TIMEDOUT => self.timed_out += 1,
            other => {
                let name = nix::errno::Errno::from_raw(other.raw_os_error()).to_string();
                *self.other.entry(name).or_default() += 1;
            }
        }
    }
}

/// Does it, and prints the [`Account`] as a line of JSON.
pub fn run(options: &Options) -> Result<()> {
    let descriptors = allow_descriptors()?;
    let mut account = Account::default();
    let mut targets = options.targets.iter().copied().cycle();
    let mut next = || targets.next().context("no --target");
    match options.behaviour {
        Behaviour::Connect => {
            while account.connects < options.connects {
                one(next()?, &mut account)?;
            }
        }
        Behaviour::Abandon => {
            while account.connects < options.connects {
                if let Some(socket) = begin(next()?, &mut account)? {
                    account.let_go(&socket)?;
                }
            }
        }
        Behaviour::Dissolve => {
            while account.connects < options.connects {
                dissolve(next()?, &mut account)?;
            }
        }
        Behaviour::Reuse => {
            let mut place = None;
            while account.connects < options.connects {
                let Some(fresh) = begin(next()?, &mut account)? else {
                    continue;
                };
                match &mut place {
                    None => place = Some(fresh),
                    Some(place) => {
                        account.let_go(place)?;
                        rustix::io::dup2(&fresh, place)?;
                    }
                }
            }
            if let Some(place) = place {
                account.let_go(&place)?;
            }
        }
        Behaviour::Hold => {
            let all: Result<Vec<SocketAddr>> = (0..options.connects).map(|_| next()).collect();
            // As many at once as this process may have open, beside what it has open anyway.
            for wave in all?.chunks(descriptors.saturating_sub(32).max(1)) {
                hold(wave, options.hold, &mut account)?;
            }
        }
        Behaviour::Killed => killed(options, &mut account)?,
    }
    say(&account)
}

/// What [`Behaviour::Killed`] starts: connects, says so, and waits for its end.
pub fn wait_to_be_killed(targets: &[SocketAddr]) -> Result<()> {
    let mut account = Account::default();
    let mut held = Vec::new();
    for target in targets.iter().cycle().take(usize::try_from(EACH)?) {
        held.extend(begin(*target, &mut account)?);
    }
    for socket in &held {
        account.let_go(socket)?;
    }
    say(&account)?;
    loop {
        std::thread::park();
    }
}

/// Marks of clients tell network namespaces apart, as the datapath does; two of many share one.
pub fn mark(netns: &Netns) -> Result<u32> {
    let cookie = netns.run(|| {
        let socket = socket(SocketAddr::from(([0, 0, 0, 0], 0)), SocketFlags::empty())?;
        getsockopt(&socket, NetnsCookie).context("SO_NETNS_COOKIE")
    })??;
    Ok(client_mark(cookie))
}

sockopt_impl!(
    NetnsCookie,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64
);

fn killed(options: &Options, account: &mut Account) -> Result<()> {
    let exe = std::env::current_exe()?;
    while account.connects < options.connects {
        let mut command = Command::new(&exe);
        command.arg("hostile").arg("--wait-to-be-killed");
        for target in &options.targets {
            command.arg("--target").arg(target.to_string());
        }
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let out = child.stdout.take().context("a child without an output")?;
        BufReader::new(out).read_line(&mut line)?;
        child.kill()?;
        child.wait()?;
        let its = serde_json::from_str(&line).with_context(|| format!("a child said {line:?}"))?;
        *account = std::mem::take(account).and(&its);
    }
    Ok(())
}

/// One connect to its end.
fn one(target: SocketAddr, account: &mut Account) -> Result<()> {
    let socket = socket(target, SocketFlags::empty())?;
    account.connects += 1;
    match connect(&socket, &target) {
        Ok(()) => {
            account.established += 1;
            reset_at_close(&socket)
        }
        Err(errno) => {
            account.failed(errno);
            Ok(())
        }
    }
}

/// A connect that is under way, or was established at once. None if it failed.
fn begin(target: SocketAddr, account: &mut Account) -> Result<Option<OwnedFd>> {
    let socket = socket(target, SocketFlags::NONBLOCK)?;
    account.connects += 1;
    match connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => {
            reset_at_close(&socket)?;
            Ok(Some(socket))
        }
        Err(errno) => {
            account.failed(errno);
            Ok(None)
        }
    }
}

fn dissolve(target: SocketAddr, account: &mut Account) -> Result<()> {
    let Some(socket) = begin(target, account)? else {
        return Ok(());
    };
    account.let_go(&socket)?;
    connect_unspec(&socket)?;
    account.connects += 1;
    match connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => account.let_go(&socket),
        Err(errno) => {
            account.failed(errno);
            Ok(())
        }
    }
}

fn hold(targets: &[SocketAddr], time: Duration, account: &mut Account) -> Result<()> {
    let mut held = Vec::new();
    for target in targets {
        held.extend(begin(*target, account)?);
    }
    // How long it means to wait, not a wait for anything.
    std::thread::sleep(time);
    held.iter().try_for_each(|socket| account.let_go(socket))
}

fn socket(target: SocketAddr, flags: SocketFlags) -> Result<OwnedFd> {
    let family = if target.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = flags | SocketFlags::CLOEXEC;
    socket_with(family, SocketType::STREAM, flags, None).context("no socket")
}

/// Leaves nothing in TIME_WAIT, and its port free.
fn reset_at_close(socket: &impl AsFd) -> Result<()> {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(socket, sockopt::Linger, &linger).context("linger")
}

/// Gives how many descriptors this process may have from now on.
fn allow_descriptors() -> Result<usize> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("as many descriptors as are allowed")?;
    Ok(usize::try_from(most)?)
}

fn say(account: &Account) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(account)?)?;
    out.flush().context("standard output")
}
