//! Flows that live long, by TCP and by datagrams, with bytes under way in both directions all the time.
//!
//! Each end numbers what it sends, and checks the other's numbers. Datagrams are as QUIC's: they carry the flow's name
//! (a connection id), a few of each end are in flight at a time, and each is acknowledged.

mod datagrams;
mod server;
mod stream;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum as _;
use serde::{Deserialize, Serialize};

use crate::wait::wait_for;

pub use server::LongServer;

/// What a flow is, to its client's kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum FlowKind {
    Stream,
    /// Datagrams of a socket without a connect.
    Datagrams,
    ConnectedDatagrams,
}

/// Between two bursts of an end.
const PACE: Duration = Duration::from_millis(20);
/// How much the flow must go on to be alive.
const SOME: u64 = 20;
const SOON: Duration = Duration::from_secs(10);

/// What the client's end has seen since it began.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// What the other end has for certain (datagrams), or what was written (TCP).
    pub sent: u64,
    /// What came from the other end, in its order.
    pub received: u64,
    /// Datagrams without an acknowledgement in time, and those that the other end numbered and that did not come.
    pub lost: u64,
    /// Datagrams in flight at a time, at most.
    pub most_in_flight: u64,
    /// As whom the other end was shown: by each datagram's source, or by `getpeername`.
    pub shown_as: BTreeMap<SocketAddr, u64>,
    /// Who the other end says that it is.
    pub servers: BTreeMap<String, u64>,
    pub broken: Option<String>,
}

/// Runs a flow until the end of standard input; prints its [`Progress`] for each line of that.
pub fn run(target: SocketAddr, kind: FlowKind) -> Result<()> {
    let progress = Arc::new(Mutex::new(Progress::default()));
    let flow = match kind {
        FlowKind::Stream => stream::start(target, &progress)?,
        FlowKind::Datagrams => datagrams::start(target, false, &progress)?,
        FlowKind::ConnectedDatagrams => datagrams::start(target, true, &progress)?,
    };
    for line in std::io::stdin().lines() {
        line?;
        flow.look();
        let told = serde_json::to_string(&*lock(&progress))?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{told}")?;
        out.flush()?;
    }
    Ok(())
}

/// The running end, as far as its owner asks it anything.
enum Running {
    Stream(std::net::TcpStream, Arc<Mutex<Progress>>),
    Connected(std::net::UdpSocket, Arc<Mutex<Progress>>),
    Datagrams,
}

impl Running {
    /// Asks the kernel whom the socket is connected to.
    fn look(&self) {
        let (peer, progress) = match self {
            Self::Stream(stream, progress) => (stream.peer_addr(), progress),
            Self::Connected(socket, progress) => (socket.peer_addr(), progress),
            Self::Datagrams => return,
        };
        let mut progress = lock(progress);
        match peer {
            Ok(peer) => *progress.shown_as.entry(peer).or_default() += 1,
            // What broke it was told before.
            Err(error) => {
                let told = || format!("getpeername: {error}");
                progress.broken.get_or_insert_with(told);
            }
        }
    }
}

/// The time to read was over, or a signal came: a call with a time is not taken up again by itself (`signal(7)`).
fn is_nothing_yet(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Such a flow of a pod, as scenarios hold it. It ends when dropped.
#[derive(Debug)]
pub struct LongFlow {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    target: SocketAddr,
}

impl LongFlow {
    pub(crate) fn start(mut command: Command, target: SocketAddr, kind: FlowKind) -> Result<Self> {
        let kind = kind.to_possible_value().context("a kind without a name")?;
        command.args(["long", "--kind", kind.get_name()]);
        command.arg("--target").arg(target.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start a flow")?;
        let orders = child.stdin.take().context("a flow without an input")?;
        let answers = child.stdout.take().context("a flow without an output")?;
        Ok(Self {
            child,
            orders,
            answers: BufReader::new(answers),
            target,
        })
    }

    /// What it has seen; an error if it is broken, or was shown anybody but the service.
    pub fn progress(&mut self) -> Result<Progress> {
        writeln!(self.orders, "mark")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let progress: Progress =
            serde_json::from_str(&line).with_context(|| format!("the flow said {line:?}"))?;
        let shown = progress.shown_as.keys().all(|from| *from == self.target);
        ensure!(
            progress.broken.is_none() && progress.lost == 0 && shown,
            "a flow to {}: {progress:?}",
            self.target
        );
        Ok(progress)
    }

    /// Waits until more has gone both ways than `before`, and gives what it has seen.
    pub fn goes_on(&mut self, before: &Progress) -> Result<Progress> {
        let more = |now: &Progress| {
            now.sent >= before.sent + SOME && now.received >= before.received + SOME
        };
        // What is broken does not mend: it is told at once.
        let (_, now) = wait_for("the flow goes on", SOON, || match self.progress() {
            Ok(now) => Ok(more(&now).then_some(Ok(now))),
            broken => Ok(Some(broken)),
        })?;
        now
    }
}

impl Drop for LongFlow {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
