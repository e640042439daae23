//! Connects that fail, as the kernel reports them. Neither tracepoint fires on an orderly connection.
//!
//! `inet_sk_error_report` comes when a socket's error is set; `tcp_retransmit_skb`, in `SYN_SENT`, when the first SYN had no
//! answer. A closed, killed or abandoned client causes neither with its peer still set, a client without a route fails
//! before its SYN: what the client did itself is not the backend's fault.

use core::ffi::c_void;
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use isthmus_abi::{CLIENT_MARKS, FailureCause, SocketRow, socket_tag};

use super::health::{self, Failure};
use super::socket;
use crate::atomic;
use crate::kernel::Sock;
use crate::maps::{BACKEND_FAILURES, backend_at};

const TCP: u16 = 6;
const UDP: u16 = 17;

const SYN_SENT: u8 = 2;
const CLOSE: u8 = 7;

/// What ICMPv6 says where a policy or a firewall rejects; ICMP says `EHOSTUNREACH`.
const EACCES: u32 = 13;
const ENETUNREACH: u32 = 101;
const ETIMEDOUT: u32 = 110;
const ECONNREFUSED: u32 = 111;
const EHOSTUNREACH: u32 = 113;

#[btf_tracepoint(function = "inet_sk_error_report")]
pub fn inet_sk_error_report(ctx: BtfTracePointContext) -> i32 {
    let socket: *const c_void = ctx.arg(0);
    let sock = Sock(socket as u64);
    // A failed blocking connect, and `connect(AF_UNSPEC)`, report again without a peer.
    if sock.peer_port() == 0 || !sock.is_inet() {
        return 0;
    }
    let state = sock.state();
    let protocol = sock.protocol();
    let cause = match (protocol, sock.error()) {
        // ICMP says so, on a connected socket.
        (UDP, ECONNREFUSED) => FailureCause::Refused,
        // Before Linux 6.10 ICMP errors are reported in SYN_SENT, after it in CLOSE.
        (TCP, error) if (state == CLOSE || state == SYN_SENT) && !sock.heard() => match error {
            ECONNREFUSED => FailureCause::Refused,
            ENETUNREACH | EHOSTUNREACH | EACCES => FailureCause::Unreachable,
            ETIMEDOUT => FailureCause::TimedOut,
            0 if state == CLOSE => match traced(sock) {
                FailureCause::None => return 0,
                cause => cause,
            },
            _ => return 0,
        },
        _ => return 0,
    };
    if let Some(row) = socket::reported(socket, protocol == TCP) {
        say!(&ctx, "a connect failed, cause {}", cause as u32);
        charge(row, cause, socket_tag::FAILED);
    }
    0
}

/// What ended a connect whose error is not there any more, by what else it left: the kernel wakes a socket's owner before it
/// reports, and one that waits by `poll` may have taken the error by then, on another CPU; and an MPTCP connection takes its
/// subflow's.
///
/// Who answers a SYN with a segment and does not connect, resets. ICMP comes before the kernel's time is up, and ends a connect while nobody is
/// in a call of the socket; who destroys it from outside (`ss -K`) is in one.
#[inline(always)]
fn traced(sock: Sock) -> FailureCause {
    if sock.segments() != 0 {
        FailureCause::Refused
    } else if sock.owned() != 0 {
        FailureCause::None
    } else if sock.soft_error() != 0 || sock.retransmits() == 0 {
        FailureCause::Unreachable
    } else {
        FailureCause::TimedOut
    }
}

#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn tcp_retransmit_skb(ctx: BtfTracePointContext) -> i32 {
    let socket: *const c_void = ctx.arg(0);
    let sock = Sock(socket as u64);
    if sock.state() != SYN_SENT || !sock.is_inet() {
        return 0;
    }
    if let Some(row) = socket::reported(socket, true) {
        charge(row, FailureCause::Unanswered, socket_tag::UNANSWERED);
    }
    0
}

/// Counts the failure of a socket once by `once`, a bit of its tag, against the backend that it was sent to.
///
/// Two programs run one after the other for an event while one takes the other's place; the bit keeps the count right.
#[inline(always)]
fn charge(row: *mut SocketRow, cause: FailureCause, once: u8) {
    // SAFETY: the row is the socket's own, and the kernel reports a socket under its lock.
    let (tag, mark, id, service, address, port, cookie) = unsafe {
        (
            read_volatile(addr_of!((*row).tag)),
            u32::from(read_volatile(addr_of!((*row).mark))),
            read_volatile(addr_of!((*row).backend)),
            read_volatile(addr_of!((*row).service)),
            read_volatile(addr_of!((*row).backend_address)),
            read_volatile(addr_of!((*row).backend_port)),
            read_volatile(addr_of!((*row).cookie)),
        )
    };
    let counted = tag & (once | socket_tag::FAILED) != 0;
    if counted {
        return;
    }
    // The id may be another backend's by now, or of the maps of another version, whose program counts it then.
    let Some(backend) = backend_at(id) else {
        return;
    };
    let same = backend.service == service
        && backend.generation as u8 & socket_tag::GENERATION == tag & socket_tag::GENERATION
        && backend.port == port
        && backend.address[0] == address[0]
        && backend.address[1] == address[1]
        && backend.address[2] == address[2]
        && backend.address[3] == address[3];
    if !same {
        return;
    }
    // SAFETY: as above.
    unsafe { write_volatile(addr_of_mut!((*row).tag), tag | once) };
    let Some(failures) = BACKEND_FAILURES.get_ptr_mut(id) else {
        return;
    };
    // SAFETY: aligned words of a map's row that programs change by atomic addition only.
    unsafe {
        let counter = match cause {
            FailureCause::Refused => addr_of_mut!((*failures).refused),
            FailureCause::Unreachable => addr_of_mut!((*failures).unreachable),
            FailureCause::TimedOut => addr_of_mut!((*failures).timed_out),
            FailureCause::Unanswered | FailureCause::None => addr_of_mut!((*failures).unanswered),
        };
        atomic::add(counter, 1);
    }
    if mark < CLIENT_MARKS {
        health::hold_against(&Failure {
            id,
            service,
            generation: backend.generation,
            mark,
            cause: cause as u8,
            again: u8::from(tag & socket_tag::UNANSWERED != 0),
            reserved: [0; 6],
            cookie,
        });
    }
}
