//! The kernel's own memory, as the programs read it: places in its structures, told by the loader, which asks the running
//! kernel's BTF.

use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr::read_volatile;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use isthmus_datapath::difference;

macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        $($(#[$doc])* #[unsafe(no_mangle)] static $name: u32 = 0;)*
    };
}

offsets! {
    /// `sock_common.skc_cookie`, 8 bytes.
    SKC_COOKIE,
    /// `sock_common.skc_state`, 1 byte.
    SKC_STATE,
    /// `sock_common.skc_refcnt`, 4 bytes.
    SKC_REFCNT,
    /// `sock_common.skc_family`, 2 bytes.
    SKC_FAMILY,
    /// `sock_common.skc_dport`, 2 bytes, network order.
    SKC_DPORT,
    /// `sock_common.skc_daddr`, 4 bytes.
    SKC_DADDR,
    /// `sock_common.skc_v6_daddr`, 16 bytes.
    SKC_V6_DADDR,
    /// `sock.sk_err`, 4 bytes.
    SK_ERR,
    /// `sock.sk_err_soft`, 4 bytes.
    SK_ERR_SOFT,
    /// `sock.sk_lock.owned`, 4 bytes.
    SK_OWNED,
    /// `sock.sk_protocol`, 2 bytes.
    SK_PROTOCOL,
    /// `tcp_sock.srtt_us`, 4 bytes.
    SRTT_US,
    /// `tcp_sock.rcv_nxt`, 4 bytes.
    RCV_NXT,
    /// `tcp_sock.segs_in`, 4 bytes.
    SEGS_IN,
    /// `inet_connection_sock.icsk_retransmits`, 1 byte.
    RETRANSMITS,
    /// `tcp_sock.is_mptcp`, 1 byte; these four only where the kernel has MPTCP.
    IS_MPTCP,
    /// `inet_connection_sock.icsk_ulp_data`, a pointer: of a subflow, to its context.
    ULP_DATA,
    /// `mptcp_subflow_context.conn`, a pointer to the end that its program holds.
    SUBFLOW_CONN,
    /// `mptcp_sock.first`, a pointer to the subflow by which it was connected.
    MPTCP_FIRST,
}

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// A socket's place in the kernel's memory. A plain number: what is there may be another's by now, or nobody's.
#[derive(Clone, Copy)]
pub struct Sock(pub u64);

/// Reads a value at `base + offset`; zeroes where no memory is.
#[inline(always)]
fn peek<T: Copy>(base: u64, offset: &'static u32) -> T {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: a constant of the loaded object; volatile, since its value here is not the one it is loaded with.
    let offset = unsafe { read_volatile(offset) };
    // SAFETY: the helper writes `size_of::<T>()` bytes to `value`, zeroes if the place cannot be read. Numbers only are read.
    unsafe {
        bpf_probe_read_kernel(
            value.as_mut_ptr().cast::<c_void>(),
            size_of::<T>() as u32,
            (base + u64::from(offset)) as *const c_void,
        );
        value.assume_init()
    }
}

impl Sock {
    /// The whole connection, if this is a subflow of MPTCP. Ask where the kernel has MPTCP only.
    #[inline(always)]
    pub fn whole(self) -> Option<Self> {
        let is_mptcp: u8 = peek(self.0, &IS_MPTCP);
        if is_mptcp == 0 {
            return None;
        }
        let context: u64 = peek(self.0, &ULP_DATA);
        Some(Self(peek(context, &SUBFLOW_CONN)))
    }
    /// Of a whole connection: the subflow by which it was connected; 0 if that is gone.
    #[inline(always)]
    pub fn first(self) -> u64 {
        peek(self.0, &MPTCP_FIRST)
    }
    #[inline(always)]
    pub fn cookie(self) -> u64 {
        peek(self.0, &SKC_COOKIE)
    }
    /// As net/tcp_states.h numbers it.
    #[inline(always)]
    pub fn state(self) -> u8 {
        peek(self.0, &SKC_STATE)
    }
    /// Whether anybody holds it. What was a socket, and is none, has a count of 0 until its memory is another's.
    #[inline(always)]
    pub fn is_held(self) -> bool {
        let references: u32 = peek(self.0, &SKC_REFCNT);
        references != 0
    }
    /// The peer's port, network order; 0 if it has none.
    #[inline(always)]
    pub fn peer_port(self) -> u16 {
        peek(self.0, &SKC_DPORT)
    }
    #[inline(always)]
    pub fn error(self) -> u32 {
        peek(self.0, &SK_ERR)
    }
    /// What ICMP said while the kernel could not act on it.
    #[inline(always)]
    pub fn soft_error(self) -> u32 {
        peek(self.0, &SK_ERR_SOFT)
    }
    /// How many segments a TCP socket was sent by its peer, whatever they said.
    #[inline(always)]
    pub fn segments(self) -> u32 {
        peek(self.0, &SEGS_IN)
    }
    /// How often a TCP socket has sent the same again.
    #[inline(always)]
    pub fn retransmits(self) -> u8 {
        peek(self.0, &RETRANSMITS)
    }
    /// Whether its owner is in the middle of a call, as `connect`, or an error waits for it, of which the kernel may be about to
    /// tell.
    #[inline(always)]
    pub fn is_busy(self) -> bool {
        self.owned() | self.error() != 0
    }
    /// 0 unless somebody is in the middle of a call of it.
    #[inline(always)]
    pub fn owned(self) -> u32 {
        peek(self.0, &SK_OWNED)
    }
    #[inline(always)]
    pub fn protocol(self) -> u16 {
        peek(self.0, &SK_PROTOCOL)
    }
    #[inline(always)]
    pub fn is_inet(self) -> bool {
        let family: u16 = peek(self.0, &SKC_FAMILY);
        family == AF_INET || family == AF_INET6
    }
    /// Whether the peer of a TCP socket ever answered.
    #[inline(always)]
    pub fn heard(self) -> bool {
        let srtt: u32 = peek(self.0, &SRTT_US);
        let next: u32 = peek(self.0, &RCV_NXT);
        srtt != 0 || next != 0
    }
    /// Whether `address` (IPv6 or IPv4 mapped, network order) and `port` are its peer's.
    #[inline(always)]
    pub fn peer_is(self, address: &[u32; 4], port: u16) -> bool {
        if self.peer_port() != port {
            return false;
        }
        let family: u16 = peek(self.0, &SKC_FAMILY);
        if family == AF_INET {
            let v4: u32 = peek(self.0, &SKC_DADDR);
            return address[3] == v4;
        }
        let v6: [u32; 4] = peek(self.0, &SKC_V6_DADDR);
        difference(&v6, address) == 0
    }
}
