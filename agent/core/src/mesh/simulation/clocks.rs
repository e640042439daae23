//! Wall clocks, which somebody sets. No process's own time knows of it.

use std::time::{Duration, SystemTime};

/// Whose process, and so whose machine.
#[derive(Clone, Copy, Debug)]
pub(super) enum Party {
    West,
    East,
    Agent,
}

/// What each party's wall clock is ahead of the right time, in seconds.
#[derive(Default)]
pub(super) struct WallClocks([i64; 3]);

impl WallClocks {
    /// Ahead, or back: before 1970 if it comes to that.
    pub(super) fn set(&mut self, whose: Party, seconds: i64) {
        self.0[whose as usize] += seconds;
    }

    /// What it shows so long after the world began.
    pub(super) fn at(&self, whose: Party, since_start: Duration) -> SystemTime {
        let right = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000) + since_start;
        let ahead = self.0[whose as usize];
        let by = Duration::from_secs(ahead.unsigned_abs());
        if ahead < 0 { right - by } else { right + by }
    }
}
