//! One long UDP flow: a socket that lives as long as its owner wants, and is asked one datagram at a time.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Sends a datagram for each line of standard input, and says what came back: `ADDRESS:PORT said ANSWER`, with the address
/// that the sender is shown as, or `failed: ERROR`.
pub fn run(target: SocketAddr, connected: bool) -> Result<()> {
    let any = match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    if connected {
        socket.connect(target)?;
    }
    let mut out = std::io::stdout();
    for line in std::io::stdin().lines() {
        match ask(&socket, (!connected).then_some(target), line?.as_bytes()) {
            Ok((from, answer)) => writeln!(out, "{from} said {answer}")?,
            Err(error) => writeln!(out, "failed: {error}")?,
        }
    }
    Ok(())
}

fn ask(
    socket: &UdpSocket,
    target: Option<SocketAddr>,
    question: &[u8],
) -> std::io::Result<(SocketAddr, String)> {
    match target {
        Some(target) => socket.send_to(question, target)?,
        None => socket.send(question)?,
    };
    let mut answer = [0; 512];
    let (len, from) = loop {
        match socket.recv_from(&mut answer) {
            // A call with a time is not taken up again by itself when a signal came (`signal(7)`).
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            came => break came?,
        }
    };
    let answer = String::from_utf8_lossy(&answer[..len]);
    Ok((from, answer.trim_end().to_owned()))
}

/// Such a flow of a pod, as scenarios hold it. It ends when dropped.
#[derive(Debug)]
pub struct Flow {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// An answer, and as whose it was shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Said {
    pub from: SocketAddr,
    pub answer: String,
}

impl Flow {
    pub(crate) fn start(mut command: Command, target: SocketAddr, connected: bool) -> Result<Self> {
        command.arg("flow").arg("--target").arg(target.to_string());
        if connected {
            command.arg("--connected");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start a flow")?;
        let questions = child
            .stdin
            .take()
            .context("a flow without a standard input")?;
        let answers = child
            .stdout
            .take()
            .context("a flow without a standard output")?;
        Ok(Self {
            child,
            questions,
            answers: BufReader::new(answers),
        })
    }
    /// Sends a datagram and waits for its answer; the inner error is what the socket's owner saw.
    pub fn ask(&mut self) -> Result<Result<Said, String>> {
        writeln!(self.questions, "who")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let line = line.trim_end();
        if let Some(error) = line.strip_prefix("failed: ") {
            return Ok(Err(error.to_owned()));
        }
        let Some((from, answer)) = line.split_once(" said ") else {
            bail!("the flow ended, or said {line:?}");
        };
        Ok(Ok(Said {
            from: from.parse()?,
            answer: answer.to_owned(),
        }))
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
