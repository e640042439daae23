//! The kernel's side of [`TableBackend`]: hashes by system call, arrays by memory that the kernel shares.

use std::fs;
use std::io;
use std::marker::PhantomData;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use isthmus_abi::{
    BackendFailuresRow, BackendHealthRow, BackendRow, EndpointRow, Ring, ServiceHealthRow,
    ServiceLimitsRow, ServiceRow, Slot, SocketRow,
};
use isthmus_core::table::{TableBackend, TableError};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::sys;

/// Rows of a hash that are read at once.
const BATCH: usize = 1024;

/// A BPF hash.
#[derive(Debug)]
pub struct KernelHash<K, V> {
    map: OwnedFd,
    name: &'static str,
    flag: &'static str,
    capacity: u32,
    rows: PhantomData<fn(K) -> V>,
}

impl<K, V> KernelHash<K, V> {
    /// `flag` is the option that sizes the map.
    ///
    /// # Errors
    /// If the descriptor is no map, or its rows are not `K` and `V` by size.
    pub fn new(map: OwnedFd, name: &'static str, flag: &'static str) -> io::Result<Self> {
        let info = sys::map_info(map.as_fd())?;
        check_size(name, info.key_size, size_of::<K>())?;
        check_size(name, info.value_size, size_of::<V>())?;
        Ok(Self {
            map,
            name,
            flag,
            capacity: info.max_entries,
            rows: PhantomData,
        })
    }
}

impl<K: IntoBytes + Immutable, V: IntoBytes + FromBytes> KernelHash<K, V> {
    /// # Errors
    /// [`TableError::KernelRefused`].
    pub fn get(&self, key: &K) -> Result<Option<V>, TableError> {
        let mut value = V::new_zeroed();
        sys::map_lookup(self.map.as_fd(), key.as_bytes(), value.as_mut_bytes())
            .map(|found| found.then_some(value))
            .map_err(|error| refused(self.name, "read", &error))
    }
}

fn check_size(name: &str, kernel: u32, ours: usize) -> io::Result<()> {
    if kernel as usize == ours {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "map {name} has rows of {kernel} bytes where this agent has {ours}"
    )))
}

impl<K, V> TableBackend<K, V> for KernelHash<K, V>
where
    K: IntoBytes + FromBytes + Immutable,
    V: IntoBytes + FromBytes + Immutable,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn capacity(&self) -> u32 {
        self.capacity
    }

    fn put(&mut self, key: K, value: V) -> Result<(), TableError> {
        sys::map_update(
            self.map.as_fd(),
            key.as_bytes(),
            value.as_bytes(),
            sys::NO_EXIST,
        )
        .map_err(|error| match error.raw_os_error() {
            Some(libc::E2BIG | libc::ENOMEM) => TableError::Full {
                table: self.name,
                capacity: self.capacity,
                flag: self.flag,
            },
            _ => refused(self.name, "insert", &error),
        })
    }

    fn remove(&mut self, key: K) -> Result<(), TableError> {
        sys::map_delete(self.map.as_fd(), key.as_bytes())
            .map(drop)
            .map_err(|error| refused(self.name, "delete", &error))
    }

    /// Shows each row once that stays meanwhile; one that comes or goes may be shown or not.
    fn for_each(&self, visit: &mut dyn FnMut(K, V)) -> Result<(), TableError> {
        let capacity = self.capacity.max(1) as usize;
        let mut room = capacity.min(BATCH);
        let mut from = None;
        loop {
            let mut keys: Vec<K> = (0..room).map(|_| K::new_zeroed()).collect();
            let mut values: Vec<V> = (0..room).map(|_| V::new_zeroed()).collect();
            let (key_bytes, value_bytes) = (keys.as_mut_bytes(), values.as_mut_bytes());
            let read = sys::map_lookup_batch(self.map.as_fd(), from, room, key_bytes, value_bytes);
            let batch = match read {
                Ok(batch) => batch,
                // A crowded bucket.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < capacity => {
                    room = capacity.min(room * 2);
                    continue;
                }
                Err(error) => return Err(refused(self.name, "read", &error)),
            };
            for (key, value) in keys.into_iter().zip(values).take(batch.rows) {
                visit(key, value);
            }
            match batch.next {
                Some(next) => from = Some(next),
                None => return Ok(()),
            }
        }
    }
}

fn refused(table: &'static str, operation: &'static str, error: &io::Error) -> TableError {
    TableError::KernelRefused {
        table,
        operation,
        cause: error.to_string(),
    }
}

/// A row of an array, or a part of one that has a writer and a purpose of its own.
pub trait Part: IntoBytes + FromBytes + Immutable {
    /// The array's name.
    const MAP: &'static str;
    /// Size of the whole row, in bytes.
    const ROW: usize;
    /// Where the part begins, in bytes.
    const OFFSET: usize;
}

macro_rules! parts {
    ($($part:ty: $map:literal, $row:ty $(, $field:ident)?;)*) => {
        $(impl Part for $part {
            const MAP: &'static str = $map;
            const ROW: usize = size_of::<$row>();
            const OFFSET: usize = 0 $(+ offset_of!($row, $field))?;
        })*
    };
}

parts! {
    Ring: "services", ServiceRow, ring;
    ServiceHealthRow: "services", ServiceRow, health;
    ServiceLimitsRow: "services", ServiceRow, limits;
    Slot: "slots", Slot;
    BackendRow: "backends", EndpointRow, backend;
    BackendHealthRow: "backends", EndpointRow, health;
    BackendFailuresRow: "backend_failures", BackendFailuresRow;
    SocketRow: "sockets", SocketRow;
}

