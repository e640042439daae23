//! The kernel's side: what is loaded, pinned and attached. The only place with `unsafe` and aya.
//!
//! Layout below the agent's directory in bpffs: `v<ABI>-<sizes>/` holds the maps of one version, `links/` the links,
//! and beside them stand the maps of what sockets remember, which outlive every version.

mod btf;
mod cgroup;
mod diag;
mod events;
mod links;
mod load;
mod orphans;
mod pins;
mod plan;
mod probe;
mod sys;
mod tables;
mod words;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use aya::Ebpf;
use isthmus_abi::{
    BackendFailuresRow, BackendHealthRow, BackendRow, ClientWord, Counter, Ring, ServiceHealthRow,
    ServiceLimitsRow, Slot, client,
};
use isthmus_core::table::{TableBackend, TableError, Tables};
use nix::fcntl::Flock;
use zerocopy::IntoBytes;

pub use cgroup::{CgroupError, probe_connect};
pub use events::{CounterReader, EventRing};
pub use links::{Hook, HookProgram};
pub use load::Kernel;
pub use orphans::{Closed, OrphanError, Orphans, Place, Removed, start as start_orphans};
pub use pins::cleanup;
pub use plan::{
    DatapathConfig, HookKind, Lifetime, LoadPlan, MapPlan, MapSizes, ProgramPlan, TooManyCidrs,
    VERSION_PREFIX,
};
pub use sys::{clock, grace_period, share_one_heap};
pub use tables::{KernelHash, MappedArray, Part};
pub use words::Words;

use cgroup::Cgroup;
use load::{load, open_map};
use pins::{ensure_bpffs, lock_dir, remove_other_versions};
use tables::Mapping;

#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    #[error(
        "{0} is not in a bpffs, and mounting one at /sys/fs/bpf was refused: {1}; run as root, in the host's mount namespace"
    )]
    NoBpffs(PathBuf, io::Error),
    #[error("another agent works on {0}; stop it first, or give this one another --bpffs")]
    InUse(PathBuf),
    #[error("{path}: {cause}")]
    Path { path: PathBuf, cause: io::Error },
    #[error(
        "the kernel refused the programs: {0}; Linux 6.1 or newer is needed, and CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
    )]
    Load(String),
    #[error("map {name}: {cause}")]
    Map {
        name: &'static str,
        cause: io::Error,
    },
    #[error("program {name}: {operation} refused by the kernel: {cause}")]
    Attach {
        name: &'static str,
        operation: &'static str,
        cause: io::Error,
    },
    #[error(transparent)]
    KernelTypes(btf::BtfError),
    #[error("cannot tell this network namespace's cookie: {0}")]
    NetnsCookie(io::Error),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Config(#[from] TooManyCidrs),
    #[error(
        "this kernel has no global memory barrier (membarrier: {0}), as with nohz_full: freed rows could never be used again"
    )]
    NoGrace(io::Error),
}

/// Whether the hooks were seen to meet a socket of another cgroup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proof {
    /// The programs are not attached, or not seen to work.
    Missing,
    Seen,
    /// The cgroup is mounted for this agent alone: no probe can join it.
    OutOfReach,
    /// `frontends4` is full: the probe has no room for its frontend.
    NoRoom,
}

/// A map, as the kernel has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapUse {
    pub name: &'static str,
    pub id: u32,
    pub capacity: u32,
    /// Bytes that the kernel charges for it.
    pub memlock: u64,
}

/// The loaded datapath of one agent.
#[derive(Debug)]
pub struct Datapath {
    plan: LoadPlan,
    cgroup: Cgroup,
    ebpf: Ebpf,
    /// In the plan's order.
    maps: Vec<OwnedFd>,
    /// In the plan's order; `None` where not attached.
    links: Vec<Option<OwnedFd>>,
    /// Of the arrays that were asked for, by name.
    mappings: Mutex<BTreeMap<&'static str, Arc<Mapping>>>,
    adopted: bool,
    proof: Proof,
    /// One agent at a time writes these maps.
    _lock: Flock<File>,
}

