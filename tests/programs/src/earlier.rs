//! Programs of an earlier ABI as an agent of then left them, for tests of what outlives a change of version.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aya::maps::Map;
use aya::programs::{Program, ProgramFd};
use aya::{Btf, Ebpf, EbpfLoader};
use isthmus_agent::datapath::{
    HookKind, Kernel, Lifetime, LoadPlan, MapPlan, MapSizes, ProgramPlan, VERSION_PREFIX,
};
use zerocopy::{Immutable, IntoBytes};

use crate::sys;

/// An earlier agent's programs on all hooks that it knew, with maps and links pinned where it pinned them. They stay when
/// this is dropped, as after the end of an agent.
#[derive(Debug)]
pub struct Earlier {
    ebpf: Ebpf,
    /// By hook.
    links: Vec<(&'static str, u32)>,
}

impl Earlier {
    /// Loads `object`, of this ABI, over the maps of sockets that are pinned in `bpffs`, and maps of its own, and attaches it.
    ///
    /// # Errors
    /// If the kernel or the object refuses.
    pub fn attach(object: &[u8], abi: u32, bpffs: &Path, cgroup: &Path) -> Result<Self> {
        // For names and places: its maps are as large as the object says.
        let sizes = MapSizes {
            services: 0,
            backends: 0,
            ring_slots: 0,
            affinity: 0,
        };
        let plan = LoadPlan::new(bpffs, sizes);
        let version_dir = bpffs.join(format!("{VERSION_PREFIX}{abi}-earlier"));
        for dir in [&version_dir, &plan.links_dir] {
            fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        }
        let kernel = Kernel::running()?;
        let mut loader = EbpfLoader::new();
        kernel.tell(&mut loader, false);
        let pins = pins(&plan.maps, &version_dir);
        for (name, pin) in &pins {
            loader.map_pin_path(name, pin.as_path());
        }
        let mut ebpf = loader.load(object).context("the object")?;
        let types = Btf::from_sys_fs()?;
        let cgroup = File::open(cgroup).with_context(|| cgroup.display().to_string())?;
        let mut links = Vec::new();
        for plan in &plan.programs {
            let Some(program) = ebpf.program_mut(plan.name) else {
                // A hook that came later.
                continue;
            };
            let program = load(program, plan, &types).context(plan.name)?;
            let (target, attach_type) = match plan.hook {
                HookKind::Cgroup(attach_type) => (cgroup.as_raw_fd().cast_unsigned(), attach_type),
                HookKind::Tracepoint => (0, sys::TRACE_RAW_TP),
            };
            let link =
                sys::link_create_at(program.as_fd(), target, attach_type).context(plan.name)?;
            sys::obj_pin(link.as_fd(), &plan.pin).context(plan.name)?;
            links.push((plan.name, sys::link_id(link.as_fd())?));
        }
        Ok(Self { ebpf, links })
    }

    /// Its links' ids, by hook.
    #[must_use]
    pub fn links(&self) -> &[(&'static str, u32)] {
        &self.links
    }

    /// Writes a row of one of its maps.
    ///
    /// # Errors
    /// If it has no such map, or that refuses the row.
    pub fn put<K, V>(&self, map: &'static str, key: &K, value: &V) -> Result<()>
    where
        K: IntoBytes + Immutable + ?Sized,
        V: IntoBytes + Immutable + ?Sized,
    {
        let (Some(Map::Array(data)) | Some(Map::HashMap(data))) = self.ebpf.map(map) else {
            bail!("the object has no {map}");
        };
        sys::map_update(data.fd().as_fd(), key.as_bytes(), value.as_bytes()).context(map)
    }
}

/// The maps that no version of ours replaces are where they always were.
fn pins(maps: &[MapPlan], version_dir: &Path) -> Vec<(&'static str, PathBuf)> {
    let pin = |map: &MapPlan| match map.lifetime {
        Lifetime::Version => version_dir.join(map.name),
        Lifetime::Node => map.pin.clone(),
    };
    maps.iter().map(|map| (map.name, pin(map))).collect()
}

fn load<'a>(program: &'a mut Program, plan: &ProgramPlan, types: &Btf) -> Result<&'a ProgramFd> {
    Ok(match program {
        Program::CgroupSockAddr(program) => {
            program.load()?;
            program.fd()?
        }
        Program::CgroupSock(program) => {
            program.load()?;
            program.fd()?
        }
        Program::BtfTracePoint(program) => {
            program.load(plan.name, types)?;
            program.fd()?
        }
        other => bail!("it is a {:?}", other.prog_type()),
    })
}
