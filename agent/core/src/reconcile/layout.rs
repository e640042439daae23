//! Where a ring's tiers stand in its span: heads of the later tiers, then each tier's slots with room to grow.

use isthmus_abi::Ring;

use super::spans::Span;
use crate::desired::Rank;

/// A ring as it stands in the tables.
#[derive(Clone, Debug, Default)]
pub(super) struct LiveRing {
    pub(super) span: Option<Span>,
    pub(super) tiers: Vec<LiveTier>,
    /// What is here is not all, or not exactly, what the tables hold: only a new span sets it right.
    pub(super) broken: bool,
    /// The word is not [`Ring::EMPTY`].
    pub(super) written: bool,
    /// The word asks for session affinity.
    pub(super) sticky: bool,
}

#[derive(Clone, Debug)]
pub(super) struct LiveTier {
    pub(super) rank: Rank,
    /// Its first slot, counted from the span's.
    pub(super) offset: u32,
    /// Slots that it can grow to.
    pub(super) room: u32,
    /// Backend ids in the order of slots.
    pub(super) ids: Vec<u32>,
}

impl LiveTier {
    pub(super) fn len(&self) -> u32 {
        // A tier lies within a span, and a span's length is a u32.
        u32::try_from(self.ids.len()).unwrap_or(u32::MAX)
    }
}

impl LiveRing {
    pub(super) fn word(&self) -> Ring {
        match (self.span, self.tiers.first()) {
            (Some(span), Some(first)) => {
                Ring::new(span.at, tier_count(&self.tiers), first.len()).with_affinity(self.sticky)
            }
            _ => Ring::EMPTY,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.tiers.iter().map(|tier| tier.ids.len()).sum()
    }
}

fn tier_count(tiers: &[LiveTier]) -> u8 {
    // Ranks are a `u8`, and each tier has one of its own.
    u8::try_from(tiers.len()).unwrap_or(u8::MAX)
}

/// Slots to ask for: heads, tiers, and room for one more backend in each.
pub(super) fn slots_needed(tiers: &[(Rank, Vec<u32>)]) -> Option<u32> {
    let slots: usize = tiers.iter().map(|(_, ids)| ids.len() + 1).sum();
    u32::try_from(slots + tiers.len().saturating_sub(1))
        .ok()
        .filter(|&slots| slots <= Ring::LEN_MAX)
}

/// Lays tiers into a span of at least [`slots_needed`]. What is left over is shared out by the tiers' sizes.
pub(super) fn lay(span: Span, tiers: Vec<(Rank, Vec<u32>)>) -> LiveRing {
    let heads = tiers.len().saturating_sub(1) as u64;
    let needed: u64 = tiers.iter().map(|(_, ids)| ids.len() as u64 + 1).sum();
    let spare = u64::from(span.len()) - heads - needed;
    let (mut offset, mut seen) = (heads, 0_u64);
    let tiers = tiers.into_iter().map(|(rank, ids)| {
        let size = ids.len() as u64 + 1;
        // Cumulative, so that rounding loses no slot: the last tier ends where the span does. Both factors are below
        // 2^32.
        let shared = |upto: u64| spare * upto / needed;
        let room = size + shared(seen + size) - shared(seen);
        seen += size;
        let tier = LiveTier {
            rank,
            offset: to_slot(offset),
            room: to_slot(room),
            ids,
        };
        offset += room;
        tier
    });
    LiveRing {
        span: Some(span),
        tiers: tiers.collect(),
        broken: false,
        written: false,
        sticky: false,
    }
}

fn to_slot(slot: u64) -> u32 {
    u32::try_from(slot).expect("within a span, whose length is a u32")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tiers_fill_the_span_in_order_each_with_room(sizes in proptest::collection::vec(1_usize..50, 1..6)) {
            let tiers: Vec<_> = sizes.iter().enumerate()
                .map(|(i, &n)| (Rank::from_raw(u8::try_from(i).unwrap()), vec![7; n])).collect();
            let needed = slots_needed(&tiers).unwrap();
            let span = Span { at: 0, order: u8::try_from(needed.next_power_of_two().trailing_zeros()).unwrap() };
            let ring = lay(span, tiers);
            let mut at = u32::try_from(sizes.len()).unwrap() - 1;
            for tier in &ring.tiers {
                prop_assert_eq!(tier.offset, at);
                prop_assert!(tier.room > tier.len());
                at += tier.room;
            }
            prop_assert_eq!(at, span.len());
            prop_assert_eq!(ring.word().first(), ring.tiers[0].offset);
        }
    }
}
