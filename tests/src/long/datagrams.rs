//! Datagrams, with a connect or without: each end keeps a few numbered ones in flight, and acknowledges the other's.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{PACE, Progress, Running, is_nothing_yet, lock};

/// Datagrams of one end in flight.
const WINDOW: usize = 4;
/// Without an acknowledgement for so long, one is lost.
const PATIENCE: Duration = Duration::from_secs(2);

/// `connection id, number, kind, name of the sender`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Datagram {
    pub(super) connection: u64,
    pub(super) number: u64,
    pub(super) kind: Kind,
    pub(super) name: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Data,
    Acknowledgement,
}

impl Datagram {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.connection.to_be_bytes().to_vec();
        bytes.extend(self.number.to_be_bytes());
        bytes.push(self.kind as u8);
        bytes.extend(self.name.as_bytes());
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (connection, rest) = bytes.split_first_chunk()?;
        let (number, rest) = rest.split_first_chunk()?;
        let (kind, name) = rest.split_first()?;
        Some(Self {
            connection: u64::from_be_bytes(*connection),
            number: u64::from_be_bytes(*number),
            kind: match kind {
                0 => Kind::Data,
                1 => Kind::Acknowledgement,
                _ => return None,
            },
            name: std::str::from_utf8(name).ok()?.to_owned(),
        })
    }
}

/// One end of a flow.
#[derive(Debug)]
pub(super) struct End {
    connection: u64,
    name: String,
    next: u64,
    in_flight: BTreeMap<u64, Instant>,
    /// The other's next number.
    wanted: u64,
    pub(super) acknowledged: u64,
    pub(super) received: u64,
    pub(super) lost: u64,
    most_in_flight: usize,
}

impl End {
    pub(super) fn new(connection: u64, name: &str) -> Self {
        Self {
            connection,
            name: name.to_owned(),
            next: 0,
            in_flight: BTreeMap::new(),
            wanted: 0,
            acknowledged: 0,
            received: 0,
            lost: 0,
            most_in_flight: 0,
        }
    }

    /// What is to be sent now.
    pub(super) fn burst(&mut self, now: Instant) -> Vec<Datagram> {
        let all = self.in_flight.len();
        self.in_flight
            .retain(|_, sent| now.saturating_duration_since(*sent) < PATIENCE);
        self.lost += u64::try_from(all - self.in_flight.len()).unwrap_or(0);
        let mut burst = Vec::new();
        while self.in_flight.len() < WINDOW {
            burst.push(self.datagram(self.next, Kind::Data));
            self.in_flight.insert(self.next, now);
            self.next += 1;
        }
        self.most_in_flight = self.most_in_flight.max(self.in_flight.len());
        burst
    }

    /// Takes what the other end sent, and gives the answer to it.
    pub(super) fn take(&mut self, datagram: &Datagram) -> Option<Datagram> {
        if datagram.kind == Kind::Acknowledgement {
            let known = self.in_flight.remove(&datagram.number).is_some();
            self.acknowledged += u64::from(known);
            return None;
        }
        self.received += 1;
        // One path keeps the order: what is left out does not come any more.
        self.lost += datagram.number.abs_diff(self.wanted);
        self.wanted = datagram.number + 1;
        Some(self.datagram(datagram.number, Kind::Acknowledgement))
    }

    fn datagram(&self, number: u64, kind: Kind) -> Datagram {
        Datagram {
            connection: self.connection,
            number,
            kind,
            name: self.name.clone(),
        }
    }
}

pub(super) fn start(
    target: SocketAddr,
    connected: bool,
    progress: &Arc<Mutex<Progress>>,
) -> Result<Running> {
    let any = if target.is_ipv4() {
        SocketAddr::from(([0, 0, 0, 0], 0))
    } else {
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
    };
    let socket = UdpSocket::bind(any).context("no socket")?;
    socket.set_read_timeout(Some(PACE))?;
    let running = if connected {
        socket.connect(target).context("connect")?;
        Running::Connected(socket.try_clone()?, Arc::clone(progress))
    } else {
        Running::Datagrams
    };
    let progress = Arc::clone(progress);
    std::thread::spawn(move || {
        let send = |bytes: &[u8]| {
            if connected {
                socket.send(bytes)
            } else {
                socket.send_to(bytes, target)
            }
        };
        if let Err(error) = converse(&socket, &send, &progress) {
            lock(&progress).broken = Some(error.to_string());
        }
    });
    Ok(running)
}

fn converse(
    socket: &UdpSocket,
    send: &dyn Fn(&[u8]) -> std::io::Result<usize>,
    progress: &Mutex<Progress>,
) -> std::io::Result<()> {
    let connection = crate::client::monotonic();
    let mut end = End::new(connection, "client");
    let mut bytes = [0; 512];
    let mut due = Instant::now();
    loop {
        let now = Instant::now();
        if now >= due {
            for datagram in end.burst(now) {
                send(&datagram.bytes())?;
            }
            due = now + PACE;
        }
        let came = match socket.recv_from(&mut bytes) {
            Err(error) if is_nothing_yet(&error) => None,
            came => Some(came?),
        };
        let mut progress = lock(progress);
        if let Some((length, from)) = came {
            *progress.shown_as.entry(from).or_default() += 1;
            let datagram = Datagram::parse(&bytes[..length]);
            let datagram = datagram.filter(|datagram| datagram.connection == connection);
            let Some(datagram) = datagram else {
                return Err(std::io::Error::other("a datagram of no flow of ours"));
            };
            *progress.servers.entry(datagram.name.clone()).or_default() += 1;
            if let Some(answer) = end.take(&datagram) {
                send(&answer.bytes())?;
            }
        }
        progress.sent = end.acknowledged;
        progress.received = end.received;
        progress.lost = end.lost;
        progress.most_in_flight = u64::try_from(end.most_in_flight).unwrap_or(u64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_keep_a_window_in_flight_and_lose_nothing() {
        let (mut a, mut b) = (End::new(7, "a"), End::new(7, "b"));
        let now = Instant::now();
        for _ in 0..10 {
            for datagram in a.burst(now) {
                let parsed = Datagram::parse(&datagram.bytes()).expect("a datagram");
                assert_eq!(parsed, datagram);
                let answer = b.take(&parsed).expect("an acknowledgement");
                assert_eq!(a.take(&answer), None);
            }
        }
        assert_eq!((a.acknowledged, a.lost, a.most_in_flight), (40, 0, WINDOW));
        assert_eq!((b.received, b.lost), (40, 0));
    }

    #[test]
    fn what_is_left_out_or_never_acknowledged_is_lost() {
        let (mut a, mut b) = (End::new(7, "a"), End::new(7, "b"));
        let now = Instant::now();
        let burst = a.burst(now);
        b.take(&burst[0]);
        b.take(&burst[2]);
        assert_eq!((b.received, b.lost), (2, 1));
        assert_eq!(a.burst(now + PATIENCE).len(), WINDOW);
        assert_eq!(a.lost, WINDOW as u64);
    }
}
