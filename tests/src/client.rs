//! A client that opens one connection a request, never retries, and counts who answered.
//!
//! It obeys lines on its standard input: `rate N` (requests a second in all; 0 = as fast as it can), `pause` (finishes
//! what is under way), `mark` and `stop`. `pause`, `mark` and `stop` each print one [`Report`] of everything since the last
//! one, as a line of JSON.

mod report;

use std::io::{BufRead, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{setsockopt, sockopt};
use nix::time::{ClockId, clock_gettime};

use report::Outcome;
pub use report::{Answers, BROKEN_OFF, Failure, GIVEN_UP, NO_ANSWER, REFUSED, Report, TIMED_OUT};

/// Where requests go, and the service that must answer them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    pub address: SocketAddr,
    /// Any answer is right if none is named.
    pub service: Option<String>,
}

impl std::str::FromStr for Target {
    type Err = anyhow::Error;
    /// `ADDRESS:PORT` or `ADDRESS:PORT=SERVICE`.
    fn from_str(text: &str) -> Result<Self> {
        let (address, service) = match text.split_once('=') {
            Some((address, service)) => (address, Some(service.to_owned())),
            None => (text, None),
        };
        let address = address
            .parse()
            .with_context(|| format!("{address:?} is not ADDRESS:PORT"))?;
        Ok(Self { address, service })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.service {
            Some(service) => write!(f, "{}={service}", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Transport {
    Tcp,
    Udp,
}

#[derive(Clone, Debug)]
pub struct Options {
    pub targets: Vec<Target>,
    pub transport: Transport,
    /// Requests a second at the start; `None` waits for `rate`.
    pub rate: Option<f64>,
    pub workers: usize,
    /// Connected UDP sockets that are open at a time, a worker: one wake-up answers many.
    pub batch: usize,
    pub timeout: Duration,
    /// Whether reports tell how long each TCP connect took.
    pub timed: bool,
    /// Whether a TCP connect blocks for as long as the kernel tries; else it is polled for, until `timeout`.
    pub blocking: bool,
}

/// `CLOCK_MONOTONIC` in nanoseconds: the same clock in every process of the machine.
#[must_use]
pub fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has CLOCK_MONOTONIC");
    u64::try_from(now.tv_sec()).unwrap_or(0) * 1_000_000_000
        + u64::try_from(now.tv_nsec()).unwrap_or(0)
}

/// What the workers are to do, and what they did.
struct Shared {
    orders: Mutex<Orders>,
    changed: Condvar,
    report: Mutex<Report>,
    idle: Condvar,
}

struct Orders {
    /// Time between two requests of one worker; `None`: pause.
    pace: Option<Duration>,
    /// Grows with each change of pace, so that a worker starts its schedule anew.
    version: u64,
    busy: usize,
    stop: bool,
}

/// Runs the client until `stop` or the end of standard input.
pub fn run(options: &Options) -> Result<()> {
    if options.targets.is_empty() {
        bail!("no --target");
    }
    let shared = Arc::new(Shared::new());
    if let Some(rate) = options.rate {
        shared.set_pace(Some(pace(rate, options.workers)));
    }
    let workers = start_workers(&shared, options);
    for line in std::io::stdin().lock().lines() {
        if obey(&line?, &shared, options.workers)? {
            break;
        }
    }
    shared.set_pace(None);
    lock(&shared.orders).stop = true;
    shared.changed.notify_all();
    for worker in workers {
        let _ = worker.join();
    }
    print_report(&shared)
}

fn start_workers(shared: &Arc<Shared>, options: &Options) -> Vec<std::thread::JoinHandle<()>> {
    let start = |number| {
        let (shared, options) = (Arc::clone(shared), options.clone());
        std::thread::spawn(move || work(number, &shared, &options))
    };
    (0..options.workers).map(start).collect()
}

fn obey(line: &str, shared: &Shared, workers: usize) -> Result<bool> {
    match line.split_whitespace().collect::<Vec<_>>()[..] {
        ["rate", rate] => {
            let rate = rate
                .parse()
                .with_context(|| format!("{rate:?} is not a rate"))?;
            shared.set_pace(Some(pace(rate, workers)));
        }
        ["mark"] => print_report(shared)?,
        ["pause"] => {
            shared.set_pace(None);
            let orders = lock(&shared.orders);
            let idle = shared.idle.wait_while(orders, |o| o.busy > 0);
            drop(idle.unwrap_or_else(PoisonError::into_inner));
            print_report(shared)?;
        }
        ["stop"] => return Ok(true),
        _ => bail!("unknown order {line:?}"),
    }
    Ok(false)
}

fn print_report(shared: &Shared) -> Result<()> {
    let mut report = std::mem::take(&mut *lock(&shared.report));
    report.at = monotonic();
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(&report)?)?;
    out.flush()?;
    Ok(())
}

fn pace(rate: f64, workers: usize) -> Duration {
    if rate <= 0.0 {
        return Duration::ZERO;
    }
    Duration::from_secs_f64(workers as f64 / rate)
}

impl Shared {
    fn new() -> Self {
        Self {
            orders: Mutex::new(Orders {
                pace: None,
                version: 0,
                busy: 0,
                stop: false,
            }),
            changed: Condvar::new(),
            report: Mutex::new(Report::default()),
            idle: Condvar::new(),
        }
    }
    fn set_pace(&self, pace: Option<Duration>) {
        let mut orders = lock(&self.orders);
        orders.pace = pace;
        orders.version += 1;
        drop(orders);
        self.changed.notify_all();
    }
    /// The pace and its version, once there is one; `None` at the end. The worker counts as busy from here to [`Self::rest`].
    fn next_orders(&self) -> Option<(Duration, u64)> {
        let orders = lock(&self.orders);
        let mut orders = self
            .changed
            .wait_while(orders, |o| o.pace.is_none() && !o.stop)
            .unwrap_or_else(PoisonError::into_inner);
        let pace = orders.pace?;
        orders.busy += 1;
        Some((pace, orders.version))
    }
    fn rest(&self) {
        lock(&self.orders).busy -= 1;
        self.idle.notify_all();
    }
    fn is_current(&self, version: u64) -> bool {
        lock(&self.orders).version == version
    }
}

fn work(number: usize, shared: &Shared, options: &Options) {
    let mut turn = number;
    while let Some((pace, version)) = shared.next_orders() {
        // Workers start evenly shifted, so that requests do not come in bursts.
        let shift = pace.mul_f64(number as f64 / options.workers as f64);
        let mut due = Instant::now() + shift;
        while shared.is_current(version) {
            if pace > Duration::ZERO {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                due += pace;
                if !shared.is_current(version) {
                    break;
                }
            }
            turn = turn.wrapping_add(1);
            requests(turn, shared, options);
        }
        shared.rest();
    }
}

fn requests(turn: usize, shared: &Shared, options: &Options) {
    let target = &options.targets[turn % options.targets.len()];
    match options.transport {
        Transport::Tcp => {
            let begin = Instant::now();
            let connected = if options.blocking {
                TcpStream::connect(target.address)
            } else {
                TcpStream::connect_timeout(&target.address, options.timeout)
            };
            let took = (options.timed && connected.is_ok()).then(|| begin.elapsed());
            let outcome = match connected {
                Ok(stream) => tcp_answer(stream, options.timeout)
                    .unwrap_or_else(|error| Outcome::unanswered(&error)),
                Err(error) => Outcome::unconnected(&error),
            };
            let mut report = lock(&shared.report);
            report.record(target, &outcome);
            let nanoseconds = took.and_then(|took| u64::try_from(took.as_nanos()).ok());
            report.connect_times.extend(nanoseconds);
        }
        Transport::Udp => {
            let outcomes = udp_requests(turn, options);
            let mut report = lock(&shared.report);
            for (target, outcome) in &outcomes {
                report.record(target, outcome);
            }
        }
    }
}

fn tcp_answer(mut stream: TcpStream, timeout: Duration) -> std::io::Result<Outcome> {
    stream.set_read_timeout(Some(timeout))?;
    // Closing with a reset leaves no socket behind in TIME_WAIT: its port is free for the next request at once.
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&stream, sockopt::Linger, &linger)?;
    let mut text = [0; 128];
    let mut length = 0;
    loop {
        let got = match stream.read(&mut text[length..]) {
            // A call with a time is not taken up again by itself when a signal came (`signal(7)`).
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            got => got?,
        };
        length += got;
        if got == 0 || text[..length].ends_with(b"\n") || length == text.len() {
            return Ok(Outcome::said(&text[..length]));
        }
    }
}

/// Opens a batch of connected sockets, each to a target of its own turn, asks on all, then reads from all.
fn udp_requests(turn: usize, options: &Options) -> Vec<(&Target, Outcome)> {
    let batch = options.batch.max(1);
    let targets = (0..batch).map(|i| &options.targets[(turn * batch + i) % options.targets.len()]);
    let asked: Vec<_> = targets
        .map(|target| (target, udp_ask(target.address, options.timeout)))
        .collect();
    let answer = |socket: std::io::Result<UdpSocket>| -> std::io::Result<Outcome> {
        let mut text = [0; 128];
        let socket = socket?;
        loop {
            match socket.recv(&mut text) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                length => return Ok(Outcome::said(&text[..length?])),
            }
        }
    };
    asked
        .into_iter()
        .map(|(target, socket)| {
            let outcome = answer(socket).unwrap_or_else(|error| Outcome::unanswered(&error));
            (target, outcome)
        })
        .collect()
}

fn udp_ask(address: SocketAddr, timeout: Duration) -> std::io::Result<UdpSocket> {
    let any = if address.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(timeout))?;
    socket.connect(address)?;
    socket.send(b"?")?;
    Ok(socket)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The client without orders: prints a line of counts each second, for people, until it is interrupted.
pub fn run_for_people(options: &Options) -> Result<()> {
    let shared = Arc::new(Shared::new());
    shared.set_pace(Some(pace(options.rate.unwrap_or(100.0), options.workers)));
    start_workers(&shared, options);
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let report = std::mem::take(&mut *lock(&shared.report));
        let mut out = std::io::stdout().lock();
        write!(
            out,
            "{} requests, {} failed",
            report.requests,
            report.failed()
        )?;
        for (name, answers) in &report.answers {
            write!(out, "  {name}: {}", answers.count)?;
        }
        for (error, count) in &report.failures {
            write!(out, "  {error}: {count}")?;
        }
        writeln!(out)?;
    }
}
