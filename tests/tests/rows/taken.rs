//! Errors that a socket's owner takes before the kernel reports them: who waits by `poll` is woken first, and may be faster on
//! another CPU; and an MPTCP connection takes its subflow's. They are counted all the same.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use isthmus_abi::{BackendFailuresRow, ServiceLimitsRow, service_flags};
use isthmus_core::model::Protocol;
use nix::libc;
use rustix::net::connect_unspec;
use socket2::{Domain, Socket, Type};

use super::Row;
use super::connect::{Kind, open};
use super::world::World;

const KINDS: [Kind; 3] = [Kind::V4, Kind::V6, Kind::Mptcp];
const ROUNDS: usize = 200;
/// How often some are destroyed together.
const DESTROYED: usize = 50;
/// Of which enough are asked just when they end, at a first and only time.
const MANY: usize = 400;
/// Connects that time out, or are destroyed, together.
const TOGETHER: usize = 16;

pub fn rows() -> Vec<Row> {
    let kinds = KINDS.into_iter().filter(|kind| kind.exists(Protocol::Tcp));
    kinds
        .flat_map(|kind| -> [Row; 5] {
            [
                (
                    format!("taken: {kind:?}: refused"),
                    Box::new(move |world| refused(world, kind)),
                ),
                (
                    format!("taken: {kind:?}: timed out"),
                    Box::new(move |world| timed_out(world, kind)),
                ),
                (
                    format!("taken: {kind:?}: given up by its owner is no failure"),
                    Box::new(move |world| given_up(world, kind)),
                ),
                (
                    format!("taken: {kind:?}: destroyed from outside is no failure"),
                    Box::new(move |world| destroyed(world, kind, DESTROYED, TOGETHER, 0)),
                ),
                (
                    format!("taken: {kind:?}: destroyed after a first time-out is no failure"),
                    Box::new(move |world| destroyed(world, kind, 1, MANY, MANY)),
                ),
            ]
        })
        .collect()
}

/// A service of one backend, which nothing ejects.
fn service(world: &mut World, kind: Kind, backend: SocketAddr) -> anyhow::Result<()> {
    let (service, address) = (kind.index(), kind.service().ip());
    world.service(service, address, Protocol::Tcp, &[backend])?;
    let limits = ServiceLimitsRow {
        allowed_total: 0,
        affinity_seconds: 0,
        flags: service_flags::NO_PASSIVE_HEALTH,
    };
    Ok(world.tables().service_limits.put(service, limits)?)
}

/// A port of its own, where nobody listens yet.
fn port(kind: Kind) -> anyhow::Result<Socket> {
    let (domain, ip): (_, IpAddr) = if kind == Kind::V6 {
        (Domain::IPV6, Ipv6Addr::LOCALHOST.into())
    } else {
        (Domain::IPV4, Ipv4Addr::new(127, 0, 1, 3).into())
    };
    let socket = Socket::new(domain, Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(ip, 0).into())?;
    Ok(socket)
}

/// Listens, and answers no connect.
pub(super) struct Deaf {
    _listener: Socket,
    _queued: TcpStream,
    pub(super) address: SocketAddr,
}

impl Deaf {
    pub(super) fn new(kind: Kind) -> anyhow::Result<Self> {
        let listener = port(kind)?;
        // There is room for one more than so many.
        listener.listen(0)?;
        let address = address(&listener)?;
        Ok(Self {
            _queued: TcpStream::connect(address)?,
            _listener: listener,
            address,
        })
    }
}

fn address(socket: &Socket) -> anyhow::Result<SocketAddr> {
    let address = socket.local_addr()?;
    Ok(address.as_socket().expect("an IP address"))
}

fn failures(world: &World, kind: Kind) -> anyhow::Result<BackendFailuresRow> {
    let rows = world.datapath().array::<BackendFailuresRow>()?;
    Ok(rows.get(kind.index() * 4))
}

/// Asks every socket for its error, without a pause, until each had one or `ends` says so; how many had which.
fn take_errors(sockets: &[Socket], wanted: i32, ends: &AtomicBool) -> anyhow::Result<usize> {
    let mut taken = vec![false; sockets.len()];
    while !ends.load(Ordering::Relaxed) && taken.iter().any(|taken| !taken) {
        for (socket, taken) in sockets.iter().zip(&mut taken).filter(|(_, taken)| !**taken) {
            if let Some(error) = socket.take_error()? {
                ensure!(error.raw_os_error() == Some(wanted), "{error}");
                *taken = true;
            }
        }
    }
    Ok(taken.into_iter().filter(|taken| *taken).count())
}

