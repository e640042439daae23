//! The timed calls. Each connection is of a fresh socket; both ends are in one thread, so that no wake-up is timed.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use isthmus_core::model::Protocol;
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, accept, bind, connect, getpeername, listen, socket_with,
};

use super::fleet::BACKEND_PORT;
use crate::bench::stats::quantile;

/// Connections of a batch, and those before that are not timed: programs were just attached.
pub const TIMED: usize = 300;
pub const WARM: usize = 40;

/// What one batch cost a connection, in nanoseconds: the median of its connections.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Cost {
    pub connect: f64,
    /// Socket to close, with the other end's accept and close if there is one.
    pub cycle: f64,
}

/// How a connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// The client closes first, as clients do.
    Closed,
    /// The client resets it instead.
    Reset,
    /// Nobody listens: it never begins.
    Refused,
}

#[derive(Debug)]
pub struct Caller {
    protocol: Protocol,
    ending: Ending,
    listener: Option<OwnedFd>,
}

impl Caller {
    /// With a TCP listener on every address of this namespace.
    pub fn new(protocol: Protocol) -> Result<Self> {
        Self::ending(protocol, Ending::Closed)
    }

    /// With that listener, unless connects are to be refused.
    pub fn ending(protocol: Protocol, ending: Ending) -> Result<Self> {
        let mut caller = Self {
            protocol,
            ending,
            listener: None,
        };
        if ending == Ending::Refused {
            return Ok(caller);
        }
        let listener = socket(SocketType::STREAM)?;
        bind(
            &listener,
            &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, BACKEND_PORT),
        )?;
        listen(&listener, 16)?;
        caller.listener = Some(listener);
        Ok(caller)
    }

    /// Connects to each target in turn. The first [`WARM`] are not counted.
    pub fn batch(&self, targets: &[SocketAddrV4]) -> Result<Cost> {
        let mut connects = Vec::with_capacity(targets.len());
        let mut cycles = Vec::with_capacity(targets.len());
        for target in targets {
            let (connect, cycle) = match self.protocol {
                Protocol::Udp => self.datagram(target),
                _ => self.stream(target),
            }
            .with_context(|| format!("connect to {target}"))?;
            connects.push(connect);
            cycles.push(cycle);
        }
        let median = |costs: &mut Vec<f64>| quantile(costs.split_off(WARM.min(costs.len())), 0.5);
        Ok(Cost {
            connect: median(&mut connects),
            cycle: median(&mut cycles),
        })
    }

    fn stream(&self, target: &SocketAddrV4) -> Result<(f64, f64)> {
        let start = Instant::now();
        let client = socket(SocketType::STREAM)?;
        let before = Instant::now();
        let connected = connect(&client, target);
        let after = Instant::now();
        let Some(listener) = &self.listener else {
            ensure!(
                connected == Err(Errno::CONNREFUSED),
                "{connected:?}, though nobody listens"
            );
            drop(client);
            return Ok((nanos(before, after), nanos(start, Instant::now())));
        };
        connected?;
        let server = accept(listener)?;
        if self.ending == Ending::Reset {
            set_socket_linger(&client, Some(Duration::ZERO))?;
        }
        drop(client);
        drop(server);
        Ok((nanos(before, after), nanos(start, Instant::now())))
    }

    fn datagram(&self, target: &SocketAddrV4) -> Result<(f64, f64)> {
        let start = Instant::now();
        let client = socket(SocketType::DGRAM)?;
        let before = Instant::now();
        connect(&client, target)?;
        let after = Instant::now();
        drop(client);
        Ok((nanos(before, after), nanos(start, Instant::now())))
    }
}

/// A connected UDP socket, whose `getpeername` can be asked again and again.
pub fn connected(target: &SocketAddrV4) -> Result<OwnedFd> {
    let socket = socket(SocketType::DGRAM)?;
    connect(&socket, target)?;
    Ok(socket)
}

/// The cost of `getpeername`: the median of groups of ten, so that the clock's own cost is small.
pub fn getpeername_cost(socket: &OwnedFd, wanted: &SocketAddrV4) -> Result<f64> {
    const GROUP: u32 = 10;
    let mut costs = Vec::with_capacity(WARM + TIMED);
    for _ in 0..WARM + TIMED {
        let before = Instant::now();
        for _ in 0..GROUP {
            std::hint::black_box(getpeername(socket)?);
        }
        costs.push(nanos(before, Instant::now()) / f64::from(GROUP));
    }
    let peer = getpeername(socket)?.context("a connected socket has a peer")?;
    let peer = SocketAddr::try_from(peer)?;
    ensure!(
        peer == SocketAddr::V4(*wanted),
        "getpeername shows {peer}, not {wanted}"
    );
    Ok(quantile(costs.split_off(WARM), 0.5))
}

fn socket(kind: SocketType) -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)
}

#[expect(clippy::cast_precision_loss, reason = "a call is no 2^52 nanoseconds")]
fn nanos(from: Instant, to: Instant) -> f64 {
    (to - from).as_nanos() as f64
}
