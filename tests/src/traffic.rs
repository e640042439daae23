//! A client in a pod, as scenarios hold it.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::client::{Report, Target, Transport};
use crate::process::{Process, open_log, tail};

/// How requests go out. One connection a request; no retry.
#[derive(Clone, Debug)]
pub struct Requests {
    pub targets: Vec<Target>,
    pub transport: Transport,
    pub workers: usize,
    /// See [`crate::client::Options::batch`].
    pub batch: usize,
    pub timeout: Duration,
    /// See [`crate::client::Options::timed`].
    pub timed: bool,
    /// See [`crate::client::Options::blocking`].
    pub blocking: bool,
}

impl Requests {
    /// TCP to `ADDRESS:PORT[=SERVICE]`.
    pub fn to(target: &str) -> Result<Self> {
        Self::to_all([target])
    }
    pub fn to_all<'a>(targets: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let targets = targets.into_iter().map(str::parse).collect::<Result<_>>()?;
        Ok(Self {
            targets,
            transport: Transport::Tcp,
            workers: 4,
            batch: 1,
            timeout: Duration::from_secs(1),
            timed: false,
            blocking: false,
        })
    }
    #[must_use]
    pub fn udp(mut self, batch: usize) -> Self {
        self.transport = Transport::Udp;
        self.batch = batch;
        self
    }
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
    #[must_use]
    pub fn timed(mut self) -> Self {
        self.timed = true;
        self
    }
    #[must_use]
    pub fn blocking(mut self) -> Self {
        self.blocking = true;
        self
    }
    pub(crate) fn arguments(&self, command: &mut Command) {
        command.arg("client").arg("--json-events");
        for target in &self.targets {
            command.arg("--target").arg(target.to_string());
        }
        let transport = match self.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        command.args(["--transport", transport]);
        if self.timed {
            command.arg("--timed");
        }
        if self.blocking {
            command.arg("--blocking");
        }
        command.arg("--workers").arg(self.workers.to_string());
        command.arg("--batch").arg(self.batch.to_string());
        command
            .arg("--timeout-ms")
            .arg(self.timeout.as_millis().to_string());
    }
}

/// A running client. It is killed when dropped.
#[derive(Debug)]
pub struct Traffic {
    process: Process,
    orders: ChildStdin,
    reports: BufReader<ChildStdout>,
    total: Report,
}

impl Traffic {
    pub(crate) fn start(name: &str, mut command: Command, log: std::path::PathBuf) -> Result<Self> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(open_log(&log)?);
        let mut child = command.spawn().context("cannot start a client")?;
        let orders = child
            .stdin
            .take()
            .context("a client without a standard input")?;
        let reports = BufReader::new(
            child
                .stdout
                .take()
                .context("a client without a standard output")?,
        );
        Ok(Self {
            process: Process::adopt(name, child, log),
            orders,
            reports,
            total: Report::default(),
        })
    }
    /// Requests a second from now on; 0 is as many as it can.
    pub fn rate(&mut self, per_second: f64) -> Result<()> {
        self.order(&format!("rate {per_second}"))
    }
    /// What happened since the last report, while requests go on.
    pub fn mark(&mut self) -> Result<Report> {
        self.order("mark")?;
        self.report()
    }
    /// Finishes what is under way and reports: nothing is left in the air, so counts can be compared with the kernel's.
    pub fn pause(&mut self) -> Result<Report> {
        self.order("pause")?;
        self.report()
    }
    /// All that was ever reported.
    #[must_use]
    pub fn total(&self) -> &Report {
        &self.total
    }
    /// Ends the client.
    pub fn stop(mut self) -> Result<Report> {
        self.order("stop")?;
        self.report()
    }
    fn order(&mut self, line: &str) -> Result<()> {
        writeln!(self.orders, "{line}").with_context(|| {
            format!(
                "{} is gone: {}",
                self.process.name(),
                tail(self.process.log(), 5)
            )
        })
    }
    fn report(&mut self) -> Result<Report> {
        let mut line = String::new();
        self.reports.read_line(&mut line)?;
        let report: Report = serde_json::from_str(&line)
            .with_context(|| format!("no report but {line:?}; {}", tail(self.process.log(), 5)))?;
        self.total = std::mem::take(&mut self.total).and(&report);
        Ok(report)
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        // It has ended already, or must.
        let _ = self.process.kill();
    }
}
