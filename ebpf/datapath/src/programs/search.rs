//! Where in its ring a backend stands. For what is rare: a walk over slots.

use core::ffi::c_void;
use core::ptr::read_volatile;

use aya_ebpf::helpers::generated::bpf_loop;
use isthmus_abi::{BackendRow, Ring, TierHead};
use isthmus_datapath::{Drawn, is_at, judge};

use crate::maps::{SLOTS, backend_at};

/// No backend's id, no slot.
pub const NOWHERE: u32 = u32::MAX;

/// Most slots of a ring that are looked at.
const SEARCH_MAX: u32 = 4096;

/// A search over the slots of a ring, tier by tier, for a backend by its id, or by its address and port (network order).
#[repr(C)]
pub struct Search {
    ring: Ring,
    address: [u32; 4],
    service: u32,
    /// The slot to look at, and how many the tier still has.
    next: u32,
    left: u32,
    id: u32,
    port: u32,
    /// The tier that the search is in.
    pub tier: u32,
    /// The backend's id; [`NOWHERE`] if it has none in this ring.
    pub found: u32,
    pub slot: u32,
}

impl Search {
    #[inline(always)]
    fn new(ring: Ring, service: u32, id: u32, address: [u32; 4], port: u32) -> Self {
        Self {
            ring,
            address,
            service,
            next: ring.first(),
            left: ring.len(),
            id,
            port,
            tier: 0,
            found: NOWHERE,
            slot: NOWHERE,
        }
    }
    #[inline(always)]
    pub fn by_id(ring: Ring, service: u32, id: u32) -> Self {
        Self::new(ring, service, id, [0; 4], 0)
    }
    #[inline(always)]
    pub fn in_first_tier(ring: Ring, service: u32, id: u32) -> Self {
        Self::by_id(Ring::new(ring.first(), 1, ring.len()), service, id)
    }
    #[inline(always)]
    pub fn by_address(ring: Ring, service: u32, address: [u32; 4], port: u32) -> Self {
        Self::new(ring, service, NOWHERE, address, port)
    }
}

#[inline(never)]
pub fn run(search: &mut Search) -> u32 {
    over(search, step_by_id);
    search.found
}

/// The same, for a search by address.
#[inline(never)]
pub fn run_by_address(search: &mut Search) -> u32 {
    over(search, step_by_address);
    search.found
}

#[inline(always)]
fn over(search: &mut Search, step: unsafe extern "C" fn(u64, *mut c_void) -> i64) {
    // SAFETY: the helper calls `step` with the caller's `search`, as long as this call lasts.
    unsafe {
        bpf_loop(
            SEARCH_MAX,
            step as *mut c_void,
            core::ptr::from_mut(search).cast(),
            0,
        )
    };
}

/// What a step returns to be called again, or not.
const GO_ON: i64 = 0;
const END: i64 = 1;

unsafe extern "C" fn step_by_id(_: u64, search: *mut c_void) -> i64 {
    // SAFETY: the search is the frame's that called `bpf_loop`.
    let search = unsafe { &mut *search.cast::<Search>() };
    search.step(|search, id, _| id == search.id)
}

unsafe extern "C" fn step_by_address(_: u64, search: *mut c_void) -> i64 {
    // SAFETY: the search is the frame's that called `bpf_loop`.
    let search = unsafe { &mut *search.cast::<Search>() };
    search.step(|search, _, row| is_at(row, search.service, &search.address, search.port as u16))
}

impl Search {
    /// Looks at a slot, or comes to the next tier.
    #[inline(always)]
    fn step(&mut self, is_it: impl FnOnce(&Self, u32, &BackendRow) -> bool) -> i64 {
        if self.left == 0 {
            self.tier = self.tier.wrapping_add(1);
            if self.tier >= u32::from(self.ring.tiers()) {
                return END;
            }
            let head = self.ring.span().wrapping_add(self.tier).wrapping_sub(1);
            let Some(head) = SLOTS.get_ptr(head) else {
                return END;
            };
            // SAFETY: one aligned word, written whole.
            let head = TierHead(unsafe { read_volatile(head) }.0);
            self.next = self.ring.span().wrapping_add(head.offset());
            self.left = head.len();
            return GO_ON;
        }
        let at = self.next;
        let Some(slot) = SLOTS.get_ptr(at) else {
            return END;
        };
        // SAFETY: as above.
        let slot = unsafe { read_volatile(slot) };
        self.next = at.wrapping_add(1);
        self.left = self.left.wrapping_sub(1);
        if let Some(row) = backend_at(slot.backend())
            && judge(self.service, slot, row) == Drawn::Ours
            && is_it(self, slot.backend(), row)
        {
            self.found = slot.backend();
            self.slot = at;
            return END;
        }
        GO_ON
    }
}