impl Datapath {
    /// Opens or creates the maps and loads the programs. Attaches nothing: see [`Self::attach`].
    ///
    /// # Errors
    /// [`DatapathError`]; what was pinned before stays as it was.
    pub fn open(config: &DatapathConfig) -> Result<Self, DatapathError> {
        ensure_bpffs(&config.bpffs)?;
        let plan = LoadPlan::new(&config.bpffs, config.sizes);
        for dir in [&plan.version_dir, &plan.links_dir] {
            fs::create_dir_all(dir).map_err(|cause| DatapathError::Path {
                path: dir.clone(),
                cause,
            })?;
        }
        let lock = lock_dir(&config.bpffs)?;
        // Whoever held the lock before may have written until it had to let go.
        grace_period().map_err(DatapathError::NoGrace)?;
        let cgroup = Cgroup::find(config.cgroup.as_deref())?;
        let ebpf = load(&plan)?;
        let maps = plan
            .maps
            .iter()
            .map(open_map)
            .collect::<Result<Vec<_>, _>>()?;
        let links = plan
            .programs
            .iter()
            .map(|program| {
                sys::obj_get(&program.pin).map_err(|cause| DatapathError::Path {
                    path: program.pin.clone(),
                    cause,
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut datapath = Self {
            plan,
            cgroup,
            ebpf,
            maps,
            links,
            mappings: Mutex::default(),
            adopted: false,
            proof: Proof::Missing,
            _lock: lock,
        };
        datapath.adopted = datapath.links_use_our_maps();
        datapath.write_settings(config)?;
        Ok(datapath)
    }

    /// Whether attached programs of an earlier agent already use these maps: then what is in them is being served.
    #[must_use]
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Whether programs of any earlier agent are attached.
    #[must_use]
    pub fn is_linked(&self) -> bool {
        self.links.iter().any(Option::is_some)
    }

    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.cgroup.path
    }

    #[must_use]
    pub fn plan(&self) -> &LoadPlan {
        &self.plan
    }

    /// Opens the tables that reconciliation writes.
    ///
    /// # Errors
    /// If the kernel does not map an array into this process.
    pub fn tables(&self) -> Result<Tables, DatapathError> {
        const SERVICES: &str = "--lb-services-max";
        Ok(Tables {
            frontends4: Box::new(self.hash("frontends4", SERVICES)?),
            frontends6: Box::new(self.hash("frontends6", SERVICES)?),
            rings: Box::new(self.array::<Ring>()?),
            slots: Box::new(self.array::<Slot>()?),
            backends: Box::new(self.array::<BackendRow>()?),
            backend_health: Box::new(self.array::<BackendHealthRow>()?),
            backend_failures: Box::new(self.array::<BackendFailuresRow>()?),
            service_health: Box::new(self.array::<ServiceHealthRow>()?),
            service_limits: Box::new(self.array::<ServiceLimitsRow>()?),
        })
    }

    /// A view of an array, or of a part of its rows.
    ///
    /// # Errors
    /// If the kernel does not map it into this process, or its rows are not those of `V` by size.
    pub fn array<V: Part>(&self) -> Result<MappedArray<V>, DatapathError> {
        let failed = |cause| DatapathError::Map {
            name: V::MAP,
            cause,
        };
        let map = self.map(V::MAP)?;
        let mut mappings = self.mappings.lock().unwrap_or_else(PoisonError::into_inner);
        let mapping = match mappings.get(V::MAP) {
            Some(mapping) => Arc::clone(mapping),
            None => {
                let mapping = Arc::new(Mapping::new(map).map_err(failed)?);
                mappings.insert(V::MAP, Arc::clone(&mapping));
                mapping
            }
        };
        MappedArray::new(mapping).map_err(failed)
    }

    /// A view of a hash.
    ///
    /// # Errors
    /// As [`Self::array`].
    pub fn hash<K, V>(
        &self,
        name: &'static str,
        flag: &'static str,
    ) -> Result<KernelHash<K, V>, DatapathError> {
        let failed = |cause| DatapathError::Map { name, cause };
        KernelHash::new(self.map(name)?.try_clone().map_err(failed)?, name, flag).map_err(failed)
    }

    /// Sums of the programs' counters, in the order of [`Counter::ALL`].
    ///
    /// # Errors
    /// If the kernel refuses the read.
    pub fn counters(&self) -> Result<Vec<u64>, DatapathError> {
        const NAME: &str = "counters";
        tables::read_counters(self.map(NAME)?, Counter::COUNT)
            .map_err(|cause| DatapathError::Map { name: NAME, cause })
    }

    /// What programs tell, from where the last reader stopped.
    ///
    /// # Errors
    /// If the kernel does not map the ring buffer into this process.
    pub fn events(&self) -> Result<EventRing, DatapathError> {
        const NAME: &str = "events";
        let map = self.map(NAME)?.try_clone();
        map.and_then(EventRing::new)
            .map_err(|cause| DatapathError::Map { name: NAME, cause })
    }

    /// What the programs of a debugging build say; `None` of others, and the second time.
    pub fn words(&mut self) -> Option<Words> {
        Words::of(&mut self.ebpf)
    }

    /// The programs' counters, to be read beside the rest.
    ///
    /// # Errors
    /// If the descriptor cannot be doubled.
    pub fn counter_reader(&self) -> Result<CounterReader, DatapathError> {
        const NAME: &str = "counters";
        self.map(NAME)?
            .try_clone()
            .map(CounterReader)
            .map_err(|cause| DatapathError::Map { name: NAME, cause })
    }

    /// Attaches the programs, or puts them in the place of an earlier agent's, each swap atomic; proves that the hook
    /// sees a socket in another cgroup, if there is a way to ([`Proof`]); then removes maps of other versions, which nothing uses any more.
    ///
    /// # Errors
    /// [`DatapathError`]; hooks that were served before stay served, by the old program or the new one.
    pub fn attach(&mut self) -> Result<(), DatapathError> {
        for (plan, link) in self.plan.programs.iter().zip(&mut self.links) {
            let program = links::loaded(&self.ebpf, plan)?;
            let cgroup = self.cgroup.fd.as_fd();
            if let Some(created) = links::put_on(plan, program.as_fd(), cgroup, link.as_ref())? {
                *link = Some(created);
            }
        }
        self.proof = self.prove()?;
        remove_other_versions(&self.plan);
        self.adopted = true;
        Ok(())
    }

    /// What was seen when the programs were attached.
    #[must_use]
    pub fn proof(&self) -> Proof {
        self.proof
    }

    /// Programs on each hook, ours and others'.
    #[must_use]
    pub fn hooks(&self) -> Vec<Hook> {
        self.plan
            .programs
            .iter()
            .zip(&self.links)
            .map(|(plan, link)| links::hook(plan, link.as_ref(), self.cgroup.fd.as_fd()))
            .collect()
    }

    /// The maps, with what the kernel charges for them.
    #[must_use]
    pub fn map_uses(&self) -> Vec<MapUse> {
        self.plan
            .maps
            .iter()
            .zip(&self.maps)
            .filter_map(|(plan, map)| {
                let info = sys::map_info(map.as_fd()).ok()?;
                Some(MapUse {
                    name: plan.name,
                    id: info.id,
                    capacity: info.max_entries,
                    memlock: memlock(map),
                })
            })
            .collect()
    }

    /// Verified instructions by program: what the verifier walked, an exact number for a kernel and a build.
    #[must_use]
    pub fn verified_instructions(&self) -> Vec<(&'static str, u32)> {
        self.plan
            .programs
            .iter()
            .filter_map(|plan| {
                let program = self.ebpf.program(plan.name)?.info().ok()?;
                Some((plan.name, program.verified_instruction_count()?))
            })
            .collect()
    }

    fn map(&self, name: &'static str) -> Result<&OwnedFd, DatapathError> {
        let place = self.plan.maps.iter().position(|map| map.name == name);
        place
            .map(|place| &self.maps[place])
            .ok_or_else(|| DatapathError::Map {
                name,
                cause: io::Error::from(io::ErrorKind::NotFound),
            })
    }

    fn links_use_our_maps(&self) -> bool {
        let Ok(services) = self.map("services").and_then(|map| {
            sys::map_info(map.as_fd()).map_err(|cause| DatapathError::Map {
                name: "services",
                cause,
            })
        }) else {
            return false;
        };
        self.plan
            .programs
            .iter()
            .zip(&self.links)
            .filter(|(plan, _)| plan.name.starts_with("connect"))
            .all(|(_, link)| {
                let program = link.as_ref().and_then(|link| {
                    let id = sys::link_info(link.as_fd()).ok()?.program_id;
                    sys::prog_info(sys::prog_by_id(id).ok()?.as_fd()).ok()
                });
                program.is_some_and(|program| program.map_ids.contains(&services.id))
            })
    }

    fn write_settings(&self, config: &DatapathConfig) -> Result<(), DatapathError> {
        let settings = plan::settings(config)?;
        let own = if config.translate_pods {
            None
        } else {
            Some(netns_cookie().map_err(DatapathError::NetnsCookie)?)
        };
        let mut clients = self.hash::<u64, ClientWord>("clients", "")?;
        if let Some(cookie) = own
            && clients.get(&cookie)?.is_none()
        {
            let word = ClientWord {
                scope: client::TRANSLATE,
                reserved: 0,
            };
            clients.put(cookie, word)?;
        }
        sys::map_update(
            self.map("settings")?.as_fd(),
            0_u32.as_bytes(),
            settings.as_bytes(),
            sys::ANY,
        )
        .map_err(|cause| DatapathError::Map {
            name: "settings",
            cause,
        })?;
        // An earlier agent's, of a namespace that it was in: its clients are not this one's.
        let mut others = Vec::new();
        clients.for_each(&mut |cookie, _| {
            if Some(cookie) != own {
                others.push(cookie);
            }
        })?;
        for cookie in others {
            clients.remove(cookie)?;
        }
        Ok(())
    }

    fn prove(&self) -> Result<Proof, DatapathError> {
        if !self.cgroup.visible {
            return Ok(Proof::OutOfReach);
        }
        let connect = |address| self.cgroup.prove(address);
        probe::probe(&mut self.hash("frontends4", "")?, grace_period, connect)
    }
}

/// The cookie of this thread's network namespace.
fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut cookie = 0_u64;
    let mut len = libc::socklen_t::try_from(size_of::<u64>()).expect("eight");
    // SAFETY: the option writes at most `len` bytes to `cookie` (since Linux 5.14).
    let result = unsafe {
        libc::getsockopt(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `memlock:` of the map's descriptor (proc_pid_fdinfo(5)); 0 if the kernel does not say.
fn memlock(map: &OwnedFd) -> u64 {
    let path = format!("/proc/self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(map));
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
        .unwrap_or(0)
}