/// The memory of a BPF array (`BPF_F_MMAPABLE`), shared with the kernel: once in this process, however many look at it.
#[derive(Debug)]
pub(super) struct Mapping {
    words: NonNull<AtomicU64>,
    bytes: usize,
    capacity: u32,
    /// Bytes of a row.
    row: usize,
}

// SAFETY: the memory is shared with the kernel anyway; every access is an atomic one.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// # Errors
    /// If the map is not an array, or the kernel does not map it.
    pub(super) fn new(map: &OwnedFd) -> io::Result<Self> {
        let info = sys::map_info(map.as_fd())?;
        let row = info.value_size as usize;
        let bytes = info.max_entries as usize * row;
        // SAFETY: a new mapping of a descriptor; the kernel checks length and rights.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let words = NonNull::new(address.cast())
            .ok_or_else(|| io::Error::other("mmap returned address 0"))?;
        Ok(Self {
            words,
            bytes,
            capacity: info.max_entries,
            row,
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, not used after this. It can only fail for a wrong argument.
        unsafe { libc::munmap(self.words.as_ptr().cast(), self.bytes) };
    }
}

/// A BPF array, or a part of each of its rows, mapped into this process: a write is a store.
///
/// Rows are made of 64-bit words, each stored whole, the last one last: a reader that finds a row's last word
/// complete finds all of it.
#[derive(Debug)]
pub struct MappedArray<V> {
    mapping: Arc<Mapping>,
    kind: PhantomData<fn() -> V>,
}

impl<V: Part> MappedArray<V> {
    const WORDS: usize = size_of::<V>() / 8;

    /// # Errors
    /// If the array's rows are not those that `V` is a part of, by size.
    pub(super) fn new(mapping: Arc<Mapping>) -> io::Result<Self> {
        const {
            assert!(size_of::<V>().is_multiple_of(8) && size_of::<V>() > 0);
            assert!(V::OFFSET.is_multiple_of(8) && V::OFFSET + size_of::<V>() <= V::ROW);
            assert!(V::ROW.is_multiple_of(8));
        };
        check_size(
            V::MAP,
            u32::try_from(mapping.row).unwrap_or(u32::MAX),
            V::ROW,
        )?;
        Ok(Self {
            mapping,
            kind: PhantomData,
        })
    }

    /// The words of the part in row `index`.
    fn words(&self, index: u32) -> &[AtomicU64] {
        let capacity = self.mapping.capacity;
        assert!(index < capacity, "row {index} of {capacity} in {}", V::MAP);
        let first = (index as usize * V::ROW + V::OFFSET) / 8;
        // SAFETY: the mapping holds `capacity` rows of `V::ROW` bytes, page-aligned, for as long as `self` lives; the part ends
        // before its row does.
        unsafe { std::slice::from_raw_parts(self.mapping.words.as_ptr().add(first), Self::WORDS) }
    }

    /// Row `index`, which must be below the capacity.
    #[must_use]
    pub fn get(&self, index: u32) -> V {
        let mut value = V::new_zeroed();
        for (bytes, word) in value
            .as_mut_bytes()
            .chunks_exact_mut(8)
            .zip(self.words(index))
        {
            bytes.copy_from_slice(&word.load(Ordering::Acquire).to_ne_bytes());
        }
        value
    }

    fn store(&self, index: u32, value: &V) {
        for (bytes, word) in value.as_bytes().chunks_exact(8).zip(self.words(index)) {
            let bytes = bytes.try_into().expect("chunks of eight");
            word.store(u64::from_ne_bytes(bytes), Ordering::Release);
        }
    }
}

impl<V: Part> TableBackend<u32, V> for MappedArray<V> {
    fn name(&self) -> &'static str {
        V::MAP
    }

    fn capacity(&self) -> u32 {
        self.mapping.capacity
    }

    fn put(&mut self, key: u32, value: V) -> Result<(), TableError> {
        self.store(key, &value);
        Ok(())
    }

    fn remove(&mut self, key: u32) -> Result<(), TableError> {
        self.store(key, &V::new_zeroed());
        Ok(())
    }

    fn for_each(&self, visit: &mut dyn FnMut(u32, V)) -> Result<(), TableError> {
        for index in 0..self.mapping.capacity {
            if self
                .words(index)
                .iter()
                .any(|word| word.load(Ordering::Relaxed) != 0)
            {
                visit(index, self.get(index));
            }
        }
        Ok(())
    }
}

/// Sums of a per-CPU array of counters, in the order of their indices.
///
/// # Errors
/// If the kernel refuses the read, or does not say how many CPUs it may have.
pub fn read_counters(map: &OwnedFd, count: u32) -> io::Result<Vec<u64>> {
    (0..count).map(|index| read_counter(map, index)).collect()
}

/// One of them.
///
/// # Errors
/// As [`read_counters`].
pub fn read_counter(map: &OwnedFd, index: u32) -> io::Result<u64> {
    let mut values = vec![0_u64; possible_cpus()?];
    sys::map_lookup(
        map.as_fd(),
        index.as_bytes(),
        values.as_mut_slice().as_mut_bytes(),
    )?;
    Ok(values.iter().sum())
}

fn possible_cpus() -> io::Result<usize> {
    const FILE: &str = "/sys/devices/system/cpu/possible";
    let text = fs::read_to_string(FILE)?;
    text.trim()
        .split(',')
        .map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some(
                last.parse::<usize>()
                    .ok()?
                    .checked_sub(first.parse().ok()?)?
                    + 1,
            )
        })
        .sum::<Option<usize>>()
        .ok_or_else(|| io::Error::other(format!("{FILE} says {text:?}")))
}