pub(super) fn non_blocking(kind: Kind) -> anyhow::Result<Socket> {
    let socket = open(kind, Protocol::Tcp)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Connects a non-blocking socket.
pub(super) fn begin(socket: &Socket, kind: Kind) -> anyhow::Result<()> {
    let begun = socket.connect(&kind.service().into());
    let errno = begun.err().and_then(|error| error.raw_os_error());
    ensure!(errno == Some(libc::EINPROGRESS), "connect says {errno:?}");
    Ok(())
}

fn refused(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    let closed = port(kind)?;
    service(world, kind, address(&closed)?)?;
    let before = failures(world, kind)?;
    for round in 1..=ROUNDS {
        let socket = [non_blocking(kind)?];
        let ends = AtomicBool::new(false);
        let taken = std::thread::scope(|scope| {
            let other = scope.spawn(|| take_errors(&socket, libc::ECONNREFUSED, &ends));
            begin(&socket[0], kind)?;
            let begun = Instant::now();
            while !other.is_finished() && begun.elapsed() < Duration::from_secs(2) {
                std::thread::yield_now();
            }
            ends.store(true, Ordering::Relaxed);
            other.join().expect("no thread panics")
        })?;
        ensure!(taken == 1, "nobody was refused in round {round}");
    }
    let now = failures(world, kind)?;
    let counted = now.refused - before.refused;
    ensure!(
        counted == ROUNDS as u64,
        "{counted} of {ROUNDS} were counted: {now:?}"
    );
    ensure!((now.unreachable, now.timed_out) == (before.unreachable, before.timed_out));
    Ok(())
}

fn timed_out(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    fs::write("/proc/sys/net/ipv4/tcp_syn_retries", "1")?;
    let deaf = Deaf::new(kind)?;
    service(world, kind, deaf.address)?;
    let before = failures(world, kind)?;
    // Half of them have an owner that does not ask.
    let sockets = (0..2 * TOGETHER).map(|_| non_blocking(kind));
    let sockets: Vec<Socket> = sockets.collect::<anyhow::Result<_>>()?;
    for socket in &sockets {
        begin(socket, kind)?;
    }
    let ends = AtomicBool::new(false);
    let (asked, left) = sockets.split_at(TOGETHER);
    let taken = std::thread::scope(|scope| {
        let other = scope.spawn(|| take_errors(asked, libc::ETIMEDOUT, &ends));
        let begun = Instant::now();
        while !other.is_finished() && begun.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(50));
        }
        ends.store(true, Ordering::Relaxed);
        other.join().expect("no thread panics")
    })?;
    ensure!(taken == TOGETHER, "{taken} of {TOGETHER} timed out");
    std::thread::sleep(Duration::from_millis(100));
    let left = take_errors(left, libc::ETIMEDOUT, &AtomicBool::new(false))?;
    let now = failures(world, kind)?;
    let counted = now.timed_out - before.timed_out;
    ensure!(
        counted == (taken + left) as u64,
        "{counted} of {} were counted: {now:?}",
        taken + left
    );
    ensure!((now.unreachable, now.refused) == (before.unreachable, before.refused));
    Ok(())
}

fn given_up(world: &mut World, kind: Kind) -> anyhow::Result<()> {
    let deaf = Deaf::new(kind)?;
    service(world, kind, deaf.address)?;
    let before = failures(world, kind)?;
    let ways: [fn(&Socket) -> anyhow::Result<()>; 4] = [
        |_| Ok(()),
        |socket| Ok(socket.set_linger(Some(Duration::ZERO))?),
        |socket| Ok(socket.shutdown(Shutdown::Both)?),
        |socket| Ok(connect_unspec(socket)?),
    ];
    for give_up in ways {
        for _ in 0..TOGETHER {
            let socket = non_blocking(kind)?;
            begin(&socket, kind)?;
            // Not every kernel does each of them to every kind of socket.
            let _ = give_up(&socket);
        }
    }
    // What of it the kernel leaves to a worker is done soon.
    std::thread::sleep(Duration::from_millis(50));
    let now = failures(world, kind)?;
    ensure!(now == before, "{now:?}");
    Ok(())
}

/// Destroys what connects in this namespace.
fn destroy_all() -> anyhow::Result<()> {
    let status = Command::new("ss")
        .args(["-K", "-H", "-n", "-t", "state", "syn-sent"])
        .stdout(Stdio::null())
        .status()
        .context("starting ss")?;
    ensure!(status.success(), "ss -K: {status}");
    Ok(())
}

/// Of many connects at a time, in so many `rounds`: each time as soon as so many first SYNs were `unanswered`.
fn destroyed(
    world: &mut World,
    kind: Kind,
    rounds: usize,
    many: usize,
    unanswered: usize,
) -> anyhow::Result<()> {
    let deaf = Deaf::new(kind)?;
    service(world, kind, deaf.address)?;
    let before = failures(world, kind)?;
    for round in 1..=rounds {
        let sockets = (0..many).map(|_| non_blocking(kind));
        let sockets: Vec<Socket> = sockets.collect::<anyhow::Result<_>>()?;
        for socket in &sockets {
            begin(socket, kind)?;
        }
        let begun = Instant::now();
        while failures(world, kind)?.unanswered - before.unanswered < unanswered as u64 {
            ensure!(
                begun.elapsed() < Duration::from_secs(5),
                "no first time-out"
            );
            std::thread::yield_now();
        }
        let ends = AtomicBool::new(false);
        let taken = std::thread::scope(|scope| {
            let other = scope.spawn(|| take_errors(&sockets, libc::ECONNABORTED, &ends));
            let begun = Instant::now();
            let mut asked = Ok(());
            while asked.is_ok() && !other.is_finished() && begun.elapsed() < Duration::from_secs(2)
            {
                asked = destroy_all();
            }
            ends.store(true, Ordering::Relaxed);
            let taken = other.join().expect("no thread panics");
            asked.and(taken)
        })?;
        ensure!(
            taken == many,
            "{taken} of {many} were destroyed in round {round}"
        );
    }
    let now = failures(world, kind)?;
    ensure!(
        (now.refused, now.unreachable, now.timed_out)
            == (before.refused, before.unreachable, before.timed_out),
        "{now:?}"
    );
    ensure!(unanswered > 0 || now == before, "{now:?}");
    Ok(())
}
