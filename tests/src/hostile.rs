//! A client that connects and does not mean it, in as many ways as a pod has. It says what it did, so that the kernel's
//! counts can be held against it.

mod destroyed;
mod killed;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use isthmus_abi::client_mark;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use nix::{getsockopt_impl, libc, sockopt_impl};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, connect, connect_unspec, socket_with, sockopt as asked,
};
use serde::{Deserialize, Serialize};

use crate::netns::Netns;

pub use killed::wait_to_be_killed;

/// Connects that are under way when one child is killed, or when `ss` is called to destroy them.
const EACH: u64 = 100;
/// For an end that is not the client's own doing.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Behaviour {
    /// Connects and waits for the answer, one after another.
    Connect,
    /// Connects without waiting, and closes at once.
    Abandon,
    /// Connects without waiting, dissolves the association, and connects the same socket again.
    Dissolve,
    /// Has many connects under way for some time, then closes those without an answer.
    Hold,
    /// Has many connects under way, and lets the kernel end them after some time (`TCP_USER_TIMEOUT`).
    Bounded,
    /// Is killed while connects are under way.
    Killed,
    /// Is killed while threads wait in connects.
    KilledInCalls,
    /// Has its sockets destroyed by another process while connects are under way (`ss -K`).
    Destroyed,
    /// Has one descriptor for all: each new socket takes the place of the one before.
    Reuse,
}

impl Behaviour {
    /// As the command line names it.
    #[must_use]
    pub fn argument(self) -> String {
        let value = self.to_possible_value().expect("none is hidden");
        value.get_name().to_owned()
    }
}

#[derive(Clone, Debug)]
pub struct Options {
    pub targets: Vec<SocketAddr>,
    pub behaviour: Behaviour,
    /// Connects in all, or a few more.
    pub connects: u64,
    /// For how long [`Behaviour::Hold`] waits, and [`Behaviour::Bounded`] lets the kernel wait.
    pub hold: Duration,
}

/// What became of the connects.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Account {
    /// Calls of connect() with an address.
    pub connects: u64,
    pub established: u64,
    /// Closed, dissolved, killed or destroyed when no answer had come.
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
            Errno::CONNABORTED => self.abandoned += 1,
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
        Behaviour::Hold | Behaviour::Bounded => {
            let all: Result<Vec<SocketAddr>> = (0..options.connects).map(|_| next()).collect();
            // As many at once as this process may have open, beside what it has open anyway.
            for wave in all?.chunks(descriptors.saturating_sub(32).max(1)) {
                if options.behaviour == Behaviour::Hold {
                    hold(wave, options.hold, &mut account)?;
                } else {
                    bounded(wave, options.hold, &mut account)?;
                }
            }
        }
        Behaviour::Killed | Behaviour::KilledInCalls => killed::run(options, &mut account)?,
        Behaviour::Destroyed => {
            while account.connects < options.connects {
                let wave: Result<Vec<SocketAddr>> = (0..EACH).map(|_| next()).collect();
                destroyed::run(&wave?, &mut account)?;
            }
        }
    }
    say(&account)
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
    begin_with(socket, target, account)
}

fn begin_with(
    socket: OwnedFd,
    target: SocketAddr,
    account: &mut Account,
) -> Result<Option<OwnedFd>> {
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

/// The owner waits for one after another, and so learns of many just when the kernel ends them.
fn bounded(targets: &[SocketAddr], time: Duration, account: &mut Account) -> Result<()> {
    let time = u32::try_from(time.as_millis())?;
    let mut held = Vec::new();
    for target in targets {
        let socket = socket(*target, SocketFlags::NONBLOCK)?;
        setsockopt(&socket, sockopt::TcpUserTimeout, &time).context("TCP_USER_TIMEOUT")?;
        held.extend(begin_with(socket, *target, account)?);
    }
    let patience = PollTimeout::try_from(PATIENCE)?;
    for socket in &held {
        // An end is told as an error, asked for or not.
        poll(
            &mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)],
            patience,
        )?;
        account.let_go(socket)?;
    }
    Ok(())
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
