//! TCP Fast Open, as sockets ask for it: what the libraries here do not offer.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;

/// The other end acknowledged data of the SYN, or sent some in its own.
const TCPI_OPT_SYN_DATA: u8 = 32;
/// Of `struct tcp_info`: its sixth byte.
const OPTIONS: usize = 5;

/// Sets one of TCP's options that are numbers: `TCP_FASTOPEN` is a listener's queue of such connects, with
/// `TCP_FASTOPEN_CONNECT` a `connect` leaves the SYN to the first write.
pub fn set(socket: &impl AsFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `length` bytes of `value`, which lives until the call is over.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            (&raw const value).cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether data went with the SYN of this client's connect, and was taken (`tcpi_options` of `TCP_INFO`).
pub fn sent_with_syn(socket: &impl AsFd) -> io::Result<bool> {
    let mut info = [0_u8; OPTIONS + 1];
    let mut length = libc::socklen_t::try_from(info.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes to `info`, which has so many, and lives until the call is over.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(info[OPTIONS] & TCPI_OPT_SYN_DATA != 0)
    } else {
        Err(io::Error::last_os_error())
    }
}
