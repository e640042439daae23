//! Loading the programs: against pinned maps, with what they must know of the running kernel.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use aya::programs::Program;
use aya::{Btf, Ebpf, EbpfLoader, VerifierLogLevel};
use tracing::debug;

use super::plan::{HookKind, LoadPlan, MapPlan};
use super::{DatapathError, btf, links, sys};

/// The programs and maps, as built.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/datapath.o"));

/// A constant of the programs that holds the place of a member of a structure of the kernel's: constant, structure, member.
type KernelMember = (&'static str, &'static str, &'static str);

const KERNEL_MEMBERS: [KernelMember; 15] = [
    ("SKC_COOKIE", "sock_common", "skc_cookie"),
    ("SKC_STATE", "sock_common", "skc_state"),
    ("SKC_REFCNT", "sock_common", "skc_refcnt"),
    ("SKC_FAMILY", "sock_common", "skc_family"),
    ("SKC_DPORT", "sock_common", "skc_dport"),
    ("SKC_DADDR", "sock_common", "skc_daddr"),
    ("SKC_V6_DADDR", "sock_common", "skc_v6_daddr"),
    ("SK_ERR", "sock", "sk_err"),
    ("SK_ERR_SOFT", "sock", "sk_err_soft"),
    ("SK_OWNED", "sock", "sk_lock.owned"),
    ("SK_PROTOCOL", "sock", "sk_protocol"),
    ("SRTT_US", "tcp_sock", "srtt_us"),
    ("RCV_NXT", "tcp_sock", "rcv_nxt"),
    ("SEGS_IN", "tcp_sock", "segs_in"),
    ("RETRANSMITS", "inet_connection_sock", "icsk_retransmits"),
];
/// Where the kernel has MPTCP.
const MPTCP_MEMBERS: [KernelMember; 4] = [
    ("IS_MPTCP", "tcp_sock", "is_mptcp"),
    ("ULP_DATA", "inet_connection_sock", "icsk_ulp_data"),
    ("SUBFLOW_CONN", "mptcp_subflow_context", "conn"),
    ("MPTCP_FIRST", "mptcp_sock", "first"),
];

/// What programs must know of the kernel that they run on.
#[derive(Debug)]
pub struct Kernel {
    mptcp: u8,
    members: Vec<KernelMember>,
    places: Vec<u32>,
}

impl Kernel {
    /// Reads the kernel's own types.
    ///
    /// # Errors
    /// [`DatapathError::KernelTypes`].
    pub fn running() -> Result<Self, DatapathError> {
        let mptcp = u8::from(Path::new("/proc/sys/net/mptcp").exists());
        let mut members = KERNEL_MEMBERS.to_vec();
        if mptcp != 0 {
            members.extend(MPTCP_MEMBERS);
        }
        let names = members
            .iter()
            .map(|(_, structure, member)| (*structure, *member));
        let places = btf::offsets(names).map_err(DatapathError::KernelTypes)?;
        Ok(Self {
            mptcp,
            members,
            places,
        })
    }

    /// Sets the object's constants; `all` of them must be there.
    pub fn tell<'a>(&'a self, loader: &mut EbpfLoader<'a>, all: bool) {
        loader.override_global("MPTCP", &self.mptcp, all);
        for ((constant, _, _), place) in self.members.iter().zip(&self.places) {
            loader.override_global(constant, place, all);
        }
    }
}

/// A descriptor of every map that the plan names, by its pin.
pub(super) fn open_map(plan: &MapPlan) -> Result<OwnedFd, DatapathError> {
    let failed = |cause| DatapathError::Map {
        name: plan.name,
        cause,
    };
    sys::obj_get(&plan.pin)
        .map_err(failed)?
        .ok_or_else(|| failed(io::Error::from(io::ErrorKind::NotFound)))
}

/// Creates or adopts the pinned maps, and loads the programs against them.
pub(super) fn load(plan: &LoadPlan) -> Result<Ebpf, DatapathError> {
    let refused = |error: &dyn std::error::Error| {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                text = format!("{text}: {cause_text}");
            }
            source = cause.source();
        }
        DatapathError::Load(text)
    };
    let kernel = Kernel::running()?;
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::STATS);
    kernel.tell(&mut loader, true);
    for map in &plan.maps {
        loader.map_pin_path(map.name, map.pin.as_path());
        if let Some(entries) = map.max_entries {
            loader.map_max_entries(map.name, entries);
        }
    }
    let mut ebpf = loader.load(OBJECT).map_err(|error| refused(&error))?;
    let types = Btf::from_sys_fs().map_err(|error| refused(&error))?;
    for program in &plan.programs {
        let loaded = match ebpf.program_mut(program.name) {
            Some(Program::CgroupSockAddr(loaded)) => loaded.load(),
            Some(Program::CgroupSock(loaded)) => loaded.load(),
            Some(Program::BtfTracePoint(loaded)) => loaded.load(program.name, &types),
            _ => {
                return Err(DatapathError::Load(format!(
                    "the object has no program {}",
                    program.name
                )));
            }
        };
        loaded.map_err(|error| in_program(program.name, refused(&error)))?;
        debug!(program = program.name, "verified and loaded");
    }
    Ok(ebpf)
}

impl LoadPlan {
    /// Loads the programs over the plan's maps, which are created where they are not pinned yet, and attaches them to
    /// nothing: each goes with its descriptor.
    ///
    /// # Errors
    /// [`DatapathError::Load`] and [`DatapathError::KernelTypes`].
    pub fn load(&self) -> Result<Vec<(HookKind, OwnedFd)>, DatapathError> {
        let ebpf = load(self)?;
        let programs = self.programs.iter().map(|program| {
            let fd = links::loaded(&ebpf, program)?.as_fd().try_clone_to_owned();
            let fd = fd.map_err(|error| DatapathError::Load(error.to_string()))?;
            Ok((program.hook, fd))
        });
        programs.collect()
    }
}

fn in_program(name: &str, error: DatapathError) -> DatapathError {
    match error {
        DatapathError::Load(text) => DatapathError::Load(format!("{name}: {text}")),
        other => other,
    }
}
