//! Connected UDP sockets whose backend was removed. Nothing would ever tell them, so they are closed (`SOCK_DESTROY`):
//! their owners get `ECONNABORTED`, and connect again. A backend that is only ejected, or on its way out, keeps its sockets.
//!
//! A socket is closed only if it is the one that a row of `sockets` speaks of, by its cookie, if its peer is the removed
//! backend now, and if the service of the row has no such backend any more.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use isthmus_abi::{
    BackendRow, Frontend4Key, Frontend6Key, FrontendValue, NetPort, ScopeProtocol, SocketRow,
    SpillKey, backend_state,
};
use isthmus_core::model::Address;
use isthmus_core::table::{TableBackend, TableError};
use nix::sched::{CloneFlags, setns};
use tracing::{debug, info, warn};

use super::diag::Diag;
use super::{Datapath, DatapathError, KernelHash, MappedArray};

/// Where a backend stands: its address and port.
pub type Place = (Address, u16);

/// Which backends' sockets are looked for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Removed {
    places: BTreeSet<Place>,
    any: bool,
}

impl Removed {
    /// Wherever the socket's service, which is in these maps, has no backend: for maps that did not see what was removed.
    pub const ANYWHERE: Self = Self {
        places: BTreeSet::new(),
        any: true,
    };

    fn is_empty(&self) -> bool {
        self.places.is_empty() && !self.any
    }
    fn has(&self, place: &Place) -> bool {
        self.any || self.places.contains(place)
    }
    fn add(&mut self, more: Self) {
        self.places.extend(more.places);
        self.any |= more.any;
    }
}

impl From<BTreeSet<Place>> for Removed {
    fn from(places: BTreeSet<Place>) -> Self {
        Self { places, any: false }
    }
}

/// Network namespaces that are looked through, at most.
const NAMESPACES_MAX: usize = 4096;

/// The maps that know who was sent where.
#[derive(Debug)]
pub struct Orphans {
    sockets: MappedArray<SocketRow>,
    spilled: KernelHash<SpillKey, SocketRow>,
    frontends4: KernelHash<Frontend4Key, FrontendValue>,
    frontends6: KernelHash<Frontend6Key, FrontendValue>,
    backends: MappedArray<BackendRow>,
}

/// What was done about a removal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Closed {
    /// Records of sockets that were sent to a removed backend. Most are of sockets that are gone.
    pub records: usize,
    pub closed: usize,
}

impl Orphans {
    /// # Errors
    /// If the kernel does not give one of the maps.
    pub fn open(datapath: &Datapath) -> Result<Self, DatapathError> {
        Ok(Self {
            sockets: datapath.array()?,
            spilled: datapath.hash("sockets_spilled", "")?,
            frontends4: datapath.hash("frontends4", "")?,
            frontends6: datapath.hash("frontends6", "")?,
            backends: datapath.array()?,
        })
    }

    /// Closes the sockets that are connected to `removed` backends on behalf of a service that has none there.
    ///
    /// # Errors
    /// [`OrphanError`]. What could be closed is closed.
    pub fn close(&self, removed: &Removed) -> Result<Closed, OrphanError> {
        let mut wanted = self.find(removed)?;
        if removed.any && !wanted.is_empty() {
            // A backend that was given another id while they were read is nowhere for that moment.
            let again = self.find(removed)?;
            wanted.retain(|cookie, place| again.get(cookie) == Some(place));
        }
        let records = wanted.len();
        let closed = if wanted.is_empty() {
            0
        } else {
            close_everywhere(wanted)?
        };
        Ok(Closed { records, closed })
    }

    /// Cookies of sockets to close, if they live, with the peers that they then have.
    fn find(&self, removed: &Removed) -> Result<HashMap<u64, Place>, TableError> {
        let mut rows = Vec::new();
        let mut note = |row: SocketRow| {
            let place = place_of(row.backend_address, row.backend_port);
            // Rows of MPTCP hold no cookie.
            if row.cookie != 0 && removed.has(&place) {
                rows.push(row);
            }
        };
        self.sockets.for_each(&mut |_, row| note(row))?;
        self.spilled.for_each(&mut |_, row| note(row))?;
        if rows.is_empty() {
            return Ok(HashMap::new());
        }
        let mut alive = HashSet::new();
        self.backends.for_each(&mut |_, row| {
            let place = place_of(row.address, row.port);
            if row.state == backend_state::LIVE
                && u16::from(row.protocol) == ScopeProtocol::UDP
                && removed.has(&place)
            {
                alive.insert((row.service, place));
            }
        })?;
        let mut wanted = HashMap::new();
        for row in rows {
            let place = place_of(row.backend_address, row.backend_port);
            let orphaned = match self.service_of(&row)? {
                Some(service) => !alive.contains(&(service, place)),
                // It was removed, or these maps never held it.
                None => removed.places.contains(&place),
            };
            if orphaned {
                wanted.insert(row.cookie, place);
            }
        }
        Ok(wanted)
    }

