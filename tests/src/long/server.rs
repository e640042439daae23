//! The other end of long flows, in a pod's network namespace, held by the test: it outlives the pod's own server.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result};

use super::datagrams::{Datagram, End};
use super::{PACE, is_nothing_yet, stream};
use crate::pod::Pod;

/// Serves long flows at one port, by TCP and UDP, IPv4 and IPv6, until it is dropped.
#[derive(Debug)]
pub struct LongServer {
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl LongServer {
    pub fn start(pod: &Pod<'_>, port: u16) -> Result<Self> {
        let any = (Ipv6Addr::UNSPECIFIED, port);
        let (tcp, udp) = pod
            .netns()
            .run(|| Ok((TcpListener::bind(any)?, UdpSocket::bind(any)?)))?
            .map_err(|error: std::io::Error| error)
            .with_context(|| format!("{} at port {port}", pod.name()))?;
        tcp.set_nonblocking(true)?;
        udp.set_read_timeout(Some(PACE))?;
        let end = Arc::new(AtomicBool::new(false));
        let (name, of_tcp) = (pod.name(), Arc::clone(&end));
        let streams = std::thread::spawn(move || streams(&tcp, &name, &of_tcp));
        let (name, of_udp) = (pod.name(), Arc::clone(&end));
        let datagrams = std::thread::spawn(move || {
            // Only the end of the pod ends its socket.
            let _ = datagrams(&udp, &name, &of_udp);
        });
        Ok(Self {
            end,
            threads: vec![streams, datagrams],
        })
    }
}

impl Drop for LongServer {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn streams(listener: &TcpListener, name: &str, end: &Arc<AtomicBool>) {
    while !end.load(Ordering::Relaxed) {
        let Ok((connection, _)) = listener.accept() else {
            // Nobody there: how often this end looks.
            std::thread::sleep(PACE);
            continue;
        };
        let ready = connection
            .set_nonblocking(false)
            .and_then(|()| connection.set_read_timeout(Some(PACE)));
        let (Ok(()), Ok(reader)) = (ready, connection.try_clone()) else {
            continue;
        };
        let (of_reader, of_writer) = (Arc::clone(end), Arc::clone(end));
        let name = name.to_owned();
        // Whatever ends them ends the connection, which the client tells.
        std::thread::spawn(move || {
            let shut = reader.try_clone();
            stream::read(reader, &of_reader, drop);
            if let Ok(shut) = shut {
                let _ = shut.shutdown(std::net::Shutdown::Both);
            }
        });
        std::thread::spawn(move || stream::write(connection, &name, &of_writer, || ()));
    }
}

/// The flows that came, by connection id, each with where its client is.
fn datagrams(socket: &UdpSocket, name: &str, end: &AtomicBool) -> std::io::Result<()> {
    let mut flows: BTreeMap<u64, (SocketAddr, End)> = BTreeMap::new();
    let mut bytes = [0; 512];
    let mut due = Instant::now();
    while !end.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now >= due {
            for (client, flow) in flows.values_mut() {
                for datagram in flow.burst(now) {
                    socket.send_to(&datagram.bytes(), *client)?;
                }
            }
            due = now + PACE;
        }
        let (length, from) = match socket.recv_from(&mut bytes) {
            Err(error) if is_nothing_yet(&error) => continue,
            came => came?,
        };
        let Some(datagram) = Datagram::parse(&bytes[..length]) else {
            continue;
        };
        let connection = datagram.connection;
        let flow = flows.entry(connection);
        let (client, flow) = flow.or_insert_with(|| (from, End::new(connection, name)));
        *client = from;
        if let Some(answer) = flow.take(&datagram) {
            socket.send_to(&answer.bytes(), from)?;
        }
    }
    Ok(())
}
