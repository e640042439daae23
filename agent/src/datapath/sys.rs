//! The `bpf(2)` calls that aya 0.14 does not offer: raw map access by bytes, cgroup links, queries.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use zerocopy::{FromBytes, Immutable, IntoBytes};

const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;

/// Update only if the key is new (`BPF_NOEXIST`).
pub const NO_EXIST: u64 = 1;
/// Update or insert (`BPF_ANY`).
pub const ANY: u64 = 0;

/// Programs on one hook of one cgroup that a query can return.
pub const QUERY_MAX: usize = 64;

/// One call; `attr` is one of the layouts of `union bpf_attr` (linux/bpf.h), zero-padded by the kernel.
fn bpf<T: IntoBytes + Immutable + FromBytes>(
    command: libc::c_long,
    attr: &mut T,
) -> io::Result<i32> {
    let bytes = attr.as_mut_bytes();
    // SAFETY: the kernel reads and writes at most `bytes.len()` bytes there, and follows pointers in them that each
    // caller below keeps alive over the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, bytes.as_mut_ptr(), bytes.len()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(|_| io::Error::other("bpf(2) returned more than an int"))
}

fn bpf_fd<T: IntoBytes + Immutable + FromBytes>(
    command: libc::c_long,
    attr: &mut T,
) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the command returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

#[repr(C)]
#[derive(IntoBytes, FromBytes, Immutable)]
struct ElemAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl ElemAttr {
    fn new(map: BorrowedFd<'_>, key: &[u8], value: u64, flags: u64) -> Self {
        Self {
            map_fd: raw(map),
            pad: 0,
            key: key.as_ptr() as u64,
            value,
            flags,
        }
    }
}

/// Reads a value; `false` if the key is not there. The buffers must have the map's sizes.
pub fn map_lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attr = ElemAttr::new(map, key, value.as_mut_ptr() as u64, ANY);
    found(bpf(MAP_LOOKUP_ELEM, &mut attr))
}

/// Writes a value, under `flags` [`ANY`] or [`NO_EXIST`].
pub fn map_update(map: BorrowedFd<'_>, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
    let mut attr = ElemAttr::new(map, key, value.as_ptr() as u64, flags);
    bpf(MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Removes a key; `false` if it was not there.
pub fn map_delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    found(bpf(MAP_DELETE_ELEM, &mut ElemAttr::new(map, key, 0, ANY)))
}

#[repr(C)]
#[derive(IntoBytes, FromBytes, Immutable)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Rows of a hash that were read at once.
pub struct Batch {
    pub rows: usize,
    /// The bucket to go on from; `None` at the end.
    pub next: Option<u32>,
}

/// Reads whole buckets of a hash, from bucket `from` on, as many as fit. A row stays in its bucket as long as it lives, so
/// a walk from bucket to bucket meets it once. The buffers hold `room` keys and values of the map's sizes.
///
/// # Errors
/// `ENOSPC` if the first bucket has more than `room` rows.
pub fn map_lookup_batch(
    map: BorrowedFd<'_>,
    from: Option<u32>,
    room: usize,
    keys: &mut [u8],
    values: &mut [u8],
) -> io::Result<Batch> {
    let mut next = 0_u32;
    let mut attr = BatchAttr {
        in_batch: from
            .as_ref()
            .map_or(0, |from| std::ptr::from_ref(from) as u64),
        out_batch: std::ptr::from_mut(&mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: u32::try_from(room).map_err(io::Error::other)?,
        map_fd: raw(map),
        elem_flags: 0,
        flags: 0,
    };
    let more = found(bpf(MAP_LOOKUP_BATCH, &mut attr))?;
    Ok(Batch {
        rows: attr.count as usize,
        next: more.then_some(next),
    })
}

fn found(result: io::Result<i32>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[repr(C)]
#[derive(IntoBytes, FromBytes, Immutable)]
struct ObjAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::other("a NUL byte in a path"))
}

/// Opens a pinned object; `None` if nothing is pinned there.
pub fn obj_get(path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = c_path(path)?;
    match bpf_fd(
        OBJ_GET,
        &mut ObjAttr {
            path: path.as_ptr() as u64,
            fd: 0,
            flags: 0,
        },
    ) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

pub fn obj_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    bpf(
        OBJ_PIN,
        &mut ObjAttr {
            path: path.as_ptr() as u64,
            fd: raw(fd),
            flags: 0,
        },
    )
    .map(drop)
}

#[repr(C)]
#[derive(IntoBytes, FromBytes, Immutable)]
struct LinkCreateAttr {
    program_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches a program: to a cgroup by its descriptor, after those that are there; or, with a target of 0, to the
/// tracepoint that it was loaded for.
pub fn link_create(program: BorrowedFd<'_>, target: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        program_fd: raw(program),
        target_fd: target,
        attach_type,
        flags: 0,
    };
    bpf_fd(LINK_CREATE, &mut attr)
}

#[repr(C)]
#[derive(IntoBytes, FromBytes, Immutable)]
struct LinkUpdateAttr {
    link_fd: u32,
    program_fd: u32,
    flags: u32,
    old_program_fd: u32,
}

/// Puts another program behind a link, atomically: every call sees the old one or the new one.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr {
        link_fd: raw(link),
        program_fd: raw(program),
        flags: 0,
        old_program_fd: 0,
    };
    bpf(LINK_UPDATE, &mut attr).map(drop)
}

