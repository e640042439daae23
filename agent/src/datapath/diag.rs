//! `sock_diag(7)`: lists connected UDP sockets of the thread's network namespace, and destroys one.

use std::io::{self, IoSlice};
use std::mem::offset_of;
use std::os::fd::{AsRawFd, OwnedFd};

use isthmus_abi::NetPort;
use isthmus_core::model::Address;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, sendmsg, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY` (linux/sock_diag.h).
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// `NLMSG_ERROR`, `NLMSG_DONE`; `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_DUMP` (linux/netlink.h).
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
/// `NLM_F_DUMP_INTR`: the list changed while it was told.
const INTERRUPTED: u16 = 0x10;
/// `TCP_ESTABLISHED`, as a bit: a UDP socket with a peer.
const CONNECTED: u32 = 1 << 1;
const PROTOCOL_UDP: u8 = 17;
/// The kernel answers with messages of up to 32 KiB.
const ANSWER_MAX: usize = 64 << 10;
/// Nobody but the kernel answers: a longer silence is a fault.
const PATIENCE: i64 = 5;

/// `struct inet_diag_sockid` (linux/inet_diag.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Id {
    port: u16,
    peer_port: u16,
    address: [u32; 4],
    peer: [u32; 4],
    interface: u32,
    cookie: [u32; 2],
}

/// `struct nlmsghdr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Header {
    len: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    sender: u32,
}

/// `struct inet_diag_req_v2`, with its header.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Query {
    header: Header,
    family: u8,
    protocol: u8,
    extensions: u8,
    reserved: u8,
    states: u32,
    id: Id,
}

/// The beginning of `struct inet_diag_msg`.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Answer {
    family: u8,
    state: u8,
    timer: u8,
    retransmits: u8,
    id: Id,
}

const _: () = {
    assert!(size_of::<Header>() == 16);
    assert!(size_of::<Id>() == 48);
    assert!(size_of::<Query>() == 72);
    assert!(offset_of!(Query, id) == 24);
};

/// A connected UDP socket.
#[derive(Clone, Copy, Debug)]
pub struct DiagSocket(Answer);

impl DiagSocket {
    /// As programs know it (`bpf_get_socket_cookie`).
    #[must_use]
    pub fn cookie(&self) -> u64 {
        u64::from(self.0.id.cookie[1]) << 32 | u64::from(self.0.id.cookie[0])
    }
    #[must_use]
    pub fn peer(&self) -> (Address, u16) {
        let Id {
            peer, peer_port, ..
        } = self.0.id;
        let words = if i32::from(self.0.family) == libc::AF_INET {
            [0, 0, 0xffff_u32.to_be(), peer[0]]
        } else {
            peer
        };
        let port = NetPort::from_net(peer_port).to_host();
        (Address::from_words(words), port)
    }
}

/// A conversation with the kernel about the sockets of the namespace in which it was begun.
#[derive(Debug)]
pub struct Diag {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Diag {
    /// # Errors
    /// If the kernel has no `sock_diag`.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        setsockopt(
            &socket,
            sockopt::ReceiveTimeout,
            &TimeVal::seconds(PATIENCE),
        )?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: vec![0; ANSWER_MAX],
        })
    }

    /// Connected UDP sockets of `family` that `wanted` names.
    ///
    /// # Errors
    /// If the kernel refuses the list.
    pub fn connected_udp(
        &mut self,
        family: i32,
        wanted: impl Fn(&DiagSocket) -> bool,
    ) -> io::Result<Vec<DiagSocket>> {
        let family = u8::try_from(family).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.ask(BY_FAMILY, DUMP, family, Id::default())?;
        let mut found = Vec::new();
        self.answers(|header, body| match header.kind {
            BY_FAMILY => {
                if let Ok((answer, _)) = Answer::read_from_prefix(body) {
                    let socket = DiagSocket(answer);
                    if wanted(&socket) {
                        found.push(socket);
                    }
                }
                false
            }
            _ => header.kind == DONE,
        })?;
        Ok(found)
    }

    /// Destroys a socket, if it is the same one with the same peer still; says whether it was. Its owner gets
    /// `ECONNABORTED`.
    ///
    /// # Errors
    /// If the kernel cannot destroy sockets, or does not let us.
    pub fn destroy(&mut self, socket: &DiagSocket) -> io::Result<bool> {
        self.ask(DESTROY, ACK, socket.0.family, socket.0.id)?;
        match self.answers(|_, _| false) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn ask(&mut self, kind: u16, flags: u16, family: u8, id: Id) -> io::Result<()> {
        self.sequence += 1;
        let query = Query {
            header: Header {
                len: u32::try_from(size_of::<Query>()).expect("72"),
                kind,
                flags: REQUEST | flags,
                sequence: self.sequence,
                sender: 0,
            },
            family,
            protocol: PROTOCOL_UDP,
            extensions: 0,
            reserved: 0,
            states: CONNECTED,
            id,
        };
        sendmsg::<()>(
            self.socket.as_raw_fd(),
            &[IoSlice::new(query.as_bytes())],
            &[],
            MsgFlags::empty(),
            None,
        )?;
        Ok(())
    }

    /// Shows each message to `last`, until that says so or the kernel acknowledges. A refusal is an error.
    fn answers(&mut self, mut last: impl FnMut(&Header, &[u8]) -> bool) -> io::Result<()> {
        loop {
            let len = recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
            let mut rest = &self.buffer[..len];
            while let Ok((header, _)) = Header::read_from_prefix(rest) {
                let end = (header.len as usize).min(rest.len());
                let Some(body) = rest.get(size_of::<Header>()..end) else {
                    return Err(io::ErrorKind::InvalidData.into());
                };
                if header.kind == ERROR {
                    let (code, _) =
                        i32::read_from_prefix(body).map_err(|_| io::ErrorKind::InvalidData)?;
                    return match code {
                        0 => Ok(()),
                        code => Err(io::Error::from_raw_os_error(-code)),
                    };
                }
                if header.flags & INTERRUPTED != 0 {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                if last(&header, body) {
                    return Ok(());
                }
                // Messages begin at multiples of four.
                rest = rest.get(end.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}
