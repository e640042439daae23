//! A client whose sockets another process destroys while connects are under way (`SOCK_DESTROY`), as an administrator does.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::net::sockopt as asked;

use super::{Account, PATIENCE, begin};

/// Their owner asks all the while what became of them, so that it learns of each end as soon as anybody can.
pub(super) fn run(targets: &[SocketAddr], account: &mut Account) -> Result<()> {
    let mut held = Vec::new();
    for target in targets {
        held.extend(begin(*target, account)?);
    }
    let begun = Instant::now();
    // What goes while `ss` lists makes it pass over others.
    while !held.is_empty() {
        // `ss` says nothing of it.
        ensure!(
            begun.elapsed() < PATIENCE,
            "{} are left: does this kernel have INET_DIAG_DESTROY?",
            held.len()
        );
        let mut ss = Command::new("ss")
            .args(["-K", "-H", "-n", "-t", "state", "syn-sent"])
            .stdout(Stdio::null())
            .spawn()
            .context("`ss` is not there: apt-get install iproute2")?;
        let status = loop {
            ask(&mut held, account)?;
            if let Some(status) = ss.try_wait()? {
                break status;
            }
        };
        ensure!(status.success(), "ss -K: {status}");
        ask(&mut held, account)?;
    }
    Ok(())
}

/// Lets go of those that have ended.
fn ask(held: &mut Vec<OwnedFd>, account: &mut Account) -> Result<()> {
    for place in (0..held.len()).rev() {
        if let Err(errno) = asked::socket_error(&held[place])? {
            account.failed(errno);
            held.swap_remove(place);
        }
    }
    Ok(())
}
