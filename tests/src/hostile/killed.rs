//! A client that is killed while connects are under way, again and again: each time a child.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::getsockopt;
use nix::{getsockopt_impl, libc, sockopt_impl};
use rustix::net::{SocketFlags, connect};

use super::{Account, Behaviour, EACH, Options, begin, say, socket};

/// `TCP_SYN_SENT` (net/tcp_states.h).
const SYN_SENT: u8 = 2;

sockopt_impl!(
    TcpInfo,
    GetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    libc::tcp_info
);

pub(super) fn run(options: &Options, account: &mut Account) -> Result<()> {
    let exe = std::env::current_exe()?;
    while account.connects < options.connects {
        let mut command = Command::new(&exe);
        command.args(["hostile", "--wait-to-be-killed"]);
        command.args(["--behaviour", &options.behaviour.argument()]);
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

/// What the child does: connects, says so, and waits for its end.
pub fn wait_to_be_killed(targets: &[SocketAddr], behaviour: Behaviour) -> Result<()> {
    let mut account = Account::default();
    let mut held = Vec::new();
    for target in targets.iter().cycle().take(usize::try_from(EACH)?) {
        if behaviour == Behaviour::KilledInCalls {
            held.push(call(*target, &mut account)?);
        } else {
            held.extend(begin(*target, &mut account)?.map(Arc::new));
        }
    }
    for socket in &held {
        account.let_go(socket)?;
    }
    say(&account)?;
    loop {
        thread::park();
    }
}

/// A connect whose call waits for the answer, in a thread of its own.
fn call(target: SocketAddr, account: &mut Account) -> Result<Arc<OwnedFd>> {
    let socket = Arc::new(socket(target, SocketFlags::empty())?);
    account.connects += 1;
    let caller = thread::spawn({
        let socket = Arc::clone(&socket);
        move || connect(&socket, &target)
    });
    // The kernel asks for the socket's lock to answer: who connects gave it back, and waits.
    while getsockopt(&socket, TcpInfo).context("TCP_INFO")?.tcpi_state != SYN_SENT {
        ensure!(
            !caller.is_finished(),
            "a connect ended: {:?}",
            caller.join()
        );
        thread::yield_now();
    }
    Ok(socket)
}
