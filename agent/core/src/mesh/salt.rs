use super::Position;

/// Names for states that no publisher has: where rows are left out or kept against its word, its own name must not stand
/// for them. A name is never given twice, by two lives of a mesh server with different seeds as little as by one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Salt(u64);

impl Salt {
    /// `seed` is random; `nth` tells the users of one seed apart.
    pub(super) fn new(seed: u64, nth: u64) -> Self {
        Self(seed ^ mix(nth))
    }

    pub(super) fn name(&mut self, position: Position) -> Position {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        Position {
            digest: position.digest ^ mix(self.0),
            ..position
        }
    }
}

/// Tells the tables of one life of a mesh server apart: by a number, and by a salt.
#[derive(Debug)]
pub(super) struct Instances {
    seed: u64,
    given: u64,
}

impl Instances {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, given: 0 }
    }

    pub(super) fn give(&mut self) -> (u64, Salt) {
        self.given += 1;
        (self.given, Salt::new(self.seed, self.given))
    }
}

/// splitmix64's finaliser (Steele, Lea and Flood 2014): every bit of the result hangs on every bit of the number.
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::mesh::Epoch;

    #[test]
    fn no_name_is_given_twice() {
        let position = Position {
            epoch: Epoch(1),
            revision: 1,
            digest: 7,
        };
        let names = (0..4).flat_map(|user| {
            let mut salt = Salt::new(user / 2, user % 2);
            (0..1000).map(move |_| salt.name(position).digest)
        });
        assert_eq!(names.collect::<BTreeSet<_>>().len(), 4000);
    }
}
