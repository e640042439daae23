//! Programs of one hook. The least that there can be stands for another's program in tests, and for the cost of a hook in
//! measurements; the datapath's own, and those without parts of their work, can be measured beside it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::Result;
use isthmus_agent::datapath::{HookKind, Lifetime, LoadPlan, MapPlan};

use crate::sys::{self, Instruction};

/// Hooks, in `enum bpf_attach_type`'s numbers (linux/bpf.h).
pub const CONNECT4: u32 = 10;
pub const GETPEERNAME4: u32 = 29;

/// A loaded program, attached to nothing yet.
#[derive(Debug)]
pub struct Program {
    fd: OwnedFd,
    hook: HookKind,
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

    /// The datapath's own programs, of cgroups and of tracepoints, over the maps of `plan`.
    ///
    /// # Errors
    /// If the kernel refuses a program or a map.
    pub fn ours(plan: &LoadPlan) -> Result<Vec<Self>> {
        let programs = plan.load()?.into_iter();
        Ok(programs.map(|(hook, fd)| Self { fd, hook }).collect())
    }

    /// The same programs over the same maps, but for a `sockets` of one row: they find no row for a socket, so they
    /// draw and remember nothing. What they lack is the writing of the row.
    ///
    /// # Errors
    /// As [`Self::ours`].
    pub fn forgetful(plan: &LoadPlan) -> Result<Vec<Self>> {
        let mut plan = plan.clone();
        let sockets = |map: &&mut MapPlan| map.name == "sockets" && map.lifetime == Lifetime::Node;
        if let Some(map) = plan.maps.iter_mut().find(sockets) {
            map.max_entries = Some(1);
            map.pin = plan.version_dir.join("sockets-none");
        }
        Self::ours(&plan)
    }

    /// Attaches the program to `cgroup`, after those that are there; or to its tracepoint, where it sees the whole machine.
    /// Closing what is returned detaches it.
    ///
    /// # Errors
    /// If the kernel refuses the link.
    pub fn attach(&self, cgroup: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let program = self.fd.as_fd();
        match self.hook {
            HookKind::Cgroup(attach_type) => sys::link_create(program, cgroup, attach_type),
            HookKind::Tracepoint => sys::link_create_at(program, 0, sys::TRACE_RAW_TP),
        }
    }

    /// What the program is for.
    #[must_use]
    pub fn hook(&self) -> HookKind {
        self.hook
    }

    fn load(attach_type: u32, instructions: &[Instruction]) -> io::Result<Self> {
        let fd = sys::prog_load(attach_type, instructions)?;
        let hook = HookKind::Cgroup(attach_type);
        Ok(Self { fd, hook })
    }
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
