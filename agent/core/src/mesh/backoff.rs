use std::time::Duration;

/// Waits between tries to connect: doubling, and shortened by chance so that those who lost the same server do not
/// come back at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    tries: u32,
}

impl Backoff {
    #[must_use]
    pub fn new(first: Duration, most: Duration) -> Self {
        Self {
            first,
            most,
            tries: 0,
        }
    }

    pub fn reset(&mut self) {
        self.tries = 0;
    }

    /// How long to wait now. `chance` is uniform in 0..=1; the wait is between half of its bound and the bound.
    pub fn next(&mut self, chance: f64) -> Duration {
        let bound = self
            .first
            .saturating_mul(1 << self.tries.min(16))
            .min(self.most);
        self.tries += 1;
        bound.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_bound() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let waits: Vec<u128> = (0..6).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.next(0.0).as_millis(), 50);
    }
}
