use isthmus_abi::{BackendRow, Ring, Slot, backend_state};

/// One of `len` things, evenly by `random`: multiply-shift needs no division (Lemire, 2019), and is at most one part in
/// 2³² ÷ `len` off.
#[inline(always)]
#[must_use]
pub const fn nth(len: u32, random: u32) -> u32 {
    ((random as u64 * len as u64) >> 32) as u32
}

/// Which slot of the first tier a connection draws; `None` if the ring has no backend.
#[inline(always)]
#[must_use]
pub fn draw(ring: Ring, random: u32) -> Option<u32> {
    if ring.is_empty() {
        return None;
    }
    Some(ring.first().wrapping_add(nth(ring.len(), random)))
}

/// What a drawn slot and its backend say about each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drawn {
    /// The backend is this service's, and its row is complete.
    Ours,
    /// The ring moved while the program was on its way: begin again from the ring.
    Moved,
}

/// A slot is believed only if it and the backend's row both name the service that was asked for.
#[inline(always)]
#[must_use]
pub fn judge(service: u32, slot: Slot, backend: &BackendRow) -> Drawn {
    let differs = (slot.service() ^ service)
        | (backend.service ^ service)
        | (backend.state ^ backend_state::LIVE) as u32;
    if differs == 0 {
        Drawn::Ours
    } else {
        Drawn::Moved
    }
}

/// Whether a backend's row is complete, and one of `service`'s.
#[inline(always)]
#[must_use]
pub const fn is_live(backend: &BackendRow, service: u32) -> bool {
    (backend.service ^ service) | (backend.state ^ backend_state::LIVE) as u32 == 0
}

/// Whether a backend's row is that of `service`'s endpoint at this address and port (network order).
#[inline(always)]
#[must_use]
pub const fn is_at(backend: &BackendRow, service: u32, address: &[u32; 4], port: u16) -> bool {
    let differs = (backend.service ^ service)
        | (backend.state ^ backend_state::LIVE) as u32
        | (backend.port ^ port) as u32
        | difference(&backend.address, address);
    differs == 0
}

/// Not 0 if the addresses differ. A comparison in one step: each `&&` is one more way for the verifier to walk.
#[inline(always)]
#[must_use]
pub const fn difference(one: &[u32; 4], other: &[u32; 4]) -> u32 {
    (one[0] ^ other[0]) | (one[1] ^ other[1]) | (one[2] ^ other[2]) | (one[3] ^ other[3])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn empty_ring_draws_nothing() {
        assert_eq!(draw(Ring::EMPTY, 7), None);
    }

    #[test]
    fn heads_are_skipped() {
        assert_eq!(draw(Ring::new(100, 1, 4), 0), Some(100));
        assert_eq!(draw(Ring::new(100, 3, 4), 0), Some(102));
        assert_eq!(draw(Ring::new(100, 3, 4), u32::MAX), Some(105));
    }

    #[test]
    fn shares_are_even() {
        let mut shares = [0_u32; 3];
        let steps = 1 << 16;
        for step in 0..steps {
            let slot = draw(Ring::new(0, 1, 3), step << 16).expect("three slots");
            shares[slot as usize] += 1;
        }
        for share in shares {
            assert!(share.abs_diff(steps / 3) <= 1, "{shares:?}");
        }
    }

    #[test]
    fn a_slot_of_another_service_is_never_believed() {
        let live = BackendRow {
            service: 7,
            state: backend_state::LIVE,
            ..BackendRow::default()
        };
        assert_eq!(judge(7, Slot::new(1, 7), &live), Drawn::Ours);
        assert_eq!(judge(7, Slot::new(1, 8), &live), Drawn::Moved);
        assert_eq!(judge(7, Slot::FREE, &live), Drawn::Moved);
        assert_eq!(
            judge(7, Slot::new(1, 7), &BackendRow { service: 8, ..live }),
            Drawn::Moved
        );
        assert_eq!(
            judge(
                7,
                Slot::new(1, 7),
                &BackendRow {
                    state: backend_state::FREE,
                    ..live
                }
            ),
            Drawn::Moved
        );
    }

    proptest! {
        #[test]
        fn a_draw_stays_in_the_first_tier(span in 0_u32..1 << 30, tiers in 1_u8..=8, len in 1_u32..=Ring::LEN_MAX, random: u32) {
            let ring = Ring::new(span, tiers, len);
            let slot = draw(ring, random).expect("not empty");
            prop_assert!(slot >= ring.first() && slot < ring.first() + len);
        }
    }
}
