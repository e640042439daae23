//! When to believe that a file is gone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A removal waits so long for company: `rm -r` is never slower between two files, but under heavy load.
const ALONE: Duration = Duration::from_millis(1);
/// In company, until none came for so long.
const COMPANY: Duration = Duration::from_millis(20);
/// An editor that moves the file aside and writes it anew has so long.
const SET_ASIDE: Duration = Duration::from_secs(1);
/// Another directory in the root's place is being filled; until it was quiet for so long, what it lacks may yet come.
const REFILL: Duration = Duration::from_secs(1);

/// Why a file is missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Missing {
    /// Removed, or renamed away.
    Removed,
    SetAside,
    /// The directory is another one than it was.
    Refilled,
}

/// Files that seem to be gone, each with the time when that is believed.
#[derive(Debug, Default)]
pub(super) struct Removals {
    due: BTreeMap<String, Instant>,
    latest: Option<Instant>,
}

impl Removals {
    pub(super) fn add(&mut self, path: String, missing: Missing, now: Instant) {
        let wait = match missing {
            Missing::SetAside => SET_ASIDE,
            Missing::Refilled => REFILL,
            Missing::Removed
                if self.due.keys().all(|known| *known == path) && !self.is_crowd(now) =>
            {
                ALONE
            }
            Missing::Removed => COMPANY,
        };
        if missing == Missing::Removed {
            self.latest = Some(now);
        }
        let mut until = now + wait;
        if wait == COMPANY {
            for due in self.due.values_mut() {
                *due = (*due).max(until);
            }
        }
        if let Some(earlier) = self.due.get(&path) {
            until = until.max(*earlier);
        }
        self.due.insert(path, until);
    }

    /// One was removed just now.
    fn is_crowd(&self, now: Instant) -> bool {
        self.latest
            .is_some_and(|latest| now.duration_since(latest) < ALONE)
    }

    /// The file is there after all.
    pub(super) fn cancel(&mut self, path: &str) {
        self.due.remove(path);
    }

    pub(super) fn cancel_all(&mut self) {
        self.due.clear();
    }

    /// Another directory in the root's place had a change: all that it lacks waits on.
    pub(super) fn refill(&mut self, now: Instant) {
        for due in self.due.values_mut() {
            *due = (*due).max(now + REFILL);
        }
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.due.values().min().copied()
    }

    /// Those that are believed by now.
    pub(super) fn take(&mut self, now: Instant) -> Vec<String> {
        let due: Vec<_> = self
            .due
            .iter()
            .filter(|(_, due)| **due <= now)
            .map(|(path, _)| path.clone())
            .collect();
        for path in &due {
            self.due.remove(path);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_alone_is_believed_soon_and_a_crowd_when_it_ends() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut removals = Removals::default();
        removals.add("a".to_owned(), Missing::Removed, start);
        assert_eq!(removals.next(), Some(at(1)));
        assert_eq!(removals.take(at(1)), ["a"]);

        removals.add("b".to_owned(), Missing::Removed, at(100));
        removals.add("c".to_owned(), Missing::Removed, at(100));
        assert_eq!(
            removals.next(),
            Some(at(120)),
            "the first one waits for the second"
        );
        removals.add("d".to_owned(), Missing::Removed, at(110));
        assert_eq!(removals.take(at(129)), [""; 0]);
        removals.cancel("c");
        assert_eq!(removals.take(at(130)), ["b", "d"]);

        removals.add("e".to_owned(), Missing::SetAside, at(200));
        assert_eq!(removals.next(), Some(at(1200)));
        removals.add("e".to_owned(), Missing::Removed, at(201));
        assert_eq!(removals.next(), Some(at(1200)), "the longer wait holds");
        removals.refill(at(1000));
        assert_eq!(removals.next(), Some(at(2000)));
        removals.cancel_all();
        assert_eq!(removals.next(), None);
    }
}
