use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

/// A moment, by its age at another: of this process's past or of another's. Never wall clocks compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Age {
    at: Instant,
    then: Duration,
}

impl Age {
    #[must_use]
    pub fn zero(now: Instant) -> Self {
        Self {
            at: now,
            then: Duration::ZERO,
        }
    }
    #[must_use]
    pub fn of(age: Duration, now: Instant) -> Self {
        Self { at: now, then: age }
    }
    /// When it was zero, or the first moment that can be told.
    pub(super) fn moment(&self) -> Instant {
        self.at.checked_sub(self.then).unwrap_or(self.at)
    }
    #[must_use]
    pub fn at(&self, now: Instant) -> Duration {
        self.then
            .saturating_add(now.saturating_duration_since(self.at))
    }
}

/// The longest stretch between two looks at the clock that counts as lived through. Whoever was stopped for longer was
/// not there to hear anybody, and must not blame them.
const LIVED: Duration = Duration::from_millis(1500);

/// A clock that stands while its process does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wakefulness {
    last: Instant,
    awake: Duration,
}

impl Wakefulness {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            last: now,
            awake: Duration::ZERO,
        }
    }
    pub(super) fn advance(&mut self, now: Instant) {
        self.awake = self.at(now);
        self.last = self.last.max(now);
    }
    pub(super) fn at(&self, now: Instant) -> Duration {
        self.awake + now.saturating_duration_since(self.last).min(LIVED)
    }
}

/// How long a peer has been silent, as a living witness counts it.
#[derive(Clone, Copy, Debug)]
pub struct Silence {
    /// Witnessed before `since`.
    before: Duration,
    /// On the witness's [`Wakefulness`].
    since: Duration,
    last_word: Option<Age>,
}

impl Silence {
    /// Nothing heard yet.
    pub(super) fn begin(clock: &Wakefulness, now: Instant) -> Self {
        Self {
            before: Duration::ZERO,
            since: clock.at(now),
            last_word: None,
        }
    }

    pub(super) fn word(&mut self, clock: &Wakefulness, now: Instant) {
        *self = Self {
            before: Duration::ZERO,
            since: clock.at(now),
            last_word: Some(Age::zero(now)),
        };
    }

    pub(super) fn witnessed(&self, clock: &Wakefulness, now: Instant) -> Duration {
        self.before
            .saturating_add(clock.at(now).saturating_sub(self.since))
    }

    pub(super) fn last_word(&self) -> Option<Age> {
        self.last_word
    }

    pub(super) fn save(&self, clock: &Wakefulness, now: Instant, wall: SystemTime) -> SavedSilence {
        SavedSilence::new(self.witnessed(clock, now), self.last_word, now, wall)
    }

    pub(super) fn load(
        saved: &SavedSilence,
        clock: &Wakefulness,
        now: Instant,
        wall: SystemTime,
    ) -> Self {
        Self {
            before: saved.witnessed,
            since: clock.at(now),
            last_word: saved.last_word(now, wall),
        }
    }
}

/// A silence as a state file holds it. The wall clock is for people; what is decided hangs on `witnessed`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SavedSilence {
    pub witnessed: Duration,
    pub last_word: Option<SystemTime>,
}

impl SavedSilence {
    pub(super) fn new(
        witnessed: Duration,
        last_word: Option<Age>,
        now: Instant,
        wall: SystemTime,
    ) -> Self {
        Self {
            witnessed,
            last_word: last_word.map(|age| {
                let then = wall.checked_sub(age.at(now));
                // A state file holds no time before this one. A board without a battery wakes up in it.
                then.map_or(SystemTime::UNIX_EPOCH, |then| {
                    then.max(SystemTime::UNIX_EPOCH)
                })
            }),
        }
    }

    /// A clock that was set back makes the last word "just now", never the future.
    pub(super) fn last_word(&self, now: Instant, wall: SystemTime) -> Option<Age> {
        self.last_word
            .map(|then| Age::of(wall.duration_since(then).unwrap_or_default(), now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_witness_that_was_stopped_blames_nobody() {
        let start = Instant::now();
        let mut clock = Wakefulness::new(start);
        let silence = Silence::begin(&clock, start);
        clock.advance(start + SECOND);
        assert_eq!(silence.witnessed(&clock, start + SECOND), SECOND);
        // Stopped for an hour.
        let later = start + 3600 * SECOND;
        assert_eq!(silence.witnessed(&clock, later), SECOND + LIVED);
        clock.advance(later);
        assert_eq!(
            silence.witnessed(&clock, later + SECOND),
            2 * SECOND + LIVED
        );
    }

    #[test]
    fn what_was_witnessed_survives_a_restart_and_the_time_between_does_not_count() {
        let start = Instant::now();
        let wall = SystemTime::now();
        let clock = Wakefulness::new(start);
        let mut silence = Silence::begin(&clock, start);
        silence.word(&clock, start);
        let saved = silence.save(&clock, start + SECOND, wall);
        let again = start + 100 * SECOND;
        let clock = Wakefulness::new(again);
        let silence = Silence::load(&saved, &clock, again, wall + 99 * SECOND);
        assert_eq!(silence.witnessed(&clock, again + SECOND), 2 * SECOND);
        assert_eq!(
            silence.last_word().map(|age| age.at(again)),
            Some(100 * SECOND)
        );
        // A clock that begins at its epoch, and a word of long before: as old as can be said.
        let old = Some(Age::of(Duration::MAX, again));
        let saved_then = SavedSilence::new(Duration::ZERO, old, again, SystemTime::UNIX_EPOCH);
        assert_eq!(saved_then.last_word, Some(SystemTime::UNIX_EPOCH));
        // The wall clock was set back: "just now".
        let silence = Silence::load(&saved, &clock, again, SystemTime::UNIX_EPOCH);
        assert_eq!(
            silence.last_word().map(|age| age.at(again)),
            Some(Duration::ZERO)
        );
    }
}