#[repr(C)]
#[derive(IntoBytes, FromBytes, Immutable)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    count: u32,
    pad: u32,
}

/// Ids of the programs that a call in this cgroup meets, in their order, those of its ancestors included.
pub fn prog_query_effective(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    const EFFECTIVE: u32 = 1;
    let mut ids = [0_u32; QUERY_MAX];
    let mut attr = QueryAttr {
        target_fd: raw(cgroup),
        attach_type,
        query_flags: EFFECTIVE,
        attach_flags: 0,
        program_ids: ids.as_mut_ptr() as u64,
        count: u32::try_from(QUERY_MAX).expect("a small constant"),
        pad: 0,
    };
    bpf(PROG_QUERY, &mut attr)?;
    Ok(ids.into_iter().take(attr.count as usize).collect())
}

#[repr(C)]
#[derive(IntoBytes, FromBytes, Immutable)]
struct IdAttr {
    id: u32,
    next_id: u32,
    flags: u32,
}

pub fn prog_by_id(id: u32) -> io::Result<OwnedFd> {
    bpf_fd(
        PROG_GET_FD_BY_ID,
        &mut IdAttr {
            id,
            next_id: 0,
            flags: 0,
        },
    )
}

#[repr(C)]
#[derive(IntoBytes, FromBytes, Immutable)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// The head of `struct bpf_link_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, IntoBytes, FromBytes, Immutable)]
pub struct LinkInfo {
    pub kind: u32,
    pub id: u32,
    pub program_id: u32,
    pad: u32,
}

pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    info(link)
}

/// The head of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, IntoBytes, FromBytes, Immutable)]
pub struct MapInfo {
    pub kind: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
}

pub fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    info(map)
}

fn info<T: IntoBytes + FromBytes + Immutable + Default>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    let bytes = info.as_mut_bytes();
    let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    bpf(
        OBJ_GET_INFO_BY_FD,
        &mut InfoAttr {
            fd: raw(fd),
            len,
            info: bytes.as_mut_ptr() as u64,
        },
    )?;
    Ok(info)
}

/// The head of `struct bpf_prog_info`, as far as its name; `map_ids` asks for the ids of its maps.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, IntoBytes, FromBytes, Immutable)]
struct ProgInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
    load_time: u64,
    uid: u32,
    map_count: u32,
    map_ids: u64,
    name: [u8; 16],
}

/// A program, as the kernel describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    pub id: u32,
    pub name: String,
    /// A hash of its instructions.
    pub tag: [u8; 8],
    pub map_ids: Vec<u32>,
}

pub fn prog_info(program: BorrowedFd<'_>) -> io::Result<Program> {
    let mut map_ids = [0_u32; 64];
    let mut info = ProgInfo {
        map_count: 64,
        map_ids: map_ids.as_mut_ptr() as u64,
        ..ProgInfo::default()
    };
    let bytes = info.as_mut_bytes();
    let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    bpf(
        OBJ_GET_INFO_BY_FD,
        &mut InfoAttr {
            fd: raw(program),
            len,
            info: bytes.as_mut_ptr() as u64,
        },
    )?;
    let name = info
        .name
        .split(|&byte| byte == 0)
        .next()
        .unwrap_or_default();
    Ok(Program {
        id: info.id,
        name: String::from_utf8_lossy(name).into_owned(),
        tag: info.tag,
        map_ids: map_ids.into_iter().take(info.map_count as usize).collect(),
    })
}

/// Waits until every program that was running when the call came has ended: each holds an RCU read lock.
///
/// # Errors
/// `EINVAL` where a CPU runs without a tick (`nohz_full`): such kernels have no global barrier.
pub fn grace_period() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: a system call without pointers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The clock that programs tell time by, in nanoseconds (`CLOCK_MONOTONIC`, `bpf_ktime_get_ns`). [`std::time::Instant`] is
/// the same clock, and hides its number.
#[must_use]
pub fn clock() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes one `timespec` there.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    assert!(result == 0, "every Linux has this clock");
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// Has all threads allocate from one heap: by default glibc has one for each thread, and what one reads, parses and sends to
/// another leaves holes in all of them. With many services that was a seventh of the agent's memory.
pub fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it changes a setting of the allocator, while this is the only thread. Refused, it stays as it was.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
