//! The `bpf(2)` calls of programs that come from no object file.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use zerocopy::{Immutable, IntoBytes};

const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const MAP_GET_FD_BY_ID: libc::c_long = 14;
const LINK_CREATE: libc::c_long = 28;

/// `struct bpf_insn` (RFC 9669).
#[repr(C)]
#[derive(Clone, Copy, Immutable, IntoBytes)]
pub(crate) struct Instruction {
    pub(crate) opcode: u8,
    /// Source in the upper half, destination in the lower.
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: i32,
}

/// One call; `attr` is the head of a layout of `union bpf_attr` (linux/bpf.h), zero-padded by the kernel, of a command
/// that only reads it.
fn bpf<T: IntoBytes + Immutable>(command: libc::c_long, attr: &T) -> io::Result<i32> {
    let bytes = attr.as_bytes();
    // SAFETY: the kernel reads `bytes.len()` bytes there, and follows pointers in them that each caller below keeps alive
    // over the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, bytes.as_ptr(), bytes.len()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

fn bpf_fd<T: IntoBytes + Immutable>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the command returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

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

/// Loads a program of a socket address hook, named `trivial`.
pub(crate) fn prog_load(attach_type: u32, instructions: &[Instruction]) -> io::Result<OwnedFd> {
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
    bpf_fd(PROG_LOAD, &attr)
}

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct LinkCreateAttr {
    program_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches a program to a cgroup, after those that are there.
pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    link_create_at(program, raw(cgroup), attach_type)
}

/// Of a program that looks at a tracepoint with the kernel's types, in `enum bpf_attach_type`'s numbers.
pub(crate) const TRACE_RAW_TP: u32 = 23;

/// `target` is a cgroup's descriptor, or 0 for a tracepoint.
pub(crate) fn link_create_at(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let attr = LinkCreateAttr {
        program_fd: raw(program),
        target_fd: target,
        attach_type,
        flags: 0,
    };
    bpf_fd(LINK_CREATE, &attr)
}

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct PinAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

pub(crate) fn obj_pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = PinAttr {
        path: path.as_ptr() as u64,
        fd: raw(object),
        flags: 0,
    };
    bpf(OBJ_PIN, &attr).map(drop)
}

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct IdAttr {
    id: u32,
    next: u32,
    flags: u32,
}

/// A descriptor of any map of the machine. As long as it is open, the map lives, whoever else lets it go.
///
/// # Errors
/// If there is no such map.
pub fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    let attr = IdAttr {
        id,
        next: 0,
        flags: 0,
    };
    bpf_fd(MAP_GET_FD_BY_ID, &attr)
}

/// The link's number, as the kernel tells it of a descriptor.
pub(crate) fn link_id(link: BorrowedFd<'_>) -> io::Result<u32> {
    let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd()))?;
    let id = told.lines().find_map(|line| line.strip_prefix("link_id:"));
    id.and_then(|id| id.trim().parse().ok())
        .ok_or_else(|| io::Error::other(format!("no link's: {told}")))
}

#[repr(C)]
#[derive(IntoBytes, Immutable)]
struct ElemAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Writes a row. The buffers must have the map's sizes.
pub(crate) fn map_update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    const ANY: u64 = 0;
    let attr = ElemAttr {
        map_fd: raw(map),
        pad: 0,
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        flags: ANY,
    };
    bpf(MAP_UPDATE_ELEM, &attr).map(drop)
}
