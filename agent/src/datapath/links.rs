//! Programs on their hooks: attached, put in the place of an earlier agent's, and listed.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use aya::Ebpf;
use aya::programs::{Program, ProgramError, ProgramFd};

use super::plan::{HookKind, ProgramPlan};
use super::{DatapathError, sys};

/// A program on one of our hooks, in the order in which a call meets them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HookProgram {
    pub id: u32,
    pub name: String,
    /// The link, if the program is ours.
    pub link_id: Option<u32>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hook {
    pub name: &'static str,
    pub programs: Vec<HookProgram>,
}

impl Hook {
    /// The attach type as the kernel's tools name it.
    #[must_use]
    pub fn attach_name(&self) -> &'static str {
        match self.name {
            "connect4" => "cgroup_inet4_connect",
            "connect6" => "cgroup_inet6_connect",
            "getpeername4" => "cgroup_inet4_getpeername",
            "getpeername6" => "cgroup_inet6_getpeername",
            "sendmsg4" => "cgroup_udp4_sendmsg",
            "sendmsg6" => "cgroup_udp6_sendmsg",
            "recvmsg4" => "cgroup_udp4_recvmsg",
            "recvmsg6" => "cgroup_udp6_recvmsg",
            "sock_release" => "cgroup_inet_sock_release",
            _ => "trace_raw_tp",
        }
    }
}

/// The loaded program that `plan` names.
pub(super) fn loaded<'a>(
    ebpf: &'a Ebpf,
    plan: &ProgramPlan,
) -> Result<&'a ProgramFd, DatapathError> {
    let program = ebpf
        .program(plan.name)
        .ok_or_else(|| DatapathError::Load(format!("the object has no program {}", plan.name)))?;
    fd(program).map_err(|error| DatapathError::Load(error.to_string()))
}

pub(super) fn fd(program: &Program) -> Result<&ProgramFd, ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.fd(),
        Program::CgroupSock(program) => program.fd(),
        Program::BtfTracePoint(program) => program.fd(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Puts `program` on its hook, or in the place of the one that `link` holds there. Returns the link if it is a new one.
/// Calls meet the old program or the new one; only at a tracepoint, for a moment, both.
pub(super) fn put_on(
    plan: &ProgramPlan,
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    link: Option<&OwnedFd>,
) -> Result<Option<OwnedFd>, DatapathError> {
    let name = plan.name;
    let refused = |operation| {
        move |cause| DatapathError::Attach {
            name,
            operation,
            cause,
        }
    };
    // bpffs takes no dot in a name.
    let fresh = plan.pin.with_file_name(format!("{name}-new"));
    let created = match plan.hook {
        HookKind::Cgroup(attach_type) => {
            if let Some(link) = link {
                match sys::link_update(link.as_fd(), program) {
                    Ok(()) => return Ok(None),
                    // The cgroup was removed under the link: it holds nothing any more.
                    Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                    Err(error) => return Err(refused("link update")(error)),
                }
            }
            sys::link_create(program, cgroup.as_raw_fd().cast_unsigned(), attach_type)
        }
        HookKind::Tracepoint => {
            if link.is_some_and(|link| is_same(link.as_fd(), program)) {
                return Ok(None);
            }
            const TRACE_RAW_TP: u32 = 23;
            sys::link_create(program, 0, TRACE_RAW_TP)
        }
    }
    .map_err(refused("attach"))?;
    let unpinned = remove_if_there(&fresh);
    unpinned.map_err(refused("unpin what a crash left"))?;
    sys::obj_pin(created.as_fd(), &fresh).map_err(refused("pin"))?;
    fs::rename(&fresh, &plan.pin).map_err(refused("pin in the old link's place"))?;
    Ok(Some(created))
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether the link's program is the same one over the same maps, loaded by an earlier run: then it stays.
fn is_same(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> bool {
    let attached = sys::link_info(link)
        .and_then(|link| sys::prog_by_id(link.program_id))
        .and_then(|fd| sys::prog_info(fd.as_fd()));
    let (Ok(attached), Ok(loaded)) = (attached, sys::prog_info(program)) else {
        return false;
    };
    // Each load has a map of constants of its own; the pinned ones are the same, or none is.
    let shared = |id: &&u32| attached.map_ids.contains(id);
    attached.tag == loaded.tag
        && loaded.map_ids.iter().filter(shared).count() + 1 >= loaded.map_ids.len()
}

/// Programs on the hook, ours and others'. A tracepoint's others do not concern us.
pub(super) fn hook(plan: &ProgramPlan, link: Option<&OwnedFd>, cgroup: BorrowedFd<'_>) -> Hook {
    let ours = link.and_then(|link| sys::link_info(link.as_fd()).ok());
    let ids = match plan.hook {
        HookKind::Cgroup(attach_type) => {
            sys::prog_query_effective(cgroup, attach_type).unwrap_or_default()
        }
        HookKind::Tracepoint => ours.iter().map(|ours| ours.program_id).collect(),
    };
    let programs = ids
        .into_iter()
        .map(|id| HookProgram {
            id,
            name: sys::prog_by_id(id)
                .and_then(|fd| sys::prog_info(fd.as_fd()))
                .map_or_else(|error| error.to_string(), |program| program.name),
            link_id: ours
                .filter(|ours| ours.program_id == id)
                .map(|ours| ours.id),
        })
        .collect();
    Hook {
        name: plan.name,
        programs,
    }
}
