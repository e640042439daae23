//! A backend: answers every connection, and every datagram, with its own name, and closes; at once, or late.

use std::io::Write;
use std::net::{Ipv6Addr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn6, bind, listen, setsockopt, socket,
    sockopt,
};

/// What a server answers: the service that the port stands for, then cluster and pod.
#[must_use]
pub fn answer(service: &str, pod: &str) -> String {
    format!("{service} {pod}\n")
}

/// Serves `ports` (port, service) over TCP and UDP, IPv4 and IPv6, until killed. Prints `listening` once it does.
///
/// Every connection is accepted at once and answered after `delay`; datagrams are answered at once.
pub fn serve(pod: &str, ports: &[(u16, String)], delay: Duration) -> Result<()> {
    let mut threads = Vec::new();
    for (port, service) in ports {
        let name = answer(service, pod);
        let tcp =
            tcp_listener(*port).with_context(|| format!("cannot listen on TCP port {port}"))?;
        let udp = udp_socket(*port).with_context(|| format!("cannot listen on UDP port {port}"))?;
        let datagrams = name.clone();
        threads.push(std::thread::spawn(move || {
            answer_connections(&tcp, name.as_bytes(), delay)
        }));
        threads.push(std::thread::spawn(move || {
            answer_datagrams(&udp, datagrams.as_bytes())
        }));
    }
    writeln!(std::io::stdout(), "listening")?;
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

fn answer_connections(listener: &TcpListener, name: &[u8], delay: Duration) {
    loop {
        match listener.accept() {
            Ok((stream, _)) if delay.is_zero() => say_and_close(stream, name),
            Ok((stream, _)) => say_late_and_close(stream, name, delay),
            // A connection that died in the queue, or no descriptor left: the next may go better.
            Err(_) => std::thread::yield_now(),
        }
    }
}

fn say_and_close(mut stream: TcpStream, name: &[u8]) {
    // A client that is gone already did not want the answer.
    let _ = stream.write_all(name);
}

/// The next connections do not wait for it.
fn say_late_and_close(stream: TcpStream, name: &[u8], delay: Duration) {
    let name = name.to_owned();
    std::thread::spawn(move || {
        // How long this server takes, not a wait for anything.
        std::thread::sleep(delay);
        say_and_close(stream, &name);
    });
}

fn answer_datagrams(socket: &UdpSocket, name: &[u8]) {
    let mut request = [0; 64];
    loop {
        if let Ok((_, from)) = socket.recv_from(&mut request) {
            let _ = socket.send_to(name, from);
        }
    }
}

/// One socket for both families.
fn dual_stack(kind: SockType, port: u16) -> Result<OwnedFd> {
    let fd = socket(AddressFamily::Inet6, kind, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::Ipv6V6Only, &false)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    let any = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0);
    bind(fd.as_fd().as_raw_fd(), &SockaddrIn6::from(any))?;
    Ok(fd)
}

fn tcp_listener(port: u16) -> Result<TcpListener> {
    let fd = dual_stack(SockType::Stream, port)?;
    // A burst must not cost a lost SYN, and with it a second.
    listen(&fd, Backlog::MAXCONN)?;
    Ok(fd.into())
}

fn udp_socket(port: u16) -> Result<UdpSocket> {
    let fd = dual_stack(SockType::Datagram, port)?;
    setsockopt(&fd, sockopt::RcvBuf, &(8 << 20))?;
    Ok(fd.into())
}
