//! Programs of an earlier ABI as an agent of then left them, for tests of what outlives a change of version.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result, bail};
use aya::maps::Map;
use aya::programs::{CgroupAttachMode, Program};
use aya::{Ebpf, EbpfLoader};
use isthmus_agent::datapath::Kernel;
use zerocopy::{Immutable, IntoBytes};

use crate::sys;

/// Hooks of connects, and of who asks for a peer. They go when this is dropped.
#[derive(Debug)]
pub struct Earlier(Ebpf);

/// Maps that no version of ours replaces.
const OLDER_THAN_ANY: [&str; 2] = ["sockets", "sockets_spilled"];
const PROGRAMS: [&str; 4] = ["connect4", "connect6", "getpeername4", "getpeername6"];

impl Earlier {
    /// Loads `object` over the maps of sockets that are pinned in `bpffs`, and maps of its own, and attaches it.
    ///
    /// # Errors
    /// If the kernel or the object refuses.
    pub fn attach(object: &[u8], bpffs: &Path, cgroup: &Path) -> Result<Self> {
        let kernel = Kernel::running()?;
        let mut loader = EbpfLoader::new();
        kernel.tell(&mut loader, false);
        let pins = OLDER_THAN_ANY.map(|name| bpffs.join(name));
        for (name, pin) in OLDER_THAN_ANY.iter().zip(&pins) {
            loader.map_pin_path(name, pin.as_path());
        }
        let mut ebpf = loader.load(object).context("the object")?;
        let cgroup = File::open(cgroup).with_context(|| cgroup.display().to_string())?;
        for name in PROGRAMS {
            let Some(Program::CgroupSockAddr(program)) = ebpf.program_mut(name) else {
                bail!("the object has no {name}");
            };
            program.load().context(name)?;
            program
                .attach(&cgroup, CgroupAttachMode::Single)
                .context(name)?;
        }
        Ok(Self(ebpf))
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
        let (Some(Map::Array(data)) | Some(Map::HashMap(data))) = self.0.map(map) else {
            bail!("the object has no {map}");
        };
        sys::map_update(data.fd().as_fd(), key.as_bytes(), value.as_bytes()).context(map)
    }
}
