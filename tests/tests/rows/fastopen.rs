//! TCP Fast Open, as sockets ask for it: what the libraries here do not offer ready-made.

use std::io;
use std::os::fd::AsFd;

use nix::libc;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};

sockopt_impl!(
    /// A listener's queue of connects whose SYN bears data.
    Queue,
    SetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_FASTOPEN,
    i32
);

/// The beginning of `struct tcp_info`, which every kernel has: `tcpi_options` is its sixth byte.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct InfoHead([u8; 8]);

sockopt_impl!(Info, GetOnly, libc::IPPROTO_TCP, libc::TCP_INFO, InfoHead);

/// `TCPI_OPT_SYN_DATA` (linux/tcp.h): the other end acknowledged data of the SYN, or sent some in its own.
const SYN_DATA: u8 = 32;

/// Lets a listener take data with the SYN.
pub fn listen(listener: &impl AsFd) -> io::Result<()> {
    Ok(setsockopt(listener, Queue, &64)?)
}

/// Has `connect` leave the SYN to the first write.
pub fn connect_with_write(socket: &impl AsFd) -> io::Result<()> {
    Ok(setsockopt(socket, sockopt::TcpFastOpenConnect, &true)?)
}

/// Whether data went with the SYN of this client's connect, and was taken.
pub fn sent_with_syn(socket: &impl AsFd) -> io::Result<bool> {
    Ok(getsockopt(socket, Info)?.0[5] & SYN_DATA != 0)
}
