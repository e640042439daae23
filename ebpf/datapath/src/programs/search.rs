//! Where in its ring a backend stands. For what is rare: a walk over slots.

use core::ffi::c_void;
use core::ptr::read_volatile;

use aya_ebpf::helpers::generated::bpf_loop;
use isthmus_abi::{Ring, TierHead};
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
    /// No backend has port 0.
    #[inline(always)]
    pub fn by_id(ring: Ring, service: u32, id: u32) -> Self {
        Self::new(ring, service, id, [id; 4], 0)
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
    // SAFETY: the helper calls `step` with the caller's `search`, as long as this call lasts.
    unsafe {
        let step: unsafe extern "C" fn(u64, *mut c_void) -> i64 = step;
        bpf_loop(
            SEARCH_MAX,
            step as *mut c_void,
            core::ptr::from_mut(search).cast(),
            0,
        )
    };
    search.found
}

/// What a step returns to be called again, or not.
const GO_ON: i64 = 0;
const END: i64 = 1;

unsafe extern "C" fn step(_: u64, search: *mut c_void) -> i64 {
    // SAFETY: the search is the frame's that called `bpf_loop`.
    let search = unsafe { &mut *search.cast::<Search>() };
    if search.left == 0 {
        search.tier = search.tier.wrapping_add(1);
        if search.tier >= u32::from(search.ring.tiers()) {
            return END;
        }
        let head = search.ring.span().wrapping_add(search.tier).wrapping_sub(1);
        let Some(head) = SLOTS.get_ptr(head) else {
            return END;
        };
        // SAFETY: one aligned word, written whole.
        let head = TierHead(unsafe { read_volatile(head) }.0);
        search.next = search.ring.span().wrapping_add(head.offset());
        search.left = head.len();
        return GO_ON;
    }
    let at = search.next;
    let Some(slot) = SLOTS.get_ptr(at) else {
        return END;
    };
    // SAFETY: as above.
    let slot = unsafe { read_volatile(slot) };
    search.next = at.wrapping_add(1);
    search.left = search.left.wrapping_sub(1);
    if let Some(row) = backend_at(slot.backend())
        && judge(search.service, slot, row) == Drawn::Ours
        && (slot.backend() == search.id
            || is_at(row, search.service, &search.address, search.port as u16))
    {
        search.found = slot.backend();
        search.slot = at;
        return END;
    }
    GO_ON
}
