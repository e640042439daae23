use crate::model::{Affinity, Condition};

/// A tier before empty ones are left out: backends of a lower rank are tried first.
///
/// | affinity | 0 | 1 | 2 | 3 | 4 |
/// |---|---|---|---|---|---|
/// | none | ready | | terminating | | stale peers' |
/// | local | local ready | remote ready | local terminating | remote terminating | stale peers' |
/// | remote | remote ready | local ready | remote terminating | local terminating | stale peers' |
///
/// Terminating backends in a tier still serve (KEP-1669). Whatever can still be used of a stale peer is the last resort.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Rank(u8);

impl Rank {
    pub const COUNT: u8 = 5;
    const STALE: Self = Self(4);

    /// None if the endpoint is not used at all.
    #[must_use]
    pub fn of(affinity: Affinity, local: bool, stale: bool, condition: Condition) -> Option<Self> {
        let first = match condition {
            Condition::Ready => 0,
            Condition::ServingTerminating => 2,
            Condition::NotReady => return None,
        };
        if stale {
            return Some(Self::STALE);
        }
        let second_choice = match affinity {
            Affinity::None => false,
            Affinity::Local => !local,
            Affinity::Remote => local,
        };
        Some(Self(first + u8::from(second_choice)))
    }

    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    pub(crate) const fn from_raw(rank: u8) -> Self {
        Self(rank)
    }

    /// The tier's name, for people.
    #[must_use]
    pub fn name(self, affinity: Affinity) -> &'static str {
        match (affinity, self.0) {
            (_, 4..) => "stale",
            (Affinity::None, 0 | 1) => "ready",
            (Affinity::None, _) => "terminating",
            (Affinity::Local, 0) | (Affinity::Remote, 1) => "local ready",
            (Affinity::Local, 1) | (Affinity::Remote, 0) => "remote ready",
            (Affinity::Local, 2) | (Affinity::Remote, 3) => "local terminating",
            (Affinity::Local, 3) | (Affinity::Remote, 2) => "remote terminating",
        }
    }
}

/// The ranks of tiers that were found in the maps, when nobody has yet said what their backends are: the lowest that keep
/// the order found. `tiers` says, tier by tier, whether it holds backends of this cluster.
#[must_use]
pub fn assumed(affinity: Affinity, tiers: impl IntoIterator<Item = bool>) -> Vec<Rank> {
    let mut next = 0;
    let ranks = tiers.into_iter().map(|local| {
        let fits = [Condition::Ready, Condition::ServingTerminating]
            .into_iter()
            .filter_map(|condition| Rank::of(affinity, local, false, condition))
            .find(|rank| rank.0 >= next)
            // More tiers than this version makes: in the order found, after the others.
            .unwrap_or(Rank(next.max(Rank::STALE.0)));
        next = fits.0 + 1;
        fits
    });
    ranks.collect()
}
