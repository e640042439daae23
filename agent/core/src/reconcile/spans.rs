use std::collections::BTreeSet;

/// A stretch of `slots` whose length is a power of two and whose start is a multiple of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Span {
    pub(super) at: u32,
    /// Its length is 2 to this power.
    pub(super) order: u8,
}

impl Span {
    pub(super) const fn len(self) -> u32 {
        1 << self.order
    }
}

/// A buddy allocator over the slot array (Knuth, TAOCP 2.5): a freed span joins its neighbour when both are free, so an
/// array that is used up and emptied is whole again.
#[derive(Debug)]
pub(super) struct Spans {
    /// Free spans by order.
    free: Vec<BTreeSet<u32>>,
    capacity: u32,
    taken: u32,
}

/// Orders that a 32-bit index can have.
const ORDERS: u8 = 31;

impl Spans {
    pub(super) fn new(capacity: u32) -> Self {
        let mut spans = Self {
            free: vec![BTreeSet::new(); usize::from(ORDERS)],
            capacity,
            taken: 0,
        };
        // A capacity that is no power of two is a row of spans that get smaller: its bits.
        let mut at = 0;
        for order in (0..ORDERS).rev() {
            if capacity & 1 << order != 0 {
                spans.free[usize::from(order)].insert(at);
                at += 1 << order;
            }
        }
        spans
    }

    /// The smallest free span with room for `slots`, cut to size. O(log capacity).
    pub(super) fn take(&mut self, slots: u32) -> Option<Span> {
        let order = order_for(slots)?;
        let found = (order..ORDERS).find(|&o| !self.free[usize::from(o)].is_empty())?;
        let at = self.free[usize::from(found)].pop_first()?;
        for half in (order..found).rev() {
            self.free[usize::from(half)].insert(at + (1 << half));
        }
        self.taken += 1 << order;
        Some(Span { at, order })
    }

    /// Takes the stretch that a ring was found in. None if it is not aligned, out of range or taken.
    pub(super) fn claim(&mut self, at: u32, slots: u32) -> Option<Span> {
        let order = order_for(slots)?;
        if !at.is_multiple_of(1 << order) {
            return None;
        }
        let (found, start) = (order..ORDERS).find_map(|o| {
            let start = at & !((1_u32 << o) - 1);
            self.free[usize::from(o)]
                .contains(&start)
                .then_some((o, start))
        })?;
        self.free[usize::from(found)].remove(&start);
        let mut start = start;
        for half in (order..found).rev() {
            let upper = start + (1 << half);
            if at >= upper {
                self.free[usize::from(half)].insert(start);
                start = upper;
            } else {
                self.free[usize::from(half)].insert(upper);
            }
        }
        self.taken += 1 << order;
        Some(Span { at, order })
    }

    /// Doubles a span to its right, where that half is its buddy and free.
    pub(super) fn widen(&mut self, span: Span) -> Option<Span> {
        let wider = Span {
            order: span.order + 1,
            ..span
        };
        let fits = wider.order < ORDERS && span.at.is_multiple_of(wider.len());
        let taken = fits && self.free[usize::from(span.order)].remove(&(span.at + span.len()));
        taken.then(|| {
            self.taken += span.len();
            wider
        })
    }

    pub(super) fn free(&mut self, span: Span) {
        self.taken -= span.len();
        let Span { mut at, mut order } = span;
        while order + 1 < ORDERS && self.free[usize::from(order)].remove(&(at ^ 1 << order)) {
            at &= !(1 << order);
            order += 1;
        }
        self.free[usize::from(order)].insert(at);
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Slots in taken spans, slack included.
    pub(super) fn taken(&self) -> u32 {
        self.taken
    }
}

fn order_for(slots: u32) -> Option<u8> {
    let order = slots.max(1).checked_next_power_of_two()?.trailing_zeros();
    u8::try_from(order).ok().filter(|&order| order < ORDERS)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_emptied_array_is_whole_again() {
        let mut spans = Spans::new(12);
        let taken: Vec<_> = [1, 2, 3, 2]
            .map(|slots| spans.take(slots).unwrap())
            .to_vec();
        assert_eq!(spans.take(4), None);
        taken.into_iter().for_each(|span| spans.free(span));
        assert_eq!(
            (spans.taken(), spans.take(8)),
            (0, Some(Span { at: 0, order: 3 }))
        );
    }

    #[test]
    fn a_span_widens_into_its_free_buddy_only() {
        let mut spans = Spans::new(8);
        let (left, right) = (spans.claim(0, 1).unwrap(), spans.claim(1, 1).unwrap());
        assert_eq!((spans.widen(left), spans.widen(right)), (None, None));
        spans.free(right);
        let wider = spans.widen(left).unwrap();
        assert_eq!((wider, spans.taken()), (Span { at: 0, order: 1 }, 2));
        spans.free(wider);
        assert_eq!(spans.take(8), Some(Span { at: 0, order: 3 }));
    }

    proptest! {
        #[test]
        fn spans_never_overlap_and_claims_rebuild_the_allocator(
            capacity in 1_u32..300,
            steps in proptest::collection::vec((1_u32..40, any::<prop::sample::Index>(), any::<bool>()), 0..80),
        ) {
            let mut spans = Spans::new(capacity);
            let mut held: Vec<Span> = Vec::new();
            for (slots, which, free) in steps {
                if free && !held.is_empty() {
                    spans.free(held.swap_remove(which.index(held.len())));
                } else if let Some(span) = spans.take(slots) {
                    prop_assert!(span.len() >= slots && span.at + span.len() <= capacity);
                    held.push(span);
                }
                held.sort();
                prop_assert!(held.windows(2).all(|w| w[0].at + w[0].len() <= w[1].at));
                prop_assert_eq!(spans.taken(), held.iter().map(|span| span.len()).sum::<u32>());
            }
            let mut again = Spans::new(capacity);
            for span in &held {
                prop_assert_eq!(again.claim(span.at, span.len()), Some(*span));
                prop_assert_eq!(again.claim(span.at, 1), None);
            }
            prop_assert_eq!(&again.free, &spans.free);
        }
    }
}
