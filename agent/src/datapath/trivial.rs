//! Programs on links that nothing pins: they go with whoever holds the link.
//!
//! The least hook that there can be stands for another's program in tests, and for the cost of a hook in measurements.
//! The datapath's own programs, and those without parts of their work, can be measured beside it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use zerocopy::{Immutable, IntoBytes};

use super::plan::{HookKind, Lifetime, LoadPlan};
use super::{Datapath, DatapathError, links, sys};

/// Hooks, in `enum bpf_attach_type`'s numbers (linux/bpf.h).
pub const CONNECT4: u32 = 10;
pub const CONNECT6: u32 = 11;
pub const GETPEERNAME4: u32 = 29;
pub const GETPEERNAME6: u32 = 30;

/// A loaded program of a socket address hook, attached to nothing yet.
#[derive(Debug)]
pub struct Program {
    fd: OwnedFd,
    attach_type: u32,
}

impl Program {
    /// Lets every call pass as it is.
    ///
    /// # Errors
    /// If the kernel refuses the program.
    pub fn trivial(attach_type: u32) -> io::Result<Self> {
        Self::load(attach_type, &[mov(R0, 1), EXIT])
    }

    /// Asks the kernel what our connect hook must know of a socket to find its row, and lets every call pass.
    ///
    /// # Errors
    /// If the kernel refuses the program.
    pub fn asking(attach_type: u32) -> io::Result<Self> {
        const SKC_TO_MPTCP_SOCK: i32 = 196;
        const GET_SOCKET_COOKIE: i32 = 46;
        // `sk` in `struct bpf_sock_addr`.
        const SOCKET: i16 = 64;
        let program = [
            copy(R6, R1),
            load(R1, R1, SOCKET),
            call(SKC_TO_MPTCP_SOCK),
            copy(R1, R6),
            call(GET_SOCKET_COOKIE),
            mov(R0, 1),
            EXIT,
        ];
        Self::load(attach_type, &program)
    }

    /// The datapath's own programs of cgroups, over its maps.
    ///
    /// # Errors
    /// If a descriptor cannot be had.
    pub fn ours(datapath: &Datapath) -> Result<Vec<Self>, DatapathError> {
        of(&datapath.plan, &datapath.ebpf)
    }

    /// The same programs over the same maps, but for a `sockets` of one row: they find no row for a socket, so they
    /// draw and remember nothing. What they lack is the writing of the row.
    ///
    /// # Errors
    /// As [`Datapath::open`].
    pub fn forgetful(datapath: &Datapath) -> Result<Vec<Self>, DatapathError> {
        let mut plan = datapath.plan.clone();
        let sockets =
            |map: &&mut super::MapPlan| map.name == "sockets" && map.lifetime == Lifetime::Node;
        if let Some(map) = plan.maps.iter_mut().find(sockets) {
            map.max_entries = Some(1);
            map.pin = plan.version_dir.join("sockets-none");
        }
        of(&plan, &super::load(&plan)?)
    }

    /// Attaches the program to `cgroup`, after those that are there. Closing what is returned detaches it.
    ///
    /// # Errors
    /// If the kernel refuses the link.
    pub fn attach(&self, cgroup: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let cgroup = cgroup.as_raw_fd().cast_unsigned();
        sys::link_create(self.fd.as_fd(), cgroup, self.attach_type)
    }

    /// The hook that the program is for.
    #[must_use]
    pub fn attach_type(&self) -> u32 {
        self.attach_type
    }

    fn load(attach_type: u32, instructions: &[Instruction]) -> io::Result<Self> {
        const PROG_LOAD: libc::c_long = 5;
        const CGROUP_SOCK_ADDR: u32 = 18;
        let attr = ProgLoadAttr {
            kind: CGROUP_SOCK_ADDR,
            count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
            instructions: instructions.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log_buffer: 0,
            kernel_version: 0,
            flags: 0,
            name: *b"trivial\0\0\0\0\0\0\0\0\0",
            interface: 0,
            attach_type,
        };
        let bytes = attr.as_bytes();
        // SAFETY: the kernel reads `bytes.len()` bytes there, and the instructions and the license that they point to,
        // all of which live until the call returns.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, bytes.as_ptr(), bytes.len()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        Ok(Self {
            // SAFETY: the call returned a new descriptor that nobody else owns.
            fd: unsafe { OwnedFd::from_raw_fd(fd) },
            attach_type,
        })
    }
}

/// Attaches the least program to `cgroup`. Closing what is returned detaches it.
///
/// # Errors
/// If the kernel refuses the program or the link.
pub fn attach(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    Program::trivial(attach_type)?.attach(cgroup)
}

fn of(plan: &LoadPlan, ebpf: &aya::Ebpf) -> Result<Vec<Program>, DatapathError> {
    let mut programs = Vec::new();
    for program in &plan.programs {
        if let HookKind::Cgroup(attach_type) = program.hook {
            let fd = links::loaded(ebpf, program)?.as_fd().try_clone_to_owned();
            let fd = fd.map_err(|error| DatapathError::Load(error.to_string()))?;
            programs.push(Program { fd, attach_type });
        }
    }
    Ok(programs)
}

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct ProgLoadAttr {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// `struct bpf_insn` (RFC 9669).
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    opcode: u8,
    /// Source in the upper half, destination in the lower.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const R0: u8 = 0;
const R1: u8 = 1;
const R6: u8 = 6;
const EXIT: Instruction = instruction(0x95, 0, 0, 0);

const fn instruction(opcode: u8, registers: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        opcode,
        registers,
        offset,
        immediate,
    }
}

const fn mov(to: u8, immediate: i32) -> Instruction {
    instruction(0xb7, to, 0, immediate)
}

const fn copy(to: u8, from: u8) -> Instruction {
    instruction(0xbf, from << 4 | to, 0, 0)
}

/// Eight bytes from memory.
const fn load(to: u8, from: u8, offset: i16) -> Instruction {
    instruction(0x79, from << 4 | to, offset, 0)
}

const fn call(helper: i32) -> Instruction {
    instruction(0x85, 0, 0, helper)
}
