//! What a loop that fails again and again says in the log: a thing once, and then each minute.

use std::time::{Duration, Instant};

/// Between two lines that say the same.
const PAUSE: Duration = Duration::from_secs(60);
/// What lives for so long is well: its next failure is news.
const STEADY: Duration = Duration::from_secs(10);
/// Different lines that are remembered; a link has a few endpoints, and each fails in a few ways.
const WORDS_MAX: usize = 16;

/// Lines said lately.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    said: Vec<Said>,
}

#[derive(Debug)]
struct Said {
    words: String,
    at: Instant,
    /// How often since then.
    again: u64,
}

impl Seldom {
    /// `Some` if it is to be said now: how often it was not said since it last was.
    pub(crate) fn due(&mut self, words: &str, now: Instant) -> Option<u64> {
        if let Some(said) = self.said.iter_mut().find(|said| said.words == words) {
            if now.saturating_duration_since(said.at) < PAUSE {
                said.again += 1;
                return None;
            }
            said.at = now;
            return Some(std::mem::take(&mut said.again));
        }
        if self.said.len() == WORDS_MAX {
            self.said.remove(0);
        }
        self.said.push(Said {
            words: words.to_owned(),
            at: now,
            again: 0,
        });
        Some(0)
    }

    /// It was well from `since` until now.
    pub(crate) fn was_well(&mut self, since: Instant, now: Instant) {
        if now.saturating_duration_since(since) >= STEADY {
            self.said.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_a_minute_and_news_at_once() {
        let (mut seldom, start) = (Seldom::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(seldom.due("refused", at(0)), Some(0));
        assert_eq!(seldom.due("refused", at(1)), None);
        assert_eq!(seldom.due("silent", at(2)), Some(0));
        assert_eq!(seldom.due("refused", at(59)), None);
        assert_eq!(seldom.due("refused", at(60)), Some(2));
        // It connects and breaks again and again.
        seldom.was_well(at(60), at(62));
        assert_eq!(seldom.due("refused", at(62)), None);
        seldom.was_well(at(63), at(73));
        assert_eq!(seldom.due("refused", at(73)), Some(0));
        for n in 0..100 {
            seldom.due(&n.to_string(), at(74));
        }
        assert_eq!(seldom.said.len(), WORDS_MAX);
    }
}