    /// The service that the socket asked for, by its index in these maps.
    fn service_of(&self, row: &SocketRow) -> Result<Option<u32>, TableError> {
        let port = NetPort::from_net(row.service_port);
        let scope_protocol = ScopeProtocol::new(0, ScopeProtocol::UDP);
        let value = match Address::from_words(row.service_address).v4() {
            Some(v4) => self.frontends4.get(&Frontend4Key {
                address: u32::from_ne_bytes(v4.octets()),
                port,
                scope_protocol,
            })?,
            None => self.frontends6.get(&Frontend6Key {
                address: row.service_address,
                port,
                scope_protocol,
            })?,
        };
        Ok(value.map(|value| value.service))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OrphanError {
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("{0}: {1}")]
    Namespaces(&'static str, io::Error),
    #[error(
        "sockets of removed backends stay open: {0}; the kernel needs INET_UDP_DIAG and INET_DIAG_DESTROY, the agent CAP_NET_ADMIN and CAP_SYS_ADMIN"
    )]
    KernelRefused(io::Error),
    #[error("the thread that enters namespaces ended in a panic")]
    Panic,
}

fn place_of(address: [u32; 4], port: u16) -> Place {
    (
        Address::from_words(address),
        NetPort::from_net(port).to_host(),
    )
}

/// Looks through every network namespace that a process is in, on a thread that ends with it, until nobody is left.
fn close_everywhere(mut wanted: HashMap<u64, Place>) -> Result<usize, OrphanError> {
    let namespaces = namespaces().map_err(|error| OrphanError::Namespaces("/proc", error))?;
    let entered = thread::spawn(move || {
        let (mut closed, mut refused) = (0, None);
        for namespace in namespaces {
            if wanted.is_empty() {
                break;
            }
            match close_in(&namespace, &mut wanted) {
                Ok(count) => closed += count,
                Err(error) => refused = Some(error),
            }
        }
        refused.map_or(Ok(closed), Err)
    });
    entered
        .join()
        .map_err(|_| OrphanError::Panic)?
        .map_err(OrphanError::KernelRefused)
}

/// Each network namespace once.
fn namespaces() -> io::Result<Vec<File>> {
    let mut seen = HashSet::new();
    let mut files = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let is_process = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        if !is_process {
            continue;
        }
        let path = entry.path().join("ns/net");
        // A process may end meanwhile.
        let Ok(number) = fs::metadata(&path).map(|of| (of.dev(), of.ino())) else {
            continue;
        };
        if seen.contains(&number) {
            continue;
        }
        if files.len() == NAMESPACES_MAX {
            warn!(
                most = NAMESPACES_MAX,
                "more network namespaces than are looked through for sockets of removed backends"
            );
            break;
        }
        if let Ok(file) = File::open(&path) {
            seen.insert(number);
            files.push(file);
        }
    }
    Ok(files)
}

fn close_in(namespace: &File, wanted: &mut HashMap<u64, Place>) -> io::Result<usize> {
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    let mut diag = Diag::open()?;
    let mut closed = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let found = diag.connected_udp(family, |socket| {
            wanted
                .get(&socket.cookie())
                .is_some_and(|place| *place == socket.peer())
        })?;
        for socket in found {
            wanted.remove(&socket.cookie());
            // It may have been closed, or connected elsewhere, meanwhile.
            if diag.destroy(&socket)? {
                closed += 1;
            }
        }
    }
    Ok(closed)
}

/// Between two tries, and how many more there are.
const RETRY: Duration = Duration::from_secs(1);
const TRIES: u32 = 5;

/// Starts the thread that closes them. What is removed while it works is done together afterwards.
#[must_use]
pub fn start(orphans: Orphans) -> Sender<Removed> {
    let (sender, removals) = channel();
    thread::spawn(move || work(&orphans, &removals));
    sender
}

fn work(orphans: &Orphans, removals: &Receiver<Removed>) {
    let mut tries = 0;
    let mut removed = Removed::default();
    loop {
        let more = if removed.is_empty() {
            removals.recv().map_err(RecvTimeoutError::from)
        } else {
            removals.recv_timeout(RETRY)
        };
        match more {
            Ok(more) => {
                removed.add(more);
                tries = 0;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        removals.try_iter().for_each(|more| removed.add(more));
        match orphans.close(&removed) {
            Ok(Closed { closed, .. }) => {
                removed = Removed::default();
                if closed > 0 {
                    info!(closed, "closed UDP sockets of removed backends");
                }
            }
            Err(error) if tries < TRIES => {
                tries += 1;
                debug!(%error, tries, "UDP sockets of removed backends are looked for again");
            }
            Err(error) => {
                removed = Removed::default();
                warn!(%error, "UDP sockets of removed backends");
            }
        }
    }
}
