use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{Age, RowKey, Rows, row_bytes};

/// When absence is doubted. Whoever lost its memory, or was given an empty directory, tells a short list in good faith;
/// what it leaves out is then kept for a grace time. An explicit removal is never doubted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Guard {
    /// A list is doubted if it leaves out more than this share of the rows held. At 100 none is.
    pub percent: u8,
    /// How long rows stay that a doubted list left out.
    pub grace: Duration,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            percent: 50,
            grace: Duration::from_secs(60),
        }
    }
}

impl Guard {
    /// Fewer missing rows are an ordinary change, unless they are all that is held.
    pub const FEW: usize = 16;

    pub(super) fn doubts(self, held: usize, missing: usize) -> bool {
        let share = held.saturating_mul(self.percent.into());
        missing.saturating_mul(100) > share && (missing >= Self::FEW || missing == held)
    }
}

/// Rows that a doubted list left out, and that stay for a while.
#[derive(Clone, Debug)]
pub(super) struct Withheld {
    /// With what each costs.
    rows: BTreeMap<RowKey, u64>,
    bytes: u64,
    quarantine: Quarantine,
}

/// A quarantine as people are told of it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Quarantine {
    /// Rows that stay though the newest list does not name them.
    pub rows: usize,
    /// Rows that were held when that list came.
    pub held: usize,
    pub since: Age,
    /// When they go, if they are not named until then.
    pub until: Instant,
}

impl Quarantine {
    #[must_use]
    pub fn left(&self, now: Instant) -> Duration {
        self.until.saturating_duration_since(now)
    }
}

impl Withheld {
    /// `missing` of the rows in `held`, which were `of` when the list came.
    pub(super) fn new(
        missing: BTreeSet<RowKey>,
        held: &Rows,
        of: usize,
        guard: Guard,
        now: Instant,
    ) -> Self {
        let cost = |key: RowKey| {
            let bytes = row_bytes(&held.as_change(&key));
            (key, bytes)
        };
        let rows: BTreeMap<RowKey, u64> = missing.into_iter().map(cost).collect();
        let quarantine = Quarantine {
            rows: rows.len(),
            held: of,
            since: Age::zero(now),
            until: now + guard.grace,
        };
        Self {
            bytes: rows.values().sum(),
            rows,
            quarantine,
        }
    }

    pub(super) fn quarantine(&self) -> Quarantine {
        Quarantine {
            rows: self.rows.len(),
            ..self.quarantine
        }
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        now >= self.quarantine.until
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn contains(&self, key: &RowKey) -> bool {
        self.rows.contains_key(key)
    }

    pub(super) fn keys(&self) -> impl DoubleEndedIterator<Item = &RowKey> {
        self.rows.keys()
    }

    /// The row was named, one way or the other.
    pub(super) fn named(&mut self, key: &RowKey) {
        self.bytes -= self.rows.remove(key).unwrap_or_default();
    }

    /// Only these of its rows are missing still.
    pub(super) fn only(mut self, missing: &BTreeSet<RowKey>) -> Self {
        self.rows.retain(|key, _| missing.contains(key));
        self.bytes = self.rows.values().sum();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_is_doubted_and_little_is_not() {
        let guard = Guard::default();
        for (held, missing, doubted) in [
            (1000, 500, false),
            (1000, 501, true),
            (1000, 1000, true),
            (20, 15, false),
            (20, 16, true),
            (3, 2, false),
            (3, 3, true),
            (1, 1, true),
            (0, 0, false),
        ] {
            assert_eq!(guard.doubts(held, missing), doubted, "{missing} of {held}");
        }
        let trusting = Guard {
            percent: 100,
            ..guard
        };
        assert!(!trusting.doubts(1000, 1000));
        let strict = Guard {
            percent: 0,
            ..guard
        };
        assert!(strict.doubts(1000, 16) && !strict.doubts(1000, 15));
    }
}
