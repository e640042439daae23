//! The consumer's side of the ring buffer `events`, by the memory that the kernel shares (Documentation/bpf/ringbuf.rst).
//!
//! The consumer's page holds our position and is ours to write. The producer's page and the data after it are the
//! kernel's; the data is mapped twice in a row, so that no record is ever cut. A record is a header of eight bytes, whose
//! first word is its length with two bits on top, then its bytes, rounded up to eight.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use isthmus_abi::{Counter, EventRow};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use zerocopy::{FromZeros, IntoBytes};

use super::{sys, tables};

/// Bits of a record's first word: it is still being written; it is to be passed over.
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
const HEADER: usize = 8;

/// Reads what programs tell. One reader at a time: the position is the map's.
#[derive(Debug)]
pub struct EventRing {
    map: OwnedFd,
    consumer: Mapping,
    producer: Mapping,
    page: usize,
    /// Bytes of the ring, a power of two.
    bytes: usize,
}

impl EventRing {
    /// # Errors
    /// If the map is no ring buffer, or the kernel does not map it.
    pub fn new(map: OwnedFd) -> io::Result<Self> {
        let bytes = sys::map_info(map.as_fd())?.max_entries as usize;
        let page = page_size()?;
        if !bytes.is_power_of_two() || !bytes.is_multiple_of(page) {
            return Err(io::Error::other(format!(
                "{bytes} bytes are no size of a ring buffer"
            )));
        }
        let consumer = Mapping::new(&map, 0, page, libc::PROT_READ | libc::PROT_WRITE)?;
        let producer = Mapping::new(&map, page, page + 2 * bytes, libc::PROT_READ)?;
        Ok(Self {
            map,
            consumer,
            producer,
            page,
            bytes,
        })
    }

    /// For a task that waits for more.
    ///
    /// # Errors
    /// If the runtime cannot wait for the descriptor.
    pub fn watched(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: the descriptor is ours alone, and stays the same and open as long as the ring.
        Ok(unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) }?)
    }

    /// The oldest records that nobody has read, at most `most`. With fewer than that there are no more: the descriptor
    /// becomes readable with the next one.
    pub fn read(&mut self, most: usize) -> Vec<EventRow> {
        let mut rows = Vec::new();
        let position = self.consumer.position();
        let end = self.producer.position();
        let mut at = position.load(Ordering::Relaxed);
        while rows.len() < most {
            // After the store of our position, before a look at theirs: the kernel wakes a reader only if it finds it at the
            // very record that it ends.
            fence(Ordering::SeqCst);
            if at >= end.load(Ordering::Acquire) {
                break;
            }
            let place = self.page + (at & (self.bytes - 1));
            let header = self.producer.word(place).load(Ordering::Acquire);
            let len = (header & !(BUSY | DISCARDED)) as usize;
            if header & BUSY != 0 || len > self.bytes {
                break;
            }
            if header & DISCARDED == 0 && len == size_of::<EventRow>() {
                rows.push(self.row(place + HEADER));
            }
            at += (HEADER + len).next_multiple_of(8);
            position.store(at, Ordering::SeqCst);
        }
        rows
    }

    fn row(&self, place: usize) -> EventRow {
        let mut row = EventRow::new_zeroed();
        for (nth, bytes) in row.as_mut_bytes().chunks_exact_mut(8).enumerate() {
            let word = self.producer.long(place + nth * 8).load(Ordering::Relaxed);
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        row
    }
}

impl AsFd for EventRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

impl AsRawFd for EventRing {
    fn as_raw_fd(&self) -> RawFd {
        self.map.as_raw_fd()
    }
}

/// The counters of programs, without the rest of the datapath.
#[derive(Debug)]
pub struct CounterReader(pub(super) OwnedFd);

impl CounterReader {
    /// One counter, summed over the CPUs.
    ///
    /// # Errors
    /// If the kernel refuses the read.
    pub fn read(&self, counter: Counter) -> io::Result<u64> {
        tables::read_counter(&self.0, counter as u32)
    }
}

/// A part of a map in our memory.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is shared with the kernel anyway; every access is an atomic one.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(
        map: &OwnedFd,
        offset: usize,
        bytes: usize,
        protection: libc::c_int,
    ) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a new mapping of a descriptor; the kernel checks length, offset and rights.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                offset,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(address.cast())
            .ok_or_else(|| io::Error::other("mmap returned address 0"))?;
        Ok(Self { start, bytes })
    }

    /// The address of `size` bytes at `place`, which must lie inside and be a multiple of `size`.
    fn at(&self, place: usize, size: usize) -> *mut u8 {
        assert!(
            place.is_multiple_of(size) && place + size <= self.bytes,
            "{size} bytes at {place} of {}",
            self.bytes
        );
        // SAFETY: the sum stays inside the mapping, by the line above.
        unsafe { self.start.as_ptr().add(place) }
    }

    /// The position at the start of a consumer's or a producer's page: an `unsigned long`.
    fn position(&self) -> &AtomicUsize {
        // SAFETY: inside the mapping, which lives as long as `self`, aligned to its own size, and accessed atomically by all.
        // Of a mapping for reading only, words no wider than a pointer may be loaded (std::sync::atomic).
        unsafe { &*self.at(0, size_of::<usize>()).cast() }
    }

    fn word(&self, place: usize) -> &AtomicU32 {
        // SAFETY: as in `position`.
        unsafe { &*self.at(place, size_of::<u32>()).cast() }
    }

    fn long(&self, place: usize) -> &AtomicU64 {
        // SAFETY: as in `position`. The kernel has written these bytes before it took the record's busy bit away, and does
        // not write them again before our position is behind them.
        unsafe { &*self.at(place, size_of::<u64>()).cast() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, not used after this. It can only fail for a wrong argument.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

fn page_size() -> io::Result<usize> {
    // SAFETY: a call without pointers.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).map_err(|_| io::Error::last_os_error())
}
